"""The range coder's reader on a GPU: one program reads one lane group of 32 lanes, all groups run at once.

quantlab/coding/lanes.py says what a step is and how a state keeps its bounds, and reads the same streams in numpy. The steps of
a lane group follow one another, so it is as fast as one warp walks from entry to entry; a file of 16 MB has 64 groups.

N: symbols, G: lane groups, L: lanes, C: tables.
"""

import torch
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.format_rules import LANE_GROUP, LOWEST, PROBABILITY_BITS, TOTAL, WORD_BITS, lane_groups_of
from quantlab.kernels.launch import jit, on_kernel, tl

ENTRY_SYMBOL, ENTRY_FREQUENCY = PROBABILITY_BITS, PROBABILITY_BITS + 8
"""Lowest bit of the symbol's byte and of its frequency less 1 in an entry of 32 bits, whose lowest bits are the place."""

Read = tuple[Tensor, Tensor, Tensor]


def rans_decode_ref(table_N: Tensor, entries: Tensor, words: Tensor, used_G: Tensor, states_L: Tensor) -> Read:
    """Return what `rans_decode` returns; the reference implementation, one step of all lanes at a time."""
    unsigned, entry_of, used, states = words.long() & 0xFFFF, entries.long() & 0xFFFFFFFF, used_G.clone(), states_L.clone()
    group_L = torch.arange(len(states), device=states.device) // LANE_GROUP
    symbols = []
    for table in torch.split(table_N.long(), len(states)):
        state, group = states[: len(table)], group_L[: len(table)]
        entry = entry_of[table * TOTAL + state % TOTAL]
        symbols.append((entry >> ENTRY_SYMBOL & 255).to(torch.uint8).view(torch.int8))
        state = ((entry >> ENTRY_FREQUENCY) + 1) * (state >> PROBABILITY_BITS) + entry % TOTAL
        for g in range(len(used)):
            renormalizing = torch.nonzero((group == g) & (state < LOWEST))[:, 0]
            at = used[g] + torch.arange(len(renormalizing), device=used.device)
            state[renormalizing] = state[renormalizing] << WORD_BITS | unsigned[at.clamp(max=len(unsigned) - 1)]
            used[g] += len(renormalizing)
        states[: len(table)] = state
    return torch.cat(symbols) if symbols else torch.empty(0, dtype=torch.int8, device=states.device), used, states


@jit
def _rans_decode_kernel(
    p_tables, p_entries, p_words, p_used, p_states, p_symbols, n_symbols, n_words, lanes, LANES: tl.constexpr,
    BITS: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    """One lane group; BITS of a state choose a slot, states below 2**WORD_BITS take a word."""
    PLACE: tl.constexpr = (1 << BITS) - 1
    group = tl.program_id(0)
    lane = group * LANES + tl.arange(0, LANES)
    m_lane = lane < lanes
    state = tl.load(p_states + lane, mask=m_lane, other=0).to(tl.uint32)
    used = tl.load(p_used + group)
    n = lane.to(tl.int64)
    table = tl.load(p_tables + n, mask=m_lane & (n < n_symbols), other=0)
    for _ in range(0, tl.cdiv(n_symbols, lanes)):
        m_read = m_lane & (n < n_symbols)
        slot = (table.to(tl.uint32) << BITS) | (state & PLACE)
        entry = tl.load(p_entries + slot, mask=m_read, other=0).to(tl.uint32, bitcast=True)
        table = tl.load(p_tables + n + lanes, mask=m_lane & (n + lanes < n_symbols), other=0)  # before it is needed
        tl.store(p_symbols + n, ((entry >> BITS) & 255).to(tl.int8), mask=m_read)
        after = ((entry >> (BITS + 8)) + 1) * (state >> BITS) + (entry & PLACE)
        m_renormalizing = m_read & (after < (1 << WORD_BITS))
        renormalizing = m_renormalizing.to(tl.int32)
        at = used + tl.cumsum(renormalizing, 0) - renormalizing
        word = tl.load(p_words + at, mask=m_renormalizing & (at < n_words), other=0).to(tl.uint32) & ((1 << WORD_BITS) - 1)
        state = tl.where(m_renormalizing, (after << WORD_BITS) | word, tl.where(m_read, after, state))
        used += tl.sum(renormalizing, 0)
        n += lanes
    tl.store(p_states + lane, state.to(tl.int64), mask=m_lane)
    tl.store(p_used + group, used)


def rans_decode_triton(table_N: Tensor, entries: Tensor, words: Tensor, used_G: Tensor, states_L: Tensor) -> Read:
    """Run the kernel of `rans_decode`, on CUDA or under Triton's interpreter."""
    symbols = torch.empty(len(table_N), dtype=torch.int8, device=table_N.device)
    used, states = used_G.clone(), states_L.clone()
    sizes = (len(table_N), len(words), len(states))
    rules = {"LANES": LANE_GROUP, "BITS": PROBABILITY_BITS, "WORD_BITS": WORD_BITS}
    _rans_decode_kernel[(len(used),)](table_N, entries, words, used, states, symbols, *sizes, **rules, num_warps=1)
    return symbols, used, states


def rans_decode(table_N: Tensor, entries: Tensor, words: Tensor, used_G: Tensor, states_L: Tensor) -> Read:
    """Read all symbols of a code stream.

    Args:
        table_N: table of each symbol, int16 [N], below C.
        entries: meaning of each slot, int32 [C · 4096]: (frequency - 1) << 20 | symbol's byte << 12 | place, as unsigned bits.
        words: int16, unsigned bits, and a zero at the end, which a damaged stream may read again and again.
        used_G: where the words of each lane group begin, int64 [G].
        states_L: int64 [L], 2**16 to 2**32 - 1; lane group g has lanes 32 g to 32 g + 31.
    Returns:
        symbols int8 [N], where each lane group stopped reading int64 [G], last states int64 [L].
    Raises:
        ShapeError: another dtype, or numbers of lanes, lane groups, entries and words that do not belong together.
    """
    wanted = (torch.int16, torch.int32, torch.int16, torch.int64, torch.int64)
    got = tuple(t.dtype for t in (table_N, entries, words, used_G, states_L))
    if got != wanted:
        raise ShapeError(f"tables, entries, words, used and states must be {wanted}, got {got}")
    if len(used_G) != lane_groups_of(len(states_L)) or len(entries) % TOTAL or not len(words):
        sizes = f"{len(states_L)} lanes, {len(used_G)} lane groups, {len(entries)} entries and {len(words)} words"
        raise ShapeError(f"{sizes} do not fit together")
    run = rans_decode_triton if on_kernel(table_N, entries, words) else rans_decode_ref
    return run(table_N, entries, words, used_G, states_L)
