"""Score a model on a token stream in bits per byte, counted as the Parameter Golf baseline counts them.

Letters: B windows in a batch, T tokens in its longest, V vocabulary, N tokens in the stream, n scored tokens of a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantlab.errors import ConfigError, DataError, ShapeError
from quantlab.evaluation.document_costs import DocumentCosts
from quantlab.evaluation.ledger import Ledger, bytes_match, due_positions, implied_bytes, public_split
from quantlab.evaluation.window_sample import WindowSample
from quantlab.evaluation.windows import (
    Mode,
    Windows,
    batches,
    read_windows,
    scored_part,
    share_of,
    stride_of,
    windows_of,
)
from quantlab.models.loading import in_eval_mode
from quantlab.text.tokenizer import TokenBytes
from quantlab.trainer.model import GPT
from quantlab.trainer.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The score of a model on a text, and the counts to check it by."""

    val_bpb: float | None
    """Bits per byte: nats / (ln 2 · bytes); None where bytes cannot be counted, without a tokenizer."""
    val_loss: float
    """Mean nats per token."""
    tokens: int
    """Number of scored tokens, which include BOS except in mode document."""
    bytes: int
    """Bytes of raw text that the scored tokens stand for; 0 where they cannot be counted."""
    nats: float
    """Total negative log-likelihood, summed in float64."""
    seq_len: int
    """Largest number of tokens of context; each window starts without any."""
    mode: Mode
    """How windows are cut, see `quantlab.evaluation.windows.Mode`."""
    stride: int
    """Tokens from one window to the next; seq_len when chunked."""
    documents: int
    """Number of documents with a scored token; the stream may begin within one."""
    split: str
    """Name of the challenge's public validation split with this number of tokens, or "" if there is none."""
    bytes_match: bool | None
    """Whether the bytes are those of that split; if not, byte counts or text are wrong. None without a split or bytes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def score_tokens(
    model: nn.Module,
    tokens: NDArray[np.integer],
    token_bytes: TokenBytes,
    *,
    seq_len: int = 1024,
    mode: Mode = "chunked",
    stride: int | None = None,
    bos_id: int = 1,
    batch_tokens: int = 32768,
    world: World | None = None,
    sample: WindowSample | None = None,
    costs: DocumentCosts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score each token once, from the tokens of its window alone, and enter it in a ledger.

    The first token is never a target. In mode chunked (N - 1) // seq_len · seq_len of N tokens are scored, in mode sliding all
    N - 1, and in mode document all but BOS; the first tokens of a document have only the document's own before them as context.
    BOS targets, where they are scored, cost nats and count 0 bytes. On a GPU the model runs in bfloat16 autocast; losses are
    float32, their sum is float64.

    Args:
        model: causal; maps ids, int64 [B, T], to logits, floating [B, T, V]; runs in eval mode, its modes are restored.
        tokens: token ids, uint16 or any integer dtype, [N].
        token_bytes: byte counts of the V pieces of the tokenizer that made the tokens, or `TokenBytes.unknown`.
        seq_len: largest window T.
        mode: how windows are cut.
        stride: tokens from one window to the next, 1 to seq_len, 64 if None; must be None in mode chunked, where it is seq_len.
        bos_id: token that begins a document; 1 in the challenge's tokenizers.
        batch_tokens: largest number of tokens in one call of the model, but at least one window; bounds the logits' memory.
        world: processes that share the windows; each calls this with the same arguments and gets the same score.
        sample: gets some of this process' windows and their losses, to probe the model on afterwards.
        costs: gets all losses of this process.
        progress: called with (windows done, windows in all) of the main process' share after each batch.
    Raises:
        ConfigError: seq_len, stride or batch_tokens is out of range.
        DataError: there are too few tokens, no bytes of text, an id outside the vocabulary, or, in mode document, no BOS first.
        ShapeError: tokens is not a vector of integers, or the logits are not [B, T, V].
        QuantlabError: a loss is not finite.
    Source: openai/parameter-golf train_gpt.py, eval_val (chunked); its record of PR 1218 (sliding), of PR 77 (document).
    """
    world = world or World()
    step = stride_of(mode, seq_len, stride)
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be 1 or more, got {batch_tokens}")
    _check_ids(tokens, len(token_bytes.base))
    stream = scored_part(tokens, mode, seq_len)
    windows = windows_of(stream, mode, seq_len=seq_len, stride=step, bos_id=bos_id)
    parts = share_of(batches(windows, batch_tokens), world.rank, world.size)
    start, stop = _positions_of(parts, windows, len(stream))
    ledger = Ledger(stream, due_positions(stream, mode, bos_id), token_bytes, bos_id=bos_id, start=start, stop=stop)
    if sample is not None:  # of few windows this process may have none to score
        sample.choose(stream, windows, slice(parts[0].start, parts[-1].stop) if parts else slice(0, len(windows)))
    watchers = [watcher for watcher in (sample, costs) if watcher is not None]
    _fill(ledger, model, windows, parts, watchers, progress if world.is_main else None)
    part = [ledger.nats, ledger.tokens, ledger.bytes, ledger.documents]
    total = world.sum_(torch.tensor(part, dtype=torch.float64, device=world.device))()
    is_known = token_bytes.is_known
    return _score(total.tolist(), len(stream) - 1, is_known=is_known, mode=mode, seq_len=seq_len, stride=step)


