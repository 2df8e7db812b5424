"""Our own format of a dataset: write, index, verify, read."""
