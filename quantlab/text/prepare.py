"""Turn text into the challenge's token shards: a training and a validation split that share no document.

Several processes may tokenize; the documents keep their order, and the shards are the same for any number of processes.
"""

import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab import __version__
from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.files import whole_folder, write_whole
from quantlab.progress import Progress, silent
from quantlab.text.documents import read_documents
from quantlab.text.shards import SIDECAR_MARK, ShardWriter
from quantlab.text.tokenizer import Tokenizer

MANIFEST = "manifest.json"
SPLITS = ("val", "train")
"""The splits in the order of the corpus: its first documents are the validation split."""
OUTPUTS = re.compile(r"manifest\.json|[\w.-]+_(train|val|val_bytes)_\d{6}\.bin")
"""Names of the files that `prepare` writes."""
SHORT_KINDS = {"sentencepiece": "sp", "caseops": "caseops", "huggingface": "hf", "byte260": "byte"}
"""Beginnings of the names of data sets, before the vocabulary's size: the challenge's sp1024 and byte260."""
BATCH_BYTES = 2**20
"""Bytes of text after which a batch is full."""
BATCH_DOCUMENTS = 2**12
"""Documents after which a batch is full."""

Tokens = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Options of cutting a corpus into shards."""

    name: str = "fineweb"
    """Beginning of the file names: NAME_train_000000.bin."""
    val_docs: int = 50_000
    """Number of documents at the beginning, 0 or more, that are the validation split; the challenge's has 50,000."""
    shard_tokens: int = 10**8
    """Number of tokens in each shard but the last of a split."""
    workers: int = 1
    """Number of processes that tokenize; the shards do not depend on it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) or SIDECAR_MARK in f"{self.name}_":
            rule = f"must be letters, digits, '_', '-' and '.', without {SIDECAR_MARK!r}"
            raise ConfigError(f"name {self.name!r} {rule}")
        if self.val_docs < 0:
            raise ConfigError(f"val docs must be 0 or more, got {self.val_docs}")
        if not 1 <= self.shard_tokens < 2**31:
            raise ConfigError(f"shard tokens must be 1 to 2**31 - 1, got {self.shard_tokens}")
        if not 1 <= self.workers <= 1024:
            raise ConfigError(f"workers must be 1 to 1024, got {self.workers}")


def prepare(
    sources: Sequence[Path],
    tokenizer: Tokenizer,
    out: Path,
    config: PrepareConfig,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the shards of both splits and `manifest.json` into the folder `out`, which appears whole or not at all.

    Each document is BOS and its tokens, without EOS; tokens are uint16, or uint32 for a vocabulary above 65,536. With a CaseOps
    tokenizer the validation split has byte counts beside it, NAME_val_bytes_000000.bin. The same sources give the same bytes
    for any number of workers. With a SentencePiece model a document with U+2581 in its text gets byte pieces for it, where the
    challenge's exporter writes a space; all other documents are tokenized as the exporter does.

    Args:
        sources: files that `read_documents` reads, in the order of the corpus.
        out: an absent or empty folder, or with `force` one that an earlier call wrote.
    Returns:
        The manifest.
    Raises:
        ConfigError: `out` may not be written.
        DataError: a source is missing or damaged, tokens do not stand for their document's bytes, or there are fewer documents
            than `config.val_docs`.
        QuantlabError: the disk is full, or a process was killed.
    Source: openai/parameter-golf data/download_hf_docs_and_tokenize.py, export_shards.
    """
    for source in sources:
        if not source.is_file():
            raise DataError(f"source {source} is not a file")
    with whole_folder(out, replaceable=OUTPUTS, force=force) as folder:
        stats = _write_splits(sources, tokenizer, folder, config, progress)
        if stats["docs_val"] < config.val_docs:
            problem = f"{stats['docs_val']:,} documents, fewer than the {config.val_docs:,} of the validation split"
            raise DataError(problem, hint="pass a smaller --val-docs")
        manifest = _manifest(sources, tokenizer, config, stats)
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    return manifest


def _write_splits(
    sources: Sequence[Path], tokenizer: Tokenizer, folder: Path, config: PrepareConfig, progress: Progress
) -> Counter[str]:
    """Write the shards; return docs, bytes (of text), tokens and files of each split, under `docs_val` and so on."""
    stats: Counter[str] = Counter()
    finished: list[Path] = []
    work = batches(_documents(sources, finished), config.val_docs)
    with ExitStack() as stack:
        writers = {
            s: stack.enter_context(ShardWriter(folder / f"{config.name}_{s}", config.shard_tokens, tokenizer.dtype))
            for s in SPLITS
        }
        sidecars = stack.enter_context(ShardWriter(folder / f"{config.name}_val_bytes", config.shard_tokens))
        for batch, tokens, counts in stack.enter_context(closing(encode_batches(work, tokenizer, workers=config.workers))):
            split = "val" if batch.first < config.val_docs else "train"
            writers[split].write(tokens)
            if split == "val" and counts is not None:
                sidecars.write(counts)
            stats[f"docs_{split}"] += len(batch.documents)
            stats[f"bytes_{split}"] += sum(map(len, batch.documents))
            written = sum(writer.tokens for writer in writers.values())
            progress("tokenize files", min(len(finished), len(sources) - 1), len(sources), f"{written:,} tokens")
    for split, writer in writers.items():
        stats[f"tokens_{split}"], stats[f"files_{split}"] = writer.tokens, writer.files
    progress("tokenize files", len(sources), len(sources), f"{stats['tokens_val'] + stats['tokens_train']:,} tokens")
    return stats


def _documents(sources: Iterable[Path], finished: list[Path]) -> Iterator[bytes]:
    for source in sources:
        yield from read_documents(source)
        finished.append(source)


