"""Static frequency tables of the entropy coder: counts -> stored bytes -> integer frequencies.

A table set holds one table a context class. A table names a contiguous support of symbols; any other symbol is sent as the
escape and two bytes. Stored are the logarithms of the probabilities in steps of an eighth of an octave; integers alone turn
them into frequencies, so every machine decodes alike. C: classes, n: symbols of a support.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import FormatError

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
"""What the frequencies of a class sum to."""
OFFSET = 128
"""Symbol 0 lies in this column of counts, frequencies and lengths."""
ESCAPE = -OFFSET
"""The symbol that stands for the escape: no support holds it."""
ESCAPE_BYTES = 2  # that follow an escape
TABLE_CLASSES = 28
"""Tables of every stored set."""
MAX_SETS = 128
"""Stored sets of a file: bounds the decoder's memory to 112 MiB."""

FREQUENCY_SHIFT, SYMBOL_SHIFT, PLACE_MASK = 24, 16, 0xFFFF  # fields of a slot's entry
_RAREST = 8 * PROBABILITY_BITS  # logarithm of the probability of one slot
_ENTRY_BITS = 4.0  # what one stored logarithm costs after the byte codec, about
# 2**(40 - x/8): the largest shift, by 31, leaves 8 bits
_SIGNIFICANDS = (
    1099511627776, 1008256608221, 924575386327, 847839367509, 777472127994, 712945084849, 653773525390, 599512966123,
)  # fmt: skip


@dataclass(frozen=True)
class ClassTable:
    """One class: symbols low to low + n - 1, and -8·log2 of the probability of the escape and then of each of them."""

    low: int
    logs: bytes

    @property
    def n(self) -> int:
        """Symbols in the support."""
        return len(self.logs) - 1


@dataclass(frozen=True)
class TableSet:
    """Tables of one or more classes, in the order of the class numbers."""

    classes: tuple[ClassTable, ...]

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """int64 [C, 256] by symbol + 128, each row sums to TOTAL; column 0 is the escape's, 0 means outside the support."""
        table = np.zeros((len(self.classes), 256), np.int64)
        for row, entry in zip(table, self.classes, strict=True):
            values = _frequencies(entry.logs)
            row[0] = values[0]
            row[entry.low + OFFSET : entry.low + OFFSET + entry.n] = values[1:]
        return table

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First slot of each symbol, int64 [C, 256]."""
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Bits of each symbol by symbol + 128, float64 [C, 256]; outside the support, and in column 0, those of an escape."""
        bits = PROBABILITY_BITS - np.log2(np.maximum(self.frequencies, 1))
        is_escaped = self.frequencies == 0
        is_escaped[:, 0] = True
        return np.where(is_escaped, bits[:, :1] + 8 * ESCAPE_BYTES, bits)

    @cached_property
    def entries(self) -> NDArray[np.int64]:
        """What the decoder needs of each slot: frequency, symbol byte, slot - start; int64 [C·TOTAL]."""
        counts = self.frequencies.reshape(-1)
        slot = np.arange(len(self.classes) * TOTAL) % TOTAL
        symbol_byte = np.tile((np.arange(256) - OFFSET) & 255, len(self.classes))
        packed = counts << FREQUENCY_SHIFT | symbol_byte << SYMBOL_SHIFT
        return np.repeat(packed, counts) | (slot - np.repeat(self.starts.reshape(-1), counts))


def fit_tables(counts: NDArray[np.int64]) -> TableSet:
    """The tables that store `counts` in about the fewest bits, themselves included.

    Args:
        counts: how often each class met each symbol, int64 [C, 256] by symbol + 128; column 0: symbols that always escape.
    """
    return TableSet(tuple(_fit_class(row) for row in counts))


def _fit_class(counts: NDArray[np.int64]) -> ClassTable:
    total = max(int(counts.sum()), 1)
    first, last = _best_support(counts)
    inside = counts[first:last]
    probability = np.concatenate([[total - inside.sum()], inside]) / total
    logs = np.rint(-8 * np.log2(np.maximum(probability, 1 / TOTAL))).astype(np.uint8)
    return ClassTable(first - OFFSET, logs.tobytes())


