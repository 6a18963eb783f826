"""quantlab submission: build a submission for the challenge, and check those of others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say
from quantlab.cli.options import folder_of_runs
from quantlab.errors import ConfigError, QuantlabError

if TYPE_CHECKING:
    from quantlab.share.findings import CheckedFolder

app = typer.Typer(help="Build a submission for the challenge, and check those of others.", rich_markup_mode=None)
AgainstScores = Annotated[
    str,
    typer.Option("--against", metavar="BPB,...", help="Scores of the submission to beat, one a seed: significance is tested."),
]


@app.command()
def build(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs of one pipeline that differ in their seed alone.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to write: records/DATE_NAME.")],
    author: Annotated[str, typer.Option("--author", help="Name of the author.")],
    github: Annotated[str, typer.Option("--github", metavar="ID", help="The author's name on GitHub.")],
    title: Annotated[str, typer.Option("--name", help="Title of the submission.  [default: NAME of the folder]")] = "",
    blurb: Annotated[str, typer.Option("--blurb", help="What is new, in a sentence.")] = "",
    track: Annotated[str, typer.Option("--track", help="10min_16mb or non_record_16mb.")] = "non_record_16mb",
    cap: Annotated[str, typer.Option("--cap", metavar="BYTES", help="Largest size of artifact and code.")] = "16MB",
    force: options.Force = False,
    runs: options.Runs = None,
    as_json: options.Json = False,
) -> None:
    """Write a submission from recorded runs: README.md, submission.json, a log a seed, requirements.txt, train_gpt.py.

    train_gpt.py is wrapped (minified where python-minifier is installed; LZMA or brotli, base85), run in a fresh process, and
    must decode every seed's artifact to the measured tensors. Its bytes count. Exit code 3: artifact and code exceed the cap.

    Example: quantlab submission build 3f9a1c2d 77b0e1aa 5d01c2ff -o records/2026-12-01_Trellis --author 'A. B.' --github ab
    """
    from quantlab.budget import parse_bytes
    from quantlab.pipeline.submission import build_submission
    from quantlab.runs.store import find_run, read_store
    from quantlab.share.submission_kit import Author

    if track not in ("10min_16mb", "non_record_16mb"):
        raise ConfigError(f"--track must be 10min_16mb or non_record_16mb, got {track!r}")
    store = read_store(folder_of_runs(runs))
    found = [find_run(store.runs, name) for name in names]
    named = title or (output.name.partition("_")[2] or output.name).replace("_", " ")
    about = Author(author=author, github_id=github, name=named, blurb=blurb, track=track)
    with ProgressDisplay() as progress:
        files = build_submission(found, store.runs, output, about, cap_bytes=parse_bytes(cap), force=force, progress=progress)
    if as_json:
        print_json({"folder": str(output), "files": {path.name: path.stat().st_size for path in files}})
        return
    say(*(f"{path.stat().st_size:>10,}  {output / path.name}" for path in files))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A submission folder, of anyone.")],
    against: AgainstScores = "",
    as_json: options.Json = False,
) -> None:
    """Check a submission folder: sizes, clock, split, claims against logs, seeds, significance, known invalid paths.

    Nothing in the folder is run. A finding says what, where, and how grave: broken (the folder's own files contradict a rule),
    look (a person must decide), note, unchecked. A submission is never called valid. Exit code 1 where a rule is broken.

    Example: quantlab submission check records/2026-12-01_Trellis --against 1.0611,1.0599,1.0621
    """
    from quantlab.share.findings import BROKEN, page_lines
    from quantlab.share.submission_check import check_submission

    found = check_submission(folder, _scores(against))
    if as_json:
        print_json(found.to_dict())
    else:
        say(*page_lines(found))
    if broken := found.count(BROKEN):
        raise QuantlabError(f"{folder}: {broken} rules broken")


@app.command()
def triage(
    source: Annotated[Path, typer.Argument(metavar="DIR|LIST", help="A folder of submissions, or a .txt that lists folders.")],
    against: AgainstScores = "",
    as_json: options.Json = False,
) -> None:
    """Check many submissions, and list first what a person should look at.

    Example: quantlab submission triage parameter-golf/records
    """
    from quantlab.share.submission_check import triage as check_all

    with ProgressDisplay() as progress:
        found = check_all(source, _scores(against), progress=progress)
    if as_json:
        print_json([folder.to_dict() for folder in sorted(found, key=lambda folder: -folder.rank)])
        return
    _print_table(found)


def _print_table(found: "list[CheckedFolder]") -> None:
    from quantlab.runs.listing import columns, shown
    from quantlab.share.findings import BROKEN, LOOK, triage_rows

    rows = [[shown(cell) for cell in row] for row in triage_rows(found)]
    say(*columns(rows, [True, True, True, True, True, False, False]))
    broken = sum(bool(folder.count(BROKEN)) for folder in found)
    looks = sum(bool(folder.count(LOOK)) for folder in found)
    note(f"{len(found)} folders: {broken} break a rule, {looks} have something to look at; none is called valid")


def _scores(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--against must be numbers with commas between, got {text!r}") from error
