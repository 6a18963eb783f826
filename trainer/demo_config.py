"""The training run of `quantlab demo`, chosen among small models trained on the standard library's text for equal CPU time."""

from quantlab.trainer.config import TrainConfig
from quantlab.trainer.model_config import GPTConfig


def demo_config(seconds: float, *, seed: int = 0) -> TrainConfig:
    """A run of at most `seconds` of training (0: no limit but the steps) of a small tied model with a vocabulary of 1,024.

    In about two minutes of two cores more tokens beat more layers: two layers scored better than three, and three than four.

    Raises:
        ConfigError: seconds or seed is negative or not finite.
    """
    model = GPTConfig(vocab_size=1024, num_layers=2, model_dim=128, num_heads=4, num_kv_heads=2, mlp_hidden=768)
    return TrainConfig(
        model=model,
        seq_len=256,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        steps=4000,
        max_seconds=seconds,
        warmup_steps=10,
        warmdown_frac=0.8,
        muon_momentum=0.9,
        muon_momentum_warmup_steps=0,
        seed=seed,
    )
