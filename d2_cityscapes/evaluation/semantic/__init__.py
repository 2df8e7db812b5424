"""IoU of classes and categories, and the instance-level iIoU."""
