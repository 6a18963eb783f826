"""train_gpt.py of a submission: one script that trains, packs and scores as its pipeline says, and decodes the artifact alone.

Training needs quantlab, a package that is installed; decoding needs numpy and torch. The decoder is that of `pack
--emit-decoder`, as plain minified source: the wrapper around the whole script compresses it better than twice.
"""

import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import torch

from quantlab.artifact.decode import digest
from quantlab.artifact.emit import minify
from quantlab.errors import QuantlabError
from quantlab.share.wrapped_code import WrappedCode, wrap

NAME = "train_gpt.py"
DECODE_SECONDS = 600.0
_TEMPLATE = '''\
"""Train, pack and score: python train_gpt.py (variable SEED). Decode alone: python train_gpt.py decode M.qlab STATE.pt"""
import os
import subprocess
import sys

PIPELINE = {pipeline!r}
DECODER = {decoder!r}


def load(path):
    names = {{}}
    exec(DECODER, names)
    return names["load"](path)


def main():
    if sys.argv[1:2] == ["decode"]:
        import torch

        torch.save(load(sys.argv[2]), sys.argv[3])
        return
    with open("pipeline.toml", "w") as file:
        file.write(PIPELINE)
    seed = os.environ.get("SEED", {seed!r})
    sys.exit(subprocess.call(["quantlab", "run", "pipeline.toml", "--set", "train.seed=" + seed]))


if __name__ == "__main__":
    main()
'''


def train_script(pipeline: str, seed: int) -> str:
    """Return the source of train_gpt.py.

    Args:
        pipeline: the pipeline file's text; its paths are relative to the submission folder.
        seed: seed of training where the variable SEED says nothing.
    """
    decoder = minify((resources.files("quantlab.artifact") / "standalone.py").read_text("utf-8"))
    return _TEMPLATE.format(pipeline=pipeline, decoder=decoder, seed=str(seed))


def wrapped_script(source: str) -> WrappedCode:
    """Return the shipped script: the wrapper where it is shorter than the source."""
    found = wrap(source)
    return found if len(found.code) < len(source.encode()) else WrappedCode(source.encode(), source, "plain", False)


def prove_decoding(script: bytes, artifact: Path, tensors_sha256: str) -> None:
    """Run the shipped script in a fresh process, away from quantlab, and compare what it decodes with what was measured.

    Raises:
        QuantlabError: the script fails, or decodes to other tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, state = Path(folder) / NAME, Path(folder) / "state.pt"
        file.write_bytes(script)
        command = [sys.executable, "-I", NAME, "decode", str(artifact.resolve()), str(state)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DECODE_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise QuantlabError(f"{NAME} did not decode {artifact} within {DECODE_SECONDS:g} s") from error
        if done.returncode or not state.is_file():
            lines = done.stderr.strip().splitlines()
            raise QuantlabError(f"{NAME} does not decode {artifact}: {lines[-1] if lines else 'no message'}")
        tensors = torch.load(state, weights_only=True)
    found = digest({name: tensor.numpy() for name, tensor in tensors.items()})
    if found != tensors_sha256:
        raise QuantlabError(f"{NAME} decodes {artifact} to other tensors: {found[:12]}, measured were {tensors_sha256[:12]}")
