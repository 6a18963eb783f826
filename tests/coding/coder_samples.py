"""Codes, contexts and a slow reader, shared by the tests of the entropy coder."""

import itertools
import math

import numpy as np

from quantlab.coding.contexts import TensorContext, classes_of
from quantlab.coding.frequency_tables import TableSet
from quantlab.format_rules import PATHS, TABLE_CLASSES, next_states

RANGES = {"low": (-40, 5), "path": (6, 27), "high": (28, 83), "mixed": (0, 40), "beyond": (-900, 900)}
"""Scale classes by name: lowest and highest sum of the shares of row and column."""


def walks(shape, paths):
    """Yield the weights of every path in its order, as docs/format.md says it: blocks of 32 x 32, or whole columns."""
    O, I = shape
    if paths == "columns":
        yield from ([(i, j) for i in range(O)] for j in range(I))
        return
    P, Q = math.ceil(O / 32), math.ceil(I / 32)
    for d, t in itertools.product(range(P + Q - 1), range(63)):
        blocks = [(p, d - p) for p in range(P) if 0 <= d - p < Q]
        yield [(32 * p + i, 32 * q + t - i) for p, q in blocks for i in range(32) if in_block(32 * p + i, 32 * q, t - i, shape)]


def in_block(i, first, j, shape):
    return 0 <= j < 32 and i < shape[0] and first + j < shape[1]


def path_codes(k, class_OI, states, paths):
    """Return codes of a context from any whole numbers, weight by weight along the paths; `k` itself for one state."""
    if states == 1:
        return np.array(k, np.int16)
    table, code = next_states(states), np.zeros(k.shape, np.int16)
    for walk in walks(k.shape, paths):
        state = 0
        for i, j in walk:
            code[i, j] = 2 * k[i, j]
            if class_OI[i, j] >= 6:
                code[i, j] += state & 1
                state = table[state, k[i, j] & 1]
    return code


def context_of(shape=(2, 3), states=1, rows=(0, 0), columns=(0, 0, 0), tables=0, dtype=np.int16, paths="blocks"):
    rows_O, columns_I = np.array(rows, dtype), np.array(columns, dtype)
    return TensorContext(shape=shape, states=states, paths=paths, rows_O=rows_O, columns_I=columns_I, tables=tables)


def random_codes(rng, shape, states, kind="mixed", tables=0):
    """Return random codes about as large as their scale classes say, and their context."""
    low, high = RANGES[kind]
    rows = rng.integers(low // 2, high // 2 + 1, shape[0])
    columns = rng.integers(low - low // 2, high - high // 2 + 1, shape[1])
    context = context_of(shape, states, rows, columns, tables, paths=str(rng.choice(PATHS)))
    class_OI = classes_of(context)
    deviation = rng.choice([0, 1, 3]) * 2 ** ((class_OI - 12) / 4)
    limit = 32767 if states == 1 else 16383
    k = np.rint(rng.laplace(size=shape) * deviation).clip(-limit, limit - (states > 1)).astype(int)
    return path_codes(k, class_OI, states, context.paths), context


def set_of(table):
    """Return a set of equal tables."""
    return TableSet((table,) * TABLE_CLASSES)


def equal(left, right):
    return len(left) == len(right) and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(left, right, strict=True)
    )


class ScalarReader:
    """Written from the format's description: one weight at a time, tables searched symbol by symbol, bits as text."""

    def __init__(self, stream, lanes):
        count, raw_bytes = (int.from_bytes(stream[at : at + 4], "little") for at in (0, 4))
        groups = (lanes + 31) // 32
        lengths = [int.from_bytes(stream[8 + 4 * s : 12 + 4 * s], "little") for s in range(groups - 1)]
        escapes = stream[8 + 4 * len(lengths) :]
        self.escapes = [int.from_bytes(escapes[2 * e : 2 + 2 * e], "little", signed=True) for e in range(count)]
        numbers = escapes[2 * count + raw_bytes :]
        self.bits = "".join(f"{byte:08b}" for byte in escapes[2 * count : 2 * count + raw_bytes])
        self.state = [int.from_bytes(numbers[4 * p : 4 * p + 4], "little") for p in range(lanes)]
        words = [int.from_bytes(numbers[at : at + 2], "little") for at in range(4 * lanes, len(numbers), 2)]
        self.words = [[words.pop(0) for _ in range(length)] for length in lengths] + [words]

    def table_symbol(self, lane, table, frequencies):
        """Return a symbol, or None for the escape."""
        slot, start = self.state[lane] % 4096, 0
        order = [(None, frequencies[0])] + [(table.low + s, frequencies[table.low + s + 128]) for s in range(table.n)]
        for value, frequency in order:  # noqa: B007
            if slot < start + frequency:
                break
            start += frequency
        self.state[lane] = frequency * (self.state[lane] // 4096) + slot - start
        return value

    def refill(self, used_lanes):
        for lane in range(used_lanes):
            if self.state[lane] < 65536:
                self.state[lane] = self.state[lane] * 65536 + self.words[lane // 32].pop(0)

    def low_bits(self, count):
        low, self.bits = self.bits[:count], self.bits[count:]
        return int(low or "0", 2)

    def symbols(self, classes):
        """Return the symbols of all weights, given a list of (scale class, table set)."""
        symbols = []
        for first in range(0, len(classes), len(self.state)):
            piece = classes[first : first + len(self.state)]
            numbers = [c if c < 28 else 24 + c % 4 for c, _ in piece]
            values = [
                self.table_symbol(lane, tables.classes[number], tables.frequencies[number].tolist())
                for lane, (number, (_, tables)) in enumerate(zip(numbers, piece, strict=True))
            ]
            self.refill(len(piece))
            for (c, _), value in zip(piece, values, strict=True):
                shift = 0 if c < 28 else c // 4 - 6
                symbols.append((self.escapes.pop(0) if value is None else value) * 2**shift + self.low_bits(shift))
        return symbols

    def is_empty(self):
        return not any(self.words) and not self.escapes and set(self.state) <= {65536} and "1" not in self.bits


def _codes(symbol_OI, class_OI, context):
    """Return the codes of all symbols, one path after the other."""
    if context.states == 1:
        return symbol_OI
    code_OI = 2 * symbol_OI
    for walk in walks(context.shape, context.paths):
        state = 0
        for i, j in walk:
            if class_OI[i][j] >= 6:
                k = -symbol_OI[i, j] if state & 1 else symbol_OI[i, j]
                code_OI[i, j] = 2 * k + (state & 1)
                state = int(next_states(context.states)[state, k & 1])
    return code_OI


def scalar_decode(stream, contexts, sets, lanes):
    """Return what every reader must return."""
    reader, decoded = ScalarReader(stream, lanes), []
    classes = [
        [[min(max(int(row) + int(column), 0), 83) for column in context.columns_I] for row in context.rows_O]
        for context in contexts
    ]
    flat = [(c, sets[context.tables]) for context, rows in zip(contexts, classes, strict=True) for row in rows for c in row]
    symbols = iter(reader.symbols(flat))
    for context, rows in zip(contexts, classes, strict=True):
        symbol_OI = np.array([next(symbols) for row in rows for _ in row], np.int16).reshape(context.shape)
        decoded.append(_codes(symbol_OI, rows, context))
    assert reader.is_empty() and len(reader.bits) < 8
    return decoded
