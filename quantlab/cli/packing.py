"""quantlab calibrate

quantlab pack

quantlab unpack

quantlab inspect"""

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, note, print_json
from quantlab.cli.options import recorder_of


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pt, .pth, .safetensors, or a folder of shards.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STATS", help="The .safetensors file to write.")],
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure calibration statistics once; quantlab pack --stats uses them for any number of budgets.

    Example: quantlab calibrate final_model.pt -o final_model.stats.safetensors
    """
    from quantlab.calib.sources import CalibrationConfig
    from quantlab.calib.statistics import write_statistics
    from quantlab.files import refuse_existing
    from quantlab.jobs.calibrate import measure_statistics
    from quantlab.models.loading import load_checkpoint, load_tokenizer

    refuse_existing([output], force=force)
    config = CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed)
    loaded = load_checkpoint(checkpoint, model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    with ProgressDisplay() as progress:
        stats = measure_statistics(loaded, config, known, progress)
    write_statistics(output, stats)
    if as_json:
        about = {"tokens": stats.tokens, "tensors": stats.matrices, "fingerprint": stats.fingerprint, **stats.source}
        print_json({"statistics": str(output), **about, "row_agreement": stats.row_agreement})
    else:
        print(f"wrote {output}: {stats.matrices} tensors measured on {stats.tokens:,} tokens ({config.source})")
        if stats.row_agreement:
            name, low = min(stats.row_agreement.items(), key=lambda item: item[1])
            middle = median(stats.row_agreement.values())
            print(
                f"row sensitivities of two halves of the sample correlate by {middle:.3f} (median), {low:.3f} at worst ({name})"
            )


def pack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pt, .pth, .safetensors, or a folder of shards.")],
    budget: Annotated[str, typer.Option("--budget", metavar="BYTES", help="16000000, 16MB (10^6) or 16MiB (2^20).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="M.qlab", help="The file to write.")],
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    stats: Annotated[
        Path | None, typer.Option("--stats", metavar="S", help="Statistics from quantlab calibrate, instead of --calib.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="trellis (shaped steps, two-sided feedback, entropy coder), gptq (the classic), or rtn (round to nearest).",
        ),
    ] = "trellis",
    states: Annotated[int, typer.Option("--states", help="Of the trellis: 1 (none), 4, 8, 16 or 32; more are slower.")] = 8,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="After rounding, tune norms, gains and scales by KL to the float model.")
    ] = True,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", help="For rounding and tuning: take the best plan that fits."),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option("--widths", help="Code widths in bits that a tensor may take. Default: 5,6,8, trellis also 16."),
    ] = None,
    code: Annotated[
        list[Path] | None, typer.Option("--code", metavar="FILE", help="A code file that counts towards the budget.")
    ] = None,
    emit_decoder: Annotated[
        Path | None,
        typer.Option(
            "--emit-decoder",
            metavar="D.py",
            help="Also write a self-contained decoder of trellis artifacts, under 4,000 bytes; --code D.py counts it.",
        ),
    ] = None,
    seed: options.Seed = 0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="R.json", help="Default: M.report.json beside M.qlab.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run with the same options stopped.")] = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Pack a checkpoint into a byte budget: writes M.qlab, never over the budget, and M.report.json.

    Example: quantlab pack final_model.pt --budget 16MB -o model.qlab --code train_gpt.py
    """
    from dataclasses import asdict

    from quantlab.budget import code_bytes, parse_bytes
    from quantlab.calib.sources import CalibrationConfig
    from quantlab.errors import ConfigError
    from quantlab.files import refuse_existing
    from quantlab.jobs import pack as job
    from quantlab.methods.trellis.rounder import RoundingOptions
    from quantlab.models.loading import load_checkpoint, load_tokenizer
    from quantlab.report.pack_report import report_path
    from quantlab.report.tables import render_report
    from quantlab.runs.run_record import Checkpoint, packing_of

    report = report or report_path(output)
    if report.resolve() == output.resolve():
        raise ConfigError(f"--report and --output are both {output}")
    if stats is not None and calib != "self":
        raise ConfigError(f"--stats brings its own calibration, --calib {calib} cannot be used with it")
    if emit_decoder is not None and method != "trellis":
        raise ConfigError(f"--emit-decoder is for artifacts of --method trellis, got {method}")
    if emit_decoder is not None and emit_decoder.resolve() in (output.resolve(), report.resolve()):
        raise ConfigError(f"--emit-decoder and another output are both {emit_decoder}")
    refuse_existing([output, report], force=force)
    recorder = recorder_of(runs, no_run, mirror)
    if emit_decoder is not None:
        _write_decoder(emit_decoder, force)  # before code files are counted: it may be one of them
    calibration = CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed)
    config = job.PackConfig(
        budget_bytes=parse_bytes(budget),
        method=method,  # type: ignore[arg-type]  # checked by PackConfig
        widths=options.parse_widths(widths) if widths is not None else None,
        rounding=RoundingOptions(states=states),
        tune_steps=job.TUNE_STEPS if tune else 0,
        time_limit_s=time_limit,
        code=code_bytes(code or []),
        calibration=calibration,
    )
    note(f"budget {config.budget_bytes:,} bytes, counted code {config.code_bytes:,}")
    asked = {"checkpoint": checkpoint, "output": output, "model": model, "tokenizer": tokenizer, "stats": stats}
    with recorder.run("pack", asked | asdict(config), seeds={"seed": seed}) as run, ProgressDisplay() as progress:
        loaded = load_checkpoint(checkpoint, model)
        run.result(checkpoint=Checkpoint(path=str(checkpoint), fingerprint=loaded.fingerprint))
        known = load_tokenizer(tokenizer, loaded) if tokenizer else None
        result = job.pack(
            loaded,
            config,
            output,
            checkpoint=checkpoint,
            report=report,
            tokenizer=known,
            statistics=stats,
            resume=resume,
            progress=progress,
        )
        run.result(artifact=output, packing=packing_of(result), metrics={"timings_s": result.timings_s}, files=[report])
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(render_report(result))
        note(f"wrote {output} and {report}" + (f", decoder {emit_decoder}" if emit_decoder else ""))


