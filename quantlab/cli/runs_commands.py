"""quantlab runs: the recorded runs, and which of their results are valid."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import line_width, note, paint, print_json, say, say_painted
from quantlab.cli.options import folder_of_runs
from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.evaluation.evaluation_record import EvaluationData
    from quantlab.runs.frontier import Candidate
    from quantlab.runs.store import Store

app = typer.Typer(help="List, compare and draw recorded runs of train, pack, eval and run.", rich_markup_mode=None)
Name = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, or the start or the end of its name; or a file that a run made.")
]


@app.command("list")
def list_runs(
    kind: Annotated[str | None, typer.Option("--kind", help="Only runs of this kind: train, pack, eval or run.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list runs that are not valid: failed, interrupted, over the budget.")
    ] = False,
    sort: Annotated[
        str, typer.Option("--sort", metavar="KEY", help="Sort by this key; -KEY puts the largest value first.")
    ] = "run",
    where: Annotated[
        list[str], typer.Option("--where", metavar="KEY=VALUE", help="Only runs with this value; repeatable.")
    ] = [],  # noqa: B006
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """List valid runs, oldest first, with score, evaluation data, size and budget; a packing and its score are one row.

    KEY is any key that quantlab runs show prints; its last part is enough: method for options.method. With --json every run is
    a row of its own.

    Example: quantlab runs list --kind pack --where method=trellis --sort bpb
    """
    from quantlab.runs import listing as keys
    from quantlab.runs.run_record import KINDS
    from quantlab.runs.run_table import table_lines, table_rows
    from quantlab.runs.store import join

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    found = {joined.run.name: joined for joined in join(_store(runs).runs) if kind in (None, joined.run.record.kind)}
    needs_all = where or sort not in ("run", "bpb", "bytes", "budget")
    rows = [keys.flat(joined) if needs_all else keys.summary(joined) for joined in found.values()]
    rows = keys.by_key(keys.where(rows, where), sort)
    shown = [row for row in rows if everything or row["valid"]]
    if as_json:
        names = keys.summary(found[shown[0]["run"]]) if shown else {}
        print_json([{name: row[name] for name in names} for row in shown])
    elif shown:
        say_painted(*table_lines(table_rows([found[row["run"]] for row in shown]), line_width(), paint))
    if len(rows) > len(shown) or not rows:
        note(f"{len(rows) - len(shown)} of {len(rows)} runs are not valid: --all shows them" if rows else "no runs")


@app.command()
def show(name: Name, runs: options.Runs = None, as_json: options.Json = False) -> None:
    """Show one run: its options, its results, whether it is valid, and the files that it names.

    Example: quantlab runs show 3f9a1c2d
    """
    from quantlab.runs.listing import flat, show_lines, shown
    from quantlab.runs.run_record import plain
    from quantlab.runs.store import find_run, join, whereabouts

    store = _store(runs)
    run = find_run(store.runs, name)
    (joined,) = [joined for joined in join(store.runs) if joined.run is run]
    row = flat(joined) | {"command": " ".join(run.record.command), "directory": run.record.directory}
    if as_json:
        print_json(row | {"folder": str(run.folder), "record": plain(run.record)})
        return
    say(*show_lines(row))
    for file in (*([run.record.artifact] if run.record.artifact else []), *run.record.files):
        say(f"file {shown(file.path)}: {file.bytes:,} bytes, sha256 {shown(file.sha256[:12])}, {shown(whereabouts(run, file))}")


@app.command()
def diff(left: Name, right: Name, runs: options.Runs = None, as_json: options.Json = False) -> None:
    """Show the options and results in which two runs differ.

    Example: quantlab runs diff 3f9a1c2d 77b0e1aa
    """
    from quantlab.runs.listing import diff_lines, differences, flat
    from quantlab.runs.store import find_run, join

    store = _store(runs)
    by_name = {joined.run.name: joined for joined in join(store.runs)}
    one, other = (find_run(store.runs, text).name for text in (left, right))
    found = differences(flat(by_name[one]), flat(by_name[other]))
    if as_json:
        print_json({"runs": [one, other], "differences": {key: [a, b] for key, a, b in found}})
    elif found:
        say(*diff_lines(one, other, found))
    else:
        note("no difference in config and results")


@app.command()
def export(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, or the starts or ends of their names.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder of runs to write them into.")],
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Copy runs as they may be published: without process, command line, and what names a person, a machine or a secret.

    Example: quantlab runs export 3f9a1c2d 77b0e1aa -o published
    """
    from quantlab.runs.export import export_runs
    from quantlab.runs.store import find_run

    store = _store(runs)
    written = export_runs([find_run(store.runs, name) for name in names], output, force=force)
    if as_json:
        print_json([str(path) for path in written])
    else:
        say(*map(str, written))


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Folders of runs, or places of shared indexes.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Believe runs of an index as they are; else they are not valid here.")
    ] = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Bring runs of other folders and of published models into the folder of runs; runs that are there already stay.

    A run out of an index is marked as not verified here, and is not valid: fetch its model and score it.

    Example: quantlab runs merge s3://bucket/index
    """
    from quantlab.runs.listing import shown
    from quantlab.runs.merge import merge_folder, merge_records
    from quantlab.share.index import read_index
    from quantlab.share.place import open_place

    folder = folder_of_runs(runs)
    added: list[str] = []
    broken: list[str] = []
    for source in sources:
        if "://" in source:
            entries, damaged = read_index(open_place(source))
            records = [(entry.publication.run_name, entry.publication.run, entry.place) for entry in entries]
            names, lines = merge_records(records, folder, trust=trust)
            lines = [*damaged, *lines]
        else:
            names, lines = merge_folder(Path(source), folder)
        added, broken = [*added, *names], [*broken, *lines]
    for line in broken:
        note(f"not merged: {shown(line)}")
    if as_json:
        print_json({"added": added, "broken": broken})
    else:
        say(*added)
        note(f"{len(added)} runs added to {folder}")


@app.command()
def best(
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="BYTES", help="Largest size of artifact and counted code."),
    ] = None,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Show the valid packed model of lowest bits per byte for each evaluation data; scores on different data are not compared.

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
        say(f"data {describe_data(c.evaluation.data)}")
        say(
            f"  {c.bpb:.6f} BPB  {c.total_bytes:,} of {c.budget_bytes:,} bytes  {c.run}  {shown(c.artifact)}  (best of {among})"
        )


Data = Annotated[str | None, typer.Option("--data", metavar="ID", help="Draw only scores on the evaluation data with this id.")]
Cap = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="BYTES",
        help="Budget to draw; larger files are drawn as not valid. Default: the budgets of the runs.",
    ),
]
Picture = Annotated[Path, typer.Option("-o", "--output", metavar="F.png", help="The picture to write: .png or .html.")]


@app.command()
def frontier(
    output: Picture,
    y: Annotated[
        str,
        typer.Option(
            "--y", metavar="MEASURE", help="bpb, gap (above the float model) or kl; the last two need eval --against."
        ),
    ] = "bpb",
    budget: Cap = None,
    data: Data = None,
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Draw scores against bytes by method: filled points are valid, hollow ones are not, and a line is the lower envelope.

    The axis is that of the envelope: what lies far beyond it is an arrow at the edge.

    Example: quantlab runs frontier -o frontier.png --y gap
    """
    from quantlab.files import write_whole
    from quantlab.runs.frontier import describe_data
    from quantlab.runs.frontier_picture import draw_frontier
    from quantlab.runs.frontier_view import frontier_of
    from quantlab.runs.listing import shown
    from quantlab.runs.run_figures import frontier_figure
    from quantlab.runs.runs_page import note_of, picture_page

    on, group, budget_bytes = _group(output, budget, data, runs, force=force)
    found = frontier_of(on, group, budget_bytes, y)
    if output.suffix == ".png":
        write_whole(output, draw_frontier(found))
    else:
        write_whole(output, picture_page([frontier_figure(found, "frontier")], "Frontier", note_of(found)).encode())
    if as_json:
        print_json([mark.candidate.to_dict() for mark in found.envelope])
        return
    say(f"lower envelope on {describe_data(found.data)}")
    for mark in found.envelope:
        score = f"{mark.y:.6f} {'BPB' if y == 'bpb' else 'BPB gap' if y == 'gap' else 'nats KL'}"
        say(f"  {score}  {mark.x:,} bytes  {mark.candidate.run}  {shown(mark.candidate.artifact)}")
    note(f"wrote {output}: {len(found.valid)} valid, {len(found.invalid)} not valid")


