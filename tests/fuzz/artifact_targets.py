"""Artifacts under attack: damaged in any byte, or sealed again with other manifest, tables or sections; readers must agree."""

import copy
import hashlib
import json
import lzma
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import zstandard
from damages import any_value, damaged, damaged_tree, number_near
from harness import Files, Finding
from javascript_reader import JavaScriptReader, node

from quantlab.artifact import standalone
from quantlab.artifact.decode import decode_artifact, decode_trellis, parse_artifact
from quantlab.artifact.emit import emit_decoder
from quantlab.artifact.manifest import RAW_DTYPES, Manifest, RawTensor
from quantlab.artifact.reader import open_artifact
from quantlab.artifact.writer import encode_artifact
from quantlab.coding import rans_numba
from quantlab.coding.byte_coder import encode_bytes
from quantlab.coding.codecs import SELF_CONTAINED
from quantlab.errors import FormatError

NAME = "m.qlab"
GOLDEN = Path(__file__).parents[1] / "golden"
HEADER, SECTION, DIGEST_BYTES = struct.Struct("<8sHHIIQ"), struct.Struct("<BIII"), 16
SIDES, CLASSES, STREAM, CODES = 1, 3, 5, 6  # numbers of sections
Bits = dict[str, tuple[str, list[int], bytes]]
"""Dtype, shape and bytes of every tensor by name."""


@dataclass
class Parts:
    """A file taken apart: its manifest, and codec, unpacked length, stored bytes and unpacked bytes of each section."""

    manifest: Any
    sections: list[tuple[int, int, bytes, bytes]]


def seal(manifest: Any, sections: list[tuple[int, int, bytes]]) -> bytes:
    """Return a file with lengths and checksums that fit, whatever it holds; written from docs/format.md."""
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8", "surrogatepass")
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(text) + packer.flush()
    table = b"".join(
        SECTION.pack(codec & 255, len(stored), raw & 0xFFFFFFFF, zlib.crc32(stored)) for codec, raw, stored in sections
    )
    body = table + packed + b"".join(stored for _, _, stored in sections)
    size = HEADER.size + len(body) + DIGEST_BYTES
    return closed(HEADER.pack(b"\x89QLAB\r\n\x1a", 1, len(sections), len(packed), len(text), size) + body)


def closed(body: bytes) -> bytes:
    """Return the bytes with the digest of a file behind them."""
    return body + hashlib.sha256(body).digest()[:DIGEST_BYTES]


def is_sealed(data: bytes) -> bool:
    """Return whether the digest of a file is right, so that only a reader's other rules can refuse it."""
    return len(data) > DIGEST_BYTES and hashlib.sha256(data[:-DIGEST_BYTES]).digest()[:DIGEST_BYTES] == data[-DIGEST_BYTES:]


def _squeezed(raw: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(raw) + packer.flush()


def _lzma(raw: bytes) -> bytes:
    dictionary = max(1 << max(len(raw) - 1, 1).bit_length(), 1 << 12)
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary}])


ENCODERS: dict[int, Callable[[bytes], bytes]] = {
    0: lambda raw: raw,
    1: _squeezed,
    2: lambda raw: brotli.compress(raw, quality=1),
    3: zstandard.ZstdCompressor(level=1).compress,
    4: _lzma,
    5: encode_bytes,
}


@cache
def samples() -> dict[str, bytes]:
    """Return small artifacts that meet every branch of the readers between them, by name."""
    from neighbours import golden_payloads, raw_payloads, trellis_payload

    rng = np.random.default_rng(0)
    shapes = {1: (9, 12), 4: (7, 5), 8: (33, 6), 16: (5, 40), 32: (12, 9)}
    trellises = [trellis_payload(f"states {s}", shapes[s], s, rng, tables=k % 2) for k, s in enumerate(shapes)]
    low = [trellis_payload(f"low {s}", (8, 11), s, rng, classes=3) for s in (1, 8)]
    high = [trellis_payload(f"high {s}", (9, 7), s, rng, classes=60, spread=9, largest=1) for s in (1, 32)]
    small = [trellis_payload(f"small {shape}", shape, 8, rng) for shape in ((1, 1), (1, 40), (40, 1), (0, 4), (4, 0))]
    raw = raw_payloads()
    return {
        "golden": (GOLDEN / "v1_all_kinds.qlab").read_bytes(),
        "mixed": encode_artifact([*trellises, *raw[:4]], origin={"seed": 0}, model={"vocab_size": 3}).data,
        "classes": encode_artifact([raw[0], *low, raw[1], *high, *small, *raw[2:]]).data,
        "raw": encode_artifact(raw, tokenizer={"sha256": "00", "vocab_size": 3}).data,
        "grids": encode_artifact(golden_payloads()[:3]).data,
        "empty": encode_artifact([]).data,
    }


