"""Integer codes as symbols and back: the bit that the trellis state fixes is removed, raw low bits are split off.

The symbol of a code t is t itself without a trellis. On a trellis it is k where t = 2k and -k where t = 2k + 1 (the two halves
of the grid mirror each other, so they share a table); where a weight bypasses the trellis, t = 2k is even, and the symbol is k.
A symbol v of a high scale class is then split in v >> shift for the tables and its `shift` lowest bits for the raw bits.

O: rows, I: columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import FormatError
from quantlab.format_rules import PATH_BLOCK, SCALAR_CLASSES, STATES, WIDE, code_range, next_states

_BYPASS = 2 * max(STATES)
"""Bit that marks a weight which bypasses the trellis; it is above all doubled states."""
_CHUNK = 1 << 16
"""Number of symbols whose low bits are read at a time, so that temporaries stay in the cache."""


SymbolsOf = Callable[[NDArray[np.int16], NDArray[np.uint8], int, str], NDArray[np.int16]]
"""The type of `to_symbols`."""


def symbol_limit(states: int) -> int:
    """Return the largest magnitude of a context's symbols."""
    return code_range(WIDE, states)[1] >> (states > 1)


def to_symbols(code_OI: NDArray[np.int16], class_OI: NDArray[np.uint8], states: int, paths: str) -> NDArray[np.int16]:
    """Return codes as symbols, int16 [O, I], contiguous.

    Args:
        class_OI: scale class of each weight.
        states: number of states of the trellis, 1 for plain codes.
        paths: order of weights on its paths, one of PATHS.
    Raises:
        ValueError: a code is out of range, odd where it bypasses the trellis, or its parity is not that of its state.
    """
    low, high = code_range(WIDE, states)
    if code_OI.size and not low <= int(code_OI.min()) <= int(code_OI.max()) <= high:
        raise ValueError(f"codes must lie in {low} to {high}, got {code_OI.min()} to {code_OI.max()}")
    code_OI = np.ascontiguousarray(code_OI)
    if states == 1:
        return code_OI
    k_OI, z0_OI, is_scalar_OI = code_OI >> 1, code_OI & 1, class_OI < SCALAR_CLASSES
    if (z0_OI & is_scalar_OI).any():
        raise ValueError(f"codes of scale classes below {SCALAR_CLASSES} must be even where there is a trellis")
    if (_halves(k_OI, is_scalar_OI, states, paths) != z0_OI).any():
        raise ValueError(f"codes do not follow a path of the trellis of {states} states")
    return _mirrored(k_OI, z0_OI)


def from_symbols(symbol_OI: NDArray[np.int16], class_OI: NDArray[np.uint8], states: int, paths: str) -> NDArray[np.int16]:
    """Return the codes that `to_symbols` turned into these symbols. FormatError where a symbol is out of range."""
    limit = symbol_limit(states)
    if symbol_OI.size and not -limit <= int(symbol_OI.min()) <= int(symbol_OI.max()) <= limit:
        raise FormatError(f"code symbols reach from {symbol_OI.min()} to {symbol_OI.max()}, allowed are ±{limit}")
    if states == 1:
        return symbol_OI
    z0_OI = _halves(symbol_OI, class_OI < SCALAR_CLASSES, states, paths)
    return 2 * _mirrored(symbol_OI, z0_OI) + z0_OI


def _mirrored(k_OI: NDArray[np.int16], z0_OI: NDArray[np.int16]) -> NDArray[np.int16]:
    return (k_OI ^ -z0_OI) + z0_OI  # -k where z0 is 1


def _halves(k_OI: NDArray[np.int16], is_scalar_OI: NDArray[np.bool_], states: int, paths: str) -> NDArray[np.int16]:
    """Return z0, the half of the grid that each weight's state allows, 0 where the trellis is bypassed; int16 [O, I].

    Only the parity of k matters, so symbols give the same halves.
    """
    step = np.arange(2 * _BYPASS, dtype=np.uint16) & (_BYPASS - 2)  # next doubled state by doubled state + parity (+ _BYPASS)
    step[: 2 * states] = next_states(states).reshape(-1).astype(np.uint16) << 1
    O, I = k_OI.shape
    P, Q, B = -(-O // PATH_BLOCK), -(-I // PATH_BLOCK), PATH_BLOCK
    move_OI = np.full((O, Q * B), _BYPASS, np.uint16)  # places beyond the last column pass the state on
    move_OI[:, :I] = (k_OI & 1).astype(np.uint16) | is_scalar_OI * np.uint16(_BYPASS)
    doubled = np.zeros((P + Q, 2 * B), np.uint16)  # of each path, before the row
    for i, move in enumerate(move_OI.reshape(O, Q, B)):
        here = doubled[i // B : i // B + Q, i % B : i % B + B] if paths == "blocks" else doubled[:Q, :B]
        move |= here
        here[:] = step[move]
    return (move_OI[:, :I] >> 1 & ~is_scalar_OI).astype(np.int16)


def low_bits(symbol_OI: NDArray[np.int16], shift_OI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the `shift` lowest bits of each symbol, symbol by symbol, the most significant first; uint8 of 0 and 1."""
    has_raw_OI = shift_OI > 0
    symbols, shifts = symbol_OI[has_raw_OI], shift_OI[has_raw_OI]
    ends = np.cumsum(shifts, dtype=np.int64)
    bits = np.zeros(shifts.sum(dtype=np.int64), np.uint8)
    for bit in range(int(shifts.max(initial=0))):
        has_bit = shifts > bit
        bits[ends[has_bit] - 1 - bit] = symbols[has_bit] >> bit & 1
    return bits


def join_low_bits_(symbol_OI: NDArray[np.int16], shift_OI: NDArray[np.uint8], raw: NDArray[np.uint8], used: int) -> int:
    """Put the low bits back under contiguous symbols; return how many bits of `raw` are used then.

    Args:
        raw: packed bits and at least two bytes more, uint8.
        used: bits of it that belong to the contexts before.
    Raises:
        FormatError: a symbol does not fit 16 bits.
    """
    all_symbols, all_shifts = symbol_OI.reshape(-1), shift_OI.reshape(-1)
    for start in range(0, len(all_symbols), _CHUNK):
        symbols, shifts = all_symbols[start : start + _CHUNK], all_shifts[start : start + _CHUNK]
        has_raw = np.flatnonzero(shifts)
        if not len(has_raw):
            continue
        shift = shifts[has_raw].astype(np.int64)
        first = used + np.cumsum(shift) - shift
        at = first >> 3
        window = raw[at].astype(np.int64) << 16 | raw[at + 1].astype(np.int64) << 8 | raw[at + 2]
        low = window >> (24 - (first & 7) - shift) & ((1 << shift) - 1)
        value = symbols[has_raw].astype(np.int64) << shift | low
        if not -32768 <= value.min() <= value.max() <= 32767:
            raise FormatError(f"code symbols reach from {value.min()} to {value.max()}, beyond 16 bits")
        symbols[has_raw] = value
        used = int(first[-1] + shift[-1])
    return used
