"""docs/recipes/qlab.mjs in one lasting process of Node, which reads files from a pipe."""

import json
import os
import resource
import select
import shutil
import struct
import subprocess
from pathlib import Path
from typing import IO, Any, cast

from harness import Finding

READER = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "qlab.mjs"
SECONDS = 60
"""Seconds that one file may take; a small one takes about a millisecond."""
PROGRAM = """
const { load } = await import(process.argv[1]);
let waiting = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  while (waiting.length >= 4 && waiting.length >= 4 + waiting.readUInt32LE(0)) {
    const size = waiting.readUInt32LE(0);
    const data = new Uint8Array(waiting.subarray(4, 4 + size));
    waiting = waiting.subarray(4 + size);
    let head, bodies = [];
    try {
      const { tensors } = await load(data);
      head = Object.getOwnPropertyNames(tensors).map((name) => [name, tensors[name].shape, tensors[name].data.byteLength]);
      bodies = head.map(([name]) => tensors[name].data).map((d) => Buffer.from(d.buffer, d.byteOffset, d.byteLength));
    } catch (error) {
      head = String(error);
    }
    const text = Buffer.from(JSON.stringify(head));
    const sizes = Buffer.alloc(8);
    sizes.writeUInt32LE(text.length, 0);
    sizes.writeUInt32LE(bodies.reduce((sum, body) => sum + body.length, 0), 4);
    process.stdout.write(Buffer.concat([sizes, text, ...bodies]));
  }
}
"""


def node() -> str | None:
    """Return the path of a Node that has what browsers have, version 20 or later; None where there is none."""
    path = shutil.which("node")
    if path is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.strip().lstrip("v").split(".")[0]
    return path if version.isdigit() and int(version) >= 20 else None


class JavaScriptReader:
    """The reader as a function. Each process that uses it starts a Node of its own."""

    def __init__(self) -> None:
        self.node = node()
        self.error = ""
        """Error of the last file that was refused."""
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def read(self, data: bytes) -> dict[str, tuple[list[int], bytes]] | None:
        """Return shape and bytes of every tensor by name; None for a file that is refused, with `error` set.

        Raises:
            Finding: the reader hangs, or its process died.
        """
        process = self._running()
        pipe, answer = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        pipe.write(struct.pack("<I", len(data)) + data)
        pipe.flush()
        text_bytes, body_bytes = struct.unpack("<II", self._take(answer, 8))
        head: Any = json.loads(self._take(answer, text_bytes))
        body, found = self._take(answer, body_bytes), {}
        if isinstance(head, str):
            self.error = head
            return None
        for name, shape, size in head:
            found[name], body = (shape, body[:size]), body[size:]
        return found

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid():
            assert self.node, "there is no node"
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [self.node, "--max-old-space-size=512", "--input-type=module", "-e", PROGRAM, str(READER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (hard, hard)),  # V8 reserves a lot and uses little
            )
        return self._process

    def _take(self, pipe: IO[bytes], size: int) -> bytes:
        got = b""
        while len(got) < size:
            if not select.select([pipe], [], [], SECONDS)[0]:
                self._stop()
                raise Finding(f"qlab.mjs took more than {SECONDS} s")
            part = os.read(pipe.fileno(), size - len(got))
            if not part:
                self._stop()
                raise Finding("the process of qlab.mjs died")
            got += part
        return got

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
