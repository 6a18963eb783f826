"""Average the weights of several models of one architecture into one checkpoint.

Source: Wortsman et al., Model soups, arXiv 2203.05482.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantlab.errors import CheckpointError, ConfigError
from quantlab.models.huggingface import ADAPTER
from quantlab.models.loading import LoadedModel, load
from quantlab.models.provenance import Provenance
from quantlab.outputs import check_outputs
from quantlab.tensor_file import write_safetensors
from quantlab.text.document_sample import DocumentSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What was merged."""

    output: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    tensors: int
    averaged: int
    """Floating tensors that differ between the sources; the others are equal in all."""


def merge(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] = (),
    model: str | None = None,
    force: bool = False,
) -> Merged:
    """Write the weighted mean of the sources' weights as a .safetensors file, summed in float64.

    The file names the training documents of all sources, so that an evaluation finds each of them.

    Args:
        sources: two checkpoints or artifacts or more.
        weights: one for each source, which need not sum to 1; equal ones if empty.
        model: as for `quantlab.load`.
    Raises:
        ConfigError: there are too few sources, the weights do not fit, or the output is wrong.
        CheckpointError: the sources differ in architecture, tokenizer, names or shapes, or in a tensor that cannot be averaged.
    """
    path, paths = Path(output), [Path(source) for source in sources]
    shares = _shares(len(paths), weights)
    if path.suffix != ".safetensors":
        raise ConfigError(f"output {path} must be .safetensors")
    check_outputs([path], inputs=[source for source in paths if source.is_file()], force=force)
    first = load(paths[0], model=model)
    if first.config.get("adapter") == ADAPTER:
        raise ConfigError(
            f"{paths[0]} is a model of transformers, which is not merged", hint="merge files of weights with --model"
        )
    past, differing = first.provenance, set[str]()
    sums = {name: tensor.double() * shares[0] for name, tensor in first.state.items() if tensor.is_floating_point()}
    for source, share in zip(paths[1:], shares[1:], strict=True):
        other = load(source, model=model)
        _check_same(first, other)
        for name, tensor in other.state.items():
            if not torch.equal(tensor, first.state[name]):
                differing.add(name)
            if name in sums:
                sums[name] += tensor.double() * share
        past = _both(past, other.provenance, str(source))
    state = {name: sums[name].to(t.dtype) if name in differing else t for name, t in first.state.items()}
    config = {"gpt_config": json.dumps(first.config, sort_keys=True)} if first.config else {}
    write_safetensors(path, state, past.to_metadata() | config)
    named = tuple(map(str, paths))
    return Merged(output=str(path), sources=named, weights=tuple(shares), tensors=len(state), averaged=len(differing))


def _shares(count: int, weights: Sequence[float]) -> list[float]:
    if count < 2:
        raise ConfigError(f"a merge needs two models or more, got {count}")
    if not weights:
        return [1 / count] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights are given for {count} models")
    if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise ConfigError(f"weights must be at least 0, and not all 0, got {', '.join(map(str, weights))}")
    return [weight / sum(weights) for weight in weights]


def _check_same(first: LoadedModel, other: LoadedModel) -> None:
    names = f"{first.name} and {other.name}"
    if (first.config, first.code_sha256) != (other.config, other.code_sha256):
        raise CheckpointError(f"{names} differ in their architecture")
    if first.tokenizer_sha256 and other.tokenizer_sha256 and first.tokenizer_sha256 != other.tokenizer_sha256:
        raise CheckpointError(f"{names} were trained with different tokenizers")
    if first.state.keys() != other.state.keys():
        name = sorted(first.state.keys() ^ other.state.keys())[0]
        raise CheckpointError(f"{names}: tensor {name} is in one of them alone")
    for name, tensor in first.state.items():
        if tensor.shape != other.state[name].shape:
            raise CheckpointError(
                f"{names}: tensor {name} is {_shape(tensor)} in one, {_shape(other.state[name])} in the other"
            )
        if not tensor.is_floating_point() and not torch.equal(tensor, other.state[name]):
            raise CheckpointError(f"{names}: tensor {name} of {tensor.dtype} differs, and cannot be averaged")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _both(one: Provenance, other: Provenance, where: str) -> Provenance:
    """Return the past of a merged model: the documents of both; what differs otherwise is not known any more."""
    return Provenance(
        seq_len=one.seq_len if one.seq_len == other.seq_len else 0,
        mode=one.mode if one.mode == other.mode else "",
        tokenizer_sha256=one.tokenizer_sha256 if one.tokenizer_sha256 == other.tokenizer_sha256 else "",
        training=_union(one.training, other.training, where),
        calibration=_union(one.calibration, other.calibration, where),
    )


def _union(one: str, other: str, where: str) -> str:
    if not one or not other:
        return one or other
    return DocumentSample.from_text(one, where).union(DocumentSample.from_text(other, where)).to_text()
