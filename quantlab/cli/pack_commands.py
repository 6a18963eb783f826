"""quantlab calibrate, pack, unpack and inspect: from a checkpoint to an artifact and back."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, console, line_width, note, print_json, say
from quantlab.errors import ConfigError

if TYPE_CHECKING:
    from quantlab.calib.statistics import Statistics
    from quantlab.jobs.pack import PackPlan
    from quantlab.report.pack_report import PackReport
    from quantlab.runs.recording import Recorder


def calibrate(
    checkpoint: options.Checkpoint,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STATS", help="The .safetensors file to write.")],
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    keep: options.Keep = [],  # noqa: B006
    seed: options.Seed = 0,
    device: options.Device = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure calibration statistics once; quantlab pack --stats uses them for any number of budgets.

    Example: quantlab calibrate final_model.pt -o final_model.stats.safetensors

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab calibrate final_model.pt -o final_model.stats.safetensors
    """
    _wait_passively()
    from quantlab.jobs.calibrate import calibrate as measure

    with ProgressDisplay() as progress:
        stats = measure(
            checkpoint,
            calib=calib,
            calib_tokens=calib_tokens,
            calib_seq_len=calib_seq_len,
            seed=seed,
            tokenizer=tokenizer,
            model=model,
            output=output,
            keep=keep,
            device=device,
            force=force,
            progress=progress,
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        about = {"tokens": stats.tokens, "tensors": stats.matrices, "fingerprint": stats.fingerprint, **stats.source}
        more = {
            "collapse": stats.collapse.to_dict(),
            "row_agreement": stats.row_agreement,
            "priors": stats.priors,
            "apart": stats.apart,
        }
        print_json({"statistics": str(output), **about, **more})
    else:
        _print_statistics(stats, output, calib)


def _wait_passively() -> None:
    """Let idle threads sleep, unless the user says otherwise; read by OpenMP when torch is loaded.

    Threads that spin take processors from the rounding's and from whatever else runs.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _print_statistics(stats: "Statistics", output: Path, calib: str) -> None:
    say(f"wrote {output}: {stats.matrices} tensors measured on {stats.tokens:,} tokens ({calib})")
    say(f"calibration text: {stats.collapse.line()}{'; it has collapsed' if stats.collapse.is_collapsed else ''}")
    if stats.priors:
        say(f"never reached, so they have the mean statistics of their siblings: {', '.join(stats.priors)}")
    if stats.apart:
        say(f"multiplied in parts, so what the parts have in common is not measured: {', '.join(stats.apart)}")
    if stats.row_agreement:
        name, low = min(stats.row_agreement.items(), key=lambda item: item[1])
        middle = median(stats.row_agreement.values())
        say(f"row sensitivities of two halves of the sample correlate by {middle:.3f} (median), {low:.3f} at worst ({name})")


def pack(
    checkpoint: options.Checkpoint,
    budget: options.Budget,
    output: options.ArtifactOut,
    model: options.Model = None,
    tokenizer: options.TokenizerFile = None,
    with_tokenizer: options.WithTokenizer = None,
    calib: options.Calib = "self",
    calib_tokens: options.CalibTokens = 65536,
    calib_seq_len: options.CalibSeqLen = 512,
    stats: options.Stats = None,
    method: options.Method = "trellis",
    effort: options.Effort = None,
    states: options.States = None,
    tune: options.Tune = None,
    time_limit: options.TimeLimit = None,
    widths: options.Widths = None,
    option: options.MethodOption = [],  # noqa: B006
    keep: options.Keep = [],  # noqa: B006
    bits: options.Bits = [],  # noqa: B006
    code: options.Code = None,
    emit_decoder: options.EmitDecoder = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    report: options.ReportOut = None,
    resume: options.Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what size, KL, time and memory it would take, and write nothing.")
    ] = False,
    force: options.Force = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Pack a checkpoint into a byte budget: writes M.qlab, which never exceeds the budget, and M.report.json.

    Example: quantlab pack final_model.pt --budget 16MB -o model.qlab --code train_gpt.py

    Example: quantlab pack final_model.pt --budget 16MB -o model.qlab --stats final_model.stats.safetensors --dry-run

    Example: torchrun --standalone --nproc_per_node=8 -m quantlab pack final_model.pt --budget 16MB -o model.qlab
    """
    _wait_passively()
    from quantlab.calib.sources import CalibrationConfig
    from quantlab.jobs.input_files import input_files
    from quantlab.jobs.pack import plan_pack

    recorder = options.recorder_of(runs, no_run, mirror)
    plan = plan_pack(
        budget=budget,
        output=output,
        method=method,
        options=_method_options(option, effort=effort, states=states, tune=tune, time_limit=time_limit, widths=widths),
        stats=stats,
        calibration=CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed),
        keep=keep,
        bits=_parse_bits(bits),
        code=code or [],
        emit_decoder=emit_decoder,
        report=report,
        device=device,
        inputs=input_files(checkpoint, stats=stats, tokenizer=tokenizer, model=model, calib=calib),
        resume=resume,
        with_tokenizer=with_tokenizer,
        force=force,
    )
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        note(f"budget {plan.config.budget_bytes:,} bytes, counted code {plan.config.code_bytes:,}")
    if dry_run:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError("a dry run is the work of one process", hint="leave out torchrun")
        _dry_run(plan, checkpoint, model, tokenizer, as_json)
        return
    result = _pack(plan, checkpoint, model, tokenizer, recorder)
    if is_main:
        _print_packing(result, plan, as_json)