def apart(data: bytes) -> Parts:
    """Take a whole file apart."""
    from quantlab.artifact.container import read_container

    manifest, sections = read_container(data)
    return Parts(manifest, [(s.codec, s.raw_bytes, s.stored, s.decode()) for s in sections])


class Readers:
    """All readers of artifacts, and what they must have in common."""

    def __init__(self) -> None:
        names: dict[str, Any] = {}
        exec(emit_decoder(), names)
        self._python: list[tuple[str, Callable[[str], Any]]] = [
            ("standalone.py", standalone.load),
            ("the emitted decoder", names["load"]),
        ]
        self._javascript = JavaScriptReader() if node() else None

    def check_refused(self, data: bytes, path: Path) -> None:
        """Readers that check no more than the digest refuse an altered file too; some of them, by the file's checksum."""
        turn = zlib.crc32(data) % 64
        if turn < 16:
            path.write_bytes(data)
            reader, load = self._python[turn % 2]
            try:
                load(str(path))
            except ValueError:
                return
            raise Finding(f"{reader} accepted an altered file")
        if turn == 16 and self._javascript and self._javascript.read(data) is not None:
            raise Finding("qlab.mjs accepted an altered file")

    def check_equal(self, bits: Bits, data: bytes, path: Path) -> None:
        """Every reader gives these tensors: one of them a file, all for one in eight, by its checksum."""
        turn = zlib.crc32(data) % 8
        for n, (reader, load) in enumerate(self._python):
            if turn in (n, n + 2, 7) and (got := _bits({k: t.numpy() for k, t in load(str(path)).items()})) != bits:
                raise Finding(f"{reader} gives other tensors: {_first_difference(got, bits)}")
        if turn >= 4 and self._javascript:
            found = self._javascript.read(data)
            if found is None:
                raise Finding(f"qlab.mjs refuses the file: {self._javascript.error}")
            if found != {name: (shape, raw) for name, (_, shape, raw) in bits.items()}:
                other = {name: ("", *found[name]) for name in found}
                without_types = {name: ("", shape, raw) for name, (_, shape, raw) in bits.items()}
                raise Finding(f"qlab.mjs gives other tensors: {_first_difference(other, without_types)}")

    def check_ends(self, data: bytes, path: Path) -> None:
        """The short reader ends in time on a file that the library refuses though its digest is right; one in 32."""
        if zlib.crc32(data) % 32 == 0:
            path.write_bytes(data)
            with suppress(Exception):
                standalone.load(path)


class AlteredTarget:
    """A .qlab file with damaged bytes, its digest as it was: every reader refuses it."""

    name, weight = "altered", 300

    def __init__(self) -> None:
        self.files = list(samples().values())
        self._readers = Readers()

    def draw(self, rng: random.Random) -> Files:
        """Damage bytes."""
        return {NAME: damaged(rng, rng.choice(self.files), self.files)}

    def check(self, files: Files, folder: Path) -> None:
        """Refused by every reader, unless the damage left the file as it was."""
        data = files[NAME]
        if is_sealed(data):
            return
        try:
            parse_artifact(data)
        except FormatError:
            self._readers.check_refused(data, folder / NAME)
            return
        raise Finding("an altered file was accepted")


