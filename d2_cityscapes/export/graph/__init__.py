"""Models written for export: plain modules of a model's own layers, tensors in, tensors out."""
