"""Score a text with a model that adapts to it on the way: every token is scored before anything adapts to it.

A score comes from the stream, but what is trained on comes from the ledger alone, which hands out no token before its score.

Letters: N tokens in the stream, n scored tokens, B documents or windows, T tokens of a window, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantlab.errors import ConfigError
from quantlab.evaluation.adaptation_config import Adaptation, LoraAdaptation, PhasedAdaptation, SgdAdaptation
from quantlab.evaluation.adapters import Adapters
from quantlab.evaluation.ledger import Ledger, due_positions
from quantlab.evaluation.scoring import Score, device_of, eval_mode, predict, score_of
from quantlab.evaluation.windows import Mode, Windows, batches, read_windows, scored_part, stride_of, windows_of
from quantlab.models.loading import in_eval_mode
from quantlab.text.tokenizer import TokenBytes
from quantlab.trainer.packed_layers import PackedWeight

Hear = Callable[[NDArray[np.int64], Tensor], None]
"""Is told the positions of scored tokens, [n], and the logits that predicted them, float32 [n, V]."""
Span = tuple[int, int]
"""A document's BOS, and the position after its last token."""


@dataclass(slots=True)
class Pass:
    """One pass over a stream: how it is cut, its ledger, and who hears of every score."""

    ledger: Ledger
    mode: Mode
    seq_len: int
    stride: int
    bos_id: int
    batch_tokens: int
    vocab_size: int
    nats: NDArray[np.float32]
    """Loss of the token at each position, [N]; NaN where none is scored."""
    hear: Hear | None = None
    progress: Callable[[int, int], None] | None = None
    done: int = 0
    """Number of tokens that are scored."""
    due: int = 0
    """Number of tokens that are scored in the end."""

    @property
    def stream(self) -> NDArray[np.integer]:
        """The tokens, [N]."""
        return self.ledger.stream

    def enter(self, ledger: Ledger, positions: NDArray[np.int64], logits_nV: Tensor) -> None:
        """Score predictions against the stream and write them into a ledger: that of the pass or a part of it."""
        y = torch.from_numpy(self.stream[positions].astype(np.int64)).to(logits_nV.device)
        nats = F.cross_entropy(logits_nV, y, reduction="none").cpu().numpy()
        ledger.write(positions, nats)
        self.nats[positions] = nats
        if self.hear is not None:
            self.hear(positions, logits_nV)
        self.done += len(positions)
        if self.progress is not None:
            self.progress(self.done, self.due)

    def predict(self, model: nn.Module, windows: Windows) -> tuple[NDArray[np.int64], Tensor]:
        """Return the positions that windows score, [n], and the logits that predict them, float32 [n, V]."""
        ids_BT, positions, rows = read_windows(self.stream, windows)
        logits_BTV = predict(model, torch.from_numpy(ids_BT).to(device_of(model)))
        if logits_BTV.shape[-1] != self.vocab_size:
            raise ConfigError(f"the model has {logits_BTV.shape[-1]:,} ids, the tokenizer {self.vocab_size:,}")
        return positions, logits_BTV.flatten(0, 1)[torch.from_numpy(rows).to(logits_BTV.device)].float()


def score_adapted(
    model: nn.Module,
    tokens: NDArray[np.integer],
    token_bytes: TokenBytes,
    adaptation: Adaptation,
    *,
    seq_len: int = 1024,
    mode: Mode = "document",
    stride: int | None = None,
    bos_id: int = 1,
    byte_counts: NDArray[np.integer] | None = None,
    batch_tokens: int = 32768,
    hear: Hear | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Score, NDArray[np.float32]]:
    """Score each token once with a model that has adapted to tokens before it; the model is left as it was.

    Without a step (a learning rate of 0) the score is that of `score_tokens` in the same mode, with the chunk as its stride.

    Args:
        model, tokens, token_bytes, seq_len, bos_id, byte_counts, batch_tokens, progress: as in `score_tokens`.
        adaptation: how the model adapts.
        mode: lora and phased adapt within documents, in mode document; sgd in any.
        stride: as in `score_tokens`; for lora and phased their chunk.
        hear: gets every prediction.
    Returns:
        The score, and the loss of the token at each position, float32 [N], NaN where none is scored.
    Raises:
        ConfigError: the mode does not fit, or the model's weights are packed and the adaptation would change them.
    """
    check_adaptation(adaptation, mode, seq_len, stride)
    if not isinstance(adaptation, LoraAdaptation):
        refuse_packed(model)
    step = chunk_of(adaptation) or stride_of(mode, seq_len, stride)
    stream = scored_part(tokens, mode, seq_len)
    ledger = Ledger(stream, due_positions(stream, mode, bos_id), token_bytes, bos_id=bos_id, byte_counts=byte_counts)
    nats = np.full(len(stream), np.nan, dtype=np.float32)
    about = Pass(ledger, mode, seq_len, step, bos_id, batch_tokens, len(token_bytes.base), nats, hear, progress)
    about.due = int(ledger.due.sum())
    with restored(model), in_eval_mode(model):
        procedure_of(adaptation)(model, about, adaptation)
    ledger.close()
    counts = [ledger.nats, ledger.tokens, ledger.bytes, ledger.documents]
    is_known = token_bytes.is_known or byte_counts is not None
    return score_of(counts, len(stream) - 1, is_known=is_known, mode=mode, seq_len=seq_len, stride=step), nats


