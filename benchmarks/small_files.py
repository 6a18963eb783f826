"""What small .qlab files may ask of a reader: the worst that docs/format.md allows, each read by a process of its own.

Run: python benchmarks/small_files.py
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from quantlab.artifact.container import TABLES_EXPANSION, TABLES_FLOOR, Section, read_container, write_container
from quantlab.artifact.manifest import TrellisTensor
from quantlab.artifact.writer import Payload, TrellisPayload, encode_artifact, passthrough_payload
from quantlab.coding.codecs import CODECS, LZMA, RANS
from quantlab.errors import FormatError

RAW, TABLES = 2, 4
READERS = {
    "library": "from quantlab.artifact.reader import open_artifact as f; read = lambda path: f(path).arrays()",
    "one file": "from quantlab.artifact.standalone import load as read",
}
MEASURE = """
import sys, time
{reader}
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
before, start = peak(), time.process_time()
try:
    read(sys.argv[1])
except (ValueError, IndexError, {error}):  # the tables of a file need not fit its stream
    pass
print(time.process_time() - start, peak() - before)
"""


def zeros(rows: int, columns: int, name: str = "w") -> Payload:
    """Return a matrix whose codes take nearly no bits."""
    entry = TrellisTensor(name=name, shape=(rows, columns), bits=8, level=0, states=8, paths="blocks", classes=0, tables=0)
    sides = [np.zeros(n, np.int8) for n in (rows, columns)]
    return TrellisPayload(entry, *sides, *sides, np.zeros((rows, columns), np.int16))


def one_tensor(size: int, codec: int) -> bytes:
    """Return a file of one unquantized tensor, `size` bytes of zeros under a codec."""
    manifest, sections = read_container(encode_artifact([passthrough_payload("w", torch.ones(1))]).data)
    manifest["tensors"][0] |= {"dtype": "uint8", "shape": [size]}
    sections[RAW] = Section(codec, size, CODECS[codec].encode(bytes(size)))
    return write_container(manifest, sections)


def many_table_sets() -> bytes:
    """Return a file with as many empty table sets as its length allows."""
    manifest, sections = read_container(encode_artifact([zeros(1, 1)]).data)
    for count in range(128, 0, -1):
        raw = bytes([count]) + bytes(3 * 28 * count)
        sections[TABLES] = Section(LZMA, len(raw), CODECS[LZMA].encode(raw))
        data = write_container(manifest, sections)
        if len(raw) <= TABLES_FLOOR + TABLES_EXPANSION * len(data):
            break
    return data


def files() -> Iterator[tuple[str, bytes]]:
    """Yield what each file holds, and the file."""
    yield "a matrix of 1,024 x 1,024 zeros", encode_artifact([zeros(1024, 1024)]).data
    yield "a matrix of 16,384 x 1", encode_artifact([zeros(2**14, 1)]).data
    yield "a matrix of 16 x 65,536", encode_artifact([zeros(16, 2**16)]).data
    yield "4 MiB of zeros under LZMA", one_tensor(2**22, LZMA)
    yield "1 MiB of zeros under rans-0", one_tensor(2**20, RANS)
    yield "empty table sets", many_table_sets()
    yield (
        "20,000 unquantized tensors",
        encode_artifact([passthrough_payload(f"t{n}", torch.ones(1)) for n in range(20_000)]).data,
    )
    yield "5,000 matrices of 1 x 1", encode_artifact([zeros(1, 1, f"t{n}") for n in range(5000)]).data


def main() -> None:
    """Print one row of a table for each file."""
    print("| file | bytes | " + " | ".join(READERS) + " |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.qlab"
        for name, data in files():
            path.write_bytes(data)
            cells = []
            for reader in READERS.values():
                error = f"__import__({FormatError.__module__!r}, fromlist=['x']).{FormatError.__name__}"
                program = MEASURE.format(reader=reader, error=error)
                done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
                seconds, mebibytes = map(float, done.stdout.split())
                cells.append(f"{seconds:.2f} s, {mebibytes:.0f} MiB")
            print(f"| {name} | {len(data):,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
