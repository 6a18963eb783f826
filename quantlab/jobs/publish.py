"""Publish a packed model with its card, hashes and provenance, and fetch one that somebody published."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from quantlab import __version__
from quantlab.artifact.decode import digest
from quantlab.artifact.reader import open_artifact
from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import hash_file
from quantlab.jobs.compare import files_beside, read_entry
from quantlab.progress import Progress, silent
from quantlab.report.card import render_card
from quantlab.report.entry import Entry
from quantlab.report.pack_report import read_report
from quantlab.runs.export import export_runs
from quantlab.runs.frontier import data_id
from quantlab.runs.private import cleaner
from quantlab.runs.run_record import RECORD_NAME, RunRecord, plain, read_record
from quantlab.runs.store import Run
from quantlab.runs.work_files import artifact_of, directory_of, training_of
from quantlab.share.index import add_to_index
from quantlab.share.place import open_place
from quantlab.share.publication import (
    Publication,
    PublishedFile,
    download,
    fetch_publication,
    upload,
)

PACKED, FLOAT, BOTH = KINDS = ("packed", "float", "both")
ARTIFACT_NAME, CARD_NAME = "model.qlab", "README.md"
BESIDE = ("tokenizer.model", "tokenizer.json", "decoder.py")
"""Files beside an artifact that its readers need."""
PROVENANCE = ("options", "seeds", "versions", "git", "checkpoint", "started", "kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What was published, or fetched."""

    place: str
    publication: Publication
    moved: tuple[str, ...]
    """Names of the files that were sent or fetched now; the others were there already."""
    is_decoded_equal: bool | None = None
    """Whether the fetched artifact decodes to the tensors that its report names; None where there is no report."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self.publication.files.items()}
        found = {"place": self.place, "name": self.publication.name, "about": self.publication.about, "files": files}
        return found | {"moved": list(self.moved), "is_decoded_equal": self.is_decoded_equal}


def publish(
    source: str | Path | Run,
    to: str,
    *,
    kind: str = PACKED,
    weights: Path | None = None,
    name: str = "",
    index: str = "",
    force: bool = False,
    progress: Progress = silent,
) -> Published:
    """Write a model to a place with its card, hashes and provenance; a killed upload goes on after the files that arrived.

    Args:
        source: an artifact with what lies beside it, or a recorded run.
        to: hf://user/repo, s3://bucket/folder, file:///folder, or another protocol of fsspec.
        kind: packed, float (the weights in full precision) or both.
        weights: the file of the weights in full precision, where a run does not tell it.
        index: place of a shared index that gets an entry; empty for none.
    Raises:
        ConfigError: the kind is unknown, the weights are not known, or another publication is at the place.
        QuantlabError: a file is gone or changed, or the place cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    place = open_place(to)
    listed = open_place(index) if index else None
    artifact = artifact_of(source) if isinstance(source, Run) else Path(source)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = _copy_run_(source, folder) if isinstance(source, Run) else None
        entry = read_entry(artifact)
        if kind != FLOAT:
            _copy_packed_(artifact, folder)
        if kind != PACKED:
            _copy_float_(weights or (weights_of(source) if isinstance(source, Run) else None), folder)
        (folder / CARD_NAME).write_text(render_card(replace(entry, path=ARTIFACT_NAME)), encoding="utf-8")
        files = {path.name: PublishedFile(**_facts(path)) for path in sorted(folder.iterdir()) if path.is_file()}
        publication = Publication(
            name=name or _name_of(source, entry),
            producer=f"quantlab {__version__}",
            files=files,
            about=_about(entry),
            provenance=_provenance(run, entry),
            run=plain(run) if run else {},
            run_name=source.name if isinstance(source, Run) else "",
        )
        sent = upload(publication, folder, place, force=force, progress=progress)
    if listed is not None:
        add_to_index(listed, place.url, publication)
    return Published(place=place.url, publication=publication, moved=tuple(sent))