def check_adaptation(adaptation: Adaptation, mode: Mode, seq_len: int, stride: int | None) -> None:
    """Raise ConfigError unless mode, sequence length and stride fit the adaptation."""
    chunk = chunk_of(adaptation)
    if chunk is None:
        stride_of(mode, seq_len, stride)
        return
    if mode != "document":
        raise ConfigError(f"ttt lora and phased adapt within documents, in mode document, got mode {mode}")
    if stride is not None:
        raise ConfigError(f"stride {stride} has no effect with ttt: the chunk of {chunk} takes its place", hint="set chunk")
    if seq_len % chunk:
        raise ConfigError(f"the chunk must divide the sequence length {seq_len}, got {chunk}")


def chunk_of(adaptation: Adaptation) -> int | None:
    """Return the tokens of a document between two adaptations, None for an adaptation that does not go by documents."""
    if isinstance(adaptation, SgdAdaptation):
        return None
    return adaptation.chunk if isinstance(adaptation, LoraAdaptation) else adaptation.lora.chunk


def refuse_packed(model: nn.Module) -> None:
    """Raise ConfigError where the weights are packed, for an adaptation that changes them."""
    if any(isinstance(module, PackedWeight) for module in model.modules()):
        raise ConfigError("ttt sgd and phased change the weights, and packed weights cannot change", hint="pass --decoded")


Procedure = Callable[[nn.Module, Pass, Adaptation], None]


def procedure_of(adaptation: Adaptation) -> Procedure:
    """Return the function that scores a pass with an adaptation of this kind."""
    found: dict[type, Procedure] = {LoraAdaptation: _lora, SgdAdaptation: _sgd, PhasedAdaptation: _phased}  # type: ignore[dict-item]
    return found[type(adaptation)]


def _lora(model: nn.Module, about: Pass, config: LoraAdaptation) -> None:
    score_documents(model, about, config, documents_of(about))


def _sgd(model: nn.Module, about: Pass, config: SgdAdaptation) -> None:
    windows = windows_of(about.stream, about.mode, seq_len=about.seq_len, stride=about.stride, bos_id=about.bos_id)
    optimizer, start = descent_of(model, config), 0
    chunks = _chunks(windows, config.chunk)
    for n, chunk in enumerate(chunks):
        with eval_mode(model):
            for part in batches(windows[chunk], about.batch_tokens):
                about.enter(about.ledger, *about.predict(model, windows[chunk][part]))
        if n + 1 < len(chunks):
            stop = about.ledger.next
            descend(model, optimizer, about.ledger.adaptable(start, stop), about.seq_len, config)
            start = stop


def _phased(model: nn.Module, about: Pass, config: PhasedAdaptation) -> None:
    documents, start = documents_of(about), 0
    if config.prefix >= len(documents):
        raise ConfigError(
            f"the last phase ends after {config.prefix:,} documents, but the text has {len(documents):,}",
            hint=f"set a prefix below {len(documents):,}",
        )
    for boundary in config.boundaries:
        score_documents(model, about, config.lora, documents[start:boundary])
        scored = about.ledger.adaptable(0, documents[boundary][0])
        descend(model, descent_of(model, config.sgd), scored, about.seq_len, config.sgd)
        start = boundary
    score_documents(model, about, config.lora, documents[start:])


def documents_of(about: Pass) -> list[Span]:
    """Return the documents of a stream in their order. DataError where it does not begin with BOS."""
    windows_of(about.stream, "document", seq_len=about.seq_len, stride=about.stride, bos_id=about.bos_id)  # checks the stream
    starts = np.flatnonzero(about.stream == about.bos_id).tolist()
    return list(zip(starts, [*starts[1:], len(about.stream)], strict=True))


