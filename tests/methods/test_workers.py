"""The pool of worker threads: products inside it take one thread, and everything is as before afterwards."""

import pytest
import torch

from quantlab.methods.workers import _openblas, single_threaded_blas, worker_pool


@pytest.fixture
def get_threads():
    found = _openblas()
    if found is None:
        pytest.skip("scipy is built with another BLAS")
    get, set_ = found
    before = get()
    set_(2)
    yield get
    set_(before)


def test_products_in_the_pool_take_one_thread_and_afterwards_as_many_as_before(get_threads):
    before = torch.get_num_threads()
    with worker_pool() as pool:
        assert list(pool.map(lambda _: (torch.get_num_threads(), get_threads()), range(4))) == [(1, 1)] * 4
    assert (torch.get_num_threads(), get_threads()) == (before, 2)


def test_the_number_of_threads_comes_back_after_an_error_and_after_a_pool_in_a_pool(get_threads):
    with pytest.raises(ZeroDivisionError), worker_pool(), single_threaded_blas():
        raise ZeroDivisionError
    assert get_threads() == 2
