"""Write a checkpoint of the challenge's size that was never trained: for timing a packer, not for judging a language model.

    .venv/bin/python benchmarks/make_model.py -o big.safetensors
    quantlab pack big.safetensors --budget 16MB --calib random -o big.qlab

Weights are Gaussian with log-normal spreads over rows and columns and a few heavier rows; the norms of the embedding's rows
fall with the token's rank. The streams that a packer codes then have about the statistics of a trained model's.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from quantlab.models.challenge import expected_shapes
from quantlab.tensor_file import write_safetensors
from quantlab.trainer.model_config import GPTConfig

ROW_SPREAD = 0.25
COLUMN_SPREAD = 0.2
"""Standard deviations of the logarithm of a row's and a column's scale."""
HEAVY_ROWS = 0.01
HEAVY_FACTOR = 2.0
"""Share of rows that are heavier, and by how much."""
LOGIT_STD = 1.5
"""Standard deviation of a logit, if the final residual stream were independent of the embedding."""
ZIPF_EXPONENT = 0.1
"""The row of the token of rank r has the norm (r + 1)**-ZIPF_EXPONENT."""


def make_state(config: GPTConfig, *, seed: int) -> dict[str, Tensor]:
    """Return a state dict float32 with the baseline's names, drawn from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _tensor(name, shape, config, generator) for name, shape in expected_shapes(config).items()}


def _tensor(name: str, shape: tuple[int, ...], config: GPTConfig, generator: torch.Generator) -> Tensor:
    if name == "tok_emb.weight":
        norm_O = torch.arange(1, shape[0] + 1).float().pow(-ZIPF_EXPONENT)
        std = LOGIT_STD * config.model_dim**-0.5
        return _matrix(shape, generator).mul(norm_O[:, None] / norm_O.square().mean().sqrt()).mul(std)
    if name.endswith(".weight"):
        return _matrix(shape, generator).mul(2 * shape[1] ** -0.5)
    if name.endswith("resid_mix"):  # the stream decays from block to block, so a token does not predict itself
        keep_D, embedding_D = torch.randn(shape, generator=generator)
        return torch.stack((0.75 + 0.1 * keep_D, 0.3 * embedding_D))
    return _log_normal(shape[-1], COLUMN_SPREAD, generator).expand(shape).contiguous()


def _matrix(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a Gaussian matrix [O, I] with uneven rows and columns; its root mean square is 1."""
    rows, columns = shape
    row_O = _log_normal(rows, ROW_SPREAD, generator)
    row_O[torch.rand(rows, generator=generator) < HEAVY_ROWS] *= HEAVY_FACTOR
    column_I = _log_normal(columns, COLUMN_SPREAD, generator)
    w_OI = torch.randn(rows, columns, generator=generator) * row_O[:, None] * column_I
    return w_OI / w_OI.square().mean().sqrt()


def _log_normal(count: int, spread: float, generator: torch.Generator) -> Tensor:
    return (spread * torch.randn(count, generator=generator)).exp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument(
        "--width", type=int, default=512, help="heads of 64, one KV head for two of them, MLP four times as wide"
    )
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CKPT", help="the .safetensors file to write")
    arguments = parser.parse_args()
    config = GPTConfig(
        vocab_size=arguments.vocab,
        num_layers=arguments.layers,
        model_dim=arguments.width,
        num_heads=arguments.width // 64,
        num_kv_heads=max(1, arguments.width // 128),
        mlp_hidden=4 * arguments.width,
    )
    state = make_state(config, seed=arguments.seed)
    write_safetensors(arguments.output, state)
    parameters = sum(tensor.numel() for tensor in state.values())
    print(f"wrote {arguments.output}: {parameters:,} parameters, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
