"""quantlab train"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, print_json
from quantlab.cli.recording import recorder_of

if TYPE_CHECKING:
    from quantlab.runs.recording import RunWriter
    from quantlab.trainer.train import TrainResult


def train(
    config: Annotated[str, typer.Argument(metavar="C.toml", help="Keys of TrainConfig, tables [model], [data]; or a preset.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model, tokenizer, logs and checkpoint.")],
    changes: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")] = [],  # noqa: B006
    from_env: Annotated[bool, typer.Option("--from-env", help="Read the variables of the challenge's train_gpt.py.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard scalars.")] = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Train the challenge's architectures on a CPU, one GPU, or several under torchrun.

    Presets: baseline, h1394, laptop, demo.

    Example: quantlab train laptop --out runs/laptop --set max_seconds=300

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab train baseline --out runs/baseline
    """
    from quantlab.files import refuse_existing
    from quantlab.pipeline.train import train_to_folder
    from quantlab.pipeline.train_config import ignored_variables, read_train_config
    from quantlab.trainer.run import CHECKPOINT_NAME, MODEL_NAME

    environment = dict(os.environ) if from_env else None
    configs = read_train_config(config, changes=changes, environment=environment)
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main and environment is not None and (ignored := ignored_variables(environment, configs)):
        typer.echo(f"without effect here: {', '.join(ignored)}", err=True)
    if is_main and not resume:
        refuse_existing([out / MODEL_NAME, out / CHECKPOINT_NAME] if out.exists() else [], force=force)
    settings, data = configs
    asked = {"config": config, "out": out, "resume": resume, **settings.to_dict(), "data": data}
    recorder = recorder_of(runs, no_run, mirror)
    with recorder.run("train", asked, seeds={"seed": settings.seed}) as run, ProgressDisplay() as progress:
        result = train_to_folder(settings, data, out, resume=resume, tensorboard=tensorboard, progress=progress)
        if run.is_recorded:
            _record(run, result, out)
    if not is_main:
        return
    summary = {
        "model": str(result.model_path),
        "steps": result.steps,
        "seconds": round(result.elapsed_seconds, 1),
        "timeline": result.timeline.to_dict(),
    }
    if as_json:
        print_json(summary)
    else:
        print(f"wrote {result.model_path}: {result.steps} steps in {result.elapsed_seconds:.0f} s")


def _record(run: "RunWriter", result: "TrainResult", out: Path) -> None:
    """The model by hash and fingerprint, its last validation, and the logs."""
    from quantlab.pipeline.models import load_checkpoint
    from quantlab.runs.record import Checkpoint
    from quantlab.trainer.run_log import LOG_NAME, METRICS_NAME, last_validation

    fingerprint = load_checkpoint(result.model_path, None).fingerprint
    metrics = {"steps": result.steps, "train_seconds": round(result.elapsed_seconds, 3), **last_validation(out)}
    run.result(
        checkpoint=Checkpoint(path=str(result.model_path), fingerprint=fingerprint),
        artifact=result.model_path,
        metrics=metrics | {"timeline": result.timeline.to_dict()},
        files=[out / METRICS_NAME, out / LOG_NAME],
    )
