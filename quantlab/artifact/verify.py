"""Proof that a file decodes to what was measured: it is read again by a process that knows nothing but its path."""

import sys
from pathlib import Path

from quantlab.artifact.decode import decode_artifact, digest, read_artifact
from quantlab.child_process import run_module


def digest_in_fresh_process(path: Path) -> str:
    """Digest of the tensors that a new Python process decodes from the file at `path`."""
    return run_module("quantlab.artifact.verify", str(path))


if __name__ == "__main__":
    print(digest(decode_artifact(*read_artifact(Path(sys.argv[1])))))
