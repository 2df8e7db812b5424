"""Hyperparameter search over config keys, on Optuna: d2c search is its command."""
