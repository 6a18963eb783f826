"""Predicted KL of rounding errors: a quadratic form of the Fisher information, in nats per token for every tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which the model uses a matrix W [O, I], and its sensitivity: an error E costs ½ tr(G E H Eᵀ) nats per token.

    This is the second-order KL of the model's output with the Fisher information factored into columns (H) and rows (G, or its
    diagonal g).
    """

    H_II: Tensor
    """Mean over tokens of x xᵀ of the inputs, float [I, I]; or its diagonal alone, [I]."""
    g_O: Tensor
    """Mean over tokens of the squared loss gradient at each output, labels drawn from the model, float [O]; or of the products
    of all pairs of outputs, [O, O]."""

    @property
    def diagonal_O(self) -> Tensor:
        """Sensitivity of each row by itself: the diagonal of G, float64 [O]."""
        return (self.g_O.diagonal() if self.g_O.ndim == 2 else self.g_O).double()

    def predicted_kl(self, error_OI: Tensor) -> float:
        """Return the nats per token that the error W - Ŵ [O, I] costs in this use; products in float32, sums in float64."""
        error_OI, H_II, g_O = error_OI.float(), self.H_II.float(), self.g_O.float()
        weighted_OI = error_OI * H_II if H_II.ndim == 1 else error_OI @ H_II
        if g_O.ndim == 2:
            return 0.5 * float((g_O @ weighted_OI).double().flatten() @ error_OI.double().flatten())
        return 0.5 * float((weighted_OI.double() * error_OI).sum(1) @ g_O.double())


def predicted_kl(error_OI: Tensor, uses: tuple[Use, ...]) -> float:
    """Return the nats per token that an error W - Ŵ [O, I] costs in all uses of a matrix; a tied embedding has two."""
    return sum(use.predicted_kl(error_OI) for use in uses)


def column_hessian(uses: tuple[Use, ...]) -> Tensor:
    """Return one Hessian float64 [I, I] for feedback along columns: that of each use, weighted by its mean sensitivity.

    With one use this is its H. With two uses each row would need a mixture of its own; all share the mean one.
    """
    weights = [float(use.diagonal_O.mean()) for use in uses]
    total = sum(weights)
    full = [use.H_II.double() if use.H_II.ndim == 2 else torch.diag(use.H_II.double()) for use in uses]
    return sum((H * (w / total) for H, w in zip(full, weights, strict=True)), torch.zeros_like(full[0]))
