"""Weight matrices held in memory as small codes, laid out for kernels.

Weight (i, j) is (code[i, j] - half[i, j]) · row_scale[i] · column_scale[j]. half is ½ on a path of the trellis, where the scale
classes of row and column add up to SCALAR_CLASSES or more, and 0 elsewhere.

Layout: column k is slot k // LANES of lane k % LANES. The codes of a lane in one row, offset by 2**(bits - 1) so that none is
negative, are the digits of one number, slot 0 lowest, `bits` bits each; words[i, w, l] are bits 32·w to 32·w + 31 of it. So the
word w of all lanes is 64 bytes without a gap, and the codes of 16 neighbouring columns lie at the same bits of these words:
a kernel reads whole cache sectors, and every shift is known when it is compiled.

Half rows: halves depend on a row only by its scale class, so the rows of a class share one further row of codes, 1 where the
weight is half a step lower. In a product with x it is one more output, which spares a kernel all work on halves.

Outliers: a code beyond ±(2**(bits - 1) - 1) is stored clamped, and its true value beside it, sorted by row.

O: rows, I: columns, R: rows with half rows, W: words of a lane, L: lanes, N: outliers.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.format_rules import SCALAR_CLASSES, WIDE, WIDTHS, code_limit

__all__ = ["LANES", "PACKED_WIDTHS", "Packed", "pack"]

LANES = 16
"""Number of neighbouring columns whose codes lie at the same bits of neighbouring words."""
PACKED_WIDTHS = (*WIDTHS, WIDE)
"""Widths of a packed code in bits. Up to 8, codes and halves are exact in bfloat16."""
_OUTLIER_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packed:
    """A matrix [O, I] as `pack` lays it out; see the top of this file."""

    shape: tuple[int, int]
    """Rows O and columns I."""
    bits: int
    """Width of a code, one of PACKED_WIDTHS."""
    words: Tensor
    """Codes, int32 [R, W, L], to be read as 32 bits; columns beyond I hold code 0."""
    row_scale_O: Tensor
    """Scale of each row, float32 [O]."""
    column_scale_I: Tensor
    """Scale of each column, float32 [I], at most 1, so that x times it overflows no float16."""
    half_row_O: Tensor | None
    """Row of `words` that says where this row is half a step lower, int32 [O], O to R - 1; None if there are no halves."""
    outlier_start_O: Tensor
    """Outliers of row i are those from outlier_start_O[i] to outlier_start_O[i + 1] - 1, int32 [O + 1]."""
    outlier_column: Tensor
    """Column of each outlier, int32 [N]."""
    outlier_value: Tensor
    """Value code - half of each outlier, float32 [N]."""

    @property
    def limit(self) -> int:
        """Largest magnitude of a code in `words`."""
        return code_limit(self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: torch.device | str) -> "Packed":
        """Return the same matrix on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def pack(
    codes_OI: Tensor,
    row_scale_O: Tensor,
    column_scale_I: Tensor,
    *,
    row_class_O: Tensor | None = None,
    column_class_I: Tensor | None = None,
    bits: int | None = None,
) -> Packed:
    """Lay a matrix out for kernels.

    Args:
        codes_OI: int8 or int16 [O, I], neither side empty.
        row_scale_O, column_scale_I: float32 [O] and [I]. A power of two moves from columns to rows, which changes no bit of the
            weights unless a product overflows or underflows.
        row_class_O, column_class_I: shares in the scale classes of a trellis, int16 [O] and [I]; None for a plain grid.
        bits: width of a code, one of PACKED_WIDTHS; None takes the one that needs the fewest bytes, with outliers and padding.
    Returns:
        The packed matrix, on the device of the codes.
    Raises:
        ShapeError: a tensor has another shape, dtype or device, or only one of the classes is given.
        ConfigError: a width that is not allowed.
    """
    _check(codes_OI, row_scale_O, column_scale_I, row_class_O, column_class_I)
    O, I = codes_OI.shape
    codes_OI = codes_OI.to(torch.int16)
    half_row_O, stored_RI = None, codes_OI
    if row_class_O is not None and column_class_I is not None:
        half_row_O, halves_OI = _half_rows(row_class_O, column_class_I)
        stored_RI = torch.cat([codes_OI, halves_OI.to(torch.int16)])
    if bits is None:
        bits = min(reversed(PACKED_WIDTHS), key=lambda width: _bytes(stored_RI, width))
    elif bits not in PACKED_WIDTHS:
        raise ConfigError(f"bits must be one of {', '.join(map(str, PACKED_WIDTHS))}, got {bits}")
    row, column = _outside(codes_OI, code_limit(bits)).nonzero(as_tuple=True)
    value = codes_OI[row, column].float()
    if half_row_O is not None:
        value -= 0.5 * stored_RI[half_row_O[row], column]
    shift = math.frexp(float(column_scale_I.abs().max()))[1]
    return Packed(
        shape=(O, I),
        bits=bits,
        words=_words(stored_RI, bits),
        row_scale_O=(row_scale_O.double() * 2.0**shift).float(),
        column_scale_I=(column_scale_I.double() * 2.0**-shift).float(),
        half_row_O=half_row_O,
        outlier_start_O=torch.searchsorted(row, torch.arange(O + 1, device=row.device)).to(torch.int32),
        outlier_column=column.to(torch.int32),
        outlier_value=value,
    )