class ArtifactTarget:
    """A .qlab file whose parts were changed before it was sealed again."""

    name, weight = "artifact", 16

    def __init__(self) -> None:
        self.files = list(samples().values())
        self.parts = [apart(data) for data in self.files]
        self.known = {data: _bits(decode_artifact(*parse_artifact(data))) for data in self.files}
        self._readers = Readers()

    def draw(self, rng: random.Random) -> Files:
        """Damage bytes or parts, and seal the file again."""
        if rng.random() < 0.2:
            body = bytearray(damaged(rng, rng.choice(self.files)[:-DIGEST_BYTES], self.files))
            if len(body) >= HEADER.size:
                struct.pack_into("<Q", body, 20, len(body) + DIGEST_BYTES)
            return {NAME: closed(bytes(body))}
        parts = copy.deepcopy(rng.choice(self.parts))
        changes = (self._manifest_, self._manifest_, self._sections_, self._content_, self._content_, self._alike_)
        for _ in range(rng.choice((1, 1, 2, 3))):
            rng.choice(changes)(rng, parts)
        return {NAME: seal(parts.manifest, [section[:3] for section in parts.sections])}

    def _manifest_(self, rng: random.Random, parts: Parts) -> None:
        entries = _entries(parts.manifest)
        if entries and rng.random() < 0.5:
            _change_entry_(rng, parts.manifest, rng.choice(entries))
        else:
            parts.manifest = damaged_tree(rng, parts.manifest, [other.manifest for other in self.parts])

    def _sections_(self, rng: random.Random, parts: Parts) -> None:
        """Swap, drop, double, replace, mislabel or damage sections as they are stored."""
        sections, kind = parts.sections, rng.randrange(7)
        if not sections or kind == 0:
            sections.insert(rng.randrange(len(sections) + 1), rng.choice(rng.choice(self.parts).sections))
            return
        at = rng.randrange(len(sections))
        codec, size, stored, raw = sections[at]
        if kind == 1:
            del sections[at]
        elif kind == 2:
            sections[at] = rng.choice(self.parts[rng.randrange(len(self.parts))].sections)
        elif kind == 3:
            sections[at] = (rng.choice((0, 1, 2, 3, 4, 5, 6, 255)), size, stored, raw)
        elif kind == 4:
            sections[at] = (codec, int(max(0, number_near(rng, size))), stored, raw)
        else:
            sections[at] = (codec, size, damaged(rng, stored, [one[2] for other in self.parts for one in other.sections]), raw)

    def _content_(self, rng: random.Random, parts: Parts) -> None:
        """Damage what a section unpacks to, and pack it again under any codec."""
        if not parts.sections:
            return
        at = rng.randrange(len(parts.sections))
        raw = parts.sections[at][3]
        keeps_length = rng.random() < 0.7
        other = damaged(rng, raw, [one[3] for sample in self.parts for one in sample.sections])
        if keeps_length:
            other = other[: len(raw)] + raw[len(other) :]
        codec = 0 if at == STREAM else rng.choice((0, 0, 1, 4, 5, rng.choice((2, 3))))
        parts.sections[at] = (codec, len(other), ENCODERS[codec](other), other)

    def _alike_(self, rng: random.Random, parts: Parts) -> None:
        """Make a change after which the file is still right: readers must accept it and agree on other weights."""
        trellises = [one for one in _entries(parts.manifest) if one.get("kind") == "trellis_grid"]
        if len(parts.sections) <= CLASSES or not trellises or rng.random() < 0.2:
            for at, (_, _, _, raw) in enumerate(parts.sections[:STREAM]):
                codec = rng.choice((0, 1, 4, 5))
                parts.sections[at] = (codec, len(raw), ENCODERS[codec](raw), raw)
            return
        if rng.random() < 0.5:
            rng.choice(trellises)["level"] = rng.choice((-7680, 7680, 0, 63, 64, -1, rng.randrange(-7680, 7681)))
            return
        units, shares = (np.frombuffer(parts.sections[at][3], np.int8).copy() for at in (SIDES, CLASSES))
        if len(units) == len(shares) and len(units):  # by as much in both, so that scale classes stay
            at, by = rng.randrange(len(units)), rng.randrange(-128, 128)
            if all(-128 <= int(side[at]) + by < 128 for side in (units, shares)):
                units[at] += by
                shares[at] += by
            for number, side in ((SIDES, units), (CLASSES, shares)):
                parts.sections[number] = (0, len(side), side.tobytes(), side.tobytes())

    def check(self, files: Files, folder: Path) -> None:
        """The file is refused, or all readers give the same tensors, whose weights are finite."""
        data, path = files[NAME], folder / NAME
        try:
            manifest, sections = parse_artifact(data)
            bits = _bits(arrays := decode_artifact(manifest, sections))
        except FormatError:
            self._readers.check_ends(data, path)
            return
        if not is_sealed(data):
            raise Finding("a file was accepted with a wrong digest")
        if bits != self.known.get(data, bits):
            raise Finding("a whole file was decoded to other tensors")
        for tensor in manifest.tensors:
            if not isinstance(tensor, RawTensor) and not np.isfinite(arrays[tensor.name]).all():
                raise Finding(f"weights of {tensor.name!r} are not finite")
        path.write_bytes(data)
        open_artifact(path).describe()
        if zlib.crc32(data) % 3 == 0:
            _check_numba(manifest, sections)
        if len(sections) == CODES and all(section.codec in SELF_CONTAINED for section in sections):
            self._readers.check_equal(bits, data, path)


