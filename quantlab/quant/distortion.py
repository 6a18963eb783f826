"""The predicted cost of rounding errors, in nats per token, the same unit for every tensor."""

from torch import Tensor


def distortion(error_OI: Tensor, H_II: Tensor, g_O: Tensor) -> float:
    """½ Σ_i g_i e_iᵀ H e_i: second-order KL of the model's output, Fisher factored into rows and columns.

    Args:
        error_OI: W - Ŵ, [O, I].
        H_II: mean over tokens of x xᵀ of the layer's input, [I, I].
        g_O: mean over tokens of the squared loss gradient at the layer's output, labels drawn from the model, [O].
    """
    error_OI = error_OI.double()
    return 0.5 * float(((error_OI @ H_II.double()) * error_OI).sum(1) @ g_O.double())
