"""quantlab estimate, sensitivity and sample: what a size would cost, where its bytes would go, and what a model says."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, print_json, say, show_whole

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
    as_json: options.Json = False,
) -> None:
    """Say what several sizes would lose, from one rounding for each. Nothing is packed and nothing is written.

    With --stats this takes seconds to a minute; otherwise the statistics are measured first, as by quantlab calibrate.

    Example: quantlab estimate final_model.pt --stats final_model.stats.safetensors --budgets 8MB:24MB
    """
    from quantlab.jobs.estimate import estimate as run
    from quantlab.report.estimate_tables import render_estimates

    drawn: dict[str, Any] = {"calib": calib, "calib_tokens": calib_tokens, "calib_seq_len": calib_seq_len, "seed": seed}
    with ProgressDisplay() as progress:
        found = run(
            checkpoint, budgets=budgets, method=method, stats=stats, model=model, device=device, progress=progress, **drawn
        )
    if as_json:
        print_json(found.to_dict())
        return
    console().print(render_estimates(found))


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
    as_json: options.Json = False,
) -> None:
    """Show where the bytes of a size would go and what they lose, by role, by layer, and where more bytes would help most.

    Example: quantlab sensitivity final_model.pt --stats final_model.stats.safetensors --budget 16MB
    """
    from quantlab.jobs.estimate import sensitivity as run
    from quantlab.report.estimate_tables import render_sensitivity

    drawn: dict[str, Any] = {"calib": calib, "calib_tokens": calib_tokens, "calib_seq_len": calib_seq_len, "seed": seed}
    with ProgressDisplay() as progress:
        point = run(checkpoint, budget=budget, stats=stats, model=model, device=device, progress=progress, **drawn)
    if as_json:
        print_json(point.to_dict())
        return
    show_whole(render_sensitivity(point))


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
    force: options.Force = False,
) -> None:
    """Write a model card: Markdown with size, scores, how it was packed, and commands that verify it.

    Report and evaluation are those that lie beside the artifact.

    Example: quantlab card model.qlab -o README.md
    """
    from quantlab.files import write_whole
    from quantlab.jobs.compare import files_beside, read_entry
    from quantlab.outputs import check_outputs
    from quantlab.report.card import render_card

    if output is not None:
        check_outputs([output], inputs=files_beside(artifact), force=force)
    text = render_card(read_entry(artifact))
    if output is None:
        say(*text.removesuffix("\n").split("\n"))
        return
    write_whole(output, text.encode())
    say(f"wrote {output}")