def score_documents(model: nn.Module, about: Pass, config: LoraAdaptation, documents: list[Span]) -> None:
    """Score documents, each with adapters of its own, and enter them into the pass' ledger in their order.

    Documents of about the same length are scored side by side. A ledger for each proves its order from left to right.
    """
    ledgers = {span: about.ledger.part(*span) for span in documents}
    longest_first = sorted((d for d in documents if d[1] - d[0] > 1), key=lambda d: (d[0] - d[1], d[0]))
    most = max(1, min(config.documents, about.batch_tokens // about.seq_len))
    for at in range(0, len(longest_first), most):
        group = longest_first[at : at + most]
        DocumentGroup(model, about, config, group, [ledgers[span] for span in group]).run()
    for span in documents:
        about.ledger.join(ledgers[span])


class DocumentGroup:
    """Documents that are scored side by side, the longest first, each with adapters of its own."""

    def __init__(self, model: nn.Module, about: Pass, config: LoraAdaptation, spans: list[Span], ledgers: list[Ledger]) -> None:
        self.model, self.about, self.config, self.ledgers = model, about, config, ledgers
        self.start = np.array([start for start, _ in spans])
        self.targets = np.array([stop - start - 1 for start, stop in spans])
        self.adapters = Adapters(model, len(spans), config)

    def run(self) -> None:
        """Score chunk after chunk, and adapt after each."""
        with self.adapters.attached():
            for begin in range(0, int(self.targets[0]), self.config.chunk):
                self.turn(begin)

    def turn(self, begin: int) -> None:
        """Score the chunk that begins at target `begin` of each document, then adapt; the same forward pass serves both."""
        predictions = self.predict(begin)
        self.score(predictions)
        self.adapt(begin, predictions)

    def predict(self, begin: int) -> list[tuple[NDArray[np.int64], Tensor]]:
        """Return, for each document that has this chunk, the positions of its tokens and the logits that predict them."""
        count = int((self.targets > begin).sum())
        end = np.minimum(begin + self.config.chunk, self.targets[:count])
        first = max(0, begin + self.config.chunk - self.about.seq_len)  # of the window, within the document
        windows = Windows(self.start[:count] + first, end - first, np.full(count, begin - first))
        self.adapters.rows = torch.arange(count)
        with torch.set_grad_enabled(bool(self.going(begin))):
            positions, logits_nV = self.about.predict(self.model, windows)
        sizes = (end - begin).tolist()
        return list(zip(np.split(positions, np.cumsum(sizes)[:-1]), torch.split(logits_nV, sizes), strict=True))

    def going(self, begin: int) -> int:
        """Return how many documents go on after this chunk; the others need not adapt to it."""
        return int((self.targets > begin + self.config.chunk).sum())

    def score(self, predictions: list[tuple[NDArray[np.int64], Tensor]]) -> None:
        """Enter the losses of a chunk."""
        for ledger, (positions, logits_nV) in zip(self.ledgers, predictions, strict=False):
            self.about.enter(ledger, positions, logits_nV.detach())

    def adapt(self, begin: int, predictions: list[tuple[NDArray[np.int64], Tensor]]) -> None:
        """Take the steps after a chunk, on the tokens that the ledgers hand out."""
        if not (going := self.going(begin)):
            return
        for step in range(self.config.steps):
            now = predictions if step == 0 else self.predict(begin)
            losses = [self._loss(ledger, *p) for ledger, p in zip(self.ledgers[:going], now, strict=False)]
            self.adapters.step(torch.stack(losses).sum())

    @staticmethod
    def _loss(ledger: Ledger, positions: NDArray[np.int64], logits_nV: Tensor) -> Tensor:
        scored = ledger.adaptable(int(positions[0]), int(positions[-1]) + 1)
        return F.cross_entropy(logits_nV, torch.from_numpy(scored.astype(np.int64)).to(logits_nV.device))


def descent_of(model: nn.Module, config: SgdAdaptation) -> torch.optim.SGD:
    """Return the optimizer of all floating weights."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    return torch.optim.SGD(weights, lr=config.lr, momentum=config.momentum)


def descend(
    model: nn.Module, optimizer: torch.optim.SGD, tokens: NDArray[np.integer], seq_len: int, config: SgdAdaptation
) -> None:
    """Train on scored tokens: in sequences that do not overlap, in their order, without what is left of the last one."""
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device_of(model))
    length = min(seq_len, len(ids) - 1)
    count = (len(ids) - 1) // length if length else 0
    x_NT, y_NT = (ids[at : at + count * length].view(count, length) for at in (0, 1))
    rows = max(1, config.batch_tokens // seq_len)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(config.epochs):
        for at in range(0, count, rows):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), _trainable(weights):
                logits = predict(model, x_NT[at : at + rows]).flatten(0, 1).float()
                F.cross_entropy(logits, y_NT[at : at + rows].flatten()).backward()  # type: ignore[no-untyped-call]
            if config.grad_clip:
                nn.utils.clip_grad_norm_(weights, config.grad_clip)
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give the weights their values back after the block."""
    saved = [(p, p.detach().clone(), p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, grad in saved:
                parameter.copy_(value)
                parameter.grad = grad


@contextmanager
def _trainable(weights: list[Tensor]) -> Iterator[None]:
    flags = [p.requires_grad for p in weights]
    for p in weights:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, flag in zip(weights, flags, strict=True):
            p.requires_grad_(flag)


def _chunks(windows: Windows, size: int) -> list[slice]:
    """Return consecutive slices of windows, each of which scores `size` tokens or more, but for the last."""
    total = np.cumsum(windows.length - windows.first)
    edges = [0]
    while edges[-1] < len(windows):
        done = int(total[edges[-1] - 1]) if edges[-1] else 0
        edges.append(min(int(np.searchsorted(total, done + size)) + 1, len(windows)))
    return [slice(a, b) for a, b in pairwise(edges)]
