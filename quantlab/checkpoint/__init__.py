"""Checkpoints: read state dicts, decide what is a matrix, write safetensors."""
