"""Measure the KL of packed weights on calibration text that the statistics did not use."""

import torch
from torch import Tensor

from quantlab.calib.collapse import Collapse
from quantlab.calib.sources import CalibrationConfig, held_out_tokens
from quantlab.calib.statistics import Statistics
from quantlab.methods.rounded_model import RoundedModel
from quantlab.models.loading import LoadedModel
from quantlab.progress import Progress, stage
from quantlab.report.pack_report import HeldOut
from quantlab.text.tokenizer import Tokenizer

HELD_OUT_TOKENS = 4096
"""Tokens that are measured, about: the mean KL is then known to a few percent."""


def measure_held_out(
    loaded: LoadedModel,
    tensors: dict[str, Tensor],
    calibration: CalibrationConfig,
    tokenizer: Tokenizer | None,
    collapse: Collapse,
    progress: Progress,
) -> HeldOut:
    """Return the KL of a model with packed tensors in place of its own from the model itself.

    Args:
        tensors: values of every tensor as the file has them, by name.
        calibration: where the tokens of the statistics came from.
        collapse: how far these have collapsed: if they have, KL is measured on random tokens too.
    Raises:
        CheckpointError: KL is exactly 0, see `RoundedModel.mean_kl`.
        DataError, CheckpointError: see `held_out_tokens`.
    """
    ids_NT, source = held_out_text(loaded, calibration, tokenizer, progress)
    parameters = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    model = RoundedModel(loaded.model, {name: value for name, value in tensors.items() if name in parameters})
    kl = model.mean_kl({}, ids_NT, stage(progress, "measure KL"))
    kl_random = None
    if collapse.is_collapsed:
        generator = torch.Generator().manual_seed(calibration.seed)
        kl_random = model.mean_kl({}, torch.randint(loaded.vocab_size, ids_NT.shape, generator=generator))
    return HeldOut(kl=kl, tokens=ids_NT.numel(), seq_len=ids_NT.shape[1], source=source, kl_random=kl_random)


def held_out_text(
    loaded: LoadedModel, calibration: CalibrationConfig, tokenizer: Tokenizer | None, progress: Progress
) -> tuple[Tensor, str]:
    """Return about HELD_OUT_TOKENS tokens int64 [N, T] that the statistics did not use, and the kind of their source.

    Raises:
        DataError, CheckpointError: see `held_out_tokens`.
    """
    return held_out_tokens(
        calibration,
        loaded.model,
        tokenizer,
        loaded.vocab_size,
        tokens=HELD_OUT_TOKENS,
        bos_id=loaded.first_id(tokenizer),
        progress=stage(progress, "sample held-out text"),
    )


def calibration_of(stats: Statistics, asked: CalibrationConfig) -> CalibrationConfig:
    """Return where the tokens of statistics came from, as far as they tell: the text's file is not in them.

    Args:
        asked: the calibration of the packing; its seed stands for one that the statistics do not tell.
    """
    source = "random" if stats.source.get("kind") == "random" else "self"
    told, (N, T) = stats.source.get("seed"), stats.ids_NT.shape
    seed = told if type(told) is int and 0 <= told < 2**63 else asked.seed
    return CalibrationConfig(source=source, tokens=N * T, seq_len=T, seed=seed)
