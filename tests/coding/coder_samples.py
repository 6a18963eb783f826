"""Codes, contexts and a slow reader, shared by the tests of the entropy coder."""

import numpy as np

from quantlab.coding.contexts import TensorContext, classes_of
from quantlab.coding.frequency_tables import TableSet
from quantlab.format_rules import TABLE_CLASSES, next_states

RANGES = {"low": (-40, 8), "path": (9, 27), "high": (28, 83), "mixed": (0, 40), "beyond": (-900, 900)}
"""Scale classes by name: lowest and highest sum of the shares of row and column."""


def path_codes(k, states, class_OI):
    """Return codes of a context from any whole numbers, weight by weight along the anti-diagonals; `k` itself for one state."""
    if states == 1:
        return np.array(k, np.int16)
    table, code = next_states(states), np.zeros(k.shape, np.int16)
    for start in range(sum(k.shape) - 1):
        state = 0
        for i in range(k.shape[0]):
            j = start - i
            if not 0 <= j < k.shape[1]:
                continue
            if i == 0 or j == k.shape[1] - 1:
                state = 0
            code[i, j] = 2 * k[i, j]
            if class_OI[i, j] >= 9:
                code[i, j] += state & 1
                state = table[state, k[i, j] & 1]
    return code


def context_of(shape=(2, 3), states=1, rows=(0, 0), columns=(0, 0, 0), tables=0, dtype=np.int16):
    return TensorContext(
        shape=shape, states=states, rows_O=np.array(rows, dtype), columns_I=np.array(columns, dtype), tables=tables
    )


def random_codes(rng, shape, states, kind="mixed", tables=0):
    """Return random codes about as large as their scale classes say, and their context."""
    low, high = RANGES[kind]
    rows = rng.integers(low // 2, high // 2 + 1, shape[0])
    columns = rng.integers(low - low // 2, high - high // 2 + 1, shape[1])
    context = context_of(shape, states, rows, columns, tables)
    class_OI = classes_of(context)
    deviation = rng.choice([0, 1, 3]) * 2 ** ((class_OI - 12) / 4)
    limit = 32767 if states == 1 else 16383
    k = np.rint(rng.laplace(size=shape) * deviation).clip(-limit, limit - (states > 1)).astype(int)
    return path_codes(k, states, class_OI), context


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


def _code_row(symbols, classes, before, states):
    """Return the codes of one row and the states that it passes on; `before` are those of the row above."""
    codes, after = [], []
    for j, (symbol, number) in enumerate(zip(symbols, classes, strict=True)):
        state = before[j + 1] if j + 1 < len(before) else 0
        if states > 1 and number >= 9:
            k = -symbol if state & 1 else symbol
            codes.append(2 * k + (state & 1))
            state = int(next_states(states)[state, k & 1])
        else:
            codes.append(symbol if states == 1 else 2 * symbol)
        after.append(state)
    return codes, after


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
        code, state = np.zeros(context.shape, np.int16), [0] * context.shape[1]
        for i, row in enumerate(rows):
            code[i], state = _code_row([next(symbols) for _ in row], row, state, context.states)
        decoded.append(code)
    assert reader.is_empty() and len(reader.bits) < 8
    return decoded
