"""quantlab demo"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, note, print_json


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to fill.")] = Path("demo"),
    minutes: Annotated[float, typer.Option("--minutes", metavar="M", help="About how long all of it may take.")] = 4.0,
    budget: Annotated[str, typer.Option("--budget", metavar="BYTES", help="Size of the packed model.")] = "250KB",
    as_json: options.Json = False,
) -> None:
    """Train a small model on text that ships with Python, pack it, and score the file that was written. No downloads.

    Example: quantlab demo --minutes 2
    """
    from quantlab.budget import parse_bytes
    from quantlab.pipeline.demo import demo as run
    from quantlab.report.table import render

    budget_bytes = parse_bytes(budget)
    note(f"budget {budget_bytes:,} bytes, files go to {out}")
    with ProgressDisplay() as progress:
        result = run(out, minutes=minutes, budget_bytes=budget_bytes, progress=progress)
    if as_json:
        print_json(result.summary)
        return
    s = result.summary
    console().print(render(result.report))
    print(
        f"bits per byte on held-out text: {s['fp_bpb']:.4f} from {s['fp_bytes']:,} bytes, "
        f"{s['packed_bpb']:.4f} from {s['total_bytes']:,} bytes read back ({s['seconds']:.0f} s in all)"
    )
