"""Score a model in bits per byte, and compare it with a reference on the same tokens.

`python -m quantlab.jobs.evaluate REQUEST` does so in a process of its own (child_process.py).
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab import __version__
from quantlab.child_process import serve
from quantlab.errors import CheckpointError, ConfigError, DataError
from quantlab.evaluation.divergence import measure_divergence
from quantlab.evaluation.document_costs import DocumentCosts, memorized
from quantlab.evaluation.evaluation_record import Against, EvaluationData, EvaluationRecord, Memory, Probe, record_path
from quantlab.evaluation.sampled_probes import probe_sample
from quantlab.evaluation.scoring import Score, device_of, score_tokens
from quantlab.evaluation.window_sample import WindowSample
from quantlab.evaluation.windows import DEFAULT_STRIDE, Mode, as_mode, scored_part, stride_of
from quantlab.fields import json_file
from quantlab.files import hash_file, write_whole
from quantlab.jobs.devices import on_device, peak_of_process
from quantlab.jobs.input_files import input_files
from quantlab.jobs.score_checks import Clock, code_check, data_checks
from quantlab.jobs.tokenizers import found_tokenizer
from quantlab.models.loading import (
    LoadedModel,
    Source,
    file_of,
    in_eval_mode,
    load,
    load_packed,
    load_tokenizer,
    stays_packed,
)
from quantlab.outputs import check_outputs
from quantlab.progress import Progress, silent, stage
from quantlab.text.documents import read_documents
from quantlab.text.shards import open_shards, read_shards
from quantlab.text.tokenizer import TokenBytes, Tokenizer
from quantlab.trainer.packed_layers import PackedWeight, weight_bytes
from quantlab.trainer.world import World, close_world, open_world

SEQ_LEN = 1024
"""Tokens of context where neither the user nor the model's file says: those of the challenge's baseline."""
_log = logging.getLogger(__name__)


def evaluate(
    target: Source,
    *,
    text: str | Path | None = None,
    tokens: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    against: Source | None = None,
    seq_len: int | None = None,
    mode: str | None = None,
    stride: int | None = None,
    packed: bool | None = None,
    model: str | None = None,
    trained_on: str | None = None,
    max_seconds: float | None = None,
    save: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> EvaluationRecord:
    """Score a model in bits per byte, the way the Parameter Golf challenge counts them; on several GPUs under torchrun.

    Args:
        target: path of a checkpoint or an artifact, or a module (see `quantlab.load`).
        text: plain text, or .jsonl with a text field; also .zst of either. Exactly one of `text` and `tokens` is needed.
        tokens: a glob pattern of token shards.
        tokenizer: file or folder of a tokenizer, or byte260; default: the one that the target carries, or else tokenizer.model
            or tokenizer.json beside it. Without any, tokens are compared with a reference, and there are no bits per byte.
        against: a reference, usually the checkpoint that was packed: adds KL, flips and the paired loss difference.
        seq_len: largest number of tokens of context; if None, that of the model's training, or 1,024 where its file does not
            say.
        mode: chunked (sequences that do not overlap, as the challenge's baseline), sliding (windows a stride apart), or
            document (sliding within each document alone; every token but BOS is scored). If None, that in which the model was
            validated, or chunked where its file does not say.
        stride: tokens between windows of the modes sliding and document, 1 to seq_len; 64 if None.
        packed: whether the weights of an artifact stay packed in memory; if None, on a GPU.
        model: path/to/file.py:factory of another architecture, for target and reference; this runs that file.
        trained_on: a glob pattern of the token shards that training read, which may not have the scored documents; for a model
            whose file does not say it.
        max_seconds: seconds that loading and scoring may take; a slower score is not valid.
        save: whether the record is written beside the target, as its stem.eval.json.
        force: whether an existing record is replaced.
    Returns:
        The record that `save` writes; its `problems` say why the score is not valid, as where the model sees its targets. In
        processes of torchrun other than the main one, without probes and comparison.
    Raises:
        ConfigError: options are out of range or contradict each other, or the record exists.
        CheckpointError, FormatError: the target or the reference cannot be read.
        DataError: text, shards or tokenizer are missing, damaged, or do not belong together.
    """
    started = time.perf_counter()
    check_options(text, tokens, mode, seq_len, stride, max_seconds)
    if save:
        refuse_record(target, text, force=force)
    trained = open_shards(trained_on) if trained_on is not None else None
    world = open_world()
    try:
        loaded = _load_target(target, model, packed, world.device)
        seq_len, windows = _defaults(loaded, seq_len, mode)
        _check_context(loaded, seq_len)
        is_needed = text is not None or against is None
        known = _tokenizer(target, loaded, tokenizer, is_needed=is_needed, say=world.is_main)
        ids = evaluation_tokens(text, tokens, known)
        scoring = _Scoring.of(loaded, ids, known, seq_len, windows, stride, world, progress)
        score, probes = scoring.score_and_probe(loaded, Clock(started, max_seconds))
        memory = memory_of(loaded, world.device)
        takes_part = against is not None and (world.is_main or windows != "chunked")  # chunks are compared by the main process
        found = scoring.compare(load(against, model=model), loaded, score) if against is not None and takes_part else None
    finally:
        close_world(world)
    place = file_of(target)
    if world.is_main:
        probes += data_checks(loaded, place, ids, known, tokens, score, trained)
        probes += code_check(model)
    record = _record(place if world.is_main else None, score, ids, known, memory, probes, found)
    record = replace(record, deviations=tuple(_deviations(loaded, score)))
    if save and world.is_main and place is not None:
        save_record(place, record)
    return record


def save_record(target: Path, record: EvaluationRecord) -> None:
    """Write the record beside the target; without the memory, so that the same work gives the same file."""
    write_whole(record_path(target), json_file(replace(record, memory=None)))


def _check_context(loaded: LoadedModel, seq_len: int) -> None:
    length = loaded.context_length
    if length is not None and seq_len > length:
        raise ConfigError(
            f"seq_len is {seq_len}, but the model reads at most {length} tokens", hint=f"pass a seq_len of at most {length}"
        )


def check_options(
    text: str | Path | None,
    tokens: str | None,
    mode: str | None,
    seq_len: int | None,
    stride: int | None,
    max_seconds: float | None = None,
) -> None:
    """Raise ConfigError unless there is one source of tokens and all that is given is in range."""
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise ConfigError(f"max_seconds must be a number of seconds above 0, got {max_seconds}")
    if (text is None) == (tokens is None):
        raise ConfigError("exactly one of text and tokens is needed", hint="give a text file, or a pattern of token shards")
    stride_of(as_mode(mode or "chunked"), max(stride or 0, DEFAULT_STRIDE) if seq_len is None else seq_len, stride)


def _defaults(loaded: LoadedModel, seq_len: int | None, mode: str | None) -> tuple[int, Mode]:
    """Return the sequence length and the mode: as asked, else as the model was validated, else those of the challenge."""
    past = loaded.provenance
    if seq_len is None:
        seq_len = past.seq_len or min(SEQ_LEN, loaded.context_length or SEQ_LEN)
    return seq_len, as_mode(mode or past.mode or "chunked")


def _deviations(loaded: LoadedModel, score: Score) -> Iterator[str]:
    """Yield a line for each difference from the validation of the model's training, as far as its file tells."""
    past = loaded.provenance
    if past.seq_len and past.seq_len != score.seq_len:
        yield f"sequences of {score.seq_len:,} tokens, the model was trained and validated with {past.seq_len:,}"
    if past.mode and past.mode != score.mode:
        yield f"mode {score.mode}, the model was validated in mode {past.mode}"


@dataclass(frozen=True, slots=True)
class _Scoring:
    """The way in which every model of one evaluation is scored."""

    ids: NDArray[Any]
    tokenizer: Tokenizer | None
    token_bytes: TokenBytes
    bos_id: int
    seq_len: int
    mode: Mode
    stride: int | None
    world: World
    progress: Progress

    @classmethod
    def of(cls, loaded: LoadedModel, ids: NDArray[Any], tokenizer: Tokenizer | None, *rest: Any) -> "_Scoring":
        """Return the way of scoring with a tokenizer, or without one for a model's number of ids."""
        if tokenizer:
            return cls(ids, tokenizer, tokenizer.token_bytes(), tokenizer.bos_id, *rest)
        return cls(ids, None, TokenBytes.unknown(loaded.vocab_size), loaded.first_id(), *rest)

    def score_and_probe(self, loaded: LoadedModel, clock: Clock) -> tuple[Score, list[Probe]]:
        """Return the score, and the probes of the main process' share; none in any other process."""
        if not self.world.is_main:
            return self.score(loaded, "evaluate"), []
        stream = scored_part(self.ids, self.mode, self.seq_len)
        seed = hashlib.sha256(loaded.fingerprint.encode() + stream.tobytes()).digest()
        sample, costs = WindowSample(int.from_bytes(seed[:8])), DocumentCosts(stream, self.bos_id)
        with on_device(loaded.model, self.world.device):
            score = self.score(loaded, "evaluate", sample=sample, costs=costs)
            late = clock.check()
            probes = probe_sample(loaded.model, sample)
        known = [memorized(costs, self.token_bytes, self.tokenizer)] if self.tokenizer else []
        return score, [*probes, *known, *late]

    def score(self, loaded: LoadedModel, label: str, **watchers: Any) -> Score:
        """Return the bits per byte of a model, which runs on the world's device and is put back."""
        with on_device(loaded.model, self.world.device), in_eval_mode(loaded.model):
            return score_tokens(
                loaded.model,
                self.ids,
                self.token_bytes,
                seq_len=self.seq_len,
                mode=self.mode,
                stride=self.stride,
                bos_id=self.bos_id,
                world=self.world,
                **watchers,
                progress=stage(self.progress, label),
            )

    def compare(self, reference: LoadedModel, loaded: LoadedModel, score: Score) -> Against | None:
        """Return the comparison with a reference; None in a process that is not the main one."""
        own = None if self.mode == "chunked" else self.score(reference, "evaluate the reference")
        if not self.world.is_main:
            return None
        with (
            on_device(reference.model, device_of(loaded.model)),
            in_eval_mode(reference.model),
            in_eval_mode(loaded.model),
        ):
            progress = stage(self.progress, "compare")
            found = measure_divergence(reference.model, loaded.model, self.ids, seq_len=self.seq_len, progress=progress)
        stream = self.ids[: found.tokens + 1]
        byte_count = int(self.token_bytes.count(stream[:-1], stream[1:]).sum(dtype=np.int64))
        chunked_bpb = found.reference_loss * found.tokens / (math.log(2) * byte_count) if byte_count else None
        return Against(
            file=Path(reference.name).name,
            fingerprint=reference.fingerprint,
            val_bpb=own.val_bpb if own else chunked_bpb,
            val_loss=own.val_loss if own else found.reference_loss,
            tokens=found.tokens,
            bytes=byte_count,
            kl_mean=found.kl_mean,
            kl_q99=found.kl_q99,
            top1_flips=found.top1_flips,
            loss_difference=found.loss_difference,
            loss_difference_low=found.loss_difference_low,
            loss_difference_high=found.loss_difference_high,
            reference_loss=found.reference_loss,
        )


def evaluation_tokens(text: str | Path | None, shards: str | None, tokenizer: Tokenizer | None) -> NDArray[Any]:
    """Return the token ids [N] of a text file (each document begins with BOS) or of all shards that match a pattern."""
    if text is not None and tokenizer is not None:
        return tokenizer.encode_documents(read_documents(Path(text)))
    if shards is None:
        raise ConfigError("evaluation needs a text file or token shards")
    return np.asarray(read_shards(shards))


def _tokenizer(
    target: Source, loaded: LoadedModel, given: str | Path | Tokenizer | None, *, is_needed: bool, say: bool
) -> Tokenizer | None:
    """Return the tokenizer that is given, or else found. Where none is needed, say why there is none and return None."""
    if given is not None:
        return load_tokenizer(given, loaded)
    try:
        return found_tokenizer(target, loaded, say=say)
    except (ConfigError, DataError) as error:
        if is_needed:
            raise
        if say:
            _log.warning("no bits per byte, bytes of text cannot be counted: %s", error)
        return None


def memory_of(loaded: LoadedModel, device: torch.device) -> Memory:
    """Return what the model's weights take, packed or decoded, and the peak so far."""
    is_packed = any(isinstance(module, PackedWeight) for module in loaded.model.modules())
    is_cuda = device.type == "cuda"
    return Memory(
        weights="packed" if is_packed else "decoded",
        weight_bytes=weight_bytes(loaded.model),
        peak_bytes=torch.cuda.max_memory_allocated(device) if is_cuda else peak_of_process(),
        device=torch.cuda.get_device_name(device) if is_cuda else "cpu",
    )


def refuse_record(target: Source, text: str | Path | None, *, force: bool) -> None:
    """Raise unless there is a target and the record of its evaluation can be written: before hours are spent on one."""
    place = file_of(target)
    if place is None:
        raise ConfigError("a module in memory has no place for its record", hint="evaluate a file, or leave out save")
    if not place.exists():
        raise CheckpointError(f"{place} does not exist", hint="check the path")
    check_outputs([record_path(place)], inputs=input_files(others=[text] if text else []), force=force)


def _load_target(target: Source, model: str | None, packed: bool | None, device: torch.device) -> LoadedModel:
    if not isinstance(target, str | Path):
        if packed:
            raise ConfigError("only the weights of a .qlab file can stay packed, the target is a module in memory")
        return load(target, model=model)
    path = Path(target)
    is_packed = stays_packed(path, model, device) if packed is None else packed
    return load_packed(path, model, device) if is_packed else load(path, model=model)


def _record(
    target: Path | None,
    score: Score,
    ids: NDArray[Any],
    tokenizer: Tokenizer | None,
    memory: Memory,
    probes: Sequence[Probe],
    against: Against | None,
) -> EvaluationRecord:
    id_type = (tokenizer.dtype if tokenizer else ids.dtype).newbyteorder("<")
    data = EvaluationData(
        tokens_sha256=hashlib.sha256(scored_part(ids, score.mode, score.seq_len).astype(id_type).tobytes()).hexdigest(),
        tokens=score.tokens,
        bytes=score.bytes,
        documents=score.documents,
        mode=score.mode,
        seq_len=score.seq_len,
        stride=score.stride,
        tokenizer_sha256=tokenizer.sha256 if tokenizer else "",
    )
    size, digest = hash_file(target) if target else (0, "")
    return EvaluationRecord(
        target=target.name if target else "",
        target_sha256=digest,
        target_bytes=size,
        data=data,
        val_bpb=score.val_bpb,
        val_loss=score.val_loss,
        nats=score.nats,
        split=score.split,
        bytes_match=score.bytes_match,
        normalization=tokenizer.normalization if tokenizer else "",
        device=memory.device,
        probes=tuple(probes),
        against=against,
        memory=memory,
        producer=f"quantlab {__version__}",
    )


def _answer(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return evaluate(**request, progress=progress).to_dict()


if __name__ == "__main__":
    serve(_answer)
