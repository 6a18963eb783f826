"""The entropy coder: integer codes to bytes and back, and byte codecs for everything else."""
