"""PQ and PQ-dagger, from memory and from files."""
