"""The inner loop of GPTQ: round one block of columns, each column's error pushed into the later ones of the block.

Legend: O rows (outputs), B columns of the block. The block is held transposed, [B, O], so that a column is contiguous.
"""

import torch
from torch import Tensor


def gptq_block_ref(w_BO: Tensor, steps_BO: Tensor, limit: int, U_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scaled errors of one block (Frantar et al. 2022, arXiv 2210.17323, algorithm 1, inner loop).

    Args:
        w_BO: weights with the feedback of all earlier blocks already added, float32 [B, O]; left untouched.
        steps_BO: grid step of each weight, float32 [B, O]; 0 gives code 0.
        limit: codes lie within ±limit.
        U_BB: diagonal block of the upper Cholesky factor of the inverse Hessian, float32 [B, B].
    Returns:
        codes int8 [B, O], and errors float32 [B, O]: (w - code · step) / U_jj, which the caller pushes into later blocks.
    """
    w_BO = w_BO.clone()
    inverse_BO = torch.where(steps_BO > 0, 1 / steps_BO, 0.0)
    codes_BO, errors_BO = torch.empty_like(w_BO), torch.empty_like(w_BO)
    diagonal = U_BB.diagonal().tolist()
    for j, u_jj in enumerate(diagonal):
        torch.mul(w_BO[j], inverse_BO[j], out=codes_BO[j]).round_().clamp_(-limit, limit)
        torch.addcmul(w_BO[j], codes_BO[j], steps_BO[j], value=-1, out=errors_BO[j]).div_(u_jj)
        w_BO[j + 1 :].addr_(U_BB[j, j + 1 :], errors_BO[j], alpha=-1)
    return codes_BO.to(torch.int8), errors_BO
