"""Integer codes as symbols and back: what the trellis knows already is taken off, low bits of wide classes are split off.

The symbol of a code t is t itself without a trellis. On a trellis it is k where t = 2k and -k where t = 2k + 1 (the two halves
of the grid mirror each other, so they share a table); off the path t = 2k is even, and the symbol is k. A symbol v of a wide
class is then split in v >> shift for the tables and its `shift` lowest bits for the raw bits.

O: rows, I: columns.
"""

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.contexts import SCALAR_CLASSES
from quantlab.errors import FormatError
from quantlab.format_rules import next_states

_OFF_PATH = 64  # above all doubled states
_CHUNK = 1 << 16  # symbols whose low bits are read at a time: keeps temporaries in the cache


def code_limits(states: int) -> tuple[int, int]:
    """Lowest and highest code of a context."""
    return (-32767, 32767) if states == 1 else (-32766, 32767)


def to_symbols(code_OI: NDArray[np.int16], states: int, class_OI: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Codes as symbols, int16 [O, I], contiguous.

    Raises:
        ValueError: a code is out of range, odd in a narrow class of a trellis, or its parity is not its state's.
    """
    low, high = code_limits(states)
    if code_OI.size and not low <= int(code_OI.min()) <= int(code_OI.max()) <= high:
        raise ValueError(f"codes must be {low} to {high}, got {code_OI.min()} to {code_OI.max()}")
    code_OI = np.ascontiguousarray(code_OI)
    if states == 1:
        return code_OI
    k_OI, z0_OI, is_scalar_OI = code_OI >> 1, code_OI & 1, class_OI < SCALAR_CLASSES
    if (z0_OI & is_scalar_OI).any():
        raise ValueError(f"codes of classes below {SCALAR_CLASSES} must be even on a trellis")
    if (_halves(k_OI, states, is_scalar_OI) != z0_OI).any():
        raise ValueError(f"codes do not follow a path of the trellis of {states} states")
    return _mirrored(k_OI, z0_OI)


def from_symbols(symbol_OI: NDArray[np.int16], states: int, class_OI: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Inverse of `to_symbols`. Raises FormatError where a symbol is out of range."""
    limit = 32767 if states == 1 else 16383
    if symbol_OI.size and not -limit <= int(symbol_OI.min()) <= int(symbol_OI.max()) <= limit:
        raise FormatError(f"code symbols reach {symbol_OI.min()} to {symbol_OI.max()}, allowed are ±{limit}")
    if states == 1:
        return symbol_OI
    z0_OI = _halves(symbol_OI, states, class_OI < SCALAR_CLASSES)
    return 2 * _mirrored(symbol_OI, z0_OI) + z0_OI


def _mirrored(k_OI: NDArray[np.int16], z0_OI: NDArray[np.int16]) -> NDArray[np.int16]:
    return (k_OI ^ -z0_OI) + z0_OI  # -k where z0 is 1


def _halves(k_OI: NDArray[np.int16], states: int, is_scalar_OI: NDArray[np.bool_]) -> NDArray[np.int16]:
    """z0, the half of the grid that each weight's state allows, 0 off the path; int16 [O, I].

    Only the parity of k matters, so symbols give the same halves.
    """
    step = np.arange(2 * _OFF_PATH, dtype=np.uint8) & (_OFF_PATH - 2)  # by doubled state + parity, + _OFF_PATH: doubled state
    step[: 2 * states] = next_states(states).reshape(-1) << 1
    move_OI = (k_OI & 1).astype(np.uint8) | is_scalar_OI * np.uint8(_OFF_PATH)
    doubled_OI = np.zeros(k_OI.shape, np.uint8)
    for doubled, following, move in zip(doubled_OI, doubled_OI[1:], move_OI, strict=False):
        following[:-1] = step[(doubled | move)[1:]]
    return (doubled_OI >> 1 & ~is_scalar_OI).astype(np.int16)


def low_bits(symbol_OI: NDArray[np.int16], shift_OI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The `shift` lowest bits of each symbol, symbol by symbol, the most significant first; uint8 of 0 and 1."""
    is_wide_OI = shift_OI > 0
    symbols, shifts = symbol_OI[is_wide_OI], shift_OI[is_wide_OI]
    ends = np.cumsum(shifts, dtype=np.int64)
    bits = np.zeros(shifts.sum(dtype=np.int64), np.uint8)
    for bit in range(int(shifts.max(initial=0))):
        has_bit = shifts > bit
        bits[ends[has_bit] - 1 - bit] = symbols[has_bit] >> bit & 1
    return bits


def join_low_bits_(symbol_OI: NDArray[np.int16], shift_OI: NDArray[np.uint8], raw: NDArray[np.uint8], used: int) -> int:
    """Put the low bits back under contiguous symbols; returns how many bits of `raw` are used then.

    Args:
        raw: packed bits and at least two bytes more, uint8.
        used: bits of it that belong to contexts before.
    Raises:
        FormatError: a symbol does not fit 16 bits.
    """
    all_symbols, all_shifts = symbol_OI.reshape(-1), shift_OI.reshape(-1)
    for start in range(0, len(all_symbols), _CHUNK):
        symbols, shifts = all_symbols[start : start + _CHUNK], all_shifts[start : start + _CHUNK]
        wide = np.flatnonzero(shifts)
        if not len(wide):
            continue
        shift = shifts[wide].astype(np.int64)
        first = used + np.cumsum(shift) - shift
        at = first >> 3
        window = raw[at].astype(np.int64) << 16 | raw[at + 1].astype(np.int64) << 8 | raw[at + 2]
        low = window >> (24 - (first & 7) - shift) & ((1 << shift) - 1)
        value = symbols[wide].astype(np.int64) << shift | low
        if not -32768 <= value.min() <= value.max() <= 32767:
            raise FormatError(f"code symbols reach {value.min()} to {value.max()}, beyond 16 bits")
        symbols[wide] = value
        used = int(first[-1] + shift[-1])
    return used
