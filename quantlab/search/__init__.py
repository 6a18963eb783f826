"""Choosing widths and clips: measured rate-distortion points and the budget search."""
