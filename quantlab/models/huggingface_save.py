"""Write an artifact's model as a folder that transformers loads, in the form of the folder that it was packed from."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from quantlab.artifact.manifest import FILE_NAMES
from quantlab.errors import ConfigError
from quantlab.files import whole_folder
from quantlab.models.huggingface import ADAPTER, CONFIG, GENERATION, build_plain, library_for, read_about
from quantlab.models.huggingface_files import WEIGHTS, TensorHeader, tensor_headers, usual_dtype
from quantlab.models.huggingface_quantizer import METHOD, TENSOR, artifact_tensor
from quantlab.tensor_file import write_safetensors

COPIED = (CONFIG, GENERATION, *FILE_NAMES, "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
"""Files that are copied as they are from the folder that was packed, where it has them."""
_WRITTEN = re.compile("|".join(map(re.escape, (*COPIED, WEIGHTS))))
ONE_FILE = "1000TB"


def save_folder(
    about: Mapping[str, Any],
    state: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    output: Path,
    *,
    artifact: Path,
    like: Path | None = None,
    force: bool = False,
) -> None:
    """Write a folder with the tensors of an artifact, its config, and the files of the tokenizer that it carries.

    Args:
        about: the `model` of the artifact's manifest.
        state: the artifact's tensors.
        files: files of the tokenizer, by name.
        output: an absent or empty folder, or with `force` one that this function wrote.
        artifact: names the artifact in errors.
        like: the folder that was packed: gives the dtype of each tensor, and its own files in place of the artifact's. Without
            it floats have the dtype that the config names.
    Raises:
        ConfigError: the artifact is of another model than `like`, or the output exists.
        CheckpointError: `like` or the artifact's config is damaged.
    """
    if about.get("adapter") != ADAPTER:
        raise ConfigError(
            f"{artifact} was not packed from a model of transformers", hint="write a .safetensors file, without --like"
        )
    if like is not None and read_about(like)["config"] != about.get("config"):
        raise ConfigError(f"{artifact} and {like} have different configs", hint="name the folder that was packed")
    headers = {} if like is None else tensor_headers(like)
    usual = usual_dtype(headers) or _config_dtype(about["config"])
    module = build_plain(about, state, artifact)
    with whole_folder(output, replaceable=_WRITTEN, force=force) as partial:
        with library_for(artifact):
            module.save_pretrained(partial, max_shard_size=ONE_FILE)
        path = partial / WEIGHTS
        write_safetensors(path, _in_dtypes_of(headers, usual, load_file(path)), {"format": "pt"})
        _name_dtype(partial / CONFIG, usual)
        for name in COPIED:
            if like is not None and (like / name).is_file():
                (partial / name).write_bytes((like / name).read_bytes())
            elif name in files:
                (partial / name).write_bytes(files[name])


def save_packed(
    about: Mapping[str, Any], files: Mapping[str, bytes], output: Path, *, artifact: Path, force: bool = False
) -> None:
    """Write a folder whose weights stay packed: transformers decodes them after `huggingface_quantizer.register`.

    Args:
        about, files, output, force: as of `save_folder`.
        artifact: the file whose bytes become the folder's weights.
    Raises:
        ConfigError: the artifact is not of a model of transformers, or the output exists.
    """
    if about.get("adapter") != ADAPTER:
        raise ConfigError(f"{artifact} was not packed from a model of transformers", hint="leave out --packed")
    config = {**about["config"], "quantization_config": {"quant_method": METHOD}}
    with whole_folder(output, replaceable=_WRITTEN, force=force) as partial:
        write_safetensors(partial / WEIGHTS, {TENSOR: artifact_tensor(artifact.read_bytes())}, {"format": "pt"})
        for name, content in ((CONFIG, config), (GENERATION, about.get("generation_config"))):
            if content:
                (partial / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        for name, data in files.items():
            (partial / name).write_bytes(data)


def _config_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype that a config names; float32 where it names none."""
    name = config.get("dtype") or config.get("torch_dtype")  # transformers before version 5 has the second
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return known.get(name, torch.float32) if isinstance(name, str) else torch.float32


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write into a saved config.json that its weights have this dtype."""
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _in_dtypes_of(headers: Mapping[str, TensorHeader], usual: torch.dtype, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the dtypes that they have in the source; floats of other names in the usual one."""
    dtypes = {name: headers[name].dtype if name in headers else usual for name in tensors}
    return {name: t.to(dtypes[name]) if t.is_floating_point() else t for name, t in tensors.items()}
