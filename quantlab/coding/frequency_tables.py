"""Static frequency tables of the entropy coder: counts -> stored bytes -> integer frequencies.

A set of tables has one for each of the lowest TABLE_CLASSES scale classes. A table names a contiguous support of symbols; any
other symbol is sent as the escape and two bytes. The file stores the base-2 logarithms of the probabilities in eighths; integer
arithmetic alone turns them into frequencies, so every machine decodes alike.

C: tables, n: symbols of a support.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import FormatError
from quantlab.format_rules import COLUMNS, ESCAPE, OFFSET, PROBABILITY_BITS, TABLE_CLASSES, TOTAL

MAX_SETS = 128
"""Largest number of sets in a file: bounds the decoder's memory to 112 MiB."""

FREQUENCY_SHIFT, SYMBOL_SHIFT, PLACE_MASK = 24, 16, 0xFFFF  # fields of a slot's entry, in memory only
_ESCAPE_BYTES = 2  # that follow an escape
_RAREST = 8 * PROBABILITY_BITS  # logarithm of the probability of one slot
_ENTRY_BITS = 4.0  # approximate cost of one stored logarithm after the byte codec
# round(2**(40 - x/8)) for x = 0 … 7: the largest shift, by 31, leaves 8 bits
_SIGNIFICANDS = (
    1099511627776, 1008256608221, 924575386327, 847839367509, 777472127994, 712945084849, 653773525390, 599512966123,
)  # fmt: skip


@dataclass(frozen=True)
class ClassTable:
    """The table of one scale class."""

    low: int
    """First symbol of the support."""
    logs: bytes
    """-8·log2 of the probability of the escape, then of the symbols low to low + n - 1."""

    @property
    def n(self) -> int:
        """Number of symbols in the support."""
        return len(self.logs) - 1


@dataclass(frozen=True)
class TableSet:
    """The tables of one or more scale classes, in the order of the class numbers."""

    classes: tuple[ClassTable, ...]

    @cached_property
    def frequencies(self) -> NDArray[np.int64]:
        """Frequencies int64 [C, 256] by column (see columns_of); each row sums to TOTAL, 0 means outside the support."""
        table = np.zeros((len(self.classes), COLUMNS), np.int64)
        for row, entry in zip(table, self.classes, strict=True):
            values = _frequencies(entry.logs)
            row[0] = values[0]
            row[entry.low + OFFSET : entry.low + OFFSET + entry.n] = values[1:]
        return table

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First slot of each symbol, int64 [C, 256] by column."""
        return np.cumsum(self.frequencies, axis=1) - self.frequencies

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Bits of each symbol, float64 [C, 256] by column; outside the support, and in column 0, those of an escape."""
        bits = PROBABILITY_BITS - np.log2(np.maximum(self.frequencies, 1))
        is_escaped = self.frequencies == 0
        is_escaped[:, 0] = True
        return np.where(is_escaped, bits[:, :1] + 8 * _ESCAPE_BYTES, bits)

    @cached_property
    def entries(self) -> NDArray[np.int64]:
        """Frequency, symbol byte and place (slot - start) of each slot, packed for the decoder; int64 [C·TOTAL]."""
        counts = self.frequencies.reshape(-1)
        slot = np.arange(len(self.classes) * TOTAL) % TOTAL
        symbol_byte = np.tile((np.arange(COLUMNS) - OFFSET) & 255, len(self.classes))
        packed = counts << FREQUENCY_SHIFT | symbol_byte << SYMBOL_SHIFT
        return np.repeat(packed, counts) | (slot - np.repeat(self.starts.reshape(-1), counts))


