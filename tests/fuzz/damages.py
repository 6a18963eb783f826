"""Small damages of bytes and of JSON trees, each drawn from a generator: the same generator gives the same damage."""

import json
import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Bytes = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536),
    *(2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30),
)
"""Numbers at which readers change their minds; their negatives are used too."""
STRINGS = (
    *(
        "",
        "a",
        "w",
        "raw",
        "row_grid",
        "trellis_grid",
        "float32",
        "blocks",
        "columns",
        "huggingface",
        "__metadata__",
        "__proto__",
    ),
    *("../x", "/", ".", "a\nb", "a\x1b[31m", "\x9b", "\u202e", "\x00", "\ud800", "é" * 300, "NaN", "1", "-1", "1e999"),
)
"""Names, kinds, paths and characters that a reader may stumble over."""


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Write a number of 1 to 8 bytes, little or big endian, over some place."""
    size = rng.choice((1, 1, 2, 4, 8))
    number = rng.choice(NUMBERS) * rng.choice((1, -1)) & (1 << 8 * size) - 1
    at = rng.randrange(len(data))
    return data[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _cut(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def _remove(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first, last = _span(rng, data)
    return data[:first] + data[last:]


def _repeat(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first, last = _span(rng, data)
    return data[:last] + data[first:last] * rng.choice((1, 1, 2, 100)) + data[last:]


def _blank(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    first, last = _span(rng, data)
    return data[:first] + bytes([rng.choice((0, 255))]) * (last - first) + data[last:]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16))) + data[at:]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Go on in another file, at the same place or any other."""
    other = rng.choice(others) if others else data
    at = rng.randrange(len(data))
    return data[:at] + other[at if rng.random() < 0.5 else rng.randrange(len(other) + 1) :]


def _transplant(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Put a piece of another file over some place."""
    first, last = _span(rng, other := rng.choice(others) if others else data)
    at = rng.randrange(len(data))
    return data[:at] + other[first:last] + data[at + last - first :]


_KINDS: tuple[Bytes, ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _remove,
    _repeat,
    _blank,
    _insert,
    _splice,
    _transplant,
)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 2, 4, 8, 13, 64, 1000)))


def damaged(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes with one to three damages; `others` are whole files to take pieces from."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_KINDS)(rng, data, others) if data else rng.randbytes(rng.randrange(1, 20))
    return data


def number_near(rng: random.Random, number: float) -> Any:
    """Return a number beside `number`, of its size but otherwise different, or one of `NUMBERS`."""
    near = (
        number + 1,
        number - 1,
        -number,
        number * 2,
        number // 2 if math.isfinite(number) else 0,
        number + 0.5,
        float(number),
    )
    return rng.choice(near) if rng.random() < 0.6 else rng.choice(NUMBERS) * rng.choice((1, 1, -1))


def any_value(rng: random.Random) -> Any:
    """Return some JSON value, NaN and infinity included."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS) * rng.choice((1, 1, -1))
    if kind < 5:
        return rng.choice(STRINGS)
    plain = (
        None,
        True,
        False,
        [],
        {},
        0.5,
        1e300,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        [1],
        [[]],
        {"a": 1},
        [1, 2, 3],
        [0, 2**31],
    )
    return rng.choice(plain)


def damaged_tree(rng: random.Random, tree: Any, others: Sequence[Any] = ()) -> Any:
    """Change a JSON tree in place, one to three times, and return it: values, keys, order; subtrees of `others` come in."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return any_value(rng)
        _change_(rng, *rng.choice(places), places=list(_places(rng.choice(others))) if others else places)
    return tree


def _places(tree: Any) -> Any:
    """Yield container and key of every value below the root."""
    stack = [tree]
    while stack:
        here = stack.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            yield here, key
            stack.append(here[key])


def _change_(rng: random.Random, holder: Any, key: Any, *, places: list[Any]) -> None:
    value, kind = holder[key], rng.randrange(10)
    if kind < 4 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = number_near(rng, value)
    elif kind < 4 and isinstance(value, str):
        holder[key] = rng.choice((*STRINGS, value + "x", value[:-1], value.upper()))
    elif kind == 4:
        del holder[key]
    elif kind == 5 and places:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))  # a copy: a tree must not hold itself
    elif kind == 6 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), json.loads(json.dumps(value)))
    elif kind == 7 and isinstance(holder, dict):
        holder[rng.choice((*STRINGS, "extra", f"{key}x"))] = any_value(rng)
    elif kind == 8 and isinstance(holder, list):
        rng.shuffle(holder)
    else:
        holder[key] = any_value(rng)


def json_text(rng: random.Random, tree: Any) -> bytes:
    """Return the tree as JSON; now and then in a form that a careful reader refuses."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8, separators=(",", ":")).encode("utf-8", "surrogatepass")
    kind = rng.randrange(60)
    if kind == 0:
        return text.replace(b":", b":" + b"[" * rng.choice((10, 1000, 100_000)), 1)
    if kind == 1:
        return text.replace(b":", b":" + b"9" * rng.choice((20, 400, 5000)), 1)
    if kind == 2:
        return text.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind == 3 and text.startswith(b"{") and len(text) > 2:
        return b"{" + text[1:-1] + b"," + text[1:]  # every key twice
    return damaged(rng, text) if kind < 10 else text


def safetensors_parts(data: bytes) -> tuple[Any, bytes]:
    """Return the header's JSON and the tensors' bytes of a safetensors file."""
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def damaged_safetensors(rng: random.Random, files: Sequence[bytes]) -> bytes:
    """Return a safetensors file whose header, tensors or length have changed, or any damage of its bytes."""
    data = rng.choice(files)
    if rng.random() < 0.3:
        return damaged(rng, data, files)
    header, tensors = safetensors_parts(data)
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text[:1] == "{"]
    if inner and rng.random() < 0.6:  # JSON within JSON: what quantlab says of the tensors
        key = rng.choice(inner)
        metadata[key] = json_text(rng, damaged_tree(rng, json.loads(metadata[key]))).decode("utf-8", "replace")
    elif rng.random() < 0.6:
        header = damaged_tree(rng, header, [safetensors_parts(other)[0] for other in files])
    else:
        tensors = damaged(rng, tensors, [safetensors_parts(other)[1] for other in files])
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + tensors
