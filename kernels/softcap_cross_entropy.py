"""Cross-entropy of softcapped logits, one pass over the vocabulary forward and one backward, without float32 logits in memory.

Legend: N predictions, V vocabulary. z logits, c = softcap · tanh(z / softcap), e = exp(-2 |z / softcap|).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.launch import configs, jit, on_kernel, tl

__all__ = ["softcap_cross_entropy", "softcap_cross_entropy_ref", "softcap_cross_entropy_triton"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_CAP = 64.0
"""Largest softcap for the kernel, which sums exp(c) as it is: a sum of 2**30 terms exp(±64) is far from the ends of float32."""
(_CONFIG,) = configs("softcap_cross_entropy")


def softcap_cross_entropy_ref(logits_NV: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    """Return what `softcap_cross_entropy` returns, with torch's own gradient; the reference implementation."""
    capped_NV = softcap * torch.tanh(logits_NV.float() / softcap)
    return F.cross_entropy(capped_NV, targets_N, reduction="none")


@jit
def _capped(z, softcap):  # type: ignore[no-untyped-def]
    """Return c and its slope dc/dz = 1 - tanh², computed from e without the cancellation of 1 - tanh²."""
    e = tl.exp(tl.abs(z) * (-2.0 / softcap))
    r = 1.0 / (1.0 + e)
    size = softcap * (1.0 - e) * r
    return tl.where(z < 0, -size, size), 4.0 * e * r * r


@jit
def _softcap_cross_entropy_kernel(  # type: ignore[no-untyped-def]
    p_logits, p_targets, p_losses, p_lse, softcap, V, BLOCK_V: tl.constexpr
):
    """Compute the log-sum-exp of one row, and the loss of its target: NaN if that is outside the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + row * V
    b_sum = tl.zeros((BLOCK_V,), dtype=tl.float32)
    for start in range(0, V, BLOCK_V):
        o_v = start + tl.arange(0, BLOCK_V)
        m_v = o_v < V
        b_c, _ = _capped(tl.load(p_row + o_v, mask=m_v, other=0.0).to(tl.float32), softcap)
        b_sum += tl.where(m_v, tl.exp(b_c), 0.0)
    lse = tl.log(tl.sum(b_sum, axis=0))
    target = tl.load(p_targets + row)
    z = tl.load(p_row + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
    c, _ = _capped(z, softcap)
    tl.store(p_lse + row, lse)
    tl.store(p_losses + row, lse - c)


@jit
def _softcap_cross_entropy_grad_kernel(  # type: ignore[no-untyped-def]
    p_grad, p_logits, p_targets, p_lse, p_grad_logits, softcap, V, BLOCK_V: tl.constexpr
):
    """Compute one block of one row of the gradient: grad · (exp(c - lse) - [v is the target]) · dc/dz."""
    row, o_v = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    m_v = o_v < V
    grad, lse, target = tl.load(p_grad + row), tl.load(p_lse + row), tl.load(p_targets + row)
    b_z = tl.load(p_logits + row * V + o_v, mask=m_v, other=0.0).to(tl.float32)
    b_c, b_slope = _capped(b_z, softcap)
    b_p = tl.exp(b_c - lse) - tl.where(o_v == target, 1.0, 0.0)
    tl.store(p_grad_logits + row * V + o_v, (grad * b_p * b_slope).to(p_grad_logits.dtype.element_ty), mask=m_v)


class SoftcapCrossEntropy(torch.autograd.Function):
    """Both kernels; between forward and backward pass the logits and one float32 for each row are saved."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
        logits_NV, targets_N = logits_NV.contiguous(), targets_N.contiguous()
        N, V = logits_NV.shape
        losses_N = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
        lse_N = torch.empty_like(losses_N)
        _softcap_cross_entropy_kernel[(N,)](logits_NV, targets_N, losses_N, lse_N, softcap, V, **_config(V))
        ctx.softcap = softcap
        ctx.save_for_backward(logits_NV, targets_N, lse_N)
        return losses_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        logits_NV, targets_N, lse_N = ctx.saved_tensors
        N, V = logits_NV.shape
        config = _config(V)
        grad_NV = torch.empty_like(logits_NV)
        _softcap_cross_entropy_grad_kernel[(N, -(-V // config["BLOCK_V"]))](
            grad_N.contiguous(), logits_NV, targets_N, lse_N, grad_NV, ctx.softcap, V, **config
        )
        return grad_NV, None, None


def _config(V: int) -> dict[str, int]:
    """Return a block no longer than a row needs, and warps in proportion: the order of summation depends on V alone."""
    block = min(_CONFIG["BLOCK_V"], 1 << (V - 1).bit_length())
    return {"BLOCK_V": block, "num_warps": max(1, _CONFIG["num_warps"] * block // _CONFIG["BLOCK_V"])}


def softcap_cross_entropy_triton(logits_NV: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    """Run the kernels; a target outside the vocabulary has loss NaN."""
    losses_N: Tensor = SoftcapCrossEntropy.apply(logits_NV, targets_N, softcap)  # type: ignore[no-untyped-call]
    return losses_N


def softcap_cross_entropy(logits_NV: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    """Return the loss of each target under the softmax of softcap · tanh(logits / softcap), in nats; float32 [N].

    On a GPU memory holds the logits, one float32 for each row and, in the backward pass, the gradient in the dtype of the
    logits. Above LARGEST_CAP exp would need a running maximum: there the reference implementation runs on a GPU too.

    Args:
        logits_NV: before the cap, float32, bfloat16 or float16, [N, V].
        targets_N: int64 [N], each 0 to V - 1. Others are an error on a CPU; on a GPU, where a check would have to wait for the
            device, their loss is NaN.
        softcap: positive and finite.
    Raises:
        ShapeError: a shape or dtype that does not fit.
        ConfigError: softcap out of range, or tensors on different devices.
    """
    _check(logits_NV, targets_N, softcap)
    is_kernel = softcap <= LARGEST_CAP and on_kernel(logits_NV, targets_N)
    return (softcap_cross_entropy_triton if is_kernel else softcap_cross_entropy_ref)(logits_NV, targets_N, softcap)


def _check(logits_NV: Tensor, targets_N: Tensor, softcap: float) -> None:
    if logits_NV.ndim != 2 or logits_NV.shape[1] == 0 or logits_NV.dtype not in DTYPES:
        raise ShapeError(
            f"logits must be float32, bfloat16 or float16 [N, V], V above 0, got {logits_NV.dtype} {list(logits_NV.shape)}"
        )
    if targets_N.shape != logits_NV.shape[:1] or targets_N.dtype != torch.int64:
        raise ShapeError(f"targets must be int64 [{len(logits_NV)}], got {targets_N.dtype} {list(targets_N.shape)}")
    if targets_N.device != logits_NV.device:
        raise ConfigError(f"targets must be on {logits_NV.device} like the logits, got {targets_N.device}")
    if not 0.0 < softcap < math.inf:
        raise ConfigError(f"softcap must be above 0 and finite, got {softcap}")
