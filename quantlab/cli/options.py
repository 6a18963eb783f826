"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.errors import ConfigError

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="path/to/file.py:factory, a function from the state dict to an nn.Module that maps ids [B, T] to logits "
        "[B, T, V]. This runs your code; it is the only option that does. Default: the challenge's baseline architecture, "
        "its shape read from the tensors.",
    ),
]
TokenizerFile = Annotated[Path | None, typer.Option("--tokenizer", metavar="FILE", help="SentencePiece .model file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Calib = Annotated[
    str,
    typer.Option("--calib", metavar="SOURCE", help="self (the model's own text), random, text:FILE or tokens:GLOB."),
]
CalibTokens = Annotated[int, typer.Option("--calib-tokens", metavar="N", help="Calibration tokens.")]
CalibSeqLen = Annotated[int, typer.Option("--calib-seq-len", metavar="T", help="Tokens in one calibration sequence.")]

Runs = Annotated[
    str | None,
    typer.Option("--runs", metavar="DIR", help="Folder of runs. Default: the variable QUANTLAB_RUNS, or else runs."),
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Write no run folder; so does an empty QUANTLAB_RUNS.")]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="TRACKER",
        help="Also send config and results to trackio or wandb at the end, as NAME or NAME:PROJECT. Default: QUANTLAB_MIRROR.",
    ),
]


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths of `5,6,8`. ConfigError unless every part is a whole number; PackConfig checks the range."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigError(f"widths must be whole numbers like 5,6,8, got {text!r}") from error
