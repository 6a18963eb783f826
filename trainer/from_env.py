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
        "WD_TAPER_START_FRAC": "wd_taper_from",
        "WD_TAPER_FINAL_MULT": "wd_taper_to",
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
        "ROPE_YARN": SEVERAL,
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
        "PARALLEL_START_LAYER": SEVERAL,
        "PARALLEL_FINAL_LANE": SEVERAL,
        "ATTN_OUT_GATE_ENABLED": SEVERAL,
        "GATED_ATTN_ENABLED": SEVERAL,
        "SPARSE_ATTN_GATE_ENABLED": SEVERAL,
        "SPARSE_ATTN_GATE_SCALE": SEVERAL,
        "VE_ENABLED": SEVERAL,
        "VE_DIM": SEVERAL,
        "VE_LAYERS": SEVERAL,
    },
    "parts of the model that are built here in one way": {
        "ATTN_OUT_GATE_SRC": ("proj",),
        "GATED_ATTN_INIT_STD": ("0.01",),
        "SPARSE_ATTN_GATE_INIT_STD": ("0.0", "0"),
        "GATE_WINDOW": ("12",),
    },
    "data": {
        "DATA_PATH": SEVERAL,
        "DATA_DIR": SEVERAL,
        "TOKENIZER_PATH": "data.tokenizer",
        "CASEOPS_ENABLED": SEVERAL,
    },
    "warm-up, kernels, names": dict.fromkeys(
        ("RUN_ID", "ARTIFACT_DIR", "WARMUP_STEPS", "FUSED_CE_ENABLED", "VAL_BATCH_SIZE", "VAL_BATCH_TOKENS", "MUON_BETA2")
    ),
    "packing": {
        "GATED_ATTN_QUANT_GATE": None,
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

CASEOPS = "_lossless_caps_caseops_v1_reserved"
"""End of the names of the record's CaseOps data and tokenizer."""
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
    if "EMBEDDING_DIM" in environment:
        width = _read("EMBEDDING_DIM", environment["EMBEDDING_DIM"], 0)
        changes["model.embedding_dim"] = 0 if width == value("model.model_dim") else width
    if "ROPE_YARN" in environment or "ROPE_TRAIN_SEQ_LEN" in environment:  # earlier scripts scale always
        is_on = _read("ROPE_YARN", environment.get("ROPE_YARN", "1"), False)
        longest = _read("ROPE_TRAIN_SEQ_LEN", environment.get("ROPE_TRAIN_SEQ_LEN", str(value("seq_len"))), 0)
        changes["model.rope_train_len"] = longest if is_on else 0
    return changes | _lanes(environment, base, value) | _gate(environment, base) | _value_embedding(environment, base, value)


def _lanes(environment: Mapping[str, str], base: Mapping[str, Any], value: Value) -> dict[str, Any]:
    """Return the changes of the two-lane decoder; a layer beyond the last one turns it off, as in the script."""
    changes: dict[str, Any] = {}
    start = _like(base, "model.lanes_from")
    if "PARALLEL_START_LAYER" in environment:
        start = _read("PARALLEL_START_LAYER", environment["PARALLEL_START_LAYER"], 0)
        start = start if 0 < start < value("model.num_layers") else 0
        changes |= {"model.lanes_from": start, "model.parallel_last_n": 0}
    if "PARALLEL_FINAL_LANE" in environment:
        lane = environment["PARALLEL_FINAL_LANE"].lower()
        changes["model.final_lane"] = (lane if lane in ("mlp", "attn") else "mean") if start else "mean"
    return changes


GATE_SWITCHES = {"ATTN_OUT_GATE_ENABLED": "double", "GATED_ATTN_ENABLED": "full", "SPARSE_ATTN_GATE_ENABLED": "sparse"}
"""Kind of gate that each of these variables turns on."""


def _gate(environment: Mapping[str, str], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of the gate of attention outputs, of which there is one kind at most."""
    before = _like(base, "model.attn_gate")
    states = {
        kind: _read(n, environment[n], False) if n in environment else kind == before for n, kind in GATE_SWITCHES.items()
    }
    on = [kind for kind, is_on in states.items() if is_on]
    if len(on) > 1:
        names = [name for name, kind in GATE_SWITCHES.items() if kind in on]
        raise ConfigError(f"{' and '.join(names)} exclude each other", hint=f"set {names[0]} to 0")
    kind = on[0] if on else "none"
    scale = environment.get("SPARSE_ATTN_GATE_SCALE", str(_like(base, "model.attn_gate_scale")))
    changes: dict[str, Any] = {} if kind == before else {"model.attn_gate": kind}
    if changes or "SPARSE_ATTN_GATE_SCALE" in environment:
        changes["model.attn_gate_scale"] = _read("SPARSE_ATTN_GATE_SCALE", scale, 0.0) if kind == "sparse" else 1.0
    return changes


def _value_embedding(environment: Mapping[str, str], base: Mapping[str, Any], value: Value) -> dict[str, Any]:
    """Return the changes of the value embedding, whose layers must be the last ones."""
    if not {"VE_ENABLED", "VE_DIM", "VE_LAYERS"} & environment.keys():
        return {}
    is_on = bool(_like(base, "model.value_dim"))
    if "VE_ENABLED" in environment:
        is_on = _read("VE_ENABLED", environment["VE_ENABLED"], False)
    if not is_on:
        return {"model.value_dim": 0, "model.value_last_n": 0} if "VE_ENABLED" in environment else {}
    layers = [_read("VE_LAYERS", part, 0) for part in environment.get("VE_LAYERS", "9,10").split(",") if part.strip()]
    last = list(range(value("model.num_layers") - len(layers), value("model.num_layers")))
    if layers != last:
        raise ConfigError(
            f"VE_LAYERS must be the last layers here, {last}, got {layers}", hint="set VE_LAYERS, or VE_ENABLED to 0"
        )
    width = _read("VE_DIM", environment.get("VE_DIM", "128"), 0)
    return {"model.value_dim": width, "model.value_last_n": len(layers)}


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
    ending = CASEOPS if _read("CASEOPS_ENABLED", environment.get("CASEOPS_ENABLED", "0"), False) else ""
    if "DATA_DIR" in environment:
        data, vocab = environment["DATA_DIR"].rstrip("/"), value("model.vocab_size")
        data += f"/datasets/fineweb10B_sp{vocab}_caseops/datasets" if ending else ""
        folder = folder or f"{data}/datasets/fineweb10B_sp{vocab}{ending}"
        if "TOKENIZER_PATH" not in environment:
            changes["data.tokenizer"] = f"{data}/tokenizers/fineweb_{vocab}_bpe{ending}.model"
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
