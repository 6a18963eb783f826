"""quantlab diff and merge: two models beside each other, and several as one."""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, print_json, say
from quantlab.errors import ConfigError

MOST_SHOWN = 20
"""Changed tensors that are printed; --json has all."""


def diff(
    left: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint or an artifact: the reference.")],
    right: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    text: options.Text = None,
    tokens: options.Tokens = None,
    tokenizer: options.TokenizerFile = None,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Show which tensors of two models differ, and with --text or --tokens how far their predictions are apart (KL).

    Example: quantlab diff base.safetensors tuned.safetensors --text held_out.txt
    """
    from quantlab.jobs.diff import CHANGED, EQUAL
    from quantlab.jobs.diff import diff as run
    from quantlab.runs.listing import columns, shown

    with ProgressDisplay() as progress:
        found = run(left, right, text=text, tokens=tokens, tokenizer=tokenizer, model=model, progress=progress)
    if as_json:
        print_json(found.to_dict())
        return
    say(f"{found.count(EQUAL)} of {len(found.tensors)} tensors are equal, {found.count(CHANGED)} have other values")
    rows = [(t.name, t.state, f"{t.relative:.3g}", f"{t.largest:.3g}") for t in found.tensors if t.state != EQUAL]
    if rows:
        head = ("tensor", "state", "relative", "largest")
        say(*columns([head, *([shown(cell) for cell in row] for row in rows[:MOST_SHOWN])], (False, False, True, True)))
    if len(rows) > MOST_SHOWN:
        say(f"and {len(rows) - MOST_SHOWN} more: --json shows them")
    if found.against is not None:
        against = found.against
        say(
            f"KL {against.kl_mean:.6f} nats per token over {against.tokens:,} tokens, "
            f"{100 * against.top1_flips:.2f} % top-1 flips"
        )


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="A B...", help="Checkpoints or artifacts of one architecture.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="M.safetensors", help="The file to write.")],
    weights: Annotated[
        str, typer.Option("--weights", metavar="W,W,...", help="One weight a model; they need not sum to 1.  [default: equal]")
    ] = "",
    model: options.Model = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Average the weights of models into one checkpoint, which quantlab pack packs.

    Example: quantlab merge seed1.safetensors seed2.safetensors -o mean.safetensors
    """
    from dataclasses import asdict

    from quantlab.jobs.merge import merge as run

    try:
        shares = [float(part) for part in weights.split(",")] if weights else []
    except ValueError as error:
        raise ConfigError(f"--weights must be numbers with commas between, got {weights!r}") from error
    done = run(sources, output, weights=shares, model=model, force=force)
    if as_json:
        print_json(asdict(done))
        return
    differ = f"{done.averaged} of {done.tensors} tensors differ between them"
    say(f"wrote {done.output}: the mean of {len(done.sources)} models, {differ}")


def export(
    source: options.Target,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a folder for looking inside: weights in full precision, the modules by name, and an example of hooks.

    Example: quantlab export model.qlab -o inside
    """
    from dataclasses import asdict

    from quantlab.jobs.export_modules import export_modules

    done = export_modules(source, output, force=force)
    if as_json:
        print_json(asdict(done))
        return
    say(f"wrote {done.folder}: {done.parameters:,} parameters, {done.modules} modules")
    say(f"python {output / 'hooks.py'} shows what they give")
