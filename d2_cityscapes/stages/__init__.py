"""The staged recipe, each stage in a process of its own."""
