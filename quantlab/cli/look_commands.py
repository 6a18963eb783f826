"""quantlab estimate, sensitivity and sample: what a size would cost, where its bytes would go, and what a model says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, note, print_json, say, show_whole
from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.evaluation.evaluation_record import EvaluationRecord
    from quantlab.report.estimates import Estimates

Budgets = Annotated[
    str | None,
    typer.Option("--budgets", metavar="SIZES", help="1MB,2MB or a range 8MB:24MB.  [default: from 2 to 6 bits a weight]"),
]


def estimate(
    checkpoint: options.Checkpoint,
    stats: options.Stats = None,
    budgets: Budgets = None,
    method: options.Method = "trellis",
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    seed: options.Seed = 0,
    model: options.Model = None,
    device: options.Device = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="F", help="Also write a page with a slider (.html) or a picture (.png)."),
    ] = None,
    score: Annotated[
        Path | None,
        typer.Option(
            "--score",
            metavar="E.json",
            help="For the page: a record of quantlab eval --save, which turns KL into bits per byte.",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Say what several sizes would lose, from one rounding for each. Nothing is packed.

    With --stats this takes seconds to a minute; otherwise the statistics are measured first, as by quantlab calibrate.

    Example: quantlab estimate final_model.pt --stats final_model.stats.safetensors --budgets 8MB:24MB

    Example: quantlab estimate final_model.pt --budgets 8MB:24MB -o sizes.html --score final_model.eval.json
    """
    from quantlab.jobs.estimate import estimate as run
    from quantlab.report.estimate_tables import render_estimates

    inputs = [path for path in (checkpoint, stats, score) if path]
    scored = _check_estimate_output(output, budgets, score, inputs, force=force)
    drawn: dict[str, Any] = {"calib": calib, "calib_tokens": calib_tokens, "calib_seq_len": calib_seq_len, "seed": seed}
    with ProgressDisplay() as progress:
        found = run(
            checkpoint, budgets=budgets, method=method, stats=stats, model=model, device=device, progress=progress, **drawn
        )
    if output is not None:
        _write_estimate(output, found, scored)
    if as_json:
        print_json(found.to_dict())
    else:
        console().print(render_estimates(found))
    if output is not None:
        note(f"wrote {output}")


def _check_estimate_output(
    output: Path | None, budgets: str | None, score: Path | None, inputs: list[Path], *, force: bool
) -> "EvaluationRecord | None":
    """Refuse before the work what could not be written after it; return the record that `score` names."""
    from quantlab.evaluation.evaluation_record import read_evaluation
    from quantlab.outputs import check_outputs
    from quantlab.runs.frontier_picture import check_format

    if score is not None and (output is None or output.suffix != ".html"):
        raise ConfigError(f"--score {score} is for the page that -o names", hint="pass -o F.html, or leave it out")
    if output is not None:
        check_format(output)
        check_outputs([output], inputs=inputs, force=force)
        if output.suffix == ".html" and budgets is not None and not set(",:") & set(budgets):
            raise ConfigError(f"a page needs two sizes or more, got --budgets {budgets}", hint="pass --budgets FROM:TO")
    return read_evaluation(score) if score else None


def _write_estimate(output: Path, found: "Estimates", scored: "EvaluationRecord | None") -> None:
    from quantlab.files import write_whole
    from quantlab.report.estimate_page import estimate_page, estimate_picture

    write_whole(output, estimate_page(found, scored).encode() if output.suffix == ".html" else estimate_picture(found))


