"""docs/recipes/qlab.mjs gives the same tensors, bit for bit, as the library."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_standalone import artifacts

from quantlab.artifact.decode import decode_artifact, parse_artifact
from quantlab.artifact.writer import encode_artifact, passthrough_payload

READER = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "qlab.mjs"
PROGRAM = """
import { load } from "./qlab.mjs";
import { readFileSync, writeFileSync } from "node:fs";
for (const path of process.argv.slice(2)) {
  const { tensors } = await load(new Uint8Array(readFileSync(path)));
  const about = Object.entries(tensors).map(([name, { shape, data }]) => [name, shape, data.constructor.name, data.byteLength]);
  const bytes = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  writeFileSync(path + ".json", JSON.stringify(about));
  writeFileSync(path + ".bin", Buffer.concat(bytes));
}
"""
KINDS = {"int64": "BigInt64Array", "bool": "Uint8Array"}
"""Names of typed arrays that do not follow from numpy's names."""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Return files that meet every branch of the decoder in Python, and one with names that JavaScript takes for its own."""
    named = [passthrough_payload(name, torch.arange(3)) for name in ("__proto__", "constructor", "7", "3")]
    return artifacts() | {"names": encode_artifact(named).data}


def _node() -> str:
    """A Node that has DecompressionStream and crypto.subtle as browsers do."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node {version.strip()} is older than 20")
    return node


def _run(folder: Path, paths: list[Path]) -> "subprocess.CompletedProcess[str]":
    shutil.copy(READER, folder / READER.name)
    (folder / "run.mjs").write_text(PROGRAM)
    return subprocess.run([_node(), str(folder / "run.mjs"), *map(str, paths)], capture_output=True, text=True)


def test_every_tensor_is_the_library_s(files: dict[str, bytes], tmp_path: Path):
    paths = []
    for name, data in files.items():
        paths.append(tmp_path / f"{name}.qlab")
        paths[-1].write_bytes(data)
    done = _run(tmp_path, paths)
    assert done.returncode == 0, done.stderr
    for path, data in zip(paths, files.values(), strict=True):
        expected = decode_artifact(*parse_artifact(data))
        about = json.loads(Path(f"{path}.json").read_text())
        assert sorted((name, tuple(shape)) for name, shape, _, _ in about) == sorted((n, a.shape) for n, a in expected.items())
        rest = Path(f"{path}.bin").read_bytes()
        for (name, _, kind, size), array in ((entry, expected[entry[0]]) for entry in about):
            assert kind == KINDS.get(array.dtype.name, f"{array.dtype.name.capitalize()}Array"), name
            assert rest[:size] == np.ascontiguousarray(array).tobytes(), name
            rest = rest[size:]


@pytest.mark.parametrize("at", [8, -30])
def test_an_altered_file_is_refused(files: dict[str, bytes], tmp_path: Path, at: int):
    data = bytearray(files["raw"])
    data[at] ^= 1
    path = tmp_path / "altered.qlab"
    path.write_bytes(data)
    done = _run(tmp_path, [path])
    assert done.returncode != 0 and "damaged, or no trellis artifact" in done.stderr
