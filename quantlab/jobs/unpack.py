"""Turn an artifact back into a state dict, or into a folder that transformers loads."""

import io
from pathlib import Path

import torch
from torch import Tensor

from quantlab.artifact.reader import open_artifact
from quantlab.errors import ConfigError
from quantlab.files import refuse_existing, write_whole
from quantlab.models.huggingface_save import save_like
from quantlab.tensor_file import write_safetensors

PICKLES = (".pt", ".pth", ".bin")


def unpack(
    artifact: str | Path,
    output: str | Path | None = None,
    *,
    like: str | Path | None = None,
    force: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of an artifact, bit for bit those that were measured when it was packed.

    Args:
        output: .safetensors, .pt, .pth or .bin file to write them to, or a folder with `like`; nothing is written without it.
        like: folder of transformers that was packed: the output gets its names, dtypes, config and tokenizer.
        force: whether an existing output is replaced.
    Raises:
        FormatError: the artifact is damaged.
        ConfigError: the output exists or has another suffix, or the artifact is of another model than `like`.
        CheckpointError: `like` is damaged.
    """
    if like is not None:
        return _unpack_like(Path(artifact), output, Path(like), force=force)
    path = None if output is None else Path(output)
    if path is not None:
        refuse_existing([path], force=force)
        if path.suffix not in (".safetensors", *PICKLES):
            raise ConfigError(
                f"output {path} must end in .safetensors, {', '.join(PICKLES)}", hint="for a folder, pass --like FOLDER"
            )
    tensors = open_artifact(artifact).tensors()
    if path is not None and path.suffix in PICKLES:
        file = io.BytesIO()
        torch.save(tensors, file)
        write_whole(path, file.getvalue())
    elif path is not None:
        write_safetensors(path, tensors)
    return tensors


def _unpack_like(artifact: Path, output: str | Path | None, like: Path, *, force: bool) -> dict[str, Tensor]:
    if output is None:
        raise ConfigError(f"like {like} is given without an output", hint="name the folder to write")
    opened = open_artifact(artifact)
    tensors = opened.tensors()
    save_like(like, opened.manifest.model, tensors, Path(output), artifact=artifact, force=force)
    return tensors
