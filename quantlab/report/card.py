"""A model card of a packed model: Markdown with the front matter of the Hugging Face hub."""

import json
import shlex
from collections.abc import Iterator

from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.printable import printable
from quantlab.report.entry import Entry
from quantlab.report.pack_report import PackReport
from quantlab.report.tables import nats, part_name

TAGS = ("quantized", "quantlab", "qlab")


def render_card(entry: Entry) -> str:
    """Return the card of an artifact with what lies beside it; what is not known has no line.

    Names and other texts of files stand in code spans, so that none of them is Markdown.
    """
    name = printable(entry.path.rpartition("/")[2])
    parts = [_front_matter(entry), f"# {_code(name)}\n", _summary(entry), _sizes(entry)]
    if entry.report is not None:
        parts += [_packing(entry.report)]
    parts += [_scores(entry.evaluation), _commands(entry, name)]
    return "\n".join(part for part in parts if part)


def _front_matter(entry: Entry) -> str:
    """Return the YAML block; JSON strings are YAML."""
    lines = ["---", "library_name: quantlab", f"tags: {json.dumps(list(TAGS))}"]
    if entry.report is not None and entry.report.checkpoint:
        lines.append(f"base_model: {json.dumps(printable(entry.report.checkpoint.rstrip('/').rpartition('/')[2]))}")
    return "\n".join([*lines, "---", ""])


def _summary(entry: Entry) -> str:
    bits = 8 * entry.artifact_bytes / entry.n_params
    text = f"{entry.n_params:,} parameters in {entry.artifact_bytes:,} bytes: {bits:.3f} bits a weight, everything counted."
    against = entry.against
    if against is not None:
        text += f" KL to the float model {nats(against.kl_mean)} nats per token, {100 * against.top1_flips:.2f} % top-1 flips."
    return text + "\n"


def _sizes(entry: Entry) -> str:
    rows = [(part_name(kind), size) for kind, size in entry.size_breakdown.items() if size]
    if entry.report is not None and entry.report.code_bytes:
        rows.append(("counted code", entry.report.code_bytes))
    return _table(("part", "bytes"), [*((kind, f"{size:,}") for kind, size in rows), ("total", f"{entry.total_bytes:,}")])


def _packing(report: PackReport) -> str:
    options = ", ".join(f"{key} {json.dumps(value)}" for key, value in report.options.items())
    source = report.calibration
    tokens = source.get("tokens")
    lines = [
        "## How it was packed\n",
        f"- method {_code(report.method)}: {_code(options)}",
        f"- budget {report.budget_bytes:,} bytes, of which {report.slack_bytes:,} are left",
        f"- calibration {_code(str(source.get('kind', 'unknown')))}" + (f", {tokens:,} tokens" if tokens else ""),
        f"- predicted KL {nats(report.predicted_kl)} nats per token",
    ]
    if report.measured:
        lines.append(f"- KL on calibration text that was held out {nats(report.measured.kl)} nats per token")
    return "\n".join([*lines, f"- seed {report.seed}, {_code(report.producer)}\n"])


def _scores(record: EvaluationRecord | None) -> str:
    if record is None:
        return "## Scores\n\nNot evaluated: `quantlab eval … --save` scores it.\n"
    return "\n".join(["## Scores\n", *_score_lines(record), ""])


def _score_lines(record: EvaluationRecord) -> Iterator[str]:
    data = record.data
    if record.val_bpb is not None:
        yield f"- {record.val_bpb:.4f} bits per byte"
    yield f"- {record.val_loss:.4f} nats per token over {data.tokens:,} tokens of {data.documents:,} documents"
    yield f"- mode {_code(data.mode)}, {data.seq_len:,} tokens of context, tokens' sha256 {_code(data.tokens_sha256[:16])}"
    if record.against is not None and record.against.val_bpb is not None:
        yield f"- the float model {_code(record.against.file)} has {record.against.val_bpb:.4f} bits per byte on the same data"
    yield "- valid: " + ("yes" if not record.problems else "no: " + "; ".join(_code(p) for p in record.problems))
    yield from (f"- not checked: {_code(line)}" for line in record.unchecked)


def _commands(entry: Entry, name: str) -> str:
    file, has_tokenizer = shlex.quote(name), bool(entry.size_breakdown.get("tokenizer"))
    scoring = f"quantlab eval {file} --text TEXT" + ("" if has_tokenizer else " --tokenizer FILE")
    lines = [f"quantlab inspect {file}", f"quantlab unpack {file} -o state.safetensors", scoring]
    digest = entry.file.sha256 if entry.file else entry.report.artifact_sha256 if entry.report else ""
    text = ["## Verify\n", "```", *lines, "```\n", f"sha256 of the file: {_code(digest)}\n"]
    return "\n".join(text)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---:|", *(f"| {left} | {right} |" for left, right in rows)]
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    """Return text as a code span that ends where it should."""
    shown = printable(text).replace("`", "'").replace("|", "/")
    return f"`{shown}`" if shown else "`-`"
