"""quantlab demo and quantlab doctor: what a new user types first."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, note, print_json, say


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
    from quantlab.jobs.demo import demo as run
    from quantlab.report.tables import render_report

    budget_bytes = parse_bytes(budget)
    note(f"budget {budget_bytes:,} bytes, files go to {out}")
    with ProgressDisplay() as progress:
        result = run(out, minutes=minutes, budget_bytes=budget_bytes, progress=progress)
    if as_json:
        print_json(result.summary)
        return
    s = result.summary
    console().print(render_report(result.report))
    say(
        f"bits per byte on held-out text: {s['fp_bpb']:.4f} from {s['fp_bytes']:,} bytes, "
        f"{s['packed_bpb']:.4f} from {s['total_bytes']:,} bytes read back ({s['seconds']:.0f} s in all)"
    )
    say(f"next: quantlab sample {out}/model.qlab --against {out}/model.safetensors --prompt 'def main('")


def doctor(
    as_json: options.Json = False,
) -> None:
    """Say what this machine can do, and check that a packed tensor comes back as it was.

    Example: quantlab doctor --json
    """
    from quantlab.jobs.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    kernels = found.pop("kernels")
    for key, value in found.items():
        say(f"{key:<14} {'none' if value is None else value}")
    for check in kernels:
        say(f"kernel         {check['kernel']:<22} {check['runs_as']:<9} {_agreement(check)}")


def _agreement(check: dict[str, Any]) -> str:
    if check["runs_as"] == "reference" and check["against"].startswith("reference"):
        return "no GPU: nothing to compare"
    return f"differs from {check['against']} by {check['error']:.1e}, allowed {check['allowed']:.1e}"
