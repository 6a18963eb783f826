"""A pool of threads for quantizing: one thread per processor, on each of which torch and BLAS use that thread alone."""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one worker per processor; matrix products in it take one thread each.

    That holds for torch and for `np.dot` in functions that numba compiled. Afterwards both have their threads again.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=processors(), initializer=lambda: torch.set_num_threads(1))
    with single_threaded_blas():
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the tensors in work, not for all
            torch.set_num_threads(threads)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep the OpenBLAS of scipy, which compiled functions call for `np.dot`, on the calling thread; afterwards as before.

    OpenBLAS has one team of threads in a process, and calls that want the team wait for one another. The number is one for the
    whole process too. Where scipy is built with another BLAS nothing changes.
    """
    found = _openblas()
    if found is None:
        yield
        return
    get_threads, set_threads = found
    threads = get_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)


def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return what gets and what sets the number of threads of scipy's OpenBLAS; None where it is another BLAS."""
    import scipy.linalg.cython_blas  # what numba takes its products from; slow to load

    library = ctypes.CDLL(scipy.linalg.cython_blas.__file__)  # a name is also looked up in the libraries that it needs
    for prefix in ("scipy_openblas", "openblas"):
        if hasattr(library, f"{prefix}_set_num_threads"):
            return getattr(library, f"{prefix}_get_num_threads"), getattr(library, f"{prefix}_set_num_threads")
    return None
