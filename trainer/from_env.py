"""The environment variables of the challenge's train_gpt.py, so that its published commands carry over."""

from collections.abc import Callable, Mapping
from typing import Any

from quantlab.errors import ConfigError

PLAIN = {
    "SEED": "seed",
    "ITERATIONS": "steps",
    "TRAIN_BATCH_TOKENS": "batch_tokens",
    "TRAIN_SEQ_LEN": "seq_len",
    "MAX_WALLCLOCK_SECONDS": "max_seconds",
    "WARMDOWN_ITERS": "warmdown_steps",
    "WARMDOWN_FRAC": "warmdown_frac",
    "MIN_LR": "min_lr",
    "TRAIN_LOG_EVERY": "log_every",
    "VAL_LOSS_EVERY": "val_every",
    "MATRIX_LR": "matrix_lr",
    "SCALAR_LR": "scalar_lr",
    "HEAD_LR": "head_lr",
    "MUON_MOMENTUM": "muon_momentum",
    "MUON_MOMENTUM_WARMUP_START": "muon_momentum_start",
    "MUON_MOMENTUM_WARMUP_STEPS": "muon_momentum_warmup_steps",
    "MUON_ROW_NORMALIZE": "muon_normalize_rows",
    "BETA1": "beta1",
    "BETA2": "beta2",
    "ADAM_EPS": "adam_eps",
    "GRAD_CLIP_NORM": "grad_clip",
    "MUON_WD": "weight_decay",
    "EMBED_WD": "embed_weight_decay",
    "ADAM_WD": "scalar_weight_decay",
    "ENABLE_LOOPING_AT": "loop_from",
    "VOCAB_SIZE": "model.vocab_size",
    "NUM_LAYERS": "model.num_layers",
    "MODEL_DIM": "model.model_dim",
    "NUM_HEADS": "model.num_heads",
    "NUM_KV_HEADS": "model.num_kv_heads",
    "TIE_EMBEDDINGS": "model.tie_embeddings",
    "TIED_EMBED_INIT_STD": "model.tied_embed_init_std",
    "LOGIT_SOFTCAP": "model.logit_softcap",
    "QK_GAIN_INIT": "model.qk_gain_init",
    "ROPE_BASE": "model.rope_base",
    "ROPE_DIMS": "model.rope_dims",
    "XSA_LAST_N": "model.xsa_last_n",
    "LN_SCALE": "model.ln_scale",
    "SKIP_GATES_ENABLED": "model.skip_gates",
    "SMEAR_GATE_ENABLED": "model.smear_gate",
    "NUM_LOOPS": "model.num_loops",
    "LOOP_START": "model.loop_start",
    "LOOP_END": "model.loop_end",
    "BIGRAM_VOCAB_SIZE": "model.bigram_buckets",
    "BIGRAM_DIM": "model.bigram_dim",
    "TOKENIZER_PATH": "data.tokenizer",
}
"""By variable, the config key that has its value."""

COMBINED = ("EMBED_LR", "TIED_EMBED_LR", "MLP_MULT", "EMA_DECAY", "PARALLEL_START_LAYER", "DATA_PATH")
"""Variables whose key or value depends on others."""

WITHOUT_EFFECT = ("RUN_ID", "VAL_BATCH_SIZE", "WARMUP_STEPS", "MUON_BACKEND_STEPS", "CONTROL_TENSOR_NAME_PATTERNS")
"""Variables of the challenge that decide nothing here, or only how long compiling is warmed up."""


def overrides_from_env(environment: Mapping[str, str], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the variables that are set change, by dotted key, and which of them have no effect.

    Args:
        base: nested config that they change.
    Raises:
        ConfigError: a value that is not of its key's type.
    """
    changes: dict[str, Any] = {}
    for name, key in PLAIN.items():
        if name in environment:
            changes[key] = _read(name, environment[name], _like(base, key))

    def value(key: str) -> Any:
        return changes.get(key, _like(base, key))

    is_tied = value("model.tie_embeddings")
    if (name := "TIED_EMBED_LR" if is_tied else "EMBED_LR") in environment:
        changes["embed_lr"] = _read(name, environment[name], 0.0)
    if "MLP_MULT" in environment:
        changes["model.mlp_hidden"] = int(_read("MLP_MULT", environment["MLP_MULT"], 0.0) * value("model.model_dim"))
    if "EMA_DECAY" in environment:
        decay = _read("EMA_DECAY", environment["EMA_DECAY"], 0.0)
        changes |= {"average": "ema", "ema_decay": decay} if decay else {"average": "none"}
    if "PARALLEL_START_LAYER" in environment:
        start = _read("PARALLEL_START_LAYER", environment["PARALLEL_START_LAYER"], 0)
        changes["model.parallel_last_n"] = value("model.num_layers") - start if start >= 0 else 0
    if "DATA_PATH" in environment:
        folder = environment["DATA_PATH"].rstrip("/")
        changes |= {"data.train": f"tokens:{folder}/fineweb_train_*.bin", "data.val": f"tokens:{folder}/fineweb_val_*.bin"}
    unused = "EMBED_LR" if is_tied else "TIED_EMBED_LR"
    return changes, [name for name in (*WITHOUT_EFFECT, unused) if name in environment]


def _like(base: Mapping[str, Any], key: str) -> Any:
    found: Any = base
    for part in key.split("."):
        found = found[part]
    return found


def _read(name: str, text: str, like: Any) -> Any:
    """`text` as the type of `like`; switches are 0 and 1, as in the challenge."""
    readers: dict[type, Callable[[str], Any]] = {bool: lambda t: bool(int(t)), int: int, float: float, str: str}
    try:
        return readers[type(like)](text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {type(like).__name__}, got {text!r}") from error
