"""quantlab pack"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, note, print_json


def pack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pt, .pth, .safetensors, or a folder of shards.")],
    budget: Annotated[str, typer.Option("--budget", metavar="BYTES", help="16000000, 16MB (10^6) or 16MiB (2^20).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="M.qlab", help="The file to write.")],
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 131072,
    calib_seq_len: options.CalibSeqLen = 512,
    stats: Annotated[
        Path | None, typer.Option("--stats", metavar="S", help="Statistics from quantlab calibrate, instead of --calib.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="gptq (error feedback), rtn (round to nearest), or shaped (error feedback, steps that follow sensitivity).",
        ),
    ] = "gptq",
    widths: Annotated[str, typer.Option("--widths", help="Code widths in bits that a tensor may take.")] = "5,6,8",
    code: Annotated[
        list[Path] | None, typer.Option("--code", metavar="FILE", help="A code file that counts towards the budget.")
    ] = None,
    seed: options.Seed = 0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="R.json", help="Default: M.report.json beside M.qlab.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Pack a checkpoint into a byte budget: writes M.qlab, never over the budget, and M.report.json.

    Example: quantlab pack final_model.pt --budget 16MB -o model.qlab --code train_gpt.py
    """
    from quantlab.budget import code_bytes, parse_bytes
    from quantlab.calib.sources import CalibrationConfig
    from quantlab.errors import ConfigError
    from quantlab.files import refuse_existing
    from quantlab.pipeline import pack as job
    from quantlab.pipeline.models import load_checkpoint, load_tokenizer
    from quantlab.report.table import render

    report = report or output.with_name(f"{output.stem}.report.json")
    if report.resolve() == output.resolve():
        raise ConfigError(f"--report and --output are both {output}")
    if stats is not None and calib != "self":
        raise ConfigError(f"--stats brings its own calibration, --calib {calib} cannot be used with it")
    refuse_existing([output, report], force=force)
    calibration = CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed)
    config = job.PackConfig(
        budget_bytes=parse_bytes(budget),
        method=method,  # type: ignore[arg-type]  # checked by PackConfig
        widths=options.parse_widths(widths),
        code=code_bytes(code or []),
        calibration=calibration,
    )
    note(f"budget {config.budget_bytes:,} bytes, counted code {config.code_bytes:,}")
    loaded = load_checkpoint(checkpoint, model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    with ProgressDisplay() as progress:
        result = job.pack(
            loaded, config, output, checkpoint=checkpoint, report=report, tokenizer=known, statistics=stats, progress=progress
        )
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(render(result))
        note(f"wrote {output} and {report}")
