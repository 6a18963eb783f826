"""The report of one packing: its inputs, the bytes of every part, and the predicted KL of every tensor."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantlab.fields import json_file, read_fields, read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """One quantized matrix."""

    name: str
    shape: tuple[int, ...]
    width_bits: int
    """Width of the codes' container; the coder decides the bytes on disk."""
    setting: float
    """Clip of a row grid, in root mean squares of a row; for the trellis the step scale c, in square roots of nats."""
    codec: str
    bytes: int
    """Coded stream, line in the section table, and scales before their codec."""
    bpw: float
    """8 · bytes / weights."""
    predicted_kl: float
    """Nats per token."""
    code_bytes: int = 0
    """Coded stream alone; the sum over all tensors is the codes of size_breakdown less the coder's own state."""
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, predicted_kl) of other roundings that the search measured, by bytes; none is worse than another in both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What tuning after the rounding did, nats per token on held-out calibration sequences."""

    kl_before: float
    kl_after: float
    accepted: bool
    """Whether the tuned values are used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """KL of the packed weights from the model's own, nats per token, on calibration text that statistics did not use."""

    kl: float
    """Mean over all predictions."""
    tokens: int
    seq_len: int
    source: str
    """Where the tokens come from: self (the model wrote them), random, text or tokens (other sequences of the file)."""
    kl_random: float | None = None
    """The same on random tokens; None where the calibration text has not collapsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """One packing; written as JSON beside the artifact."""

    checkpoint: str
    artifact: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method."""
    predictor: str = ""
    """Information that the predicted KL uses: kronecker (both factors of the Fisher information) or diagonal.

    Predictions of different predictors are not compared.
    """
    effort: dict[str, int]
    """Work that the method spent, by name: for the trellis its states and the batches of tuning (tune_steps)."""
    forecast: dict[str, Any] = field(default_factory=dict)
    """Forecast before the work: stages_s, total_s (seconds) and peak_bytes of memory."""
    rounded_weights: int = 0
    """Weights that the search rounded in all, each as often as it was; 0 where the method does not count."""
    tuned: dict[str, Any]
    """The fields of `Tuning`; empty where nothing was tuned."""
    refined: tuple[dict[str, Any], ...] = ()
    """Of each stage of refinement the fields of `Tuning`, in their order; empty without it."""
    seed: int
    budget_bytes: int
    artifact_bytes: int
    code_bytes: int
    total_bytes: int
    slack_bytes: int
    n_params: int
    """Weights that the file holds, equal tensors once."""
    bpw: float
    """8 · artifact_bytes / n_params: everything in the file counts, also header, scales and unquantized tensors."""
    predicted_kl: float
    """Sum over the tensors, nats per token."""
    measured: HeldOut | None = None
    """KL of the packed weights on calibration text that statistics did not use; None in reports that were written before."""
    size_breakdown: dict[str, int]
    """Bytes of codes, scales, entropy_model (side information), passthrough, tokenizer if it is carried, manifest, framing;
    their sum is artifact_bytes."""
    code_files: dict[str, int]
    calibration: dict[str, Any]
    """Origin of the calibration tokens, and whether they have collapsed (collapse, see calib.collapse)."""
    tensors_sha256: str
    """Digest of the measured tensors. A fresh process decoded the file to the same digest, or there would be no report."""
    timings_s: dict[str, float]
    keep: tuple[str, ...] = ()
    """Patterns of names of tensors that were to stay unquantized."""
    bits: dict[str, int] = field(default_factory=dict)
    """Most bits of the codes of tensors, by pattern of their names."""
    priors: tuple[str, ...] = ()
    """Matrices that the calibration never reached: they were rounded by the mean statistics of their siblings."""
    apart: tuple[str, ...] = ()
    """Matrices that the model multiplies by in parts, at different tokens: what the parts have in common was not measured."""
    tensors: tuple[TensorReport, ...] = ()
    passthrough: tuple[dict[str, Any], ...] = ()
    """Unquantized tensors: name, shape, stored dtype."""
    training_documents: str = ""
    """Sample of the documents that the checkpoint was trained on, where its file names them (`DocumentSample.to_text`)."""
    producer: str = ""
    artifact_sha256: str = ""
    """Digest of the file that a fresh process decoded."""

    @property
    def quantized_share(self) -> float:
        """Share of all weights that are in quantized matrices."""
        return sum(math.prod(t.shape) for t in self.tensors) / self.n_params

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)

    def to_json(self) -> bytes:
        """Return the report file."""
        return json_file(self)


def report_path(artifact: Path) -> Path:
    """Return where the report of an artifact lies unless `pack --report` names another place."""
    return artifact.with_name(f"{artifact.stem}.report.json")


def read_report(path: Path) -> PackReport:
    """Return the report at `path`. ReportError if it is missing or damaged."""
    report = read_fields(PackReport, read_json(path), str(path))
    if report.tuned:
        read_fields(Tuning, report.tuned, f"{path}: tuned")
    for number, stage in enumerate(report.refined):
        read_fields(Tuning, stage, f"{path}: refined[{number}]")
    return report
