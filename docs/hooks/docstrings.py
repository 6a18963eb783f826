"""What griffe, which reads the docstrings for docs/api.md, has to be told about this repository."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Module, Object, visit

ROOT = Path(__file__).resolve().parents[2]
LINKED_ROOMS = ("kernels", "trainer", "calib")
_SECTION = re.compile(r"(?<=[^\n]\n)(?=(?:Args|Returns|Yields|Raises):\n)")


class Docstrings(Extension):
    """Finds the linked rooms, and sections of docstrings that no blank line precedes."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Read the modules of kernels/, trainer/ and calib/: griffe passes by folders of a package without __init__.py."""
        if pkg.path != "quantlab":
            return
        for name in LINKED_ROOMS:
            room = Module(name, filepath=ROOT / name / "__init__.py", parent=pkg)
            pkg.set_member(name, room)
            for path in sorted((ROOT / name).glob("*.py")):
                room.set_member(path.stem, visit(path.stem, path, path.read_text(), parent=room))

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Put a blank line before each section of a docstring, which griffe needs to see it."""
        if obj.docstring:
            obj.docstring.value = with_blank_lines(obj.docstring.value)


def with_blank_lines(docstring: str) -> str:
    """Return the docstring with a blank line before each of its sections."""
    return _SECTION.sub("\n", docstring)
