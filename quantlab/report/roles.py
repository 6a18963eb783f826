"""Where a tensor sits in its model, read off its name."""

import re
from dataclasses import dataclass

_LAYERED = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>\d{1,6})\.(?P<role>.+)", re.DOTALL)
SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class Place:
    """`blocks.3.mlp.fc.weight` is layer 3 of `blocks`, role `mlp.fc`."""

    stack: str
    """What comes before the layer's number; empty where there is none."""
    layer: int | None
    role: str


def place_of(name: str) -> Place:
    """Stack, layer and role of a tensor.

    >>> place_of("blocks.3.mlp.fc.weight"), place_of("tok_emb.weight")
    (Place(stack='blocks', layer=3, role='mlp.fc'), Place(stack='', layer=None, role='tok_emb'))
    """
    match = _LAYERED.fullmatch(name)
    if match is None:
        return Place("", None, name.removesuffix(SUFFIX))
    return Place(match["stack"].rstrip("."), int(match["layer"]), match["role"].removesuffix(SUFFIX))
