"""From an evaluation that has run to its record beside the file that was evaluated."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab import __version__
from quantlab.errors import CheckpointError
from quantlab.files import hash_file, refuse_existing
from quantlab.pipeline.models import Loaded
from quantlab.report.evaluation import Against, EvaluationData, EvaluationRecord, record_path
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.compare import Comparison
from quantlab.trainer.evaluate import Score
from quantlab.trainer.windows import scored_part


@dataclass(frozen=True, slots=True)
class Reference:
    """What a target was held against, and how."""

    path: Path
    loaded: Loaded
    compared: Comparison
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
