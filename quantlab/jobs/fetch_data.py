"""Fetch the challenge's token shards and their tokenizer from a data set on the Hugging Face Hub.

A file appears under its name only after its size and header were checked. What an earlier call fetched is kept, and a download
that was cut off goes on where it stopped (huggingface_hub does that in the folder `PARTS`).
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantlab.errors import ConfigError, DataError, QuantlabError, first_line
from quantlab.fields import parse_json
from quantlab.progress import Progress, silent
from quantlab.text.prepare import MANIFEST
from quantlab.text.shards import MAX_SHARDS, read_header, sidecar_of
from quantlab.text.tokenizer import Tokenizer

CASEOPS = "sp8192_lossless_caps_caseops_v1_reserved"
"""Name of the CaseOps variant in its data set."""
REPOSITORIES = {
    "sp1024": "willdepueoai/parameter-golf",
    "sp4096": "kevclark/parameter-golf",
    "sp8192": "kevclark/parameter-golf",
    CASEOPS: "romeerp/parameter-golf-caseops-v1",
}
"""Data sets that the challenge's records name, by variant."""
ROOT = "datasets"
"""Folder of a data set on the hub that has its manifest."""
PARTS = ".fetch"
"""Folder, within the output, of files that are not whole and checked yet."""
MAX_MANIFEST_BYTES = 1 << 24
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one call fetched."""

    folder: Path
    """Folder of the shards."""
    tokenizer: Path
    files: int
    """Number of files that are in place."""
    new: int
    """Number of them that this call fetched."""


def fetch_data(
    variant: str,
    out: Path,
    *,
    repository: str | None = None,
    revision: str | None = None,
    train_shards: int = 80,
    endpoint: str | None = None,
    progress: Progress = silent,
) -> Fetched:
    """Fetch a variant's validation shards, its first training shards and its tokenizer into `out`.

    They lie where the presets look for them if `out` is data: out/datasets/fineweb10B_VARIANT and out/tokenizers.

    Args:
        variant: name after fineweb10B_ in the data set, such as sp1024.
        repository: data set on the hub, OWNER/NAME; if None, that of `REPOSITORIES`.
        revision: branch, tag or commit of the data set.
        train_shards: number of training shards, 0 or more.
        endpoint: address of the hub; if None, the library's own.
    Raises:
        ConfigError: huggingface_hub is not installed, the variant has no known data set, or it has fewer training shards.
        DataError: the manifest, a shard or the tokenizer is damaged, or a file on the disk is.
        QuantlabError: the hub cannot be reached or does not have a file.
    """
    if not _NAME.fullmatch(variant):
        raise ConfigError(f"variant must be a name such as sp1024, got {variant!r}")
    if train_shards < 0:
        raise ConfigError(f"train shards must be 0 or more, got {train_shards}")
    repository = repository or REPOSITORIES.get(variant)
    if repository is None:
        raise ConfigError(
            f"no data set is known for variant {variant!r}", hint=f"pass --repo, or one of {', '.join(REPOSITORIES)}"
        )
    hub = _Hub(repository, revision, endpoint, out / PARTS)
    dataset, tokenizer = _entries(hub.manifest(), variant, repository)
    files = list(_files(dataset, tokenizer, train_shards))
    new = 0
    for number, (remote, place, check) in enumerate(files):
        progress("fetch files", number, len(files), place.name)
        new += _fetch(hub, remote, out / place, check)
    progress("fetch files", len(files), len(files), f"{new} new")
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return Fetched(out / files[0][1].parent, out / files[-1][1], len(files), new)


Check = Callable[[Path], object]


class _Hub:
    """A data set on the hub, whose files are downloaded into a folder of their own."""

    def __init__(self, repository: str, revision: str | None, endpoint: str | None, parts: Path) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise ConfigError("fetching needs the package huggingface_hub", hint="pip install 'quantlab-llm[hf]'") from error
        self.library, self.repository, self.parts = huggingface_hub, repository, parts
        self.where: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "endpoint": endpoint}

    def download(self, remote: str) -> Path:
        """Return where a file lies after its download, or after the rest of one that was cut off."""
        try:
            return Path(self.library.hf_hub_download(self.repository, remote, local_dir=self.parts, **self.where))
        except Exception as error:  # the library raises errors of its own, of httpx and of the system
            raise QuantlabError(
                f"cannot fetch {remote} of data set {self.repository}: {first_line(error)}",
                hint="run the command again: it goes on where it stopped",
            ) from error

    def manifest(self) -> Any:
        """Return the data set's manifest as JSON values."""
        path = self.download(f"{ROOT}/{MANIFEST}")
        if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
            raise DataError(f"{MANIFEST} of {self.repository} has {size:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read")
        return parse_json(path.read_bytes(), f"{MANIFEST} of {self.repository}", DataError)


