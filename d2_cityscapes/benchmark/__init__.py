"""Measurements of this package beside stock Detectron2, in one run."""
