"""Choosing grids: measured rate-distortion points and the budget search."""
