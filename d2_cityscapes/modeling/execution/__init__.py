"""How the same network is run: folded, compiled, recomputed."""
