"""The packed file: container, manifest, writer, reader and the decoder to arrays."""
