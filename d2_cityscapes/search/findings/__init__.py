"""What a search has learned."""
