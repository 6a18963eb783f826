"""Read the environment variables of the challenge's train_gpt.py as config keys, so that its published commands can be used."""

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
"""The config key that takes the value of each variable."""

WITHOUT_EFFECT = (
    "RUN_ID",
    "VAL_BATCH_SIZE",
    "VAL_BATCH_TOKENS",
    "WARMUP_STEPS",
    "MUON_BACKEND_STEPS",
    "MUON_BETA2",
    "CONTROL_TENSOR_NAME_PATTERNS",
    "INT8_KEEP_FLOAT_FP32_NAME_PATTERNS",
    "ROPE_TRAIN_SEQ_LEN",
    "EVAL_SEQ_LEN",
    "EVAL_STRIDE",
    "SLIDING_WINDOW_ENABLED",
    "COMPRESSOR",
    "GPTQ_CALIBRATION_BATCHES",
    "MATRIX_BITS",
    "EMBED_BITS",
    "MATRIX_CLIP_SIGMAS",
    "EMBED_CLIP_SIGMAS",
)
"""Variables of the challenge's scripts without effect in this trainer: those of evaluation, packing and warm-up length."""

EMBED_LR = {True: 0.05, False: 0.6}
"""Learning rate of the embedding in the challenge's baseline, by whether it is tied."""


def overrides_from_env(environment: Mapping[str, str], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the changes that the set variables make, by dotted key, and the names of those without effect.

    Args:
        environment: variables by name.
        base: the nested config to be changed.
    Raises:
        ConfigError: a value is not of its key's type, or EMBEDDING_DIM differs from MODEL_DIM.
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
    elif is_tied != _like(base, "model.tie_embeddings"):
        changes["embed_lr"] = EMBED_LR[is_tied]
    changes |= _shape(environment, base, value) | _schedule(environment, value) | _data(environment, value)
    unused = "EMBED_LR" if is_tied else "TIED_EMBED_LR"
    return changes, [name for name in (*WITHOUT_EFFECT, unused) if name in environment]


Value = Callable[[str], Any]
"""Returns the value of a dotted key after the variables in `PLAIN` are applied."""


def _shape(environment: Mapping[str, str], base: Mapping[str, Any], value: Value) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    multiple = _like(base, "model.mlp_hidden") / _like(base, "model.model_dim")
    multiple = _read("MLP_MULT", environment.get("MLP_MULT", str(multiple)), 0.0)
    changes["model.mlp_hidden"] = int(multiple * value("model.model_dim"))
    if _read("EMBEDDING_DIM", environment.get("EMBEDDING_DIM", "0"), 0) not in (0, value("model.model_dim")):
        raise ConfigError(f"EMBEDDING_DIM must be MODEL_DIM = {value('model.model_dim')}, got {environment['EMBEDDING_DIM']}")
    if "PARALLEL_START_LAYER" in environment:
        start = _read("PARALLEL_START_LAYER", environment["PARALLEL_START_LAYER"], 0)
        changes["model.parallel_last_n"] = value("model.num_layers") - start if start >= 0 else 0
    return changes


def _schedule(environment: Mapping[str, str], value: Value) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "WARMDOWN_ITERS" in environment:
        changes["warmdown_frac"] = 0.0
    elif "WARMDOWN_FRAC" in environment:
        changes["warmdown_steps"] = 0
    if "EMA_DECAY" in environment:
        decay = _read("EMA_DECAY", environment["EMA_DECAY"], 0.0)
        changes |= {"average": "ema", "ema_decay": decay} if decay else {"average": "none"}
    if "GPTQ_RESERVE_SECONDS" in environment and value("max_seconds"):
        reserve = _read("GPTQ_RESERVE_SECONDS", environment["GPTQ_RESERVE_SECONDS"], 0.0)
        changes["max_seconds"] = value("max_seconds") - reserve
    if "TRAIN_LOG_EVERY" in environment:
        changes["log_every"] = value("log_every") or value("steps")
    if "TRAIN_BATCH_TOKENS" in environment or "TRAIN_SEQ_LEN" in environment:
        # eight micro batches, or as near to eight as divides the batch
        sequences = value("batch_tokens") // value("seq_len")
        rows = next((n for n in range(max(1, sequences // 8), 0, -1) if sequences % n == 0), 1)
        changes["micro_batch_tokens"] = rows * value("seq_len")
    return changes


def _data(environment: Mapping[str, str], value: Value) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    folder = environment.get("DATA_PATH", "").rstrip("/")
    if "DATA_DIR" in environment:
        data, vocab = environment["DATA_DIR"].rstrip("/"), value("model.vocab_size")
        folder = folder or f"{data}/datasets/fineweb10B_sp{vocab}"
        if "TOKENIZER_PATH" not in environment:
            changes["data.tokenizer"] = f"{data}/tokenizers/fineweb_{vocab}_bpe.model"
    if folder:
        changes |= {"data.train": f"tokens:{folder}/fineweb_train_*.bin", "data.val": f"tokens:{folder}/fineweb_val_*.bin"}
    return changes


def _like(base: Mapping[str, Any], key: str) -> Any:
    found: Any = base
    for part in key.split("."):
        found = found[part]
    return found


def _read(name: str, text: str, like: Any) -> Any:
    """Return `text` as a value of the type of `like`; booleans are 0 and 1, as in the challenge."""
    readers: dict[type, Callable[[str], Any]] = {bool: lambda t: bool(int(t)), int: int, float: float, str: str}
    try:
        return readers[type(like)](text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {type(like).__name__}, got {text!r}") from error
