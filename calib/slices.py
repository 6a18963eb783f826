"""Products with parts of one matrix, joined to the product with the whole: what the parts have in common counts then.

x[:, :k] @ W[:, :k].T + x[:, k:] @ W[:, k:].T is x @ W.T, and two products of one x with the two halves of the rows are one.
Parts belong together where they meet the same tokens on the other side: the same gradients, or the same inputs.
"""

from collections.abc import Iterator

import torch

from quantlab.calib.contraction import Pair, Span


class Slices:
    """Parts that wait for others of their matrix within a batch."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Pair]] = {}
        self.apart: set[str] = set()
        """Matrices of which parts were never joined: what they have in common is not in the statistics."""

    def join(self, name: str, pair: Pair) -> Pair | None:
        """Return the pair of a whole matrix that is complete with this part of it; None while parts are missing."""
        if not pair.rows and not pair.columns:
            return pair
        waiting = self._waiting.setdefault(name, [])
        for at, other in enumerate(waiting):
            if (joined := _joined(other, pair)) is not None:
                del waiting[at]
                return self.join(name, joined)
        waiting.append(pair)
        return None

    def left(self) -> Iterator[tuple[str, Pair]]:
        """Yield the parts that found no others, at the end of a batch, and forget them."""
        for name, waiting in self._waiting.items():
            self.apart |= {name} if waiting else set()
            yield from ((name, pair) for pair in waiting)
        self._waiting.clear()


def _joined(a: Pair, b: Pair) -> Pair | None:
    """Return both parts as one; None where they do not belong together."""
    if a.rows == b.rows and _is_apart(a.columns, b.columns) and torch.equal(a.rows_TO, b.rows_TO):
        columns = _whole_or(a.columns + b.columns, a.columns_TI.shape[1])
        share = a.column_share + b.column_share if columns else 1.0
        return Pair(a.number, a.columns_TI + b.columns_TI, a.rows_TO, a.row_share, share, a.rows, columns)
    if a.columns == b.columns and _is_apart(a.rows, b.rows) and torch.equal(a.columns_TI, b.columns_TI):
        rows = _whole_or(a.rows + b.rows, a.rows_TO.shape[1])
        share = a.row_share + b.row_share if rows else 1.0
        return Pair(a.number, a.columns_TI, a.rows_TO + b.rows_TO, share, a.column_share, rows, a.columns)
    return None


def _is_apart(a: Span, b: Span) -> bool:
    return bool(a) and bool(b) and all(stop <= start or end <= first for first, stop in a for start, end in b)


def _whole_or(span: Span, length: int) -> Span:
    """Return the runs in order, or nothing where they are all of the side."""
    return () if sum(stop - start for start, stop in span) == length else tuple(sorted(span))
