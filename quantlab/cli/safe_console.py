"""A console of rich that no text of a file can steer."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from quantlab.printable import printable


class SafeConsole(Console):
    """A console that shows escapes for characters of cells and lines that would steer the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of rich, with escapes in their text."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else "\n".join(map(printable, segment.text.split("\n")))
            yield segment if text == segment.text else Segment(text, segment.style)

    def on_broken_pipe(self) -> None:
        """Raise as print does: the exit code is for the caller to choose."""
        raise BrokenPipeError
