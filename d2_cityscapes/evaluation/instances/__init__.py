"""Average precision of instances, by the protocols of COCO and Cityscapes."""
