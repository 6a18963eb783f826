"""The record of one evaluation: which file was scored, on which data, and what it scored there."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quantlab.fields import json_file, read_fields, read_json

ROUNDING = 1e-6
"""Largest relative difference between a figure and what it is computed from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationData:
    """The scored data and the way of scoring: two scores can be compared only where all of it is equal."""

    tokens_sha256: str
    """Hash of the token ids that are scored and those that they are predicted from.

    They are little-endian uint16, or uint32 for vocabularies above 65,536.
    """
    tokens: int
    """Number of scored tokens."""
    bytes: int
    """Bytes of raw text that they stand for; 0 where they cannot be counted."""
    documents: int
    """Number of documents with a scored token."""
    mode: str
    """chunked, sliding or document."""
    seq_len: int
    """Largest number of tokens of context."""
    stride: int
    """Tokens from one window to the next."""
    tokenizer_sha256: str
    """Empty for tokens of shards that were scored without their tokenizer."""

    def differences(self, other: "EvaluationData") -> list[str]:
        """Return the names of the fields that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """The target compared with a reference, which is usually the checkpoint that was packed."""

    file: str
    """Name of the reference's file."""
    fingerprint: str
    """Fingerprint of the reference's weights and architecture; an artifact's origin names the same."""
    val_bpb: float | None
    """The reference's own score on the same data, in the same mode; None where bytes cannot be counted."""
    val_loss: float
    """Mean nats per token of the reference, in the same mode."""
    tokens: int
    """Positions at which both models ran: sequences that do not overlap, whatever the mode of the score."""
    bytes: int
    """Bytes of raw text that these positions stand for; 0 where they cannot be counted."""
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
    """Upper end of that interval."""
    reference_loss: float | None = None
    """Mean nats per token of the reference at these positions."""

    @property
    def gap_bpb(self) -> tuple[float, float, float] | None:
        """Loss difference in bits per byte, with the ends of its 95 % interval; None where the tokens stand for no text."""
        if self.bytes < 1:
            return None
        scale = self.tokens / (math.log(2) * self.bytes)
        return scale * self.loss_difference, scale * self.loss_difference_low, scale * self.loss_difference_high


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The result of one probe of the model's predictions."""

    name: str
    passed: bool | None
    """Whether the model obeys the rule; None where that could not be checked, or where no rule forbids either outcome."""
    detail: str
    """One line, with the numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of the model that was scored."""

    weights: str
    """packed or decoded."""
    weight_bytes: int
    """Bytes of all parameters and buffers."""
    peak_bytes: int
    """Peak so far: of tensors on a GPU, of the process on a CPU."""
    device: str
    """cpu, or the name of the GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """One evaluation; `quantlab eval --save` writes it as JSON beside the target."""

    target: str
    """Name of the file; empty for a module in memory."""
    target_sha256: str
    target_bytes: int
    data: EvaluationData
    val_bpb: float | None
    """Bits per byte; None where bytes cannot be counted: tokens of shards without their tokenizer."""
    val_loss: float
    """Mean nats per token."""
    nats: float
    """Total negative log-likelihood."""
    split: str = ""
    """The challenge's public validation split with this number of tokens; empty if there is none."""
    bytes_match: bool | None = None
    """Whether the bytes are those of that split; None without a split."""
    normalization: str = ""
    """What the tokenizer does to text before it cuts it, so that `bytes` are those of the changed text; empty for nothing."""
    device: str = ""
    """Device that the target ran on: a CPU computes in float32, a GPU in bfloat16."""
    probes: tuple[Probe, ...] = ()
    """Probes of the predictions on some of the scored windows, and checks of the data; without probes no score is valid."""
    deviations: tuple[str, ...] = ()
    """Differences from the way in which the model was validated while it was trained, a line each."""
    against: Against | None = None
    """Comparison with a reference; None where there is none."""
    memory: Memory | None = None
    """Memory that the evaluation took; None in saved records, so that the same evaluation writes the same file."""
    producer: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons why the score is not valid, a line each; empty if it is."""
        found = [f"{probe.name}: {probe.detail}" for probe in self.probes if probe.passed is not None and not probe.passed]
        if not any(probe.name == "flip" for probe in self.probes):
            found.append("the predictions were not probed")
        if self.bytes_match is False:
            found.append(f"as many tokens as the public validation split {self.split}, but not its bytes")
        if not self._adds_up():
            found.append("bits per byte, loss, nats, tokens and bytes contradict each other: the record was edited")
        return tuple(found)

    def _adds_up(self) -> bool:
        """Return whether loss and bits per byte are what they are computed from."""
        nats, data = self.nats, self.data
        if not math.isclose(self.val_loss * data.tokens, nats, rel_tol=ROUNDING):
            return False
        return self.val_bpb is None or math.isclose(self.val_bpb * math.log(2) * data.bytes, nats, rel_tol=ROUNDING)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What could not be checked, a line each: a score without problems is valid as far as it was checked."""
        return tuple(f"{probe.name}: {probe.detail}" for probe in self.probes if probe.passed is None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def to_json(self) -> bytes:
        """Return the record's file."""
        return json_file(self)


def record_path(target: Path) -> Path:
    """Return where the record of an evaluation of `target` is kept."""
    return target.with_name(f"{target.stem}.eval.json")


def read_evaluation(path: Path) -> EvaluationRecord:
    """Return the record at `path`. ReportError if it is missing or damaged."""
    return read_fields(EvaluationRecord, read_json(path), str(path))
