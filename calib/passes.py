"""Measure statistics in several passes over the same tokens, each for as many matrices as fit into memory.

Batches, labels and gradients are those of a single pass, so the sums of each matrix are the same to the last bit. A pass runs
backward only to the first of its matrices. On a CPU, activations are computed again instead of kept (recompute.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.array_file import ArrayFile
from quantlab.artifact.whole import part_names
from quantlab.calib.collect import Progress, batch_sequences, collect
from quantlab.calib.fisher import Use
from quantlab.calib.priors import siblings_of
from quantlab.calib.statistics import Statistics, UsesOnDemand
from quantlab.calib.triangle import pack_triangle, unpack_triangle
from quantlab.calib.watch import FULL_ROWS

SUM_BYTES = 6
"""Bytes that an entry of a symmetric sum takes: half of the entries are held, in float32 and in float64."""

Shapes = Mapping[str, tuple[int, ...]]


def sum_entries(shape: tuple[int, ...], *, plain: bool) -> int:
    """Return the entries of the symmetric sums of a matrix [O, I]: inputs with inputs, and outputs with outputs.

    Args:
        plain: whether inputs have a second, unweighted sum.
    """
    O, I = shape
    return (1 + plain) * I * I + (O * O if O <= FULL_ROWS else 0)


def groups_of(model: nn.Module, shapes: Shapes, *, plain: bool, most_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the matrices in runs, in the order of the model, whose sums take at most `most_bytes`; no run is empty.

    A matrix whose sums alone take more is a run by itself. A parameter with several names is not divided.
    """
    groups: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for names in _places(model, shapes):
        size = SUM_BYTES * sum_entries(shapes[names[0]], plain=plain)
        if not groups or size > room:
            groups.append({})
            room = most_bytes
        groups[-1] |= {name: shapes[name] for name in names}
        room -= size
    return groups


def _places(model: nn.Module, shapes: Shapes) -> Iterator[list[str]]:
    """Yield the names in `shapes` of one matrix after the other, in the order in which `collect` has them."""
    places: dict[tuple[int, int], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = [name] if name in shapes else part_names(name, tuple(parameter.shape)) if parameter.ndim > 2 else []
        for number, part in enumerate(parts):
            if part in shapes:
                places.setdefault((id(parameter), number), []).append(part)
    yield from places.values()


def collect_in_passes(
    model: nn.Module,
    ids_NT: Tensor,
    shapes: Shapes,
    groups: Sequence[Shapes],
    *,
    scratch: Path,
    progress: Progress | None = None,
    **options: Any,
) -> Statistics:
    """Return what `collect` returns, measured group by group.

    Args:
        groups: the matrices of `shapes`, as `groups_of` returns them.
        scratch: folder for nameless files that hold sums, and the statistics of groups that are done.
        progress: called with (sequences done, those of all passes).
        options: those of `collect`.
    Raises:
        StatisticsError, QuantlabError: see `collect`.
    """
    batch = batch_sequences(model, ids_NT, shapes)
    options["recompute"] = next(model.parameters()).device.type == "cpu"
    found, file = list[Statistics](), ArrayFile(scratch)

    def measure(group: Shapes, *, fill: bool, progress: Progress | None) -> Statistics:
        stats = collect(model, ids_NT, group, batch=batch, fill=fill, scratch=scratch, progress=progress, **options)
        return _on_disk(stats, file)

    for number, group in enumerate(groups):
        found.append(measure(group, fill=False, progress=_counted(progress, number, len(groups))))
    measured = set(chain.from_iterable((*stats.fishers, *stats.lookups) for stats in found))
    if unreached := shapes.keys() - measured:  # their siblings' means need sums that no group had together
        siblings = {name for one in unreached for name in siblings_of(one, shapes)}
        again = {name: shapes[name] for name in shapes if name in unreached | siblings}
        found.append(measure(again, fill=True, progress=None))
    return _joined(found, [name for names in _places(model, shapes) for name in names])


def _counted(progress: Progress | None, number: int, passes: int) -> Progress | None:
    """Return a progress of one pass that counts in all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, passes * total)


def _on_disk(stats: Statistics, file: ArrayFile) -> Statistics:
    """Return the same statistics, whose matrices wait in a file until they are asked for."""

    def moved(uses: Mapping[str, Use]) -> UsesOnDemand:
        places = {name: _put(uses[name], file) for name in uses}
        return UsesOnDemand(places, lambda name: places[name]())

    return replace(stats, products=moved(stats.products), lookups=moved(stats.lookups), fishers=moved(stats.fishers))


def _put(use: Use, file: ArrayFile) -> Callable[[], Use]:
    """Write a use into a file, symmetric matrices as triangles, and return what reads it."""
    H, g = (_put_side(side, file) for side in (use.H_II, use.g_O))
    return lambda: Use(H(), g())


def _put_side(side: Tensor, file: ArrayFile) -> Callable[[], Tensor]:
    if side.ndim == 1:
        diagonal = file.put(side.numpy())
        return lambda: torch.from_numpy(diagonal())
    triangle, size = file.put(pack_triangle(side).numpy()), len(side)
    return lambda: unpack_triangle(torch.from_numpy(triangle()), size)


def _joined(found: Sequence[Statistics], order: Sequence[str]) -> Statistics:
    """Return the statistics of all groups as one; of a matrix in several the first that has it counts."""

    def of(kind: Callable[[Statistics], Mapping[str, Use]]) -> UsesOnDemand:
        places = {name: kind(stats) for stats in reversed(found) for name in kind(stats)}
        return UsesOnDemand([name for name in order if name in places], lambda name: places[name][name])

    agreement = {name: value for stats in reversed(found) for name, value in stats.row_agreement.items()}
    return replace(
        found[0],
        products=of(lambda stats: stats.products),
        lookups=of(lambda stats: stats.lookups),
        fishers=of(lambda stats: stats.fishers),
        row_agreement={name: agreement[name] for name in order if name in agreement},
        priors=tuple(sorted(name for stats in found for name in stats.priors)),
        apart=tuple(sorted({name for stats in found for name in stats.apart})),
    )
