"""Scores of a model on a text: windows, ledger, probes, and the divergence of two models."""
