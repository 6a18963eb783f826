"""Evaluation: score a model on a text, probe how it predicts, and measure how far two models diverge."""