def _method_options(given: Sequence[str], *, widths: str | None, **known: Any) -> dict[str, Any]:
    """Return what the command line says of the method's options; the others have their defaults."""
    from quantlab.toml_file import apply_changes_

    values = {name: value for name, value in known.items() if value is not None}
    if widths is not None:
        values["widths"] = _parse_widths(widths)
    for change in given:
        if (key := change.partition("=")[0].strip()) in values:
            raise ConfigError(f"option {key} is given twice, also as --option {change}", hint="leave out one of them")
        apply_changes_(values, [change], option="--option")
    return values


def _parse_widths(text: str) -> list[int]:
    """Return the widths of `5,6,8`. ConfigError unless every part is a whole number; the method checks the range."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"widths must be whole numbers like 5,6,8, got {text!r}") from error


def _parse_bits(given: Sequence[str]) -> dict[str, int]:
    """Return the bits of each PATTERN=N, in order. ConfigError unless N is a whole number, or where a pattern comes twice."""
    bits: dict[str, int] = {}
    for text in given:
        pattern, _, number = text.rpartition("=")
        if not pattern or not number.isascii() or not number.isdigit():
            raise ConfigError(f"--bits must look like '*.mlp.*=4', got {text!r}")
        if pattern in bits:
            raise ConfigError(f"--bits {pattern} is given twice", hint="leave out one of them")
        bits[pattern] = int(number)
    return bits


def _pack(plan: "PackPlan", checkpoint: Path, model: str | None, tokenizer: Path | None, recorder: "Recorder") -> "PackReport":
    """Pack as planned, recorded as one run."""
    from quantlab.models.loading import load, load_tokenizer
    from quantlab.runs.run_record import Checkpoint, packing_of

    outputs = plan.outputs
    asked = {"checkpoint": checkpoint, "output": outputs.artifact, "model": model, "tokenizer": tokenizer, "stats": plan.stats}
    with recorder.run("pack", asked | plan.to_dict()) as run, ProgressDisplay() as progress:
        loaded = load(checkpoint, model=model)
        run.result(checkpoint=Checkpoint(path=str(checkpoint), fingerprint=loaded.fingerprint))
        known = load_tokenizer(tokenizer, loaded) if tokenizer else None
        result = plan.run(loaded, known, progress=run.watched(progress))
        run.result(
            artifact=outputs.artifact,
            packing=packing_of(result),
            metrics={
                "timings_s": result.timings_s,
                "calibration": result.calibration,
            },  # of the statistics, where they were given
            seeds={"seed": result.seed},
            files=[outputs.report],
        )
    return result


def _dry_run(plan: "PackPlan", checkpoint: Path, model: str | None, tokenizer: Path | None, as_json: bool) -> None:
    """Print what the packing would give and take."""
    from quantlab.jobs.dry_run import dry_run
    from quantlab.models.loading import load, load_tokenizer
    from quantlab.report.estimate_tables import dry_run_lines

    with ProgressDisplay() as progress:
        loaded = load(checkpoint, model=model)
        known = load_tokenizer(tokenizer, loaded) if tokenizer else None
        found = dry_run(plan, loaded, known, progress=progress)
    if as_json:
        print_json(found.to_dict())
    else:
        say(*dry_run_lines(found))


def _print_packing(result: "PackReport", plan: "PackPlan", as_json: bool) -> None:
    from quantlab.report.tables import render_report

    if as_json:
        print_json(result.to_dict())
        return
    console().print(render_report(result))
    outputs = plan.outputs
    decoder = f", decoder {outputs.decoder}" if outputs.decoder else ""
    note(f"wrote {outputs.artifact} and {outputs.report}{decoder}")


def unpack(
    artifact: options.Artifact,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="STATE", help="The .safetensors or .pt file to write, or a folder."),
    ],
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="FOLDER",
            help="The folder of transformers that was packed: the written one gets its dtypes, config and tokenizer.",
        ),
    ] = None,
    packed: Annotated[
        bool,
        typer.Option("--packed", help="Write a folder of transformers whose weights stay packed until it is loaded."),
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Turn an artifact back into a state dict, bit for bit the one that was measured.

    The model of a folder of transformers can be written as a folder that from_pretrained loads: its name has no suffix.

    Example: quantlab unpack model.qlab -o state.safetensors

    Example: quantlab unpack model.qlab -o restored --like Llama-3.2-1B
    """
    from quantlab.artifact.decode import digest
    from quantlab.jobs.unpack import unpack as decode

    tensors = decode(artifact, output, like=like, packed=packed, force=force)
    sha256 = digest({name: tensor.numpy() for name, tensor in tensors.items()})
    if as_json:
        print_json({"state": str(output), "tensors": len(tensors), "tensors_sha256": sha256})
    else:
        say(f"wrote {output}: {len(tensors)} tensors, sha256 {sha256}")


