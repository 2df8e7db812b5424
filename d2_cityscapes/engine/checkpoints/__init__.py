"""Weights in and out, resume, averages."""