def predict(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return logits as they are scored, [B, T, V]: on a GPU in bfloat16 autocast. ShapeError for any other shape."""
    with _autocast(ids_BT):
        logits_BTV: Tensor = model(ids_BT)
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != ids_BT.shape:
        raise ShapeError(f"logits must be {[*ids_BT.shape, 'V']}, the model gave {list(logits_BTV.shape)}")
    return logits_BTV


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters; the CPU if it has none."""
    return next(model.parameters(), torch.empty(0)).device


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients inside the block; after it each module has the mode that it had before."""
    with in_eval_mode(model), torch.inference_mode():
        yield


def _check_ids(tokens: NDArray[np.integer], vocab_size: int) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ShapeError(f"tokens must be a vector of integers, got {tokens.dtype} {list(tokens.shape)}")
    for token in (int(tokens.min(initial=0)), int(tokens.max(initial=0))):
        if not 0 <= token < vocab_size:
            raise DataError(
                f"token id {token} in the text, the vocabulary has 0 to {vocab_size - 1}",
                hint="name tokens of the model's own tokenizer",
            )


def _positions_of(parts: list[slice], windows: Windows, end: int) -> tuple[int, int]:
    """Return a share's first scored position and that of the next share; shares join without a gap, also across BOS."""
    if not parts:
        return end, end
    first, after = parts[0].start, parts[-1].stop
    return (
        int(windows.start[first] + windows.first[first] + 1) if first else 0,
        int(windows.start[after] + windows.first[after] + 1) if after < len(windows) else end,
    )


def _fill(
    ledger: Ledger,
    model: nn.Module,
    windows: Windows,
    parts: list[slice],
    watchers: Sequence[WindowSample | DocumentCosts],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Score every batch of a share and enter it in the ledger."""
    device = device_of(model)
    with eval_mode(model):
        for part in parts:
            ids_BT, positions, rows = read_windows(ledger.stream, windows[part])
            targets, vocab_size = ledger.stream[positions], len(ledger.token_bytes.base)
            nats = _nats(model, torch.from_numpy(ids_BT).to(device), targets, torch.from_numpy(rows), vocab_size)
            ledger.write(positions, nats)
            for watcher in watchers:
                watcher.enter(positions, nats)
            if progress is not None:
                progress(part.stop - parts[0].start, parts[-1].stop - parts[0].start)
    ledger.close()


def _nats(model: nn.Module, ids_BT: Tensor, targets: NDArray[np.integer], rows: Tensor, vocab_size: int) -> NDArray[np.float32]:
    """Return the loss of each scored token, float32 [n], whatever the dtype of the logits."""
    y, rows = torch.from_numpy(targets.astype(np.int64)).to(ids_BT.device), rows.to(ids_BT.device)
    if _has_losses(model, ids_BT, vocab_size):
        with _autocast(ids_BT):
            nats_n = model.losses(ids_BT, y, rows)  # type: ignore[operator]
    else:
        nats_n = F.cross_entropy(_scored_logits(model, ids_BT, rows, vocab_size), y, reduction="none")
    nats: NDArray[np.float32] = nats_n.cpu().numpy()
    return nats


def _has_losses(model: nn.Module, ids_BT: Tensor, vocab_size: int) -> bool:
    """Return whether the model can score on a GPU without float32 logits: ours alone, since `losses` is told the targets."""
    return type(model) is GPT and "losses" not in vars(model) and ids_BT.is_cuda and model.config.vocab_size == vocab_size


def _autocast(ids_BT: Tensor) -> torch.autocast:
    return torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=ids_BT.device.type == "cuda")


def _scored_logits(model: nn.Module, ids_BT: Tensor, rows: Tensor, vocab_size: int) -> Tensor:
    logits_BTV = predict(model, ids_BT)
    if logits_BTV.shape[-1] != vocab_size:
        raise ShapeError(f"logits must be {[*ids_BT.shape, vocab_size]}, the model gave {list(logits_BTV.shape)}")
    return logits_BTV.flatten(0, 1)[rows].float()


def _score(total: list[float], targets: int, *, is_known: bool, mode: Mode, seq_len: int, stride: int) -> Score:
    """Return the score of [nats, tokens, bytes, documents]; the number of targets tells whether the text is a known split."""
    nats, (tokens, byte_count, documents) = total[0], (int(count) for count in total[1:])
    if is_known and byte_count == 0:
        raise DataError(f"the {tokens:,} scored tokens stand for 0 bytes of text")
    bpb = nats / (math.log(2) * byte_count) if is_known else None
    split = public_split(targets)
    return Score(
        val_bpb=bpb,
        val_loss=nats / tokens,
        tokens=tokens,
        bytes=byte_count,
        nats=nats,
        seq_len=seq_len,
        mode=mode,
        stride=stride,
        documents=documents,
        split=split.name if split else "",
        bytes_match=bytes_match(split, implied_bytes(nats, bpb)) if split and bpb is not None else None,
    )
