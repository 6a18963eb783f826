"""quantlab train"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, print_json


def train(
    config: Annotated[Path, typer.Argument(metavar="C.toml", help="Keys of TrainConfig, tables [model] and [data].")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model, tokenizer and checkpoint.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR.")] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Train the challenge's baseline architecture on a CPU or one GPU.

    Example: quantlab train trainer/presets/laptop.toml --out runs/laptop
    """
    from quantlab.files import refuse_existing
    from quantlab.pipeline.train import read_train_file, train_to_folder
    from quantlab.trainer.train import CHECKPOINT_NAME, MODEL_NAME

    train_config, data = read_train_file(config)
    if not resume:
        refuse_existing([out / MODEL_NAME, out / CHECKPOINT_NAME] if out.exists() else [], force=force)
    with ProgressDisplay() as progress:
        result = train_to_folder(train_config, data, out, resume=resume, progress=progress)
    summary = {"model": str(result.model_path), "steps": result.steps, "seconds": round(result.elapsed_seconds, 1)}
    if as_json:
        print_json(summary)
    else:
        print(f"wrote {result.model_path}: {result.steps} steps in {result.elapsed_seconds:.0f} s")
