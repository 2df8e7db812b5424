"""Hyperparameter search over config keys, on Optuna: tools/search.py is its command."""
