"""Whether scores over seeds beat others: the challenge's 0.005 nats by a one-sided t test, and Welch's test of two sets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from quantlab.errors import ConfigError

MARGIN_NATS = 0.005
"""Nats per token by which a record must be better."""
LEVEL = 0.01
"""Probability under which the challenge's rule calls it better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Significance:
    """New scores against those of another submission."""

    difference_bpb: float
    """New mean minus old mean; below 0 is better."""
    margin_bpb: float
    """0.005 nats per token in bits per byte of this tokenizer."""
    p_margin: float | None
    """One-sided t test: probability of such scores if the true mean were the old one less the margin; None with one seed."""
    p_welch: float | None
    """One-sided Welch test without a margin; None unless both have two seeds or more."""
    new_seeds: int
    old_seeds: int

    @property
    def is_record(self) -> bool | None:
        """Whether the challenge's rule is met; None where one seed cannot say."""
        return None if self.p_margin is None else self.p_margin < LEVEL

    def to_text(self) -> str:
        """Return one line with the numbers."""
        parts = [f"{self.difference_bpb:+.5f} BPB against the other, margin {self.margin_bpb:.5f} (0.005 nats per token)"]
        parts.append("one seed: no test" if self.p_margin is None else f"p {self.p_margin:.2g} for the margin (t, one-sided)")
        if self.p_welch is not None:
            parts.append(f"p {self.p_welch:.2g} without it (Welch, one-sided)")
        return f"{', '.join(parts)}; {self.new_seeds} and {self.old_seeds} seeds"


def margin_bpb(bytes_per_token: float) -> float:
    """Return 0.005 nats per token in bits per byte, for a tokenizer with this many bytes in a token.

    >>> round(margin_bpb(2.43592), 5), round(margin_bpb(3.72663), 5)
    (0.00296, 0.00194)
    """
    if not 0 < bytes_per_token < math.inf:
        raise ConfigError(f"bytes per token must be above 0 and finite, got {bytes_per_token}")
    return MARGIN_NATS / (math.log(2) * bytes_per_token)


def compare_scores(new: Sequence[float], old: Sequence[float], bytes_per_token: float) -> Significance:
    """Compare bits per byte over seeds. ConfigError if either has no score or one that is not finite."""
    for scores in (new, old):
        if not scores or not all(map(math.isfinite, scores)):
            raise ConfigError(f"scores must be one or more finite numbers, got {list(scores)}")
    margin = margin_bpb(bytes_per_token)
    new_mean, old_mean = (sum(scores) / len(scores) for scores in (new, old))
    with_margin = float(stats.ttest_1samp(new, old_mean - margin, alternative="less").pvalue) if _varies(new) else None
    welch = None
    if _varies(new) and _varies(old):
        welch = float(stats.ttest_ind(new, old, equal_var=False, alternative="less").pvalue)
    return Significance(
        difference_bpb=new_mean - old_mean,
        margin_bpb=margin,
        p_margin=with_margin,
        p_welch=welch,
        new_seeds=len(new),
        old_seeds=len(old),
    )


def _varies(scores: Sequence[float]) -> bool:
    return len(set(scores)) > 1
