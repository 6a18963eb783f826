"""quantlab publish, fetch and index: models that others can read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say
from quantlab.cli.options import folder_of_runs
from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.runs.store import Run

PLACE_HELP = "hf://user/repo, s3://bucket/folder, file:///folder, or another protocol of fsspec."
Index = Annotated[str, typer.Option("--index", metavar="PLACE", help="Shared index that gets an entry of this model.")]


def publish(
    source: Annotated[str, typer.Argument(metavar="RUN|M.qlab", help="A recorded run, or an artifact with its report.")],
    to: Annotated[str, typer.Option("--to", metavar="PLACE", help=PLACE_HELP)],
    what: Annotated[str, typer.Option("--what", help="packed, float (the weights in full precision) or both.")] = "packed",
    weights: Annotated[
        Path | None, typer.Option("--float", metavar="FILE", help="The weights in full precision, where the run does not tell.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the model.  [default: that of the run or the file]")] = "",
    index: Index = "",
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Publish a model with its card, hashes and provenance (data, code, seeds, parents).

    A killed upload goes on after the files that arrived; quantlab.json is written last. Texts are cleaned of names of people
    and machines, as by quantlab runs export. Needs the extra share for hf:// and s3://.

    Example: quantlab publish 3f9a1c2d --to hf://somebody/tiny-qlab --what both
    """
    from quantlab.jobs.publish import publish as run

    with ProgressDisplay() as progress:
        done = run(
            _source(source, runs), to, kind=what, weights=weights, name=name, index=index, force=force, progress=progress
        )
    if as_json:
        print_json(done.to_dict())
        return
    for file, facts in done.publication.files.items():
        say(f"{facts.bytes:>12,}  {facts.sha256[:12]}  {'sent' if file in done.moved else 'was there'}  {file}")
    say(f"published {done.publication.name} at {done.place}")


def fetch(
    place: Annotated[str, typer.Argument(metavar="PLACE", help=PLACE_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to write the files into.")],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Fetch a published model. Each file is verified before it takes its name; files that are there already are not fetched.

    An artifact with its report is decoded, and must give the tensors that were measured. Nothing of it is executed.

    Example: quantlab fetch hf://somebody/tiny-qlab -o tiny
    """
    from quantlab.jobs.publish import fetch as run

    with ProgressDisplay() as progress:
        done = run(place, output, force=force, progress=progress)
    if as_json:
        print_json(done.to_dict())
        return
    for file, facts in done.publication.files.items():
        say(f"{facts.bytes:>12,}  {facts.sha256[:12]}  {'fetched' if file in done.moved else 'was there'}  {output / file}")
    say(
        "every file has the published size and sha256"
        + (", the artifact decodes to its tensors" if done.is_decoded_equal else "")
    )


def index(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A shared index: the place that publish --index wrote to.")],
    as_json: options.Json = False,
) -> None:
    """List the models of a shared index, best score first for each evaluation data: score, bytes, architecture, tokenizer.

    What it says is what their authors wrote. quantlab fetch verifies the files, quantlab eval the score.

    Example: quantlab index s3://bucket/index
    """
    from quantlab.runs.listing import columns, shown
    from quantlab.share.index import COLUMNS, read_index, rows_of
    from quantlab.share.place import open_place

    entries, broken = read_index(open_place(place))
    for line in broken:
        note(f"broken entry: {shown(line)}")
    rows = rows_of(entries)
    if as_json:
        print_json(rows)
    elif rows:
        cells = [[f"{row[c]:.4f}" if isinstance(row[c], float) else shown(row[c]) for c in COLUMNS] for row in rows]
        say(*columns([COLUMNS, *cells], [c in ("bpb", "total_bytes", "budget_bytes") for c in COLUMNS]))
    else:
        note("no models")


def _source(text: str, runs: str | None) -> "Path | Run":
    """Return the artifact or the run that an argument names."""
    from quantlab.runs.store import find_run, read_store

    if text.endswith(".qlab"):
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"artifact {path} does not exist")
        return path
    return find_run(read_store(folder_of_runs(runs)).runs, text)
