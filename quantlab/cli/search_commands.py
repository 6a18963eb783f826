"""quantlab search: run trials of a pipeline, and say what they found."""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say

app = typer.Typer(help="Search over the keys of a pipeline.", rich_markup_mode=None)
SpaceFile = Annotated[Path, typer.Argument(metavar="SPACE.toml", help="Tables [search], [space] and [set].")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The folder of the trials.  [default: SPACE.search beside SPACE.toml]"),
]


@app.command()
def run(
    space: SpaceFile,
    out: Out = None,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    as_json: options.Json = False,
) -> None:
    """Run trials in parallel processes until the search's trials, hours or money are spent.

    A killed search goes on with the same command, and begins the trials again that were at work. Several may work on one
    folder. Stages that trials have in common run once. Every trial is a recorded run. What counts is the valid score of the
    packed model.

    Example: quantlab search run examples/search.toml
    """
    from quantlab.pipeline.search import search
    from quantlab.pipeline.search_report import report_lines, report_of
    from quantlab.pipeline.search_space import read_space

    recorder = options.recorder_of(runs, no_run, None)
    place = _place(space, out)
    with ProgressDisplay() as progress:
        trials = search(space, place, runs=recorder.folder, command=recorder.command, progress=progress, note=note)
    report = report_of(read_space(space), trials)
    if as_json:
        print_json({"out": str(place), **report.to_dict()})
    else:
        say(*report_lines(report))


@app.command()
def report(space: SpaceFile, out: Out = None, as_json: options.Json = False) -> None:
    """Say what a search has found: best trial, frontier, which keys mattered, why the others lost, what to try next.

    Example: quantlab search report examples/search.toml
    """
    from quantlab.errors import ConfigError
    from quantlab.pipeline.search_report import report_lines, report_of
    from quantlab.pipeline.search_space import read_space
    from quantlab.pipeline.search_store import TRIALS, TrialStore

    known, place = read_space(space), _place(space, out)
    if not (place / TRIALS).is_dir():
        raise ConfigError(f"{place} holds no search", hint="quantlab search run makes it")
    store = TrialStore.open_(place, known.key)
    found = report_of(known, store.all())
    for line in store.broken:
        note(f"broken trial: {line}")
    if as_json:
        print_json({"out": str(place), **found.to_dict()})
    else:
        say(*report_lines(found))


def _place(space: Path, out: Path | None) -> Path:
    return out or space.with_name(f"{space.stem}.search")
