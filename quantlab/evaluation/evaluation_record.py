"""The record of one evaluation: which file, on which data, and what it scored there.

From an evaluation that has run to its record beside the file that was evaluated."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab import __version__
from quantlab.errors import CheckpointError
from quantlab.evaluation.divergence import Divergence
from quantlab.evaluation.scoring import Score
from quantlab.evaluation.windows import scored_part
from quantlab.fields import read_fields, read_json
from quantlab.files import hash_file, refuse_existing
from quantlab.models.loading import Loaded
from quantlab.text.tokenizer import Tokenizer


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


@dataclass(frozen=True, slots=True)
class Reference:
    """What a target was held against, and how."""

    path: Path
    loaded: Loaded
    compared: Divergence
    score: Score | None = None
    """Of the reference in the target's mode; None when chunked, where the comparison ran on the very same sequences."""


def refuse_record(target: Path, *, force: bool) -> None:
    """Raise unless there is a target and the record of its evaluation can be written: before hours are spent on one."""
    if not target.exists():
        raise CheckpointError(f"{target} does not exist")
    refuse_existing([record_path(target)], force=force)


def record_of(
    target: Path, score: Score, tokens: NDArray[Any], tokenizer: Tokenizer, *, device: str, reference: Reference | None = None
) -> EvaluationRecord:
    """What `quantlab eval --save` writes; `tokens` [N] are those that were given to be scored."""
    data = EvaluationData(
        tokens_sha256=hashlib.sha256(scored_part(tokens, score.mode, score.seq_len).astype("<u2").tobytes()).hexdigest(),
        tokens=score.tokens,
        bytes=score.bytes,
        documents=score.documents,
        mode=score.mode,
        seq_len=score.seq_len,
        stride=score.stride,
        tokenizer_sha256=tokenizer.sha256,
    )
    size, digest = hash_file(target)
    return EvaluationRecord(
        target=target.name,
        target_sha256=digest,
        target_bytes=size,
        data=data,
        val_bpb=score.val_bpb,
        val_loss=score.val_loss,
        nats=score.nats,
        split=score.split,
        bytes_match=score.bytes_match,
        device=device,
        against=_against(reference, tokens, tokenizer) if reference else None,
        producer=f"quantlab {__version__}",
    )


def _against(reference: Reference, tokens: NDArray[Any], tokenizer: Tokenizer) -> Against:
    compared = reference.compared
    stream = tokens[: compared.tokens + 1]
    byte_count = int(tokenizer.token_bytes().count(stream[:-1], stream[1:]).sum(dtype=np.int64))
    own = reference.score
    return Against(
        file=reference.path.name,
        fingerprint=reference.loaded.fingerprint,
        val_bpb=own.val_bpb if own else compared.reference_loss * compared.tokens / (math.log(2) * byte_count),
        val_loss=own.val_loss if own else compared.reference_loss,
        tokens=compared.tokens,
        bytes=byte_count,
        kl_mean=compared.kl_mean,
        kl_q99=compared.kl_q99,
        top1_flips=compared.top1_flips,
        loss_difference=compared.loss_difference,
        loss_difference_low=compared.loss_difference_low,
        loss_difference_high=compared.loss_difference_high,
    )
