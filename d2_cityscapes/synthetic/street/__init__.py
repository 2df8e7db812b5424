"""Drawing of made-up street scenes: a pinhole camera, things in metres, and their painters."""
