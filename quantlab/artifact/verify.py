"""Proof that a file decodes to what was measured: it is read again by a process that knows nothing but its path."""

import os
import subprocess
import sys
from pathlib import Path

from quantlab.artifact.decode import decode_artifact, digest, read_artifact
from quantlab.errors import QuantlabError


def digest_in_fresh_process(path: Path) -> str:
    """Digest of the tensors that a new Python process decodes from the file at `path`."""
    command = [sys.executable, "-m", "quantlab.artifact.verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise QuantlabError(f"reading {path} back failed: {last[0]}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    root = str(Path(sys.modules["quantlab"].__file__ or "").resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


if __name__ == "__main__":
    print(digest(decode_artifact(*read_artifact(Path(sys.argv[1])))))
