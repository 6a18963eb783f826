"""The config is read from a state dict, and a tensor of another model is named in the error."""

import dataclasses

import pytest
import torch

from quantlab.errors import CheckpointError
from quantlab.models.challenge import config_from_state_dict, gpt_from_state_dict
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig

CONFIG = GPTConfig(vocab_size=11, num_layers=3, model_dim=12, num_heads=3, num_kv_heads=1, mlp_hidden=20)


def state(**changes):
    return GPT(dataclasses.replace(CONFIG, **changes), seed=1).state_dict()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 12])
def test_config_is_inferred_from_shapes(tied, layers):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, num_layers=layers)
    assert config_from_state_dict(GPT(config).state_dict()) == config


def test_model_is_float32_in_eval_mode_and_a_copy():
    sd = {name: t.bfloat16() if name.endswith("weight") else t for name, t in state().items()}
    model = gpt_from_state_dict(sd)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    before = sd["skip_weights"].clone()
    with torch.no_grad():
        model.skip_weights.add_(1)
    assert torch.equal(sd["skip_weights"], before)


def test_given_config_sets_what_shapes_do_not_show():
    config = dataclasses.replace(CONFIG, logit_softcap=15.0, rope_base=500.0)
    assert gpt_from_state_dict(state(), config).config == config


def test_integer_tensors_of_unknown_name_are_ignored():
    assert config_from_state_dict(state() | {"step": torch.tensor(3)}) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tok_emb.weight": None}, "tok_emb.weight is missing"),
        ({"blocks.0.attn.q_gain": None}, "blocks.0.attn.q_gain is missing"),
        ({"blocks.1.mlp_scale": None}, "blocks.1.mlp_scale is missing"),
        ({"extra.weight": torch.zeros(2, 3)}, r"extra.weight \[2, 3\] is unexpected"),
        ({"blocks.7.attn_scale": torch.zeros(12)}, r"skip_weights has shape \[1, 12\], expected \[2, 12\]"),
        ({"skip_weights": torch.ones(2, 12)}, r"skip_weights has shape \[2, 12\], expected \[1, 12\]"),
        ({"blocks.2.mlp.fc.weight": torch.zeros(21, 12)}, r"fc.weight has shape \[21, 12\], expected \[20, 12\]"),
        ({"tok_emb.weight": torch.zeros(11)}, r"tok_emb.weight has shape \[11\], expected 2 dimensions"),
        ({"tok_emb.weight": torch.zeros(11, 12, dtype=torch.int8)}, "tok_emb.weight is torch.int8"),
        ({"blocks.0.attn.q_gain": torch.zeros(5)}, "5 query gains do not divide width 12"),
        ({"blocks.0.attn.q_gain": torch.zeros(0)}, "0 query gains"),
        ({"blocks.0.attn.c_k.weight": torch.zeros(8, 12)}, "num_kv_heads must divide num_heads = 3, got 2"),
    ],
)
def test_a_misfit_is_named(change, message):
    sd = {name: t for name, t in (state() | change).items() if t is not None}
    with pytest.raises(CheckpointError, match=f"^no model matches: .*{message}") as caught:
        gpt_from_state_dict(sd)
    assert "--model path/to/file.py:factory" in caught.value.hint


def test_a_misfit_with_a_given_config_is_named():
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        gpt_from_state_dict(state(), dataclasses.replace(CONFIG, tie_embeddings=False))