def _manifest(sources: Sequence[Path], tokenizer: Tokenizer, config: PrepareConfig, stats: Counter[str]) -> dict[str, Any]:
    """Return the fields that the challenge's downloader reads and those that tell how to make the shards again; no paths."""
    ids = {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id}
    model_path = Path(tokenizer.name).name
    about = {"kind": tokenizer.kind} | ({"normalization": tokenizer.normalization} if tokenizer.normalization else {})
    name = Path(model_path).stem
    totals = {f"{kind}_total": stats[f"{kind}_train"] + stats[f"{kind}_val"] for kind in ("docs", "files", "tokens", "bytes")}
    splits = {f"{kind}_{split}": stats[f"{kind}_{split}"] for kind in ("docs", "files", "tokens", "bytes") for split in SPLITS}
    dataset = {
        "name": f"{config.name}_{SHORT_KINDS[tokenizer.kind]}{tokenizer.vocab_size}",
        "tokenizer_name": name,
        "path": ".",
        **{f"{split}_glob": f"{config.name}_{split}_*.bin" for split in SPLITS},
        **ids,
        "stats": totals | splits,
    }
    return {
        "producer": f"quantlab {__version__}",
        "sources": [source.name for source in sources],
        "num_docs": totals["docs_total"],
        "num_val_docs": config.val_docs,
        "shard_size": config.shard_tokens,
        "append_eos": False,
        "tokenizers": [{"name": name, **about, **ids, "model_path": model_path, "sha256": tokenizer.sha256}],
        "datasets": [dataset],
    }


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents that one process encodes at once."""

    first: int
    """Number of the first document in the corpus, from 0."""
    documents: list[bytes]


Counts = NDArray[np.uint16] | None
"""Bytes of text that each token stands for; None where the tokenizer's table is exact."""
Encoded = Generator[tuple[Batch, Tokens, Counts], None, None]


def batches(documents: Iterable[bytes], split_at: int) -> Iterator[Batch]:
    """Yield batches of about 1 MiB of text; no batch holds documents on both sides of document number `split_at`."""
    first, held, held_bytes = 0, list[bytes](), 0
    for document in documents:
        held.append(document)
        held_bytes += len(document)
        after = first + len(held)
        if held_bytes >= BATCH_BYTES or len(held) == BATCH_DOCUMENTS or after == split_at:
            yield Batch(first, held)
            first, held, held_bytes = after, [], 0
    if held:
        yield Batch(first, held)


def encode_batches(work: Iterable[Batch], tokenizer: Tokenizer, *, workers: int) -> Encoded:
    """Yield each batch with its tokens and their byte counts, in order; one worker starts no process.

    Close the iterator (`contextlib.closing`) to end the processes early. A script that asks for more than one worker
    needs `if __name__ == "__main__"`, because each worker imports it.

    Raises:
        DataError: the vocabulary cannot express a document; its number is named.
        QuantlabError: a process was killed.
    """
    if workers > 1:
        return _in_processes(work, tokenizer, workers)
    return ((batch, *encode_batch(batch, tokenizer)) for batch in work)


def encode_batch(batch: Batch, tokenizer: Tokenizer) -> tuple[Tokens, Counts]:
    """Return BOS and the tokens of every document of a batch, without EOS, [N] of the tokenizer's type, and byte counts.

    Only a tokenizer with case operators gives byte counts, [N].
    """
    ids: list[int] = []
    counts: list[int] = []
    for number, document in enumerate(batch.documents, start=batch.first):
        try:
            if tokenizer.has_operators:
                new, sizes = tokenizer.encode_counted(document)
                counts += sizes
            else:
                new = tokenizer.encode_document(document)
        except DataError as error:
            raise DataError(f"document {number}: {error}") from error
        ids += new
    return np.array(ids, dtype=tokenizer.dtype), np.array(counts, dtype=np.uint16) if tokenizer.has_operators else None


def _in_processes(work: Iterable[Batch], tokenizer: Tokenizer, workers: int) -> Encoded:
    # processes are spawned, since a fork of a process with threads (torch, sentencepiece, a progress bar) can hang
    context = multiprocessing.get_context("spawn")
    model = (tokenizer.model_bytes, tokenizer.name, tokenizer.special_tokens)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=model)
    waiting: deque[tuple[Batch, Future[tuple[Tokens, Counts]]]] = deque()
    try:
        for batch in work:
            with _interrupts_held():
                waiting.append((batch, pool.submit(_encode_in_worker, batch)))
            if len(waiting) > 2 * workers:  # bounds the text in memory
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    except BrokenProcessPool as error:
        raise QuantlabError("a tokenizing process was killed (out of memory?)", hint="lower --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[Batch, Future[tuple[Tokens, Counts]]]]) -> tuple[Batch, Tokens, Counts]:
    batch, future = waiting.popleft()
    return batch, *future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block ends; a process that is started in the block never sees Ctrl-C.

    Both are needed. An exception in the middle of `submit` can lose a started process, for which `shutdown` then waits
    for ever. And Ctrl-C reaches every process of a terminal, each of which would print its own traceback.
    """
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread runs handlers and may set them
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by a new process
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in held[:1]:
            signal.raise_signal(late)


_worker_tokenizer: Tokenizer


def _start_worker(model_bytes: bytes, name: str, special_tokens: dict[str, str]) -> None:
    global _worker_tokenizer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer = Tokenizer(model_bytes, name=name, **special_tokens)


def _end_with_parent() -> None:
    """End this worker when its parent has ended: a killed parent cannot, and the worker would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: Batch) -> tuple[Tokens, Counts]:
    return encode_batch(batch, _worker_tokenizer)
