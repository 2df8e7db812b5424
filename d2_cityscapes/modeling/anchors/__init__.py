"""Anchors fitted to boxes by k-means, and the generator that uses them."""
