"""From packed models to the entries of a comparison: what lies beside an artifact is found, and must belong to it."""

import hashlib
import math
from pathlib import Path

from quantlab.artifact.container import SECTION, Section
from quantlab.artifact.decode import CODES, parse_artifact
from quantlab.artifact.layout import code_counts, size_breakdown
from quantlab.artifact.manifest import GridTensor, Manifest, RawTensor
from quantlab.errors import FormatError, ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation, record_path
from quantlab.report.entry import Entry, FileFacts, TensorFacts
from quantlab.report.pack_report import PackReport, read_report, report_path


def read_entry(path: Path) -> Entry:
    """An artifact, or a report, with what lies beside it under the same name.

    Raises:
        FormatError: no artifact, or a damaged one.
        ReportError: a report or record that is damaged or belongs to another file.
    """
    is_report = path.suffix == ".json"
    stem = path.name.removesuffix(".json").removesuffix(".report")
    artifact = path.with_name(f"{stem}.qlab") if is_report else path
    facts = read_facts(artifact) if artifact.is_file() or not is_report else None
    beside = path if is_report else report_path(path)
    report = read_report(beside) if is_report or beside.is_file() else None
    if facts and report:
        _check_report(beside, report, artifact, facts)
    record = record_path(artifact)
    evaluation = read_evaluation(record) if record.is_file() else None
    if evaluation:
        _check_evaluation(record, evaluation, artifact, facts, report)
    return Entry(path=str(artifact if facts else path), file=facts, report=report, evaluation=evaluation)


def read_facts(path: Path) -> FileFacts:
    """What the artifact at `path` tells by itself; its checksums are checked, its codes are not decoded."""
    data, manifest, sections = _read(path)
    return FileFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        size_breakdown=size_breakdown(len(data), sections),
        n_params=sum(math.prod(t.shape) for t in manifest.tensors),
        tensors=_tensor_facts(manifest, sections),
        method=str(manifest.origin.get("method", "")),
        checkpoint=str(manifest.origin.get("checkpoint", "")),
        about={key: getattr(manifest, key) for key in ("producer", "model", "tokenizer", "origin")},
    )


def read_code_counts(path: Path) -> dict[str, list[int]]:
    """How often each code from -64 to 64 occurs in each quantized tensor of the artifact at `path` (artifact.histogram)."""
    _, manifest, sections = _read(path)
    return {name: counts.tolist() for name, counts in code_counts(manifest, sections)}


def _read(path: Path) -> tuple[bytes, Manifest, list[Section]]:
    try:
        data = path.read_bytes()
        return data, *parse_artifact(data)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _tensor_facts(manifest: Manifest, sections: list[Section]) -> tuple[TensorFacts, ...]:
    """Row grids have sections of their own, counted as their report would: with the line in the section table and scales."""
    coded, facts = iter(sections[CODES:]), []
    for tensor in manifest.tensors:
        if isinstance(tensor, RawTensor):
            continue
        size = len(next(coded).stored) + SECTION.size + 2 * tensor.shape[0] if isinstance(tensor, GridTensor) else None
        bpw = 8 * size / math.prod(tensor.shape) if size and math.prod(tensor.shape) else None
        facts.append(TensorFacts(name=tensor.name, shape=tensor.shape, width_bits=tensor.bits, bytes=size, bpw=bpw))
    return tuple(facts)


def _check_report(path: Path, report: PackReport, artifact: Path, facts: FileFacts) -> None:
    """Raise ReportError unless the report is of the file that lies here."""
    digest = report.artifact_sha256 or facts.sha256
    if (report.artifact_bytes, digest) != (facts.bytes, facts.sha256):
        raise ReportError(
            f"report {path} is of another file: {report.artifact_bytes:,} bytes, sha256 {digest[:12]}; "
            f"{artifact} has {facts.bytes:,} bytes, sha256 {facts.sha256[:12]}",
            hint="pack again, or move the report away",
        )


def _check_evaluation(
    path: Path, evaluation: EvaluationRecord, artifact: Path, facts: FileFacts | None, report: PackReport | None
) -> None:
    """Raise ReportError unless the evaluation is of the file that lies here, or that the report tells of."""
    digest = facts.sha256 if facts else report.artifact_sha256 if report else ""
    if evaluation.target_sha256 != digest:
        raise ReportError(
            f"evaluation record {path} is of another file: {evaluation.target}, sha256 {evaluation.target_sha256[:12]}; "
            f"{artifact} has sha256 {digest[:12] or 'unknown'}",
            hint=f"run quantlab eval {artifact} --save --force",
        )