def _half_rows(row_class_O: Tensor, column_class_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return the half row of each row, int32 [O], counted from O on; and the half rows, bool [·, I]."""
    column_class_I = column_class_I.int()
    threshold_O = SCALAR_CLASSES - row_class_O.int()
    threshold_O = threshold_O.clamp(column_class_I.min(), column_class_I.max() + 1)  # one for all rows of nothing but halves
    thresholds, which_O = torch.unique(threshold_O, return_inverse=True)
    return (which_O + len(row_class_O)).to(torch.int32), column_class_I >= thresholds[:, None]


def _words(codes_RI: Tensor, bits: int) -> Tensor:
    """Return the words, int32 [R, W, L]; codes beyond the range of the width are clamped."""
    R, I = codes_RI.shape
    limit = code_limit(bits)
    count = _word_count(I, bits)
    words = torch.zeros(R, count + 1, LANES, dtype=torch.int64, device=codes_RI.device)
    for slot, part in enumerate(torch.split(codes_RI, LANES, dim=1)):
        word, at = divmod(slot * bits, 32)
        code_RL = part.long().clamp(-limit, limit) + 2 ** (bits - 1)
        if part.shape[1] < LANES:
            code_RL = torch.nn.functional.pad(code_RL, (0, LANES - part.shape[1]), value=2 ** (bits - 1))
        words[:, word] |= code_RL << at & 0xFFFFFFFF
        words[:, word + 1] |= code_RL << at >> 32
    words = words[:, :count]
    return (words - (words >> 31 << 32)).to(torch.int32)


def _word_count(columns: int, bits: int) -> int:
    slots = -(columns // -LANES)
    return -(slots * bits // -32)


def _outside(codes: Tensor, limit: int) -> Tensor:
    return (codes < -limit) | (codes > limit)


def _bytes(codes_RI: Tensor, bits: int) -> int:
    """Return the bytes that depend on the width: words and outliers."""
    words = len(codes_RI) * _word_count(codes_RI.shape[1], bits) * LANES
    return 4 * words + _OUTLIER_BYTES * int(_outside(codes_RI, code_limit(bits)).sum())


def _check(
    codes_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, row_class_O: Tensor | None, column_class_I: Tensor | None
) -> None:
    if codes_OI.dtype not in (torch.int8, torch.int16) or codes_OI.dim() != 2 or not codes_OI.numel():
        raise ShapeError(f"codes must be int8 or int16 [O, I], O and I above 0, got {_kind(codes_OI)}")
    if (row_class_O is None) != (column_class_I is None):
        given, missing = ("column", "row") if row_class_O is None else ("row", "column")
        raise ShapeError(f"{given} classes are given without {missing} classes: pass both or none")
    O, I = codes_OI.shape
    wanted = [("row scales", row_scale_O, torch.float32, O), ("column scales", column_scale_I, torch.float32, I)]
    if row_class_O is not None and column_class_I is not None:
        wanted += [("row classes", row_class_O, torch.int16, O), ("column classes", column_class_I, torch.int16, I)]
    for name, tensor, dtype, length in wanted:
        if tensor.dtype != dtype or tensor.shape != (length,) or tensor.device != codes_OI.device:
            allowed = f"{str(dtype).removeprefix('torch.')} [{length}] on {codes_OI.device}"
            raise ShapeError(f"{name} must be {allowed}, got {_kind(tensor)} on {tensor.device}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
