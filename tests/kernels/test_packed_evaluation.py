"""A whole model scored by the kernels, from packed weights, beside the same weights decoded."""

import numpy as np
import torch
from conftest import random_state
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here

from quantlab.evaluation.scoring import score_tokens
from quantlab.kernels import dequant_matmul, unpack_weights
from quantlab.kernels.packed import pack
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.packed_layers import pack_modules_

CONFIG = GPTConfig(vocab_size=400, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64)


def packed_and_decoded():
    """Matrices on grids of 5 bits with a few outliers and halves; both models hold the same weights."""
    state = random_state(CONFIG)
    names = [name for name, t in state.items() if t.ndim == 2 and name.endswith(".weight")]
    g = torch.Generator().manual_seed(0)
    matrices = {}
    for name in names:
        row, column = state[name].std(1) / 5, torch.rand(state[name].shape[1], generator=g) + 0.5
        codes = (state[name] / row[:, None] / column).round().to(torch.int16)
        rows, columns = (torch.randint(3, 8, (n,), generator=g, dtype=torch.int16) for n in codes.shape)
        matrices[name] = pack(codes, row, column, row_class_O=rows, column_class_I=columns, bits=5)
    decoded, packed = (GPT(CONFIG).eval() for _ in range(2))
    decoded.load_state_dict(state | {name: unpack_weights.unpack_ref(m) for name, m in matrices.items()})
    packed.load_state_dict(state)
    pack_modules_(packed, matrices)
    return packed, decoded


def test_kernels_score_a_packed_model_as_its_decoded_weights(tokenizer, monkeypatch):
    calls = []
    for module in (unpack_weights, dequant_matmul):
        monkeypatch.setattr(module, "on_kernel", lambda *_: calls.append(1) or True)
    packed, decoded = packed_and_decoded()
    tokens = np.random.default_rng(0).integers(0, 400, 97).astype(np.uint16)
    mine, wanted = (score_tokens(m, tokens, tokenizer.token_bytes(), seq_len=24, batch_tokens=48) for m in (packed, decoded))
    assert len(calls) > 10
    assert abs(mine.val_bpb - wanted.val_bpb) < 1e-6 * wanted.val_bpb  # float32 sums in another order; asked for are 1e-4
