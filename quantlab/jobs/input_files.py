"""The files that a job reads, so that its outputs can be checked not to be among them."""

import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from quantlab.calib.statistics import Statistics
from quantlab.errors import CheckpointError
from quantlab.models.checkpoint import NOT_SHARDS
from quantlab.models.loading import LoadedModel, Source
from quantlab.tensor_file import read_metadata
from quantlab.text.tokenizer import Tokenizer

_OUTPUTS = re.compile(r".*(\.qlab|\.report\.json|\.eval\.json)")
"""Names of what our own commands write into the folder of a model."""


def input_files(
    source: Source | None = None,
    *,
    stats: str | Path | Statistics | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    model: str | None = None,
    calib: str = "",
    others: Iterable[str | Path] = (),
) -> list[Path]:
    """Return the existing files that these arguments of a job name; see `jobs.pack.pack` for each.

    A folder stands for the files in it, without artifacts, reports, records and statistics.
    """
    if isinstance(source, LoadedModel):
        source = source.name or None
    kind, _, named = calib.partition(":")
    shards = glob(named) if kind == "tokens" else [named] if kind == "text" else []
    code = [] if model is None else [model, model.rpartition(":")[0] or model]  # a .toml file, or a file and its function
    given = [value for value in (source, stats, tokenizer) if isinstance(value, str | Path)]
    return [file for path in (*given, *shards, *code, *others) for file in _files(Path(path))]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(file for file in path.iterdir() if file.is_file() and not _is_output(file))


def _is_output(path: Path) -> bool:
    """Return whether a file in the folder of a model is none of the model's own."""
    if path.suffix == ".safetensors":
        try:
            return bool(NOT_SHARDS & read_metadata(path).keys())
        except CheckpointError:
            return False
    return _OUTPUTS.fullmatch(path.name) is not None
