"""quantlab unpack"""

from pathlib import Path
from typing import Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import print_json


def unpack(
    artifact: Annotated[Path, typer.Argument(metavar="M.qlab", help="A packed model.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STATE", help="The .safetensors file to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Turn an artifact back into a state dict, bit for bit the one that was measured.

    Example: quantlab unpack model.qlab -o state.safetensors
    """
    import torch

    from quantlab.artifact.decode import decode_artifact, digest, read_artifact
    from quantlab.checkpoint.write import write_safetensors
    from quantlab.files import refuse_existing

    refuse_existing([output], force=force)
    arrays = decode_artifact(*read_artifact(artifact))
    write_safetensors(output, {name: torch.from_numpy(array) for name, array in arrays.items()})
    result = {"state": str(output), "tensors": len(arrays), "tensors_sha256": digest(arrays)}
    if as_json:
        print_json(result)
    else:
        print(f"wrote {output}: {len(arrays)} tensors, sha256 {result['tensors_sha256']}")
