"""Write an artifact's model as a folder that transformers loads, in the form of the folder that it was packed from."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from quantlab.errors import ConfigError
from quantlab.files import whole_folder
from quantlab.models.huggingface import ADAPTER, CONFIG, GENERATION, build_plain, library_for, read_about
from quantlab.models.huggingface_files import WEIGHTS, TensorHeader, tensor_headers
from quantlab.tensor_file import write_safetensors

COPIED = (
    *(CONFIG, GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
)
"""Files that are copied as they are, where the folder has them."""
_WRITTEN = re.compile("|".join(map(re.escape, (*COPIED, WEIGHTS))))
ONE_FILE = "1000TB"


def save_like(
    like: Path, about: Mapping[str, Any], state: Mapping[str, Tensor], output: Path, *, artifact: Path, force: bool = False
) -> None:
    """Write a folder with the tensors of an artifact, and with the names, dtypes and other files of the folder `like`.

    Args:
        about: the `model` of the artifact's manifest.
        state: the artifact's tensors.
        output: an absent or empty folder, or with `force` one that this function wrote.
        artifact: names the artifact in errors.
    Raises:
        ConfigError: the artifact is of another model than `like`, or the output exists.
        CheckpointError: `like` or the artifact's config is damaged.
    """
    if about.get("adapter") != ADAPTER:
        raise ConfigError(f"{artifact} was not packed from a model of transformers", hint="leave out --like")
    if read_about(like)["config"] != about.get("config"):
        raise ConfigError(f"{artifact} and {like} have different configs", hint="name the folder that was packed")
    headers = tensor_headers(like)
    module = build_plain(about, state, artifact)
    with whole_folder(output, replaceable=_WRITTEN, force=force) as partial:
        with library_for(artifact):
            module.save_pretrained(partial, max_shard_size=ONE_FILE)
        path = partial / WEIGHTS
        tensors = load_file(path)
        write_safetensors(path, _in_dtypes_of(headers, tensors), {"format": "pt"})
        for name in COPIED:
            if (like / name).is_file():
                (partial / name).write_bytes((like / name).read_bytes())


def _in_dtypes_of(headers: Mapping[str, TensorHeader], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the dtypes that they have in the source; floats of other names in the most common dtype there."""
    values: Counter[torch.dtype] = Counter()
    for header in headers.values():
        values[header.dtype] += header.size if header.dtype.is_floating_point else 0
    usual = values.most_common(1)[0][0]
    dtypes = {name: headers[name].dtype if name in headers else usual for name in tensors}
    return {name: t.to(dtypes[name]) if t.is_floating_point() else t for name, t in tensors.items()}
