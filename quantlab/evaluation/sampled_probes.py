"""Probe a model inside its evaluation, on windows that it scored: its score is valid only if every one of them passes.

Letters: B windows, T tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlab.evaluation.evaluation_record import Probe
from quantlab.evaluation.probes import flip, normalized, rows
from quantlab.evaluation.scoring import device_of, eval_mode, predict
from quantlab.evaluation.window_sample import WindowSample

CUTS = 2
"""Cuts of each window in the flip test; windows are cut at different places."""
ROUNDING = 1e-4
"""Largest difference of float32 logits on a CPU that counts as rounding. Experts group tokens, so that matrix products of other
shapes round differently; a leak that changes logits by no more than this cannot change a printed score. A GPU has none."""
SCORE_TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}
"""Largest difference, in nats per token, between the scored losses of the sample and those of the probed predictions: float32
with another batch size on a CPU, bfloat16 on a GPU."""


def probe_sample(model: nn.Module, sample: WindowSample, *, seed: int = 0) -> list[Probe]:
    """Return the probes normalization, flip, rows and score on windows that were scored, in the mode in which they were.

    They take `window_sample.FORWARDS` forward passes over the sample, in eval mode, on the model's device.

    Args:
        seed: seed of the tokens that replace others.
    """
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    ids_BT = sample.ids_BT.to(device)
    tolerance = ROUNDING if device.type == "cpu" else 0.0

    def logits(ids: Tensor) -> Tensor:
        return predict(model, ids)

    with eval_mode(model):
        before_BTV = logits(ids_BT)
        return [
            normalized(before_BTV),
            flip(logits, ids_BT, generator, length_B=sample.length_B, cuts=CUTS, tolerance=tolerance),
            rows(logits, ids_BT, generator, tolerance=tolerance),
            same_score(before_BTV, sample),
        ]


def same_score(logits_BTV: Tensor, sample: WindowSample) -> Probe:
    """Test that the probed predictions have the losses that were scored: a model may behave otherwise while it is probed."""
    device, allowed = logits_BTV.device, SCORE_TOLERANCE[logits_BTV.device.type]
    rows_n = sample.rows.to(device)
    nats = F.cross_entropy(logits_BTV.flatten(0, 1)[rows_n].float(), sample.targets.to(device), reduction="none")
    gap = float((nats.double().cpu() - sample.nats).mean())
    if math.isnan(gap):
        return Probe(name="score", passed=None, detail="another process scored the probed windows")
    text = f"the sample's loss is {gap:+.2g} nats per token from the scored one, over {len(rows_n):,} tokens of {len(sample)}"
    return Probe(name="score", passed=abs(gap) <= allowed, detail=f"{text} windows (allowed {allowed:g})")
