"""A model card of a packed model: Markdown with the front matter of the Hugging Face hub."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.printable import printable
from quantlab.report.entry import Entry
from quantlab.report.pack_report import PackReport
from quantlab.report.tables import nats, part_name

TAGS = ("quantized", "quantlab", "qlab")


def render_card(entry: Entry, picture: str = "") -> str:
    """Return the card of an artifact with what lies beside it; what is not known has no line.

    Args:
        picture: name of a picture beside the card; empty for none.

    Names and other texts of files stand in code spans, so that none of them is Markdown.
    """
    name = printable(entry.path.rpartition("/")[2])
    here = replace(entry, path=name)  # the card lies beside the artifact
    drawn = [f"![Bits per weight by layer and role, and predicted KL by layer](<{printable(picture)}>)\n"] if picture else []
    return "\n".join([_front_matter(entry), f"# {code_span(name)}\n", *drawn, card_sections(here)])


def card_sections(entry: Entry, level: str = "##") -> str:
    """Return what the card says of an artifact, without title: size, packing, scores, commands.

    Args:
        level: marks of the headings.
    """
    parts = [_summary(entry), _sizes(entry)]
    if entry.report is not None:
        parts += [_packing(entry.report)]
    parts += [_scores(entry.evaluation), _commands(entry, printable(entry.path))]
    text = "\n".join(part for part in parts if part)
    return text.replace("\n## ", f"\n{level} ")


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
    return markdown_table(
        ("part", "bytes"), [*((kind, f"{size:,}") for kind, size in rows), ("total", f"{entry.total_bytes:,}")]
    )


def _packing(report: PackReport) -> str:
    options = ", ".join(f"{key} {json.dumps(value)}" for key, value in report.options.items())
    source = report.calibration
    tokens = source.get("tokens")
    lines = [
        "## How it was packed\n",
        f"- method {code_span(report.method)}: {code_span(options)}",
        f"- budget {report.budget_bytes:,} bytes, of which {report.slack_bytes:,} are left",
        f"- calibration {code_span(str(source.get('kind', 'unknown')))}" + (f", {tokens:,} tokens" if tokens else ""),
        f"- predicted KL {nats(report.predicted_kl)} nats per token",
    ]
    if report.measured:
        lines.append(f"- KL on calibration text that was held out {nats(report.measured.kl)} nats per token")
    return "\n".join([*lines, f"- seed {report.seed}, {code_span(report.producer)}\n"])


def _scores(record: EvaluationRecord | None) -> str:
    if record is None:
        return "## Scores\n\nNot evaluated: `quantlab eval … --save` scores it.\n"
    return "\n".join(["## Scores\n", *_score_lines(record), ""])


def _score_lines(record: EvaluationRecord) -> Iterator[str]:
    data = record.data
    if record.val_bpb is not None:
        yield f"- {record.val_bpb:.4f} bits per byte"
    yield f"- {record.val_loss:.4f} nats per token over {data.tokens:,} tokens of {data.documents:,} documents"
    digest = code_span(data.tokens_sha256[:16])
    yield f"- mode {code_span(data.mode)}, {data.seq_len:,} tokens of context, tokens' sha256 {digest}"
    if record.against is not None and record.against.val_bpb is not None:
        name = code_span(record.against.file)
        yield f"- the float model {name} has {record.against.val_bpb:.4f} bits per byte on the same data"
    yield "- valid: " + ("yes" if not record.problems else "no: " + "; ".join(code_span(p) for p in record.problems))
    yield from (f"- not checked: {code_span(line)}" for line in record.unchecked)


def _commands(entry: Entry, name: str) -> str:
    file, has_tokenizer = shlex.quote(name), bool(entry.size_breakdown.get("tokenizer"))
    scoring = f"quantlab eval {file} --text TEXT" + ("" if has_tokenizer else " --tokenizer FILE")
    lines = [f"quantlab inspect {file}", f"quantlab unpack {file} -o state.safetensors", scoring]
    digest = entry.file.sha256 if entry.file else entry.report.artifact_sha256 if entry.report else ""
    text = ["## Verify\n", "```", *lines, "```\n", f"sha256 of the file: {code_span(digest)}\n"]
    return "\n".join(text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown whose columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])


def code_span(text: str) -> str:
    """Return text as a code span that ends where it should, in a table too."""
    shown = printable(text).replace("`", "'").replace("|", "/")
    return f"`{shown}`" if shown else "`-`"
