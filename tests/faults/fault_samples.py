"""A packing of about a second, from which the tests beside this file take disk, folder, files or process."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from conftest import TOY, random_state

from quantlab.artifact.decode import digest
from quantlab.artifact.reader import open_artifact
from quantlab.jobs.pack import pack
from quantlab.jobs.workspace import folder_of

SMALL = {"budget": 30_000, "calib_tokens": 1024, "calib_seq_len": 32, "tune_steps": 2}
NAMES = {"m.qlab", "m.report.json"}
"""All that a packing leaves."""
_folder = tempfile.TemporaryDirectory()


@cache
def checkpoint() -> Path:
    """Return a checkpoint of one layer."""
    path = Path(_folder.name) / "small.pt"
    torch.save(random_state(replace(TOY, num_layers=1)), path)
    return path


@cache
def whole(**options: object) -> bytes:
    """Return the artifact of a packing that nothing disturbed."""
    return packed(Path(_folder.name) / "whole.qlab", **options)


def packed(output: Path, **options: object) -> bytes:
    """Pack; the file is read back in this process, since fresh ones are tested elsewhere and take a second."""

    def read(path: Path) -> str:
        return digest(open_artifact(path).arrays())

    with patch("quantlab.jobs.packer.digest_in_fresh_process", read):
        pack(checkpoint(), output=output, **(SMALL | {"force": True} | options))
    return output.read_bytes()


def unfinished(output: Path, **options: object) -> Path:
    """Pack until the outputs are about to appear; return the work folder."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        with patch("quantlab.jobs.packer._publish", die):
            packed(output, **options)
    except KeyboardInterrupt:
        return folder_of(output)
    raise AssertionError("the packing was not stopped")


def names(folder: Path) -> set[str]:
    """Return the names of all that is in a folder."""
    return {path.name for path in folder.iterdir()}
