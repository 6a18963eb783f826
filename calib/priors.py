"""Statistics of matrices that no calibration token reached: the mean of their siblings'.

Siblings have the same name but for its last number: experts of a layer, or else the same matrix of other layers. The mean
counts an expert as if it were used as often as the others: it is safe where the sample was too small, and costs bytes where
the expert is idle for good.
"""

import re
from collections.abc import Iterable, Mapping

from quantlab.calib.triangle import GramSum
from quantlab.calib.watch import FisherSums, Sums, Watcher

_LAST_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$", re.DOTALL)


def fill_unreached_(watcher: Watcher, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Give each matrix of `shapes` without any gradient the mean sums of its siblings; return the names of these matrices.

    A matrix whose siblings have none either stays as it is.
    """
    reached = _reached(watcher)
    means: dict[tuple[str, ...], tuple[FisherSums, Sums]] = {}
    filled = []
    for name in unreached_in(watcher, shapes):
        siblings = tuple(other for other in siblings_of(name, shapes) if other in reached and shapes[other] == shapes[name])
        if not siblings:
            continue
        if siblings not in means:
            means[siblings] = _mean(watcher, siblings)
        watcher.fishers[name], watcher.products[name] = means[siblings]
        filled.append(name)
    return tuple(filled)


def unreached_in(watcher: Watcher, shapes: Iterable[str]) -> list[str]:
    """Return the matrices of `shapes` that no gradient reached and in which nothing was looked up, in order of name."""
    reached = watcher.named({name: watcher.fishers[name] for name in _reached(watcher)})
    return sorted(set(shapes) - watcher.named(watcher.lookups).keys() - reached.keys())


def _reached(watcher: Watcher) -> set[str]:
    return {name for name, sums in watcher.fishers.items() if sums.H.trace > 0}


def siblings_of(name: str, shapes: Iterable[str]) -> list[str]:
    """Return the other names of `shapes` that differ from `name` in its last number alone."""
    found = _LAST_NUMBER.match(name)
    if not found:
        return []
    before, _, after = found.groups()
    middle = re.compile(re.escape(before) + r"\d+" + re.escape(after))
    return [other for other in shapes if other != name and middle.fullmatch(other)]


def _mean(watcher: Watcher, names: tuple[str, ...]) -> tuple[FisherSums, Sums]:
    fishers, products = [watcher.fishers[name] for name in names], [watcher.products[name] for name in names]
    H = GramSum.mean([sums.H for sums in fishers])
    grams = [sums.G for sums in fishers if isinstance(sums.G, GramSum)]
    diagonals_O = [sums.G for sums in fishers if not isinstance(sums.G, GramSum)]
    G = GramSum.mean(grams) if grams else sum(diagonals_O[1:], diagonals_O[0]) / len(diagonals_O)
    plain = [sums.H for sums in products if sums.H is not None]
    g_O = sum((sums.g_O for sums in products[1:]), products[0].g_O) / len(products)
    return FisherSums(H, G), Sums(GramSum.mean(plain) if plain else None, g_O)
