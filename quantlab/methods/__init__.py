"""Quantization methods: each is a folder behind one protocol (method.py)."""
