"""The predicted cost of rounding errors, in nats per token, the same unit for every tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which the model uses a matrix W [O, I]: an error E costs ½ Σ_i g_i e_iᵀ H e_i nats per token.

    This is the second-order KL of the model's output with the Fisher information factored into columns and rows.
    """

    H_II: Tensor
    """Mean over tokens of x xᵀ of the inputs, float [I, I]; or its diagonal alone, [I]."""
    g_O: Tensor
    """Mean over tokens of the squared loss gradient at each output, labels drawn from the model, float [O]; or with the
    products of different outputs, [O, O]."""

    @property
    def diagonal_O(self) -> Tensor:
        """Sensitivity of each row by itself, float64 [O]."""
        return (self.g_O.diagonal() if self.g_O.ndim == 2 else self.g_O).double()

    def predicted_kl(self, error_OI: Tensor) -> float:
        """Nats per token that the error W - Ŵ [O, I] costs in this use; computed in float64."""
        error_OI, H_II = error_OI.double(), self.H_II.double()
        weighted_OI = error_OI * H_II if H_II.ndim == 1 else error_OI @ H_II
        if self.g_O.ndim == 2:
            return 0.5 * float((self.g_O.double() @ weighted_OI).flatten() @ error_OI.flatten())
        return 0.5 * float((weighted_OI * error_OI).sum(1) @ self.g_O.double())


def predicted_kl(error_OI: Tensor, uses: tuple[Use, ...]) -> float:
    """Nats per token that an error costs in all uses of a matrix; a tied embedding has two."""
    return sum(use.predicted_kl(error_OI) for use in uses)


def column_hessian(uses: tuple[Use, ...]) -> Tensor:
    """One Hessian float64 [I, I] for feedback along columns: the uses' own, weighted by their rows' mean sensitivity.

    With one use this is its H. With two the rows have different mixtures and share the mean one.
    """
    weights = [float(use.diagonal_O.mean()) for use in uses]
    total = sum(weights)
    full = [use.H_II.double() if use.H_II.ndim == 2 else torch.diag(use.H_II.double()) for use in uses]
    return sum((H * (w / total) for H, w in zip(full, weights, strict=True)), torch.zeros_like(full[0]))
