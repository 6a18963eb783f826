"""Turn an artifact back into a state dict."""

from pathlib import Path

from torch import Tensor

from quantlab.artifact.reader import open_artifact
from quantlab.files import refuse_existing
from quantlab.tensor_file import write_safetensors


def unpack(artifact: str | Path, output: str | Path | None = None, *, force: bool = False) -> dict[str, Tensor]:
    """Return the tensors of an artifact, bit for bit those that were measured when it was packed.

    Args:
        output: .safetensors file to write them to; nothing is written without it.
        force: whether an existing output is replaced.
    Raises:
        FormatError: the artifact is damaged.
        ConfigError: the output exists.
    """
    if output is not None:
        refuse_existing([Path(output)], force=force)
    tensors = open_artifact(artifact).tensors()
    if output is not None:
        write_safetensors(Path(output), tensors)
    return tensors