def fetch(source: str, output: str | Path, *, force: bool = False, progress: Progress = silent) -> Published:
    """Write a published model into a folder. Each file is verified before it takes its name; one that is there is not fetched.

    An artifact with its report is decoded, and must give the tensors that were measured when it was packed.

    Raises:
        ConfigError: a file of another content is there, and `force` is not set.
        QuantlabError: the place holds no whole publication, or a file is not what it says.
    """
    place, output = open_place(source), Path(output)
    publication = fetch_publication(place)
    moved = tuple(name for name, is_new in download(publication, place, output, force=force, progress=progress) if is_new)
    artifact, report = output / ARTIFACT_NAME, files_beside(output / ARTIFACT_NAME)[1]
    is_equal = None
    if artifact.is_file() and report.is_file() and {ARTIFACT_NAME, report.name} <= publication.files.keys():
        wanted, found = read_report(report).tensors_sha256, digest(open_artifact(artifact).arrays())
        if wanted != found:
            raise QuantlabError(f"{artifact} decodes to other tensors than its report names: {found[:12]} for {wanted[:12]}")
        is_equal = True
    return Published(place=place.url, publication=publication, moved=moved, is_decoded_equal=is_equal)


def weights_of(run: Run) -> Path | None:
    """Return the weights in full precision of a run, as far as its record tells: a training's, or the packed checkpoint."""
    record = run.record
    if (trained := training_of(run)) is not None:
        return trained / "model.safetensors"
    return directory_of(run) / record.checkpoint.path if record.kind == "pack" and record.checkpoint else None


def _copy_run_(run: Run, folder: Path) -> RunRecord:
    """Put the cleaned record of a run into `folder`, and return it."""
    with TemporaryDirectory() as scratch:
        (exported,) = export_runs([run], Path(scratch))
        copyfile(exported / RECORD_NAME, folder / RECORD_NAME)
    return read_record(folder / RECORD_NAME)


def _copy_packed_(artifact: Path, folder: Path) -> None:
    """Put an artifact and what lies beside it into `folder` under plain names; private words of records are cleaned."""
    copyfile(artifact, folder / ARTIFACT_NAME)
    clean = cleaner()
    for source in files_beside(artifact)[1:]:
        if source.is_file():
            name = ARTIFACT_NAME.removesuffix(".qlab") + source.name.removeprefix(artifact.stem)
            text = json.dumps(clean.value(json.loads(source.read_text("utf-8"))), indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
    for name in BESIDE:
        if (artifact.parent / name).is_file():
            copyfile(artifact.parent / name, folder / name)


def _copy_float_(weights: Path | None, folder: Path) -> None:
    if weights is None or not weights.is_file():
        where = f": {weights} is gone" if weights else ""
        raise ConfigError(f"the weights in full precision are not known{where}", hint="name their file with --float FILE")
    copyfile(weights, folder / f"model{weights.suffix}")


def _facts(path: Path) -> dict[str, Any]:
    size, sha256 = hash_file(path)
    return {"bytes": size, "sha256": sha256}


def _name_of(source: str | Path | Run, entry: Entry) -> str:
    return source.name if isinstance(source, Run) else Path(entry.path).stem


def _about(entry: Entry) -> dict[str, Any]:
    """Return what an index lists of a model."""
    score, facts = entry.evaluation, entry.file
    about = facts.about if facts else {}
    model = about.get("model") or {}
    return {
        "bpb": score.val_bpb if score else None,
        "loss": score.val_loss if score else None,
        "data": data_id(score.data) if score else None,
        "valid": not entry.problems,
        "artifact_bytes": entry.artifact_bytes,
        "total_bytes": entry.total_bytes,
        "budget_bytes": entry.report.budget_bytes if entry.report else None,
        "parameters": entry.n_params,
        "method": entry.method,
        "architecture": _architecture(model),
        "tokenizer": score.data.tokenizer_sha256[:12] if score else None,
        "artifact_sha256": facts.sha256 if facts else None,
    }


def _architecture(model: Any) -> str:
    """Return in short which model it is: the adapter, or layers and width of the built-in one."""
    if not isinstance(model, Mapping) or not model:
        return "unknown"
    if {"num_layers", "model_dim"} <= model.keys():
        return f"GPT {model['num_layers']}x{model['model_dim']}"
    return str(model.get("model_type") or model.get("adapter") or "unknown")


def _provenance(run: RunRecord | None, entry: Entry) -> dict[str, Any]:
    """Return data, code, seeds and parents, as far as run and report know them."""
    found: dict[str, Any] = {}
    if run is not None:
        record = plain(run)
        found |= {key: record[key] for key in PROVENANCE if record.get(key)}
    if entry.report is not None:
        found["calibration"] = plain(entry.report.calibration)
    parents = [entry.file.checkpoint] if entry.file and entry.file.checkpoint else []
    return cleaner().value(found | {"parents": parents})  # type: ignore[no-any-return]  # a mapping stays one
