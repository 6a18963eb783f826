"""Text from a file, a path or another library, made safe to show: everything that the commands print goes through here."""

import re

_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks without a shape that Python calls printable: Unicode's Default_Ignorable_Code_Point, empty braille."""


def printable(text: str) -> str:
    """Return `text` on one line, with an escape for each character that is not a visible one or a space.

    Escapes stand for control characters (C0 with ESC, C1), line and paragraph separators, marks that turn the direction of
    text, characters without width, private and unassigned ones, and bytes of a path that are not UTF-8.

    >>> printable("w\\x1b[31m\\n\\u202egnp.x")
    'w\\\\x1b[31m\\\\n\\\\u202egnp.x'
    """
    return text if _is_visible(text) else "".join(c if _is_visible(c) else _escape(c) for c in text)


def printable_json(text: str) -> str:
    """Return JSON text of the same value, in which no character steers a terminal; its own line breaks stay."""
    if text.isascii():
        return text.replace("\x7f", "\\u007f")  # json escapes every other control character of ASCII
    return "".join(c if c == "\n" or _is_visible(c) else _json_escape(c) for c in text)


def _is_visible(text: str) -> bool:
    return text.isprintable() and not _INVISIBLE.search(text)


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode() if not _INVISIBLE.match(character) else f"\\u{number:04x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
