"""Pixels over pixels: what predictions, evaluation and reports show."""
