"""Documents to tokens in several processes, in order: the same tokens for any number of them."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError, QuantlabError
from quantlab.text.tokenizer import Tokenizer

BATCH_BYTES = 2**20
BATCH_DOCUMENTS = 2**12

Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents that one process encodes at once."""

    first: int
    """Number of the first document in the corpus, from 0."""
    documents: list[bytes]


Encoded = Generator[tuple[Batch, Tokens], None, None]


def batches(documents: Iterable[bytes], split_at: int) -> Iterator[Batch]:
    """Batches of about 1 MiB of text; no batch holds documents on both sides of number `split_at`."""
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
    """Yield each batch with its tokens: BOS and the tokens of every document, no EOS. `workers` 1 starts no process.

    Close the iterator (`contextlib.closing`) to end the processes early. A script that asks for more than one worker
    needs `if __name__ == "__main__"`, because each of them imports it.

    Raises:
        DataError: a document that the vocabulary cannot express; the number of the document is named.
        QuantlabError: a process was killed.
    """
    if workers > 1:
        return _in_processes(work, tokenizer, workers)
    return ((batch, encode_batch(batch, tokenizer)) for batch in work)


def encode_batch(batch: Batch, tokenizer: Tokenizer) -> Tokens:
    """BOS and the tokens of every document of a batch, uint16 [N]."""
    ids: list[int] = []
    for number, document in enumerate(batch.documents, start=batch.first):
        try:
            ids += [tokenizer.bos_id, *tokenizer.encode(document)]
        except DataError as error:
            raise DataError(f"document {number}: {error}") from error
    return np.array(ids, dtype=np.uint16)


def _in_processes(work: Iterable[Batch], tokenizer: Tokenizer, workers: int) -> Encoded:
    # spawn: a fork of a process with threads (torch, sentencepiece, a progress bar) can hang
    context = multiprocessing.get_context("spawn")
    model = (tokenizer.model_bytes, tokenizer.name)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=model)
    waiting: deque[tuple[Batch, Future[Tokens]]] = deque()
    try:
        for batch in work:
            with _interrupts_held():
                waiting.append((batch, pool.submit(_encode_in_worker, batch)))
            if len(waiting) > 2 * workers:  # bounds the texts in memory
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    except BrokenProcessPool as error:
        raise QuantlabError("a tokenizing process was killed (out of memory?)", hint="lower --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[Batch, Future[Tokens]]]) -> tuple[Batch, Tokens]:
    batch, future = waiting.popleft()
    return batch, future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends; a process that is started in it never sees Ctrl-C.

    Both are needed: an exception in the middle of `submit` can lose a started process, for which `shutdown` then waits
    for ever; and Ctrl-C reaches every process of a terminal, each of which would print its own traceback.
    """
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other thread runs handlers, or may set them
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in held[:1]:
            signal.raise_signal(late)


_worker_tokenizer: Tokenizer


def _start_worker(model_bytes: bytes, name: str) -> None:
    global _worker_tokenizer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer = Tokenizer(model_bytes, name=name)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: Batch) -> Tokens:
    return encode_batch(batch, _worker_tokenizer)
