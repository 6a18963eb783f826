"""quantlab inspect"""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import console, print_json


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="M.qlab", help="A packed model.")],
    as_json: options.Json = False,
) -> None:
    """Show what is in an artifact: model, origin, every tensor, where the bytes lie. Checks all checksums.

    Example: quantlab inspect model.qlab --json | jq .bytes_by_kind
    """
    from quantlab.artifact.describe import describe

    about = describe(artifact)
    if as_json:
        print_json(about)
    else:
        _print(about)


def _print(about: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tensor", "shape", "kind", "stored", "bytes"):
        table.add_column(column, no_wrap=True, justify="right" if column == "bytes" else "left")
    for t in about["tensors"]:
        size = f"{t['bytes']:,}" if "bytes" in t else ""
        table.add_row(t["name"], "x".join(map(str, t["shape"])), t["kind"], t["stored"], size)
    out.print(table)
    out.print(f"\n{about['artifact']}: {about['artifact_bytes']:,} bytes, version {about['version']}, {about['producer']}")
    out.print("bytes: " + ", ".join(f"{kind} {count:,}" for kind, count in about["bytes_by_kind"].items()))
    for key in ("model", "tokenizer", "origin"):
        if about[key]:
            out.print(f"{key}: " + ", ".join(f"{k} {v}" for k, v in about[key].items()))
