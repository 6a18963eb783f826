"""Measure a checkpoint's statistics, or take those that were measured before."""

from pathlib import Path

from quantlab.calib.collect import collect
from quantlab.calib.sources import CalibrationConfig, calibration_tokens
from quantlab.calib.statistics import Statistics, read_statistics
from quantlab.errors import CheckpointError
from quantlab.models.loading import Loaded
from quantlab.models.weights import split_state
from quantlab.progress import Progress, silent, stage
from quantlab.text.tokenizer import Tokenizer


def measure_statistics(
    loaded: Loaded,
    config: CalibrationConfig,
    tokenizer: Tokenizer | None,
    progress: Progress = silent,
    *,
    plain: bool = True,
) -> Statistics:
    """Draw the calibration tokens and measure every matrix that will be quantized; `plain` is for the classic methods too.

    Raises:
        CheckpointError: the checkpoint has no matrix to quantize, or one that the model has under another name.
        StatisticsError: a matrix has no, zero or non-finite statistics.
    """
    shapes = matrix_shapes(loaded)
    label = "sample calibration text" if config.source == "self" else "read calibration tokens"
    ids, about = calibration_tokens(config, loaded.model, tokenizer, loaded.vocab_size, progress=stage(progress, label))
    return collect(
        loaded.model,
        ids,
        shapes,
        model_fingerprint=loaded.fingerprint,
        source=about,
        seed=config.seed,
        plain=plain,
        progress=stage(progress, "measure statistics"),
    )


def reuse_statistics(path: Path, loaded: Loaded) -> Statistics:
    """Statistics of an earlier run, after checking that they belong to this checkpoint and are complete."""
    stats = read_statistics(path)
    stats.check_model(loaded.fingerprint, path)
    stats.check(matrix_shapes(loaded))
    return stats


def matrix_shapes(loaded: Loaded) -> dict[str, tuple[int, ...]]:
    """Shape of every matrix to quantize; all must be parameters of the model under the checkpoint's names."""
    matrices, _ = split_state(loaded.state)
    if not matrices:
        raise CheckpointError("the checkpoint has no matrix to quantize: no floating 2-D tensor of 4096 weights or more")
    known = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    if unknown := sorted(matrices.keys() - known):
        raise CheckpointError(f"tensor {unknown[0]} of the checkpoint is not a parameter of the model")
    return {name: tuple(tensor.shape) for name, tensor in matrices.items()}
