"""The artifact's range coder read on a GPU: one program a strand of 32 lanes, all strands at once.

quantlab/coding/lanes.py says what a step is, and reads the same streams in numpy. A strand's steps follow one another, so it is
as fast as one warp walks from entry to entry; a file of 16 MB has 64 strands.

N: symbols, S: strands, L: lanes, C: tables.
"""

import torch
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.kernels.launch import jit, on_kernel, tl

STRAND = 32
"""Lanes that share words, and threads of a warp."""
SLOTS = 4096
"""Of a table."""
_LOWEST = 1 << 16

Read = tuple[Tensor, Tensor, Tensor]


def rans_decode_ref(table_N: Tensor, entries: Tensor, words: Tensor, used_S: Tensor, states_L: Tensor) -> Read:
    """What `rans_decode` does, a step of all lanes at a time."""
    wide, entry_of, used, states = words.long() & 0xFFFF, entries.long() & 0xFFFFFFFF, used_S.clone(), states_L.clone()
    strand_L = torch.arange(len(states), device=states.device) // STRAND
    symbols = []
    for table in torch.split(table_N.long(), len(states)):
        state, strand = states[: len(table)], strand_L[: len(table)]
        entry = entry_of[table * SLOTS + state % SLOTS]
        symbols.append((entry >> 12 & 255).to(torch.uint8).view(torch.int8))
        state = ((entry >> 20) + 1) * (state >> 12) + (entry & 4095)
        for s in range(len(used)):
            hungry = torch.nonzero((strand == s) & (state < _LOWEST))[:, 0]
            at = used[s] + torch.arange(len(hungry), device=used.device)
            state[hungry] = state[hungry] << 16 | wide[at.clamp(max=len(wide) - 1)]
            used[s] += len(hungry)
        states[: len(table)] = state
    return torch.cat(symbols) if symbols else torch.empty(0, dtype=torch.int8, device=states.device), used, states


@jit
def _rans_decode_kernel(
    p_tables, p_entries, p_words, p_used, p_states, p_symbols, n_symbols, n_words, lanes, LANES: tl.constexpr
):  # fmt: skip
    strand = tl.program_id(0)
    lane = strand * LANES + tl.arange(0, LANES)
    m_lane = lane < lanes
    state = tl.load(p_states + lane, mask=m_lane, other=0).to(tl.uint32)
    used = tl.load(p_used + strand)
    n = lane.to(tl.int64)
    table = tl.load(p_tables + n, mask=m_lane & (n < n_symbols), other=0)
    for _ in range(0, tl.cdiv(n_symbols, lanes)):
        m_read = m_lane & (n < n_symbols)
        slot = (table.to(tl.uint32) << 12) | (state & 4095)
        entry = tl.load(p_entries + slot, mask=m_read, other=0).to(tl.uint32, bitcast=True)
        table = tl.load(p_tables + n + lanes, mask=m_lane & (n + lanes < n_symbols), other=0)  # before it is needed
        tl.store(p_symbols + n, ((entry >> 12) & 255).to(tl.int8), mask=m_read)
        after = ((entry >> 20) + 1) * (state >> 12) + (entry & 4095)
        m_hungry = m_read & (after < 65536)
        hungry = m_hungry.to(tl.int32)
        at = used + tl.cumsum(hungry, 0) - hungry
        word = tl.load(p_words + at, mask=m_hungry & (at < n_words), other=0).to(tl.uint32) & 65535
        state = tl.where(m_hungry, (after << 16) | word, tl.where(m_read, after, state))
        used += tl.sum(hungry, 0)
        n += lanes
    tl.store(p_states + lane, state.to(tl.int64), mask=m_lane)
    tl.store(p_used + strand, used)


def rans_decode_triton(table_N: Tensor, entries: Tensor, words: Tensor, used_S: Tensor, states_L: Tensor) -> Read:
    """`rans_decode` by the kernel, on CUDA or under Triton's interpreter."""
    symbols = torch.empty(len(table_N), dtype=torch.int8, device=table_N.device)
    used, states = used_S.clone(), states_L.clone()
    _rans_decode_kernel[(len(used),)](
        table_N, entries, words, used, states, symbols, len(table_N), len(words), len(states), LANES=STRAND, num_warps=1
    )
    return symbols, used, states


def rans_decode(table_N: Tensor, entries: Tensor, words: Tensor, used_S: Tensor, states_L: Tensor) -> Read:
    """Read all symbols of a code stream.

    Args:
        table_N: table of each symbol, int16 [N], below C.
        entries: what each slot means, int32 [C · 4096]: (frequency - 1) << 20 | symbol's byte << 12 | place, as unsigned bits.
        words: int16, unsigned bits, and a zero at the end, which a damaged stream may read again and again.
        used_S: where each strand's words begin, int64 [S].
        states_L: int64 [L], 2**16 to 2**32 - 1; strand s has lanes 32 s to 32 s + 31.
    Returns:
        symbols int8 [N], where each strand stopped reading int64 [S], last states int64 [L].
    Raises:
        ShapeError: another dtype, or as many strands as the lanes are not.
    """
    wanted = (torch.int16, torch.int32, torch.int16, torch.int64, torch.int64)
    got = tuple(t.dtype for t in (table_N, entries, words, used_S, states_L))
    if got != wanted:
        raise ShapeError(f"tables, entries, words, used and states are {got}, expected {wanted}")
    if len(used_S) != -(-len(states_L) // STRAND) or len(entries) % SLOTS or not len(words):
        raise ShapeError(
            f"{len(states_L)} lanes, {len(used_S)} strands, {len(entries)} entries and {len(words)} words do not fit"
        )
    run = rans_decode_triton if on_kernel(table_N, entries, words) else rans_decode_ref
    return run(table_N, entries, words, used_S, states_L)