def inspect(
    target: options.Target,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Show what is in a packed model or a checkpoint.

    Of an artifact: model, origin, every tensor, and its size breakdown; all checksums are checked. Of a checkpoint: which
    adapter reads it, every tensor, and what pack would code, what not and why. A checkpoint that cannot be packed is shown with
    the reason.

    Example: quantlab inspect model.qlab --json | jq .size_breakdown

    Example: quantlab inspect Llama-3.2-1B
    """
    from quantlab.models.loading import is_artifact

    if is_artifact(target):
        if model is not None:
            raise ConfigError(f"--model {model} is for checkpoints, {target} is an artifact", hint="leave it out")
        _inspect_artifact(target, as_json)
        return
    from quantlab.cli.inspection import inspection_lines
    from quantlab.jobs.inspect import inspect_checkpoint

    found = inspect_checkpoint(target, model=model)
    if as_json:
        print_json(found.to_dict())
    else:
        say(*inspection_lines(found, line_width()))


def _inspect_artifact(artifact: Path, as_json: bool) -> None:
    from quantlab.artifact.reader import open_artifact

    about = open_artifact(artifact).describe()
    if as_json:
        print_json(about)
    else:
        _print_description(about)


def _print_description(about: dict[str, Any]) -> None:
    from quantlab.cli.inspection import artifact_lines

    say(*artifact_lines(about, line_width()))
