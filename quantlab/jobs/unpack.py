"""Turn an artifact back into a state dict, or into a folder that transformers loads."""

import io
from pathlib import Path

import torch
from torch import Tensor

from quantlab.artifact.reader import open_artifact
from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.jobs.input_files import input_files
from quantlab.models.huggingface import ADAPTER
from quantlab.models.huggingface_save import save_folder, save_packed
from quantlab.outputs import check_outputs, claimed, is_same_file
from quantlab.tensor_file import write_safetensors

PICKLES = (".pt", ".pth", ".bin")


def unpack(
    artifact: str | Path,
    output: str | Path | None = None,
    *,
    like: str | Path | None = None,
    packed: bool = False,
    force: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of an artifact, bit for bit those that were measured when it was packed.

    Args:
        output: .safetensors, .pt, .pth or .bin file to write them to; or a folder, for a model of transformers: with its config
            and the tokenizer that the artifact carries. Nothing is written without it.
        like: folder of transformers that was packed: the output, a folder, gets its names, dtypes, config and tokenizer.
        packed: whether the weights stay packed in the folder: transformers decodes them when it loads it, after
            `quantlab.models.huggingface_quantizer.register()`.
        force: whether an existing output is replaced.
    Raises:
        FormatError: the artifact is damaged.
        ConfigError: the output exists, has another suffix, is an input too, or is being written by another process; or the
            artifact is of another model than `like`.
        CheckpointError: `like` is damaged.
    """
    if packed and (output is None or like is not None):
        raise ConfigError("a packed folder needs an output, and no like", hint="name the folder to write, leave out like")
    if output is None:
        if like is not None:
            raise ConfigError(f"like {like} is given without an output", hint="name the folder to write")
        return open_artifact(artifact).tensors()
    path, source = Path(output), Path(artifact)
    if like is not None:
        _check_folder(path, [source, Path(like), *input_files(like)])
    opened = open_artifact(source)
    if packed:
        _check_folder(path, [source])
        tensors = opened.tensors()  # which proves that they can be decoded
        save_packed(opened.manifest.model, opened.files(), path, artifact=source, force=force)
        return tensors
    if like is not None or (not path.suffix and opened.manifest.model.get("adapter") == ADAPTER):
        _check_folder(path, [source])
        tensors = opened.tensors()
        about, files, given = opened.manifest.model, opened.files(), None if like is None else Path(like)
        save_folder(about, tensors, files, path, artifact=source, like=given, force=force)
        return tensors
    if path.name and path.suffix not in (".safetensors", *PICKLES):
        raise ConfigError(
            f"output {path} must end in .safetensors, {', '.join(PICKLES)}",
            hint="models of transformers can be written as a folder, whose name has no suffix",
        )
    with claimed([path], lambda: check_outputs([path], inputs=[source], force=force)):
        tensors = opened.tensors()
        _write(path, tensors)
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix not in PICKLES:
        write_safetensors(path, tensors)
        return
    file = io.BytesIO()
    torch.save(tensors, file)
    write_whole(path, file.getvalue())


def _check_folder(output: Path, inputs: list[Path]) -> None:
    """Raise ConfigError if the output, which is replaced as a whole, is one of the inputs or holds one."""
    for path in inputs:
        if any(is_same_file(output, place) for place in (path, path.absolute().parent)):
            raise ConfigError(f"output {output} is or holds {path}, an input of the same command", hint="name another folder")
