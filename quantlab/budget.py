"""Read and write byte budgets as people do, and measure the code files that count towards one."""

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from quantlab.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes that a text such as `16000000`, `16MB` (10^6) or `16MiB` (2^20) stands for.

    >>> parse_bytes("16MB"), parse_bytes("16MiB"), parse_bytes("1_000_000")
    (16000000, 16777216, 1000000)

    Raises:
        ConfigError: the text is no number of bytes, or less than 1 byte.
    """
    match = re.fullmatch(r"([0-9]{1,20}(?:_[0-9]{1,20}){0,6}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"budget must be a number of bytes like 16000000, 16MB or 16MiB, got {text!r:.60}")
    size = int(Fraction(match[1].replace("_", "")) * unit)
    if size < 1:
        raise ConfigError(f"budget must be at least 1 byte, got {text!r}")
    return size


def size_text(size: int) -> str:
    """Return a number of bytes exactly, in the largest unit that needs at most four digits.

    >>> size_text(16_000_000), size_text(1_367_000), size_text(249_993), size_text(500)
    ('16 MB', '1.367 MB', '249,993 B', '500 B')
    """
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale and Fraction(shown := f"{size / scale:.4g}") * scale == size:
            return f"{shown} {unit}"
    return f"{size:,} B"


def code_bytes(files: Iterable[Path]) -> dict[str, int]:
    """Return the size on disk of each counted code file, in bytes by path. ConfigError if one is missing."""
    sizes = {}
    for file in files:
        if not file.is_file():
            raise ConfigError(f"code file {file} does not exist")
        sizes[str(file)] = file.stat().st_size
    return sizes