def sensitivity(
    checkpoint: options.Checkpoint,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="BYTES", help="Size of the file.  [default: 4 bits a weight]")
    ] = None,
    stats: options.Stats = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    seed: options.Seed = 0,
    model: options.Model = None,
    device: options.Device = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="F.png", help="Also draw bits by layer and role, and KL by layer.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Show where the bytes of a size would go and what they lose, by role, by layer, and where more bytes would help most.

    Example: quantlab sensitivity final_model.pt --stats final_model.stats.safetensors --budget 16MB -o layers.png
    """
    from quantlab.files import write_whole
    from quantlab.jobs.estimate import sensitivity as run
    from quantlab.report.estimate_tables import render_sensitivity

    _check_picture(output, [path for path in (checkpoint, stats) if path], force=force)
    drawn: dict[str, Any] = {"calib": calib, "calib_tokens": calib_tokens, "calib_seq_len": calib_seq_len, "seed": seed}
    with ProgressDisplay() as progress:
        point = run(checkpoint, budget=budget, stats=stats, model=model, device=device, progress=progress, **drawn)
    if output is not None:
        write_whole(output, _layers_of(point.tensors, f"{checkpoint.name} at {point.total_bytes:,} bytes"))
    if as_json:
        print_json(point.to_dict())
    else:
        show_whole(render_sensitivity(point))
    if output is not None:
        note(f"wrote {output}")


def _check_picture(output: Path | None, inputs: list[Path], *, force: bool) -> None:
    """Refuse before the work a picture that could not be written after it."""
    from quantlab.outputs import check_outputs
    from quantlab.runs.frontier_picture import check_format

    if output is None:
        return
    if output.suffix != ".png":
        raise ConfigError(f"picture {output} must end in .png")
    check_format(output)
    check_outputs([output], inputs=inputs, force=force)


def _layers_of(tensors: Any, title: str) -> bytes:
    from math import prod

    from quantlab.report.layer_picture import Cell, layer_picture

    return layer_picture([Cell(t.name, prod(t.shape), t.bytes or 0, t.predicted_kl or 0.0) for t in tensors], title)


def sample(
    target: options.Target,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Text that the model reads first.")],
    against: options.Against = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens to write.")] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Logits are divided by it; 0 takes the likeliest token.")
    ] = 0.8,
    seed: options.Seed = 0,
    tokenizer: options.TokenizerFile = None,
    model: options.Model = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Show what a model writes after a prompt, and beside it what --against writes from the same random numbers.

    Example: quantlab sample demo/model.qlab --against demo/model.safetensors --prompt 'def main('
    """
    from quantlab.jobs.sample import sample as run

    with ProgressDisplay() as progress:
        written = run(
            target,
            prompt=prompt,
            against=against,
            tokens=tokens,
            temperature=temperature,
            seed=seed,
            tokenizer=tokenizer,
            model=model,
            device=device,
            progress=progress,
        )
    if as_json:
        print_json([one.to_dict() for one in written])
        return
    for one in written:
        _print_sample(prompt, one)


def _print_sample(prompt: str, one: Any) -> None:
    same = "" if one.same_tokens is None else f", the first {one.same_tokens} tokens as above"
    say(f"--- {one.name} ({one.tokens_per_second:,.0f} tokens per second{same})")
    say(*(prompt + one.text).split("\n"))


def card(
    artifact: options.Artifact,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The Markdown file to write.  [default: stdout]")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="F.png", help="Also draw bits by layer and role, for the card to show; needs the report."
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Write a model card: Markdown with size, scores, how it was packed, and commands that verify it.

    Report and evaluation are those that lie beside the artifact.

    Example: quantlab card model.qlab -o README.md --picture layers.png
    """
    from quantlab.files import write_whole
    from quantlab.jobs.compare import files_beside, read_entry
    from quantlab.outputs import check_outputs
    from quantlab.report.card import render_card

    outputs = [path for path in (output, picture) if path]
    if outputs:
        check_outputs(outputs, inputs=files_beside(artifact), force=force)
    _check_picture(picture, [], force=force)
    entry = read_entry(artifact)
    if picture is not None:
        if entry.report is None:
            raise ConfigError(f"a picture needs the report of {artifact}, which is not beside it", hint="leave out --picture")
        write_whole(picture, _layers_of(entry.tensors, f"{artifact.name}, {entry.total_bytes:,} bytes"))
    place = "" if picture is None else os.path.relpath(picture, output.parent if output else ".")
    text = render_card(entry, Path(place).as_posix() if place else "")
    if output is None:
        say(*text.removesuffix("\n").split("\n"))
        return
    write_whole(output, text.encode())
    say(f"wrote {output}")
