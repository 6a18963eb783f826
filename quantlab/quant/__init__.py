"""Rounding weights to a grid: round-to-nearest and GPTQ feedback."""
