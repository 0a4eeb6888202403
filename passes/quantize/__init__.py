"""Quantization: arithmetic on small integers."""