def columns_of(symbols: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return the column of each symbol in counts, frequencies and lengths; beyond ±127 that is 0, the escape's."""
    return ((symbols + OFFSET) * ((symbols > ESCAPE) & (symbols < OFFSET))).astype(np.uint8)


def fit_tables(counts: NDArray[np.int64]) -> TableSet:
    """Return the tables that store `counts` in about the fewest bits, their own included.

    Args:
        counts: how often each table met each symbol, int64 [C, 256] by column; column 0 counts symbols that always escape.
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
    """Return the first column of the cheapest support and the one after its last; both are that of symbol 0 if it is empty.

    Probabilities below one slot are raised to one, and all are divided by their new sum.
    """
    total, met = int(counts.sum()), np.flatnonzero(counts[1:])
    if not len(met):
        return OFFSET, OFFSET
    left = int(met[0])  # a symbol that was never met costs an entry: the support lies among those that were
    counts = counts[left : int(met[-1]) + 2]
    floored = np.maximum(counts / total, 1 / TOTAL)
    bits, mass, seen = (np.concatenate([[0], np.cumsum(v)])[1:] for v in (-counts * np.log2(floored), floored, counts))
    escaped = total - (seen[None, :] - seen[:, None])  # [first, last]
    floored_escape = np.maximum(escaped / total, 1 / TOTAL)
    cost = bits[None, :] - bits[:, None] + escaped * (8 * _ESCAPE_BYTES - np.log2(floored_escape))
    cost += total * np.log2(mass[None, :] - mass[:, None] + floored_escape)
    cost += _ENTRY_BITS * np.arange(len(counts)) - _ENTRY_BITS * np.arange(len(counts))[:, None]
    cost[np.tril_indices(len(counts), -1)] = np.inf
    first, last = (left + int(at) + 1 for at in np.unravel_index(np.argmin(cost), cost.shape))
    return (first, last) if first < last else (OFFSET, OFFSET)


def _frequencies(logs: bytes) -> list[int]:
    """Return integers of at least 1 that sum to TOTAL, in proportion to 2**(-log / 8).

    Each is rounded to the nearest. Then the largest, the first of equals, changes: by -1, again and again, while the sum is too
    large, or by all that is missing. At most 256 entries share 4096 slots, so the largest stays above 1.
    """
    weights = [_SIGNIFICANDS[log & 7] >> (log >> 3) for log in logs]
    total = sum(weights)
    values = [max(1, (2 * TOTAL * weight + total) // (2 * total)) for weight in weights]
    excess = sum(values) - TOTAL
    if excess < 0:
        values[values.index(max(values))] -= excess
    largest_first = [(-value, index) for index, value in enumerate(values)] if excess > 0 else []
    heapq.heapify(largest_first)
    for _ in range(excess):
        negative, index = largest_first[0]
        values[index] -= 1
        heapq.heapreplace(largest_first, (negative + 1, index))
    return values


def sets_to_bytes(sets: Sequence[TableSet]) -> bytes:
    """Return at most MAX_SETS sets of TABLE_CLASSES tables as bytes, laid out for a byte codec.

    Bytes: the number of sets; then, for all tables in order, all lows, all sizes, all escapes and all supports, each as the
    difference to the table before, modulo 256. A symbol that no table before had in its support counts as the rarest there.
    """
    assert len(sets) <= MAX_SETS and all(len(one.classes) == TABLE_CLASSES for one in sets), "too many sets, or of odd sizes"
    tables = [table for one in sets for table in one.classes]
    heads = np.array([(table.low & 255, table.n, table.logs[0]) for table in tables], np.uint8).reshape(-1, 3).T
    parts = [bytes([len(sets)]), np.diff(heads, prepend=np.uint8(0)).tobytes()]
    latest = np.full(COLUMNS, _RAREST, np.uint8)
    for table in tables:
        logs = np.frombuffer(table.logs, np.uint8, offset=1)
        support = latest[table.low + OFFSET :][: table.n]
        parts.append((logs - support).tobytes())
        support[:] = logs
    return b"".join(parts)


def sets_from_bytes(raw: bytes) -> list[TableSet]:
    """Return the sets that `sets_to_bytes` turned into `raw`.

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
    latest = np.full(COLUMNS, _RAREST, np.uint8)
    at = 0
    for low, n, escape in zip(lows, counts, escapes, strict=True):
        if not ESCAPE < low <= OFFSET - n or (n == 0 and low != 0):
            raise FormatError(f"support of {n} symbols from {low}: it must lie in -127 to 127, an empty one starts at 0")
        support = latest[low + OFFSET :][:n]
        support += differences[at : at + n]
        at += n
        yield ClassTable(low, bytes([escape]) + support.tobytes())
