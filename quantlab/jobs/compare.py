"""Compare packed models: what lies beside an artifact is found, and must belong to it."""

from collections.abc import Sequence
from pathlib import Path

from quantlab.artifact.reader import Artifact, open_artifact
from quantlab.errors import ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation, record_path
from quantlab.report.comparison import Comparison, Sort, compare_entries
from quantlab.report.entry import Entry, FileFacts, TensorFacts
from quantlab.report.estimates import Estimates
from quantlab.report.pack_report import PackReport, read_report, report_path


def compare(files: str | Path | Sequence[str | Path], *, sort: Sort = "bytes") -> Comparison:
    """Compare packed models: sizes, scores, and the bytes, bits and predicted KL of every tensor.

    What lies beside x.qlab belongs to it: x.report.json of a packing, x.eval.json of an evaluation that was saved.

    Args:
        files: artifacts (.qlab) or reports (.report.json), one or several.
        sort: order of the tensors, by what differs most from the first file: bytes, predicted_kl, bpw; or name.
    Raises:
        FormatError: a file is no artifact, or a damaged one.
        ReportError: a report or record is damaged or belongs to another file.
        ConfigError: scores were measured on different data, or `sort` is unknown.
    """
    paths = [files] if isinstance(files, str | Path) else files
    return compare_entries([read_entry(Path(path)) for path in paths], sort=sort)


def comparison_page(comparison: Comparison, entries: Sequence[Entry], estimates: Estimates | None = None) -> str:
    """Return the HTML report of a comparison: one page without a network request.

    Args:
        estimates: of the model that was packed, for a slider of other budgets.
    """
    from quantlab.report.page import render_page  # jinja2 is an extra

    counts = [open_artifact(entry.path).code_counts() if entry.file else {} for entry in entries]
    return render_page(comparison, entries, counts, estimates)


def read_entry(path: Path) -> Entry:
    """Return an artifact, or a report, with what lies beside it under the same name.

    Raises:
        FormatError: there is no artifact, or a damaged one.
        ReportError: a report or record is damaged or belongs to another file.
    """
    artifact, beside, record = files_beside(path)
    is_report = path == beside
    facts = file_facts(open_artifact(artifact)) if artifact.is_file() or not is_report else None
    report = read_report(beside) if is_report or beside.is_file() else None
    if facts and report:
        _check_report(beside, report, artifact, facts)
    evaluation = read_evaluation(record) if record.is_file() else None
    if evaluation:
        _check_evaluation(record, evaluation, artifact, facts, report)
    return Entry(path=str(artifact if facts else path), file=facts, report=report, evaluation=evaluation)


def files_beside(path: Path) -> tuple[Path, Path, Path]:
    """Return where the artifact, the report and the evaluation's record lie of which `path` is the artifact or the report."""
    is_report = path.suffix == ".json"
    stem = path.name.removesuffix(".json").removesuffix(".report")
    artifact = path.with_name(f"{stem}.qlab") if is_report else path
    return artifact, path if is_report else report_path(path), record_path(artifact)


def file_facts(artifact: Artifact) -> FileFacts:
    """Return what an artifact tells by itself; its checksums are checked, its codes are not decoded."""
    manifest = artifact.manifest
    return FileFacts(
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        size_breakdown=artifact.layout.size_breakdown,
        n_params=artifact.n_params,
        tensors=tuple(
            TensorFacts(name=t.name, shape=t.shape, width_bits=t.width_bits, bytes=t.bytes, bpw=t.bpw)
            for t in artifact.layout.tensors
        ),
        method=str(manifest.origin.get("method", "")),
        checkpoint=str(manifest.origin.get("checkpoint", "")),
        about={key: getattr(manifest, key) for key in ("producer", "model", "tokenizer", "origin")},
    )


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
