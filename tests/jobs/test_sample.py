"""What models write after a prompt."""

import pytest
import torch

import quantlab
from quantlab.calib.sources import sample_sequences
from quantlab.errors import ConfigError
from quantlab.models.loading import load


def write(checkpoint, tokenizer, **options):
    return quantlab.sample(checkpoint, prompt="def main(", tokenizer=tokenizer, tokens=20, **options)


def test_the_same_draws_give_the_same_text_and_a_packed_model_is_compared(toy_checkpoint, tokenizer, tmp_path):
    (alone,) = write(toy_checkpoint, tokenizer)
    first, same = write(toy_checkpoint, tokenizer, against=toy_checkpoint)
    assert first.ids == alone.ids == same.ids and same.same_tokens == 20 and first.same_tokens is None
    assert alone.text.encode() == tokenizer.decode(alone.ids) or "\N{REPLACEMENT CHARACTER}" in alone.text
    (other,) = write(toy_checkpoint, tokenizer, seed=1)
    assert other.ids != alone.ids
    quantlab.pack(toy_checkpoint, budget=25_000, output=tmp_path / "m.qlab", calib_tokens=2048, calib_seq_len=64, tune=False)
    packed, float_one = write(tmp_path / "m.qlab", tokenizer, against=toy_checkpoint)
    assert float_one.ids == alone.ids and packed.ids != alone.ids
    assert float_one.same_tokens == next(n for n in range(20) if packed.ids[n] != alone.ids[n])


def test_temperature_0_takes_the_likeliest_token_after_the_whole_prompt(toy_checkpoint, tokenizer):
    (greedy,) = write(toy_checkpoint, tokenizer, temperature=0)
    model, prompt = load(toy_checkpoint).model.eval(), [tokenizer.bos_id, *tokenizer.encode(b"def main(")]
    for token in greedy.ids:
        with torch.no_grad():
            assert int(model(torch.tensor([prompt]))[0, -1].argmax()) == token
        prompt.append(token)


def test_a_prompt_is_kept_with_a_cache_and_without(toy_checkpoint):
    model = load(toy_checkpoint).model
    cached = sample_sequences(model, 2, 12, prompt=(5, 6, 7), seed=3)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids)

    assert cached[:, :4].tolist() == [[1, 5, 6, 7]] * 2
    assert torch.equal(cached, sample_sequences(Plain(), 2, 12, prompt=(5, 6, 7), seed=3))


def test_a_temperature_divides_the_logits(toy_checkpoint, tokenizer):
    model = load(toy_checkpoint).model

    class Flatter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids) / 2

    warm = sample_sequences(model, 2, 24, temperature=2.0, seed=3)
    assert torch.equal(warm, sample_sequences(Flatter(), 2, 24, seed=3))
    assert not torch.equal(warm, sample_sequences(model, 2, 24, seed=3))
    (cold,), (usual,) = (write(toy_checkpoint, tokenizer, temperature=t) for t in (0.3, 0.8))
    assert cold.ids != usual.ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be 1 or more, got 0"),
        ({"temperature": -1}, "temperature must be 0, or 0.001 or more"),
        ({"temperature": float("nan")}, "temperature must be 0, or 0.001 or more"),
    ],
)
def test_options_out_of_range_are_refused(toy_checkpoint, tokenizer, options, message):
    with pytest.raises(ConfigError, match=message):
        quantlab.sample(toy_checkpoint, prompt="x", tokenizer=tokenizer, **options)
