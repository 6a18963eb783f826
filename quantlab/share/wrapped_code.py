"""Code as the challenge counts it: minified, compressed, base85 inside one `exec`; and back, without running it.

`wrap` proves what it returns: a fresh interpreter is given the wrapper with `exec` replaced, and what it would run is compared
with the source. `unwrap` decodes wrappers of other people statically and in bounded memory.
"""

import ast
import base64
import binascii
import io
import lzma
import subprocess
import sys
import tokenize
import zlib
from dataclasses import dataclass
from functools import lru_cache

import brotli

from quantlab.errors import QuantlabError

MOST_SOURCE_BYTES = 1 << 23
"""Largest source that a wrapper is unwrapped to."""
SHORTEST_PAYLOAD = 200
"""Characters of a string that may hold packed code."""
PROOF_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WrappedCode:
    """A wrapper that was proved to hold its source."""

    code: bytes
    """The file to ship, whose size is counted."""
    source: str
    """What it runs."""
    coder: str
    """lzma or brotli."""
    is_minified: bool
    """Whether python-minifier shortened the source; it is an extra."""


def wrap(source: str, *, minify: bool = True) -> WrappedCode:
    """Return the shortest wrapper of a script, proved in a fresh interpreter.

    Args:
        minify: use python-minifier where it is installed; otherwise the comments are removed alone.
    Raises:
        QuantlabError: the source is not Python, or the wrapper does not hold it.
    """
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise QuantlabError(f"the script is not Python: {error}") from error
    short, is_minified = _shortened(source) if minify else (source, False)
    found = min((WrappedCode(code, short, coder, is_minified) for coder, code in _wrappers(short)), key=lambda w: len(w.code))
    if proved(found.code) != short:
        raise QuantlabError(f"the wrapper of {len(found.code):,} bytes does not decode to its script")
    return found


@lru_cache(maxsize=64)
def wrapped_bytes(source: str) -> int:
    """Return the size of the shortest wrapper of a script, without its proof; the script's own size if it is not Python."""
    try:
        short = _shortened(source)[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return len(source.encode())
    return min(len(code) for _, code in _wrappers(short))


def _shortened(source: str) -> tuple[str, bool]:
    try:
        import python_minifier
    except ModuleNotFoundError:
        return _without_comments(source), False
    return str(python_minifier.minify(source, rename_locals=False, rename_globals=False)), True


def _without_comments(source: str) -> str:
    """Return the source without comments and empty lines; every statement stays on its line's text."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type != tokenize.COMMENT]
    text = tokenize.untokenize(tokens)
    long = [token for token in tokens if token.start[0] != token.end[0]]  # strings over several lines
    inside = {line for token in long for line in range(token.start[0], token.end[0] + 1)}
    lines = enumerate(text.splitlines(), 1)
    kept = [line if number in inside else line.rstrip() for number, line in lines if number in inside or line.strip()]
    short = "\n".join(kept) + "\n"
    return short if ast.dump(ast.parse(short)) == ast.dump(ast.parse(source)) else source


def _wrappers(source: str) -> list[tuple[str, bytes]]:
    data = source.encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = base64.b85encode(lzma.compress(data, lzma.FORMAT_RAW, filters=filters)).decode()
    first = f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{packed}"),L.FORMAT_RAW,None,[{{"id":33}}]))\n'
    packed = base64.b85encode(brotli.compress(data, quality=11, lgwin=24)).decode()
    second = f'import brotli as L,base64 as B\nexec(L.decompress(B.b85decode("{packed}")))\n'
    return [("lzma", first.encode()), ("brotli", second.encode())]


def proved(wrapper: bytes) -> str:
    """Return what a wrapper of this module gives to `exec`, from a fresh interpreter that does not run it.

    Raises:
        QuantlabError: the wrapper fails, or calls no `exec`.
    """
    capture = (
        "import sys\n"
        "code = sys.stdin.buffer.read()\n"
        "def take(value):\n"
        "    sys.stdout.buffer.write(value if isinstance(value, bytes) else value.encode())\n"
        "exec(compile(code, 'wrapper', 'exec'), {'exec': take})\n"
    )
    command = [sys.executable, "-c", capture]
    try:
        done = subprocess.run(command, input=wrapper, capture_output=True, timeout=PROOF_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise QuantlabError(f"the wrapper did not decode within {PROOF_SECONDS:g} s") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise QuantlabError(f"the wrapper fails: {lines[-1] if lines else 'no message'}")
    return done.stdout.decode()


def unwrap(text: str) -> str | None:
    """Return the script inside a wrapper, without running anything; None if the text is not a wrapper that can be read.

    Known wrappers hold a base85 or base64 string of LZMA (also raw), zlib or brotli data, perhaps minified.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if not names & {"exec", "eval"}:
        return None
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)]
    for string in sorted((s for s in strings if len(s) >= SHORTEST_PAYLOAD), key=len, reverse=True)[:4]:
        for packed in _decoded(string):
            if (source := _unpacked(packed)) is not None:
                return source
    return None


def _decoded(string: str | bytes) -> list[bytes]:
    """Return the bytes that a string may stand for."""
    try:
        data = string if isinstance(string, bytes) else string.encode("ascii")
    except UnicodeEncodeError:
        return []
    found = [data] if isinstance(string, bytes) else []
    for decode in (base64.b85decode, base64.a85decode, lambda raw: base64.b64decode(raw, validate=True)):
        try:
            found.append(decode(data))
        except (ValueError, binascii.Error):
            continue
    return found


def _unpacked(packed: bytes) -> str | None:
    """Return the text of compressed Python source; None where no coder reads it."""
    for coder in (_lzma, _raw_lzma, _zlib, _raw_zlib, _brotli):
        try:
            text = coder(packed).decode("utf-8")
            ast.parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, lzma.LZMAError, zlib.error, brotli.error):
            continue
        if text.strip():
            return text
    return None


def _lzma(packed: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=1 << 28).decompress(packed, MOST_SOURCE_BYTES)


def _raw_lzma(packed: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(packed, MOST_SOURCE_BYTES)


def _zlib(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, MOST_SOURCE_BYTES)


def _raw_zlib(packed: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(packed, MOST_SOURCE_BYTES)


def _brotli(packed: bytes) -> bytes:
    return bytes(brotli.Decompressor().process(packed, output_buffer_limit=MOST_SOURCE_BYTES))
