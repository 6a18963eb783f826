"""Measure a model's statistics, or take those that were measured before."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from quantlab.calib.collect import collect
from quantlab.calib.sources import CalibrationConfig, calibration_tokens
from quantlab.calib.statistics import Statistics, read_statistics, write_statistics
from quantlab.jobs.devices import on_device
from quantlab.jobs.input_files import input_files
from quantlab.jobs.problem import matrix_shapes
from quantlab.models.loading import LoadedModel, Source, in_eval_mode, load, load_tokenizer, own_tokenizer
from quantlab.outputs import check_outputs, claimed
from quantlab.progress import Progress, silent, stage
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.world import World, close_world, open_world

_log = logging.getLogger(__name__)


def calibrate(
    source: Source,
    *,
    calib: str = "self",
    calib_tokens: int = 65536,
    calib_seq_len: int = 512,
    calib_temperature: float = 1.0,
    seed: int = 0,
    tokenizer: str | Path | Tokenizer | None = None,
    model: str | None = None,
    output: str | Path | None = None,
    keep: str | Sequence[str] = (),
    device: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Statistics:
    """Measure how sensitive the model is to errors in each of its matrices; `pack` takes the result for any budget and method.

    The processes of torchrun share the work: each draws its share of the calibration sequences, and measures its share of all.

    Args:
        source: a checkpoint's path or a module (see `quantlab.load`).
        calib: where the tokens come from: `self` (text that the model samples), `random`, `text:FILE` or `tokens:GLOB`.
        calib_tokens: number of calibration tokens.
        calib_seq_len: tokens in one sequence.
        calib_temperature: of the model's own text; logits are divided by it.
        seed: seed of the draws.
        tokenizer: file or folder of a tokenizer, or byte260; needed for `text:FILE` where the model has none with it.
        model: path/to/file.py:factory of a checkpoint of another architecture; this runs that file.
        output: .safetensors file to write; nothing is written without it. Matrices are then read from it when they are needed.
        keep: patterns of names of tensors that are not measured; pack them with the same.
        device: cpu or cuda, where the model runs; None for a GPU where there is one. A module in memory is put back.
        force: whether an existing output is replaced.
    Raises:
        CheckpointError: the checkpoint cannot be read, or has no matrix to quantize.
        StatisticsError: a matrix was never used, or its statistics are zero or not finite.
        ConfigError: an option is out of range, or the output exists, is an input too, or is being written by another process.
    """
    config = CalibrationConfig(
        source=calib, tokens=calib_tokens, seq_len=calib_seq_len, temperature=calib_temperature, seed=seed
    )
    outputs = [] if output is None else [Path(output)]
    inputs = input_files(source, tokenizer=tokenizer, model=model, calib=calib)
    check = partial(check_outputs, outputs, inputs=inputs, force=force)
    check()
    world = open_world(device)
    try:
        with claimed(outputs, check) if world.is_main else nullcontext():
            loaded = load(source, model=model)
            known = load_tokenizer(tokenizer, loaded) if tokenizer else None
            progress = progress if world.is_main else silent
            with on_device(loaded.model, world.device):
                scratch = None if output is None else Path(output).parent
                config = within_context(config, loaded)
                patterns = (keep,) if isinstance(keep, str) else tuple(keep)
                stats = measure_statistics(loaded, config, known, progress, keep=patterns, scratch=scratch, world=world)
            if output is not None and world.is_main:
                write_statistics(Path(output), stats)
                stats = read_statistics(Path(output))
            world.wait()  # a process that ends early would take the others' connection with it
    finally:
        close_world(world)
    return stats


def measure_statistics(
    loaded: LoadedModel,
    config: CalibrationConfig,
    tokenizer: Tokenizer | None,
    progress: Progress = silent,
    *,
    plain: bool = True,
    keep: Sequence[str] = (),
    scratch: Path | None = None,
    world: World | None = None,
) -> Statistics:
    """Draw the calibration tokens and measure every matrix that will be quantized, on the model's device.

    Args:
        plain: also measure what the GPTQ and RTN baselines need.
        keep: patterns of names of tensors that are not quantized, and so not measured.
        scratch: folder for nameless files that hold the sums while they grow; None keeps them in memory.
        world: processes that share the sequences; all get the result.
    Raises:
        CheckpointError: the checkpoint has no matrix to quantize, or one that the model has under another name.
        ConfigError: a pattern matches no tensor.
        StatisticsError: a matrix has no, zero or non-finite statistics, or is used in a way that cannot be measured.
    """
    shapes = matrix_shapes(loaded, keep)
    label = "sample calibration text" if config.source == "self" else "read calibration tokens"
    if tokenizer is None and config.source.startswith("text:"):
        tokenizer = own_tokenizer(loaded)
    with in_eval_mode(loaded.model):
        ids, about = calibration_tokens(
            config,
            loaded.model,
            tokenizer,
            loaded.vocab_size,
            bos_id=loaded.first_id(tokenizer),
            processes=world,
            progress=stage(progress, label),
        )
        if world is not None:
            ids = ids.to(world.device)
            world.copy_from_main([ids])  # the processes of several machines may have read different files
        stats = collect(
            loaded.model,
            ids,
            shapes,
            model_fingerprint=loaded.fingerprint,
            source=about,
            seed=config.seed,
            plain=plain,
            scratch=scratch,
            processes=world,
            progress=stage(progress, "measure statistics"),
        )
    stats = replace(stats, vocab_size=loaded.vocab_size)
    if world is None or world.is_main:
        warn_of_collapse(stats)
    return stats


def warn_of_collapse(stats: Statistics) -> None:
    """Where calibration text has collapsed, log that, and what to do."""
    if (found := stats.collapse).is_collapsed:
        _log.warning("the calibration text has collapsed, predicted KL holds for such text alone: %s", found.line())
        _log.warning("calibrate on text, with --calib text:FILE or tokens:GLOB, or on random tokens, --calib random")


def within_context(config: CalibrationConfig, loaded: LoadedModel) -> CalibrationConfig:
    """Return the calibration with sequences that are no longer than the model's context; say so where they were."""
    length = loaded.context_length
    if length is None or config.seq_len <= length:
        return config
    _log.info("calibration sequences have %d tokens, the model's context, instead of %d", length, config.seq_len)
    return replace(config, seq_len=length)


def reuse_statistics(stats: str | Path | Statistics, loaded: LoadedModel, keep: Sequence[str] = ()) -> Statistics:
    """Return statistics of an earlier calibration, after checking that they belong to this model and are complete."""
    known = stats if isinstance(stats, Statistics) else read_statistics(Path(stats))
    known.check_model(loaded.fingerprint, stats if isinstance(stats, str | Path) else "in memory")
    known.check(matrix_shapes(loaded, keep))
    return known
