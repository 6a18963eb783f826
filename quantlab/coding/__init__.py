"""Integers to bytes and back: the codecs and the byte order that suits them."""
