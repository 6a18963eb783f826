"""quantlab runs: what was tried, and which result counts"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import note, print_json
from quantlab.cli.options import folder_of_runs
from quantlab.errors import ConfigError
from quantlab.runs.run_record import KINDS
from quantlab.runs.store import Store, find_run, read_store, whereabouts

app = typer.Typer(help="List, compare and draw the runs that train, pack, eval and run have left.", rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or the start or the end of it.")]


@app.command("list")
def list_runs(
    kind: Annotated[str | None, typer.Option("--kind", help="train, pack, eval or run.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what is not valid: failed, interrupted, over budget.")
    ] = False,
    sort: Annotated[str, typer.Option("--sort", metavar="KEY", help="-KEY: largest first.")] = "run",
    where: Annotated[
        list[str], typer.Option("--where", metavar="KEY=VALUE", help="Only runs with this value; repeatable.")
    ] = [],  # noqa: B006
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """List valid runs, oldest first, with score, evaluation data, size and budget.

    KEY is a column, or any key of quantlab runs show; its end is enough: method for options.method.

    Example: quantlab runs list --kind pack --where method=trellis --sort bpb
    """
    from quantlab.runs import listing as keys
    from quantlab.runs.listing import list_lines
    from quantlab.runs.store import join

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    entries = [e for e in join(_store(runs).runs) if kind in (None, e.run.record.kind)]
    needs_all = where or sort not in ("run", "bpb", "bytes", "budget")
    rows = [keys.flat(e) if needs_all else keys.summary(e) for e in entries]
    rows = keys.by_key(keys.where(rows, where), sort)
    kept = [row for row in rows if everything or row["valid"]]
    if as_json:
        names = keys.summary(entries[0]) if kept else {}
        print_json([{name: row[name] for name in names} for row in kept])
    elif kept:
        print("\n".join(list_lines(kept)))
    if len(rows) > len(kept) or not rows:
        note(f"{len(rows) - len(kept)} of {len(rows)} runs are not valid: --all shows them" if rows else "no runs")


@app.command()
def show(name: Name, runs: options.Runs = None, as_json: options.Json = False) -> None:
    """Show one run: what went in, what came out, whether it is valid, and the files it named.

    Example: quantlab runs show 3f9a1c2d
    """
    from quantlab.runs.listing import flat, show_lines, shown
    from quantlab.runs.run_record import plain
    from quantlab.runs.store import join

    store = _store(runs)
    run = find_run(store.runs, name)
    (entry,) = [e for e in join(store.runs) if e.run is run]
    row = flat(entry) | {"command": " ".join(run.record.command), "directory": run.record.directory}
    if as_json:
        print_json(row | {"folder": str(run.folder), "record": plain(run.record)})
        return
    print("\n".join(show_lines(row)))
    for file in (*([run.record.artifact] if run.record.artifact else []), *run.record.files):
        print(
            f"file {shown(file.path)}: {file.bytes:,} bytes, sha256 {shown(file.sha256[:12])}, {shown(whereabouts(run, file))}"
        )


@app.command()
def diff(left: Name, right: Name, runs: options.Runs = None, as_json: options.Json = False) -> None:
    """Show in what config and results two runs differ, and nothing else.

    Example: quantlab runs diff 3f9a1c2d 77b0e1aa
    """
    from quantlab.runs.listing import diff_lines, differences, flat
    from quantlab.runs.store import join

    store = _store(runs)
    entries = {e.run.name: e for e in join(store.runs)}
    one, other = (find_run(store.runs, text).name for text in (left, right))
    found = differences(flat(entries[one]), flat(entries[other]))
    if as_json:
        print_json({"runs": [one, other], "differences": {key: [a, b] for key, a, b in found}})
    elif found:
        print("\n".join(diff_lines(one, other, found)))
    else:
        note("no difference in config and results")


@app.command()
def best(
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="BYTES", help="Only files of at most so many bytes.")
    ] = None,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Name the valid packed model of lowest bits per byte, one for each evaluation data: scores on others are never mixed.

    Example: quantlab runs best --budget 16MB
    """
    from quantlab.budget import parse_bytes
    from quantlab.runs.frontier import best_of, candidates, describe_data
    from quantlab.runs.listing import shown

    found = best_of(candidates(_store(runs).runs), parse_bytes(budget) if budget else None)
    if as_json:
        print_json([{**c.to_dict(), "among": among} for c, among in found])
        return
    for c, among in found:
        print(f"data {describe_data(c.evaluation.data)}")
        print(
            f"  {c.bpb:.6f} BPB  {c.total_bytes:,} of {c.budget_bytes:,} bytes  {c.run}  {shown(c.artifact)}  (best of {among})"
        )


@app.command()
def frontier(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="F.png", help="The picture to write: .png or .html.")],
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="BYTES", help="The line to draw. Default: that of the runs.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="ID", help="Only scores on this evaluation data.")] = None,
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Draw bits per byte against bytes: valid runs full, others hollow, the lower envelope as a line, and the budget.

    Example: quantlab runs frontier -o frontier.png
    """
    from quantlab.budget import parse_bytes
    from quantlab.files import refuse_existing, write_whole
    from quantlab.runs.frontier import by_data, candidates, describe_data, one_group
    from quantlab.runs.frontier_picture import check_format, draw, frontier_of
    from quantlab.runs.listing import shown

    check_format(output)
    refuse_existing([output], force=force)
    found = frontier_of(*one_group(by_data(candidates(_store(runs).runs)), data), parse_bytes(budget) if budget else None)
    write_whole(output, draw(found, output.suffix))
    if as_json:
        print_json([c.to_dict() for c in found.envelope])
        return
    print(f"lower envelope on {describe_data(found.data)}")
    for c in found.envelope:
        print(f"  {c.bpb:.6f} BPB  {c.total_bytes:,} bytes  {c.run}  {shown(c.artifact)}")
    note(f"wrote {output}: {len(found.valid)} valid, {len(found.invalid)} not valid")


def _store(runs: str | None) -> Store:
    """All runs; what cannot be read is named on stderr."""
    from quantlab.runs.listing import shown

    store = read_store(folder_of_runs(runs))
    for line in store.broken:
        note(f"broken run: {shown(line)}")
    return store
