"""A pool of threads for quantizing: one thread per processor, on each of which torch uses that thread alone."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one worker per processor, each with torch on its own thread; afterwards torch has its threads again."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, initializer=lambda: torch.set_num_threads(1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the tensors in work, not for all
        torch.set_num_threads(threads)
