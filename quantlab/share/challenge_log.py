"""Read a training log of the challenge, in the dialects of its records: sizes, scores, clock, data; each with its line.

The log of a record may begin with the source of its script. Lines of that source have no numbers where results have them.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePath

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
LONGEST_LINE = 2000
_SCORE = re.compile(r"val_loss ?[:=] ?(\d{1,6}\.\d{2,12}),?\s+val_bpb ?[:=] ?(\d{1,6}\.\d{2,12})")
_STEP = re.compile(r"^\s*(?:step:)?\s*(\d+)/(\d+)\s")
_EVAL_TIME = re.compile(rf"eval_time ?[:=] ?{NUMBER} ?(ms|s)\b")
_TOTAL_EVAL = re.compile(rf"total_eval_time ?[:=] ?{NUMBER} ?s\b")
_TRAIN_TIME = re.compile(rf"train_time ?: ?{NUMBER} ?ms")
_STOP = re.compile(rf"stopping_early.*?train_time ?: ?{NUMBER} ?ms\s+step ?: ?(\d{1, 15})")
_HESSIAN = re.compile(rf"(?i)hessians? in {NUMBER} ?s\b")
_PATTERNS = {
    "total_bytes": re.compile(r"(?i)total submission size[^:]*: ?(\d{1,15})"),
    "code_bytes": re.compile(r"(?i)^\s*code size[^:]*: ?(\d{1,15})"),
    "model_bytes": re.compile(r"(?i)serialized (?:model|quantized|ternary)[^:]*: ?(\d{1,15})"),
    "val_tokens": re.compile(r"val_loader:.*\btokens: ?(\d{1,15})|^val_tokens ?[:=] ?(\d{1,15})"),
    "train_shards": re.compile(r"\btrain_shards ?[:=] ?(\d{1,15})"),
    "seed": re.compile(r"^\s*(?:final_)?seed ?[:=] ?(\d{1,15})\b|\bSEED ?= ?(\d{1,15})\b"),
    "documents": re.compile(r"\btotal_docs ?: ?(\d{1,15})"),
    "world_size": re.compile(r"\bworld_size ?[:=] ?(\d{1,15})"),
}
_SEED_IN_NAME = re.compile(r"seed[_-]?(\d{1,15})|(?:^|[_-])s?(\d{1,4})(?:[_.-]|$)")
_FLOAT_MODEL = re.compile(r"(?i)serialized model ?:")
_UNPACKED_TOTAL = re.compile(r"(?i)total submission size ?:")
_PACKED_KINDS = re.compile(r"(?i)(int\d|zlib|zstd|lzma|brotli|quantized|pergroup|mixed)")


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a log and its line, from 1."""

    value: float
    line: int


@dataclass(frozen=True, slots=True)
class Score:
    """A score that a log shows after training."""

    label: str
    """What was scored, in the log's words: `final_int8_zlib_roundtrip_exact`, `quantized_ttt_phased`."""
    loss: float
    """Nats per token."""
    bpb: float
    line: int

    @property
    def is_exact(self) -> bool:
        """Whether it was printed with six decimal places or more."""
        return len(f"{self.bpb:.8f}".rstrip("0").partition(".")[2]) >= 6


@dataclass(slots=True)
class LogFacts:
    """What one log says; what it does not say is None or empty."""

    name: str
    """Path inside the submission folder."""
    scores: list[Score] = field(default_factory=list)
    """After training, in their order; the last one is usually the claimed kind."""
    numbers: dict[str, list[Number]] = field(default_factory=dict)
    """total_bytes, code_bytes, model_bytes, val_tokens, train_shards, seed, documents, world_size."""
    train_seconds: Number | None = None
    eval_seconds: list[Number] = field(default_factory=list)
    hessian_seconds: Number | None = None
    steps: Number | None = None
    source: str = ""
    """The script at the beginning of the log; empty if there is none."""
    results: list[tuple[int, str]] = field(default_factory=list)
    """Number and text of the lines after the source."""

    def last(self, name: str) -> Number | None:
        """Return the last number of a kind."""
        found = self.numbers.get(name)
        return found[-1] if found else None

    @property
    def seed(self) -> int | None:
        """The seed that the log says, else the one in its name."""
        if first := self.numbers.get("seed"):
            return int(first[0].value)
        match = _SEED_IN_NAME.search(PurePath(self.name).stem)
        return int(match[1] or match[2]) if match else None


def read_log(name: str, text: str) -> LogFacts:
    """Return what a log says. Any text is accepted: what is not a line of a log is passed over."""
    facts = LogFacts(name)
    lines = text.splitlines()
    start = _end_of_source(lines)
    facts.source = "\n".join(lines[: max(start - 1, 0)])
    for number, line in enumerate(lines[start:], start + 1):
        shown = line[:LONGEST_LINE]
        facts.results.append((number, shown))
        _take_(facts, number, shown)
    return facts


def _end_of_source(lines: list[str]) -> int:
    """Return how many lines the embedded script has: up to a line of = signs, which the challenge's script writes after it."""
    if not any(re.match(r"\s*(import|from) \w", line) for line in lines[:200]):
        return 0
    ends = [n for n, line in enumerate(lines) if len(line) >= 50 and set(line) == {"="}]
    imports = next(n for n, line in enumerate(lines) if re.match(r"\s*(import|from) \w", line))
    after = [end for end in ends if end > imports]
    return after[0] + 1 if after else 0


def _take_(facts: LogFacts, number: int, line: str) -> None:
    if match := _SCORE.search(line):
        _take_score_(facts, number, line, match)
    if match := _TRAIN_TIME.search(line):
        facts.train_seconds = Number(float(match[1]) / 1000, number)
    if match := _STOP.search(line):
        facts.steps = Number(float(match[2]), number)
    for pattern in (_EVAL_TIME, _TOTAL_EVAL):
        if match := pattern.search(line):
            scale = 1000 if match.lastindex and match.lastindex > 1 and match[2] == "ms" else 1
            facts.eval_seconds.append(Number(float(match[1]) / scale, number))
    if match := _HESSIAN.search(line):
        facts.hessian_seconds = Number(float(match[1]), number)
    for name, pattern in _PATTERNS.items():
        if (match := pattern.search(line)) and not _is_of_float_weights(name, line):
            value = next(group for group in match.groups() if group is not None)
            facts.numbers.setdefault(name, []).append(Number(float(value), number))


def _take_score_(facts: LogFacts, number: int, line: str, match: re.Match[str]) -> None:
    if _STEP.match(line):
        return  # a validation during training
    words = line[: match.start()].split()
    label = words[-1].rstrip(":,") if words else "score"
    facts.scores.append(Score(label, float(match[1]), float(match[2]), number))


def _is_of_float_weights(name: str, line: str) -> bool:
    """Return whether a size is of the weights before they are packed, which logs show first."""
    pattern = {"total_bytes": _UNPACKED_TOTAL, "model_bytes": _FLOAT_MODEL}.get(name)
    return bool(pattern and pattern.search(line) and not _PACKED_KINDS.search(line))