def _write_decoder(path: Path, force: bool) -> None:
    """Write the self-contained decoder, unless the file holds it already, as it does where a killed run goes on."""
    from quantlab.artifact.emit import emit_decoder
    from quantlab.files import refuse_existing, write_whole

    data = emit_decoder()
    if not path.is_file() or path.read_bytes() != data:
        refuse_existing([path], force=force)
        write_whole(path, data)


def unpack(
    artifact: Annotated[Path, typer.Argument(metavar="M.qlab", help="A packed model.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STATE", help="The .safetensors file to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Turn an artifact back into a state dict, bit for bit the one that was measured.

    Example: quantlab unpack model.qlab -o state.safetensors
    """
    import torch

    from quantlab.artifact.decode import decode_artifact, digest, read_artifact
    from quantlab.files import refuse_existing
    from quantlab.tensor_file import write_safetensors

    refuse_existing([output], force=force)
    arrays = decode_artifact(*read_artifact(artifact))
    write_safetensors(output, {name: torch.from_numpy(array) for name, array in arrays.items()})
    result = {"state": str(output), "tensors": len(arrays), "tensors_sha256": digest(arrays)}
    if as_json:
        print_json(result)
    else:
        print(f"wrote {output}: {len(arrays)} tensors, sha256 {result['tensors_sha256']}")


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="M.qlab", help="A packed model.")],
    as_json: options.Json = False,
) -> None:
    """Show what is in an artifact: model, origin, every tensor, where the bytes lie. Checks all checksums.

    Example: quantlab inspect model.qlab --json | jq .size_breakdown
    """
    from quantlab.artifact.layout import describe

    about = describe(artifact)
    if as_json:
        print_json(about)
    else:
        _print(about)


def _print(about: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tensor", "shape", "kind", "stored", "bytes"):
        table.add_column(column, no_wrap=True, justify="right" if column == "bytes" else "left")
    for t in about["tensors"]:
        size = f"{t['bytes']:,}" if "bytes" in t else ""
        table.add_row(t["name"], "x".join(map(str, t["shape"])), t["kind"], t["stored"], size)
    out.print(table)
    out.print(f"\n{about['artifact']}: {about['artifact_bytes']:,} bytes, version {about['version']}, {about['producer']}")
    out.print("bytes: " + ", ".join(f"{kind} {count:,}" for kind, count in about["size_breakdown"].items()))
    for key in ("model", "tokenizer", "origin"):
        if about[key]:
            out.print(f"{key}: " + ", ".join(f"{k} {v}" for k, v in about[key].items()))
