"""Proof that a file decodes to what was measured: it is read again by a process that knows nothing but its path."""

from pathlib import Path
from typing import Any

from quantlab.artifact.decode import digest
from quantlab.artifact.reader import open_artifact
from quantlab.child_process import run_child, serve
from quantlab.progress import Progress


def digest_in_fresh_process(path: Path) -> str:
    """Return the digest of the tensors that a new Python process decodes from the file at `path`."""
    return str(run_child("quantlab.artifact.verify", {"path": str(path)}))


def _digest(request: dict[str, Any], progress: Progress) -> str:
    return digest(open_artifact(request["path"]).arrays())


if __name__ == "__main__":
    serve(_digest)
