"""Who runs which trial, and where."""
