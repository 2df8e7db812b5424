"""Whether every key of a search reaches what trains."""