def _entries(manifest: Any) -> list[dict[str, Any]]:
    """Return the tensors' entries that are still objects."""
    tensors = manifest.get("tensors") if isinstance(manifest, dict) else None
    return [one for one in tensors if isinstance(one, dict)] if isinstance(tensors, list) else []


def _change_entry_(rng: random.Random, manifest: Any, entry: Any) -> None:
    """Change a field of a tensor's entry to a value that its rules may allow."""
    choices = {
        "shape": lambda old: rng.choice((old[::-1], [*old, 1], old[1:], [1, *old], [n + rng.choice((-1, 0, 1)) for n in old])),
        "bits": lambda _: rng.choice((2, 3, 4, 5, 6, 7, 8, 16)),
        "exponent": lambda _: rng.randrange(-127, 129),
        "level": lambda _: rng.randrange(-7690, 7690),
        "states": lambda _: rng.choice((1, 4, 8, 16, 32, 64, 256)),
        "paths": lambda _: rng.choice(("blocks", "columns")),
        "classes": lambda old: rng.choice((old + 1, old - 1, rng.randrange(-501, 502))),
        "tables": lambda _: rng.choice((0, 1, 127)),
        "dtype": lambda _: rng.choice(RAW_DTYPES),
        "name": lambda _: rng.choice(("__proto__", "constructor", "1", "", "a\nb", "gain")),
    }
    key = rng.choice([*entry, "lanes"])
    if key == "lanes":
        manifest["lanes"] = rng.choice((0, 1, 16, 17, 31, 32, 64, 96, 2048))
    elif key in choices and isinstance(entry[key], list | int | str):
        try:
            entry[key] = choices[key](entry[key])
        except TypeError:  # an earlier change left a value of another type
            entry[key] = any_value(rng)


def _first_difference(got: Bits, wanted: Bits) -> str:
    """Return the first tensor that differs, in words."""
    for name in wanted.keys() | got.keys():
        if got.get(name) != wanted.get(name):
            return f"{name!r} is {got.get(name)!r:.120}, {wanted.get(name)!r:.120} expected"
    return "none"


def _bits(arrays: dict[str, Any]) -> Bits:
    """Return dtype, shape and bytes of every array by name."""
    return {name: (array.dtype.name, list(array.shape), array.tobytes()) for name, array in arrays.items()}


def _check_numba(manifest: Manifest, sections: list[Any]) -> None:
    """The compiled decoder reads the same codes as the plain one."""
    for plain, fast in zip(
        decode_trellis(manifest, sections), decode_trellis(manifest, sections, rans_numba.decode), strict=True
    ):
        if not np.array_equal(plain[1], fast[1]):
            raise Finding(f"the compiled decoder reads other codes of {plain[0].name!r}")
