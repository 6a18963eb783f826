"""Turn an artifact back into a state dict, or into a folder that transformers loads."""

import io
from pathlib import Path

import torch
from torch import Tensor

from quantlab.artifact.reader import open_artifact
from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.jobs.input_files import input_files
from quantlab.models.huggingface_save import save_like
from quantlab.outputs import check_outputs, claimed, is_same_file
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
        ConfigError: the output exists, has another suffix, is an input too, or is being written by another process; or the
            artifact is of another model than `like`.
        CheckpointError: `like` is damaged.
    """
    if like is not None:
        return _unpack_like(Path(artifact), output, Path(like), force=force)
    if output is None:
        return open_artifact(artifact).tensors()
    path = Path(output)
    if path.name and path.suffix not in (".safetensors", *PICKLES):
        raise ConfigError(
            f"output {path} must end in .safetensors, {', '.join(PICKLES)}", hint="for a folder, pass --like FOLDER"
        )
    with claimed([path], lambda: check_outputs([path], inputs=[Path(artifact)], force=force)):
        tensors = open_artifact(artifact).tensors()
        _write(path, tensors)
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix in PICKLES:
        file = io.BytesIO()
        torch.save(tensors, file)
        write_whole(path, file.getvalue())
    else:
        write_safetensors(path, tensors)


def _unpack_like(artifact: Path, output: str | Path | None, like: Path, *, force: bool) -> dict[str, Tensor]:
    if output is None:
        raise ConfigError(f"like {like} is given without an output", hint="name the folder to write")
    _check_folder(Path(output), [artifact, like, *input_files(like)])
    opened = open_artifact(artifact)
    tensors = opened.tensors()
    save_like(like, opened.manifest.model, tensors, Path(output), artifact=artifact, force=force)
    return tensors


def _check_folder(output: Path, inputs: list[Path]) -> None:
    """Raise ConfigError if the output, which is replaced as a whole, is one of the inputs or holds one."""
    for path in inputs:
        if any(is_same_file(output, place) for place in (path, path.absolute().parent)):
            raise ConfigError(f"output {output} is or holds {path}, an input of the same command", hint="name another folder")
