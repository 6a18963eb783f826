"""quantlab compare"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import note, print_json, show_whole


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="A [B ...]", help="Artifacts (.qlab) or reports (.report.json).")],
    sort: Annotated[
        str,
        typer.Option("--sort", help="Tensors by what differs most from the first file: bytes, distortion, bpw; or name."),
    ] = "bytes",
    top: Annotated[int, typer.Option("--top", metavar="N", help="Show the first N tensors; 0: none.", min=0)] = 20,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="F", help="Write a report of one self-contained page, for a browser.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compare packed models: sizes, scores, and what every tensor got. One alone goes with --html or --json.

    What lies beside x.qlab belongs to it: x.report.json of quantlab pack, x.eval.json of quantlab eval --save.

    Example: quantlab compare a.qlab b.qlab --sort distortion --html compare.html
    """
    from quantlab.errors import ConfigError
    from quantlab.files import refuse_existing, write_whole
    from quantlab.pipeline.compare import read_code_counts, read_entry
    from quantlab.report.compare import compare as side_by_side
    from quantlab.report.compare_table import render

    if len(files) < 2 and html is None and not as_json:
        raise ConfigError(f"compare needs two files or more, got {files[0]}", hint="one alone goes with --html or --json")
    if html is not None:
        from quantlab.report.html import check_packages, render_page

        check_packages()
        refuse_existing([html], force=force)
    entries = [read_entry(path) for path in files]
    comparison = side_by_side(entries, sort=sort)  # type: ignore[arg-type]  # checked there
    if html is not None:
        counts = [read_code_counts(Path(entry.path)) if entry.file else {} for entry in entries]
        write_whole(html, render_page(comparison, entries, counts).encode())
    if as_json:
        print_json(comparison.to_dict())
    elif len(files) > 1:
        show_whole(render(comparison, top=top))
    if html is not None:
        note(f"wrote {html}")