def _best_support(counts: NDArray[np.int64]) -> tuple[int, int]:
    """First and last + 1 column of the cheapest support; both are those of symbol 0 where it is empty.

    Probabilities below one slot are raised to one, and all are divided by what they then sum to.
    """
    total = int(counts.sum())
    if not total:
        return OFFSET, OFFSET
    floored = np.maximum(counts / total, 1 / TOTAL)
    bits, mass, seen = (np.concatenate([[0], np.cumsum(v)])[1:] for v in (-counts * np.log2(floored), floored, counts))
    escaped = total - (seen[None, :] - seen[:, None])  # [first, last]
    floored_escape = np.maximum(escaped / total, 1 / TOTAL)
    cost = bits[None, :] - bits[:, None] + escaped * (8 * ESCAPE_BYTES - np.log2(floored_escape))
    cost += total * np.log2(mass[None, :] - mass[:, None] + floored_escape)
    cost += _ENTRY_BITS * np.arange(256) - _ENTRY_BITS * np.arange(256)[:, None]
    cost[np.tril_indices(256, -1)] = np.inf
    first, last = (int(at) + 1 for at in np.unravel_index(np.argmin(cost), cost.shape))
    return (first, last) if first < last else (OFFSET, OFFSET)


def _frequencies(logs: bytes) -> list[int]:
    """Integers of at least 1 that sum to TOTAL, in proportion to 2**(-log / 8).

    Each is rounded to the nearest; then the largest, the first of equals, moves by one until the sum fits. At most 256
    entries share 4096, so the largest stays above 1.
    """
    weights = [_SIGNIFICANDS[log & 7] >> (log >> 3) for log in logs]
    total = sum(weights)
    values = [max(1, (2 * TOTAL * weight + total) // (2 * total)) for weight in weights]
    while (excess := sum(values) - TOTAL) != 0:
        values[values.index(max(values))] -= 1 if excess > 0 else excess
    return values


def sets_to_bytes(sets: Sequence[TableSet]) -> bytes:
    """At most MAX_SETS sets of TABLE_CLASSES tables, laid out for a byte codec.

    Bytes: number of sets; then of all classes lows, sizes, escapes, supports, each as the difference to the class before,
    modulo 256. A symbol that no class before had counts as rare there.
    """
    assert len(sets) <= MAX_SETS and all(len(one.classes) == TABLE_CLASSES for one in sets), "too many sets, or of odd sizes"
    tables = [table for one in sets for table in one.classes]
    heads = np.array([(table.low & 255, table.n, table.logs[0]) for table in tables], np.uint8).reshape(-1, 3).T
    parts = [bytes([len(sets)]), np.diff(heads, prepend=np.uint8(0)).tobytes()]
    latest = np.full(256, _RAREST, np.uint8)
    for table in tables:
        logs = np.frombuffer(table.logs, np.uint8, offset=1)
        support = latest[table.low + OFFSET :][: table.n]
        parts.append((logs - support).tobytes())
        support[:] = logs
    return b"".join(parts)


def sets_from_bytes(raw: bytes) -> list[TableSet]:
    """Inverse of `sets_to_bytes`.

    Raises:
        FormatError: truncated or trailing bytes, too many sets, a support beyond -127 to 127.
    """
    total = TABLE_CLASSES * raw[0] if raw else 0
    if not raw or len(raw) < 1 + 3 * total:
        raise FormatError(f"frequency tables end after {len(raw)} bytes, within their head")
    if raw[0] > MAX_SETS:
        raise FormatError(f"{raw[0]} table sets, at most {MAX_SETS} are allowed")
    lows, counts, escapes = np.cumsum(np.frombuffer(raw, np.uint8, 3 * total, 1).reshape(3, total), axis=1, dtype=np.uint8)
    rest = np.frombuffer(raw, np.uint8, offset=1 + 3 * total)
    if len(rest) != counts.sum(dtype=np.int64):
        raise FormatError(f"frequency tables hold {len(rest)} logarithms, {counts.sum(dtype=np.int64)} expected")
    tables = _read_classes(lows.view(np.int8).tolist(), counts.tolist(), escapes.tobytes(), rest)
    return [TableSet(tuple(itertools.islice(tables, TABLE_CLASSES))) for _ in range(raw[0])]


def _read_classes(lows: list[int], counts: list[int], escapes: bytes, differences: NDArray[np.uint8]) -> Iterator[ClassTable]:
    latest = np.full(256, _RAREST, np.uint8)
    at = 0
    for low, n, escape in zip(lows, counts, escapes, strict=True):
        if not ESCAPE < low <= OFFSET - n or (n == 0 and low != 0):
            raise FormatError(f"support of {n} symbols from {low}: it must lie in -127 to 127, an empty one starts at 0")
        support = latest[low + OFFSET :][:n]
        support += differences[at : at + n]
        at += n
        yield ClassTable(low, bytes([escape]) + support.tobytes())
