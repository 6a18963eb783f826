"""The code stream decoded on the device where its codes are needed, by the kernels on a GPU; rans.decode is the reference.

O: rows, I: columns, N: codes of all matrices.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.coding.contexts import TensorContext, raw_bits
from quantlab.coding.frequency_tables import FREQUENCY_SHIFT, PLACE_MASK, SYMBOL_SHIFT, TableSet
from quantlab.coding.rans import check_contexts, joined, split
from quantlab.coding.symbols import symbol_limit
from quantlab.errors import FormatError
from quantlab.format_rules import ESCAPE, LOWEST, PARITY_CHECKS, TABLE_CLASSES, shifts_of, sum_classes, tables_of
from quantlab.kernels.rans_decode import ENTRY_FREQUENCY, ENTRY_SYMBOL, rans_decode
from quantlab.kernels.trellis_codes import trellis_codes


def decode(
    stream: bytes, contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int, device: torch.device
) -> list[Tensor]:
    """Return the codes of every context, int16 [O, I] each, on `device`: those of rans.decode.

    Raises:
        FormatError: where rans.decode raises it.
    """
    check_contexts(contexts, sets, lanes)
    escapes, raw, states, words, counts = split(stream, lanes, sum(raw_bits(context) for context in contexts))
    sides = [(_on(context.rows_O, device), _on(context.columns_I, device)) for context in contexts]
    none = torch.zeros(0, dtype=torch.int16, device=device)
    class_N = torch.cat([none, *(sum_classes(*side).reshape(-1) for side in sides)])
    sizes = torch.tensor([context.shape[0] * context.shape[1] for context in contexts], dtype=torch.int64)
    first = torch.tensor([TABLE_CLASSES * context.tables for context in contexts], dtype=torch.int16).repeat_interleave(sizes)
    ends = np.cumsum(counts)
    read = rans_decode(
        tables_of(class_N) + first.to(device),
        _on(_short_entries(joined(sets)), device),
        _on(np.append(words, np.uint16(0)).view(np.int16), device),
        _on(ends - counts, device),
        _on(states, device),
    )
    shifted_N, used, last = (read[0], read[1].tolist(), read[2])
    if used != ends.tolist() or bool((last != LOWEST).any()):
        raise FormatError(f"code stream is damaged: its lane groups end after {used} words, {ends.tolist()} expected")
    symbol_N = _whole_symbols(shifted_N, shifts_of(class_N), _on(escapes, device), _on(raw, device))
    parts = torch.split(symbol_N, sizes.tolist())
    return [_codes(part, context, *side) for part, context, side in zip(parts, contexts, sides, strict=True)]


def _on(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device)


def _short_entries(tables: TableSet) -> NDArray[np.int32]:
    """Return the entries in the 32 bits that the kernel reads."""
    entries = tables.entries
    frequency, symbol, place = entries >> FREQUENCY_SHIFT, entries >> SYMBOL_SHIFT & 255, entries & PLACE_MASK
    return ((frequency - 1) << ENTRY_FREQUENCY | symbol << ENTRY_SYMBOL | place).astype(np.uint32).view(np.int32)


def _whole_symbols(shifted_N: Tensor, shift_N: Tensor, escapes: Tensor, raw: Tensor) -> Tensor:
    """Return symbols int16 [N] with their escapes and raw low bits (see symbols.join_low_bits_)."""
    symbol_N = shifted_N.short()
    places = torch.nonzero(shifted_N == ESCAPE)[:, 0]
    if len(places) != len(escapes):
        raise FormatError(f"code stream is damaged: {len(escapes)} escapes for {len(places)} places")
    symbol_N[places] = escapes
    has_raw = torch.nonzero(shift_N)[:, 0]
    shift = shift_N[has_raw].long()
    end = shift.cumsum(0)
    at = (end - shift) >> 3
    window = raw[at].long() << 16 | raw[at + 1].long() << 8 | raw[at + 2].long()
    value = symbol_N[has_raw].long() << shift | window >> (24 + 8 * at - end) & ((1 << shift) - 1)
    if len(value) and not -32768 <= int(value.min()) <= int(value.max()) <= 32767:
        raise FormatError(f"code symbols reach from {int(value.min())} to {int(value.max())}, beyond 16 bits")
    symbol_N[has_raw] = value.short()
    return symbol_N


def _codes(symbols: Tensor, context: TensorContext, row_O: Tensor, column_I: Tensor) -> Tensor:
    """Return the codes of one context (see symbols.from_symbols)."""
    limit = symbol_limit(context.states)
    if len(symbols) and not -limit <= int(symbols.min()) <= int(symbols.max()) <= limit:
        raise FormatError(f"code symbols reach from {int(symbols.min())} to {int(symbols.max())}, allowed are ±{limit}")
    symbol_OI = symbols.reshape(context.shape)
    if context.states == 1:
        return symbol_OI
    return trellis_codes(symbol_OI, row_O, column_I, *PARITY_CHECKS[context.states], context.paths)
