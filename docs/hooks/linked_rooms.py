"""Show the docstrings of kernels/, trainer/ and calib/ to griffe, which reads no folder inside a package without __init__.py."""

from pathlib import Path
from typing import Any

from griffe import Extension, Module, visit

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "trainer", "calib")


class LinkedRooms(Extension):
    """Adds the modules of the linked rooms to the package quantlab."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Read their sources, as griffe has read those of the other rooms."""
        if pkg.path != "quantlab":
            return
        for name in ROOMS:
            room = Module(name, filepath=ROOT / name / "__init__.py", parent=pkg)
            pkg.set_member(name, room)
            for path in sorted((ROOT / name).glob("*.py")):
                room.set_member(path.stem, visit(path.stem, path, path.read_text(), parent=room))
