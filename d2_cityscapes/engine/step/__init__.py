"""One optimizer step, and what feeds it."""
