"""Which predictions count: each due token once, in order, with the context that the mode promises."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import ConfigError, DataError
from quantlab.evaluation.windows import MODES, Windows, as_mode, batches, scored_part, share_of, stride_of, windows_of

BOS = 1


def listed(windows):
    return [tuple(int(x) for x in row) for row in zip(windows.start, windows.length, windows.first, strict=True)]


def targets(windows):
    """Counted positions, window by window."""
    return [p for start, length, first in listed(windows) for p in range(start + 1 + first, start + 1 + length)]


def slow_sliding(total, seq_len, stride):
    """The rule as the record of PR 1218 states it, one window at a time."""
    found = []
    for ws in range(0, total, stride):
        if ws == 0 or ws + seq_len - stride < total:
            found.append((ws, min(seq_len, total - ws), 0 if ws == 0 else seq_len - stride))
    return found


def test_sliding_windows_by_hand():
    stream = np.zeros(12, dtype=np.uint16)  # targets 1 to 11
    windows = windows_of(stream, "sliding", seq_len=4, stride=2, bos_id=BOS)
    assert listed(windows) == [(0, 4, 0), (2, 4, 2), (4, 4, 2), (6, 4, 2), (8, 3, 2)]
    assert windows.scored == 11
    exact = windows_of(stream[:11], "sliding", seq_len=4, stride=2, bos_id=BOS)  # ends with a window: no short one after it
    assert listed(exact) == [(0, 4, 0), (2, 4, 2), (4, 4, 2), (6, 4, 2)]
    assert listed(windows_of(stream[:2], "sliding", seq_len=4, stride=2, bos_id=BOS)) == [(0, 1, 0)]


def test_document_windows_by_hand():
    """Documents of 5, 0 and 1 tokens after BOS."""
    stream = np.array([1, 7, 7, 7, 7, 7, 1, 1, 7])
    windows = windows_of(stream, "document", seq_len=3, stride=1, bos_id=BOS)
    assert listed(windows) == [(0, 3, 0), (1, 3, 2), (2, 3, 2), (7, 1, 0)]
    assert targets(windows) == [1, 2, 3, 4, 5, 8]


@given(total=st.integers(1, 200), seq_len=st.integers(1, 40), data=st.data())
def test_sliding_follows_the_rule_and_counts_every_token_once(total, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    windows = windows_of(np.zeros(total + 1, dtype=np.uint16), "sliding", seq_len=seq_len, stride=stride, bos_id=BOS)
    assert listed(windows) == slow_sliding(total, seq_len, stride)
    assert targets(windows) == list(range(1, total + 1))


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12), seq_len=st.integers(1, 12), data=st.data())
def test_document_windows_are_sliding_windows_of_each_document(lengths, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    stream = np.concatenate([[BOS] + [5] * length for length in lengths])
    if sum(lengths) == 0:
        with pytest.raises(DataError, match=f"the {len(lengths)} documents hold no tokens but BOS"):
            windows_of(stream, "document", seq_len=seq_len, stride=stride, bos_id=BOS)
        return
    windows = windows_of(stream, "document", seq_len=seq_len, stride=stride, bos_id=BOS)
    expected, at = [], 0
    for length in lengths:
        expected += [(at + start, *rest) for start, *rest in slow_sliding(length, seq_len, stride)]
        at += 1 + length
    assert listed(windows) == expected
    assert targets(windows) == np.flatnonzero(stream != BOS).tolist()


@given(count=st.integers(2, 100), seq_len=st.integers(1, 20))
def test_chunked_leaves_out_what_does_not_fill_a_sequence(count, seq_len):
    tokens = np.arange(count)
    if count <= seq_len:
        with pytest.raises(DataError, match="too few"):
            scored_part(tokens, "chunked", seq_len)
        return
    stream = scored_part(tokens, "chunked", seq_len)
    windows = windows_of(stream, "chunked", seq_len=seq_len, stride=seq_len, bos_id=BOS)
    whole = (count - 1) // seq_len
    assert listed(windows) == [(i * seq_len, seq_len, 0) for i in range(whole)]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), batch_tokens=st.integers(1, 50), size=st.integers(1, 6))
def test_batches_are_bounded_and_shared_without_rest(lengths, batch_tokens, size):
    length = np.array(lengths)
    windows = Windows(np.cumsum(length) - length, length, np.zeros_like(length))
    parts = batches(windows, batch_tokens)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in parts:
        rows = part.stop - part.start
        assert rows == 1 or rows * max(lengths[part]) <= batch_tokens
    for part, after in pairwise(parts):  # none could have been longer
        assert (part.stop - part.start + 1) * max(lengths[part.start : after.start + 1]) > batch_tokens
    assert [part for rank in range(size) for part in share_of(parts, rank, size)] == parts


def test_shares_are_even():
    windows = windows_of(np.zeros(1001), "sliding", seq_len=10, stride=1, bos_id=BOS)
    parts = batches(windows, 30)
    sizes = [sum(part.stop - part.start for part in share_of(parts, rank, 4)) for rank in range(4)]
    assert max(sizes) - min(sizes) <= 3 and sum(sizes) == len(windows) == 991


def test_options_that_do_not_fit_are_refused():
    assert [as_mode(mode) for mode in MODES] == ["chunked", "sliding", "document"]
    with pytest.raises(ConfigError, match="mode must be one of chunked, sliding, document, got 'packed'"):
        as_mode("packed")
    with pytest.raises(ConfigError, match="stride 32 needs mode sliding or document: chunked sequences do not overlap"):
        stride_of("chunked", 64, 32)
    for mode in ("sliding", "document"):
        with pytest.raises(ConfigError, match="stride must be 1 to seq_len 32, got 64"):
            stride_of(mode, 32, None)
        with pytest.raises(ConfigError, match="stride must be 1 to seq_len 32, got 0"):
            stride_of(mode, 32, 0)
    assert (stride_of("chunked", 99, None), stride_of("sliding", 99, None), stride_of("document", 99, 99)) == (99, 64, 99)
    with pytest.raises(ConfigError, match="seq_len must be 1 or more, got 0"):
        stride_of("sliding", 0, 1)


def test_streams_without_targets_or_documents_are_refused():
    with pytest.raises(DataError, match="1 tokens are too few: the first is never a target, so 2 are needed"):
        scored_part(np.zeros(1), "sliding", 4)
    with pytest.raises(DataError, match=r"mode document needs BOS \(id 1\) before each document, but the first token is 7"):
        windows_of(np.array([7, 1, 7]), "document", seq_len=4, stride=2, bos_id=BOS)