@app.command()
def history(
    output: Picture,
    budget: Cap = None,
    data: Data = None,
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Draw over time the best valid score with the runs that moved it, and the size of every run against the budgets.

    Example: quantlab runs history -o history.png --budget 16MB
    """
    from quantlab.files import write_whole
    from quantlab.runs.frontier import describe_data
    from quantlab.runs.frontier_picture import draw_history
    from quantlab.runs.history import history_of
    from quantlab.runs.run_figures import history_figures
    from quantlab.runs.runs_page import picture_page

    on, group, budget_bytes = _group(output, budget, data, runs, force=force)
    found = history_of(group, budget_bytes)
    if output.suffix == ".png":
        write_whole(output, draw_history(found))
    else:
        summary = f"{describe_data(on)}. Hollow marks are not valid."
        write_whole(output, picture_page(history_figures(found, "time"), "History", summary).encode())
    if as_json:
        print_json([moment.candidate.to_dict() | {"started": moment.candidate.started} for moment in found.steps])
        return
    say(f"best valid score over time on {describe_data(on)}")
    for moment in found.steps:
        c = moment.candidate
        say(f"  {moment.when:%Y-%m-%d %H:%M}  {c.bpb:.6f} BPB  {c.total_bytes:,} bytes  {c.run[-8:]}  {moment.name}")
    note(f"wrote {output}: {len(found.moments)} scores")


@app.command()
def page(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="F.html", help="The page to write.")],
    budget: Cap = None,
    force: options.Force = False,
    runs: options.Runs = None,
) -> None:
    """Write all runs as one page that needs no network: both pictures, a table to sort and to filter, links to reports.

    Example: quantlab runs page -o runs.html
    """
    from quantlab.budget import parse_bytes
    from quantlab.files import write_whole
    from quantlab.outputs import check_outputs
    from quantlab.report.assets import check_packages
    from quantlab.runs.runs_page import runs_page

    if output.suffix != ".html":
        raise ConfigError(f"output {output} must end in .html")
    check_packages()
    check_outputs([output], force=force)
    store = _store(runs)
    text = runs_page(store, beside=output.absolute().parent, budget_bytes=parse_bytes(budget) if budget else None)
    write_whole(output, text.encode())
    note(f"wrote {output}: {len(store.runs)} runs")


@app.command()
def serve(
    port: Annotated[int, typer.Option("--port", metavar="P", help="Port; 0 for a free one.", min=0, max=65535)] = 8377,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to answer on; others than the loopback one show all runs to all."
        ),
    ] = "127.0.0.1",
    runs: options.Runs = None,
) -> None:
    """Show the page of all runs in a browser and keep it up to date: curves of trainings, progress of packings.

    Example: quantlab runs serve --port 8377
    """
    from quantlab.report.assets import check_packages
    from quantlab.runs.server import RunsServer

    check_packages()
    with RunsServer(folder_of_runs(runs), host=host, port=port) as server:
        note(f"open {server.address} in a browser; Ctrl-C ends it")
        server.serve_forever()


def _group(
    output: Path, budget: str | None, data: str | None, runs: str | None, *, force: bool
) -> "tuple[EvaluationData, list[Candidate], int | None]":
    """Check what a picture needs before it is drawn; return its data, its candidates and its budget."""
    from quantlab.budget import parse_bytes
    from quantlab.outputs import check_outputs
    from quantlab.runs.frontier import by_data, candidates, one_group
    from quantlab.runs.frontier_picture import check_format

    check_format(output)
    check_outputs([output], force=force)
    budget_bytes = parse_bytes(budget) if budget else None
    return *one_group(by_data(candidates(_store(runs).runs)), data), budget_bytes


def _store(runs: str | None) -> "Store":
    """Return all runs; those that cannot be read are named on stderr."""
    from quantlab.runs.listing import shown
    from quantlab.runs.store import read_store

    store = read_store(folder_of_runs(runs))
    for line in store.broken:
        note(f"broken run: {shown(line)}")
    return store
