"""The threads that quantize: one a processor, each with torch on its own."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor]:
    """One worker per processor, each keeping torch on its own thread; the caller's number of threads comes back afterwards."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, initializer=lambda: torch.set_num_threads(1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the tensors in work, not for all
        torch.set_num_threads(threads)
