"""Read the environment variables of the challenge's train_gpt.py as config keys, so that its published commands can be used."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from quantlab.errors import ConfigError

Rule = str | tuple[str, ...] | None
"""Effect of a variable: the config key that takes its value; the only values that are taken, which change nothing here; or
None for no effect."""
SEVERAL = "several keys"
"""Rule of variables that decide more than one key, or a key that depends on others; the functions below read them."""
OFF = ("0",)

TABLE: dict[str, dict[str, Rule]] = {
    "training": {
        "SEED": "seed",
        "ITERATIONS": "steps",
        "TRAIN_BATCH_TOKENS": "batch_tokens",
        "TRAIN_SEQ_LEN": "seq_len",
        "MAX_WALLCLOCK_SECONDS": "max_seconds",
        "GPTQ_RESERVE_SECONDS": SEVERAL,
        "WARMDOWN_ITERS": "warmdown_steps",
        "WARMDOWN_FRAC": "warmdown_frac",
        "MIN_LR": "min_lr",
        "TRAIN_LOG_EVERY": "log_every",
        "VAL_LOSS_EVERY": "val_every",
        "EMA_DECAY": SEVERAL,
    },
    "optimizers": {
        "MATRIX_LR": "matrix_lr",
        "SCALAR_LR": "scalar_lr",
        "HEAD_LR": "head_lr",
        "EMBED_LR": SEVERAL,
        "TIED_EMBED_LR": SEVERAL,
        "MUON_MOMENTUM": "muon_momentum",
        "MUON_MOMENTUM_WARMUP_START": "muon_momentum_start",
        "MUON_MOMENTUM_WARMUP_STEPS": "muon_momentum_warmup_steps",
        "MUON_ROW_NORMALIZE": "muon_normalize_rows",
        "MUON_BACKEND_STEPS": ("5",),
        "BETA1": "beta1",
        "BETA2": "beta2",
        "ADAM_EPS": "adam_eps",
        "GRAD_CLIP_NORM": "grad_clip",
        "MUON_WD": "weight_decay",
        "EMBED_WD": "embed_weight_decay",
        "ADAM_WD": "scalar_weight_decay",
    },
    "model": {
        "VOCAB_SIZE": "model.vocab_size",
        "NUM_LAYERS": "model.num_layers",
        "MODEL_DIM": "model.model_dim",
        "EMBEDDING_DIM": SEVERAL,
        "MLP_MULT": SEVERAL,
        "NUM_HEADS": "model.num_heads",
        "NUM_KV_HEADS": "model.num_kv_heads",
        "TIE_EMBEDDINGS": "model.tie_embeddings",
        "TIED_EMBED_INIT_STD": "model.tied_embed_init_std",
        "LOGIT_SOFTCAP": "model.logit_softcap",
        "QK_GAIN_INIT": "model.qk_gain_init",
        "ROPE_BASE": "model.rope_base",
        "ROPE_DIMS": "model.rope_dims",
        "ROPE_TRAIN_SEQ_LEN": SEVERAL,
        "ROPE_YARN": OFF,
        "XSA_LAST_N": "model.xsa_last_n",
        "LN_SCALE": "model.ln_scale",
        "SKIP_GATES_ENABLED": "model.skip_gates",
        "SMEAR_GATE_ENABLED": "model.smear_gate",
        "NUM_LOOPS": "model.num_loops",
        "LOOP_START": "model.loop_start",
        "LOOP_END": "model.loop_end",
        "ENABLE_LOOPING_AT": "loop_from",
        "BIGRAM_VOCAB_SIZE": "model.bigram_buckets",
        "BIGRAM_DIM": "model.bigram_dim",
    },
    "parts of the model that are not built here": {
        "PARALLEL_START_LAYER": SEVERAL,
        "PARALLEL_FINAL_LANE": None,
        "ATTN_OUT_GATE_ENABLED": OFF,
        "ATTN_OUT_GATE_SRC": None,
        "GATED_ATTN_ENABLED": OFF,
        "GATED_ATTN_INIT_STD": None,
        "GATED_ATTN_QUANT_GATE": None,
        "SPARSE_ATTN_GATE_ENABLED": OFF,
        "SPARSE_ATTN_GATE_INIT_STD": None,
        "SPARSE_ATTN_GATE_SCALE": None,
        "GATE_WINDOW": ("12",),
    },
    "data": {
        "DATA_PATH": SEVERAL,
        "DATA_DIR": SEVERAL,
        "TOKENIZER_PATH": "data.tokenizer",
        "CASEOPS_ENABLED": OFF,
    },
    "warm-up, kernels, names": dict.fromkeys(
        ("RUN_ID", "ARTIFACT_DIR", "WARMUP_STEPS", "FUSED_CE_ENABLED", "VAL_BATCH_SIZE", "VAL_BATCH_TOKENS", "MUON_BETA2")
    ),
    "packing": {
        **dict.fromkeys(("COMPRESSOR", "GPTQ_CALIBRATION_BATCHES", "MATRIX_BITS", "EMBED_BITS", "PREQUANT_ONLY")),
        **dict.fromkeys(("MATRIX_CLIP_SIGMAS", "EMBED_CLIP_SIGMAS", "MLP_CLIP_SIGMAS", "ATTN_CLIP_SIGMAS")),
        **dict.fromkeys(
            ("LQER_ENABLED", "LQER_RANK", "LQER_TOP_K", "LQER_FACTOR_BITS", "LQER_ASYM_ENABLED", "LQER_ASYM_GROUP")
        ),
        **dict.fromkeys(("CONTROL_TENSOR_NAME_PATTERNS", "INT8_KEEP_FLOAT_FP32_NAME_PATTERNS")),
    },
    "evaluation": {
        **dict.fromkeys(("EVAL_SEQ_LEN", "EVAL_STRIDE", "SLIDING_WINDOW_ENABLED", "VAL_DOC_FRACTION")),
        "TTT_EVAL_ONLY": OFF,
        **dict.fromkeys(
            ("TTT_ENABLED", "TTT_LORA_RANK", "TTT_LORA_LR", "TTT_LORA_ALPHA", "TTT_CHUNK_SIZE", "TTT_EVAL_SEQ_LEN")
        ),
        **dict.fromkeys(("TTT_BATCH_SIZE", "TTT_GRAD_STEPS", "TTT_WEIGHT_DECAY", "TTT_BETA1", "TTT_BETA2", "TTT_OPTIMIZER")),
        **dict.fromkeys(("TTT_EVAL_BATCHES", "TTT_K_LORA", "TTT_MLP_LORA", "TTT_O_LORA")),
        **dict.fromkeys(("PHASED_TTT_PREFIX_DOCS", "PHASED_TTT_NUM_PHASES", "GLOBAL_TTT_LR", "GLOBAL_TTT_MOMENTUM")),
        **dict.fromkeys(("GLOBAL_TTT_EPOCHS", "GLOBAL_TTT_CHUNK_TOKENS", "GLOBAL_TTT_BATCH_SEQS", "GLOBAL_TTT_GRAD_CLIP")),
        **dict.fromkeys(
            ("TTT_WARM_START_A", "GLOBAL_TTT_WARMUP_START_LR", "GLOBAL_TTT_WARMUP_CHUNKS", "GLOBAL_TTT_RESPECT_DOC_BOUNDARIES")
        ),
    },
    "processes, read by torchrun's own rules": dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK"), SEVERAL),
}
"""Every variable that the challenge's baseline and its records of 2026-04-05 and 2026-04-27 read, by group."""
OTHER_SCRIPTS = re.compile(
    "(ADAM|ATTN|AWQ|BANK|BIGRAM|BLOCK|CANON|CASEOPS|CLIP|CONTROL|DTG|EMA|EMBED|EVAL|FP16|FP|FUSED|GATE|GATED|GLOBAL_TTT|GPTQ|"
    "GRAD|HEAD|HESSIAN|INT[468]|LATE|LAWA|LN|LOOP|LORA|LQER|MATRIX|MIN|MLP|MTP|MUON|NEGATIVE|NUM|PARALLEL|PHASED_TTT|POLAR|"
    "PRUNE|QAT|QK|QUANT|RECUR|REPEAT|ROPE|SCALAR|SKIP|SLOT|SMEAR|SPARSE|SWA|TIED|TRAIN|TRIGRAM|TTT|UNTIE|USE_(GPTQ|INT6|SMEARGATE|"
    "ZSTD)|VAL|VALUE|VE|WARMDOWN|WARMUP|WD|WEIGHT|XSA)(_[A-Z0-9_]+)?"
)
"""Names that the challenge's other scripts use; one that is not in the table is refused, for it may change the model."""
RULES = {name: rule for group in TABLE.values() for name, rule in group.items()}
PLAIN = {name: rule for name, rule in RULES.items() if isinstance(rule, str) and rule != SEVERAL}
"""The config key that takes the value of each variable."""