def _fetch(hub: _Hub, remote: str, place: Path, check: Check) -> bool:
    """Put a checked file in its place; return whether it was fetched, False if it was there. DataError for a damaged one."""
    if place.exists():
        try:
            check(place)
        except DataError as error:
            raise DataError(str(error), hint=f"delete {place} and run the command again") from error
        return False
    found = hub.download(remote)
    try:
        check(found)
    except DataError:
        found.unlink()  # the next call must not take it for whole
        raise
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(found, place)
    return True


def _entries(manifest: Any, variant: str, repository: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the manifest's entries of a data set and of its tokenizer. DataError where it has none."""
    if not isinstance(manifest, dict):
        raise DataError(f"{MANIFEST} of {repository} is no JSON object")
    dataset = _entry(manifest.get("datasets"), f"fineweb10B_{variant}")
    if dataset is None:
        names = [str(entry.get("name"))[:60] for entry in _listed(manifest.get("datasets"))]
        raise DataError(f"data set {repository} has no fineweb10B_{variant}, it has {', '.join(names) or 'none'}")
    tokenizer = _entry(manifest.get("tokenizers"), dataset.get("tokenizer_name"))
    if tokenizer is None:
        raise DataError(f"{MANIFEST} of {repository} has no tokenizer {str(dataset.get('tokenizer_name'))[:60]!r}")
    return dataset, tokenizer


def _listed(entries: Any) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _entry(entries: Any, name: Any) -> dict[str, Any] | None:
    return next((entry for entry in _listed(entries) if entry.get("name") == name), None)


def _files(dataset: Mapping[str, Any], tokenizer: Mapping[str, Any], train_shards: int) -> Iterator[tuple[str, Path, Check]]:
    """Yield the name on the hub, the place below the output, and the check of each file; the tokenizer's model is the last."""
    stats = dataset.get("stats")
    counts = {split: stats.get(f"files_{split}") if isinstance(stats, dict) else None for split in ("val", "train")}
    for split, count in counts.items():
        if type(count) is not int or not 0 <= count <= MAX_SHARDS:
            raise DataError(f"{MANIFEST}: files_{split} of {dataset['name']} must be 0 to {MAX_SHARDS:,}, got {count!r:.40}")
    if train_shards > counts["train"]:  # type: ignore[operator]  # checked above
        raise ConfigError(f"{dataset['name']} has {counts['train']} training shards, {train_shards} are asked for")
    folder = PurePosixPath("datasets", dataset["name"])
    for split, count in (("val", counts["val"]), ("train", train_shards)):
        for number in range(count):  # type: ignore[arg-type]
            shard = Path(folder, f"fineweb_{split}_{number:06d}.bin")
            yield f"{ROOT}/{shard.as_posix()}", shard, read_header
            if split == "val" and "caseops" in dataset["name"]:
                yield f"{ROOT}/{sidecar_of(shard).as_posix()}", sidecar_of(shard), read_header
    model = str(tokenizer.get("model_path") or tokenizer.get("path") or "")
    path = PurePosixPath(model)
    if len(path.parts) > 3 or not path.parts or not all(_NAME.fullmatch(part) for part in path.parts):
        raise DataError(f"{MANIFEST}: the tokenizer's model_path must be a path below the data set, got {model[:60]!r}")
    yield f"{ROOT}/{path}", Path("tokenizers", path.name), Tokenizer.load
