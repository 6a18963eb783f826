"""The record of one evaluation: which file, on which data, and what it scored there."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quantlab.report.fields import read_fields, read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationData:
    """What was scored, and how: two scores say something about each other only where all of it is equal."""

    tokens_sha256: str
    """Of the token ids, as little-endian uint16: those that are scored and those that they are predicted from."""
    tokens: int
    """Scored tokens."""
    bytes: int
    """Bytes of raw text that they stand for."""
    documents: int
    """Documents with a scored token."""
    mode: str
    """chunked, sliding or document."""
    seq_len: int
    """Tokens of context at most."""
    stride: int
    """Tokens from one window to the next."""
    tokenizer_sha256: str

    def differences(self, other: "EvaluationData") -> list[str]:
        """Names of the fields that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """The reference that the target was held against: usually the checkpoint that was packed."""

    file: str
    fingerprint: str
    """Of the reference's weights and architecture; an artifact's origin names the same."""
    val_bpb: float
    """The reference's own score on the same data."""
    val_loss: float
    """Mean nats per token of the reference."""
    tokens: int
    """Positions at which both models ran: sequences that do not overlap, whatever the mode of the score."""
    bytes: int
    """Bytes of raw text that these stand for."""
    kl_mean: float
    """Mean KL(reference ‖ target), nats per token."""
    kl_q99: float
    """99th percentile over positions, nats."""
    top1_flips: float
    """Share of positions whose most likely token differs."""
    loss_difference: float
    """Target minus reference, mean nats per token."""
    loss_difference_low: float
    """Lower end of its 95 % interval, paired by token."""
    loss_difference_high: float
    """Upper end."""

    @property
    def gap_bpb(self) -> tuple[float, float, float] | None:
        """Loss difference in bits per byte, with the ends of its 95 % interval; None where the tokens stand for no text."""
        if self.bytes < 1:
            return None
        scale = self.tokens / (math.log(2) * self.bytes)
        return scale * self.loss_difference, scale * self.loss_difference_low, scale * self.loss_difference_high


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """One evaluation; `quantlab eval --save` writes it as JSON beside the target."""

    target: str
    """Name of the file."""
    target_sha256: str
    target_bytes: int
    data: EvaluationData
    val_bpb: float
    val_loss: float
    """Mean nats per token."""
    nats: float
    split: str = ""
    """The challenge's public validation split of so many tokens."""
    bytes_match: bool | None = None
    """Whether the bytes are those of that split."""
    device: str = ""
    """Where the target ran: a CPU computes in float32, a GPU in bfloat16."""
    against: Against | None = None
    producer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def to_json(self) -> bytes:
        """The record's file."""
        return (json.dumps(self.to_dict(), indent=2) + "\n").encode()


def record_path(target: Path) -> Path:
    """Where the record of an evaluation of `target` lies."""
    return target.with_name(f"{target.stem}.eval.json")


def read_evaluation(path: Path) -> EvaluationRecord:
    """The record at `path`. ReportError if it is missing or damaged."""
    return read_fields(EvaluationRecord, read_json(path), str(path))