EMBED_LR = {True: 0.05, False: 0.6}
"""Learning rate of the embedding in the challenge's baseline, by whether it is tied."""


def overrides_from_env(environment: Mapping[str, str], base: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the changes that the set variables make, by dotted key, and the names of those without effect.

    Args:
        environment: variables by name.
        base: the nested config to be changed.
    Raises:
        ConfigError: a value is not of its key's type, or a variable would make another model or training than there is here.
    """
    _refuse(environment)
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
    without = [name for name, rule in RULES.items() if name in environment and (rule is None or name == unused)]
    return changes, without


def _refuse(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for a variable that would make another model or another training than this trainer has."""
    for name, text in environment.items():
        rule = RULES.get(name, SEVERAL)
        if isinstance(rule, tuple) and text.strip() not in rule:
            raise ConfigError(f"{name} must be {' or '.join(rule)} here, got {text!r}: {_group(name)}", hint=f"unset {name}")
        if name not in RULES and OTHER_SCRIPTS.fullmatch(name):
            raise ConfigError(f"{name} is not read by this trainer, and it may change the model", hint=f"unset {name}")


def _group(name: str) -> str:
    return next(group for group, rules in TABLE.items() if name in rules)


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
        start, layers = _read("PARALLEL_START_LAYER", environment["PARALLEL_START_LAYER"], 0), value("model.num_layers")
        if 0 < start < layers:
            reason = f"it makes a decoder of two lanes from layer {start} of {layers} on, which is not built here"
            raise ConfigError(f"PARALLEL_START_LAYER must be 0 here, got {start}: {reason}", hint="unset PARALLEL_START_LAYER")
        changes["model.parallel_last_n"] = 0
    rope = _read("ROPE_TRAIN_SEQ_LEN", environment.get("ROPE_TRAIN_SEQ_LEN", str(value("seq_len"))), 0)
    if rope < value("seq_len"):
        raise ConfigError(f"ROPE_TRAIN_SEQ_LEN must be TRAIN_SEQ_LEN = {value('seq_len')} or more here, got {rope}")
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
