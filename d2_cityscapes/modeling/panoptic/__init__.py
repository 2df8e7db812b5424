"""The Seamless model, its heads, and panoptic fusion."""
