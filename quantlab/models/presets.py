"""What the tensors of the challenge's records cannot tell, from a preset or a training config."""

import logging
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError
from quantlab.toml_file import read_toml

log = logging.getLogger(__name__)

RECORDS, LANES = "h1394", "record_1855"
"""Presets by which a checkpoint with skip gates or banks is read, and one with two lanes: later records have their options."""
SHAPES = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden", "tie_embeddings")
"""Fields that the tensors tell."""


def presets() -> dict[str, Path]:
    """Return the presets that come with quantlab, by name."""
    folder = files("quantlab.trainer").joinpath("presets")
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if str(f).endswith(".toml")}


def is_code(spec: str | None) -> bool:
    """Return whether `spec` is given and names a factory in a file of Python, not a preset or a .toml file."""
    return spec is not None and not spec.endswith(".toml") and spec not in presets()


def model_options(spec: str) -> dict[str, Any]:
    """Return the table [model] of a preset or a .toml file without the fields of `SHAPES`.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or [model] is no table.
    """
    raw = read_toml(presets().get(spec, Path(spec)), "config")
    table = raw.get("model", {})
    if not isinstance(table, dict):
        raise ConfigError(f"model in {spec} must be a table, got {table!r:.40}")
    return {key: value for key, value in table.items() if key not in SHAPES}


def record_options(num_layers: int, num_skips: int, *, has_lanes: bool = False) -> dict[str, Any]:
    """Return the options of preset `RECORDS`, or of `LANES`, for a model of so many layers, and say so in the log.

    All layers have exclusive attention and none is parallel, as in the preset. Its loop is kept if the number of skips is that
    with the loop, and left out if it is that without. Other numbers keep the loop too, and the check of shapes then names them.
    """
    preset = LANES if has_lanes else RECORDS
    options = model_options(preset)
    if options.get("lanes_from", 0) >= num_layers:
        del options["lanes_from"]
    options |= {"xsa_last_n": num_layers, "parallel_last_n": 0}
    fits_loop = options["loop_end"] < num_layers
    if not fits_loop or num_skips == num_layers // 2 != passes(options, num_layers) // 2:
        for key in ("num_loops", "loop_start", "loop_end"):
            del options[key]
    shown = ", ".join(f"{key} = {value}" for key, value in options.items() if key not in ("init", "qk_gain_init", "skip_gates"))
    log.warning(
        "the tensors do not tell all of the model: taken from preset %s: %s (--model FILE.toml sets others)", preset, shown
    )
    return options


def passes(options: Mapping[str, Any], num_layers: int) -> int:
    """Return how many blocks run, those of the loop counted as often as they do."""
    return num_layers + int(options["num_loops"]) * (int(options["loop_end"]) - int(options["loop_start"]) + 1)
