"""quantlab packs a trained language model into a byte budget and proves the score it still has."""

__version__ = "0.1.0"
