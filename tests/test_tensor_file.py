"""Safetensors files: the same tensors and strings give the same bytes, whatever order they are given in."""

import torch
from safetensors.torch import load_file

from quantlab.tensor_file import read_metadata, write_safetensors


def test_strings_in_any_order_give_the_same_bytes(tmp_path):
    """The safetensors library keeps them in a hash table, whose order differs from process to process and from call to call."""
    tensors = {"a": torch.arange(5.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    strings = {f"key {n}": f"value {n} é" for n in range(12)}
    for n in range(4):
        write_safetensors(tmp_path / f"{n}.safetensors", tensors, dict(list(strings.items())[:: (-1) ** n]))
    first = (tmp_path / "0.safetensors").read_bytes()
    assert all((tmp_path / f"{n}.safetensors").read_bytes() == first for n in range(4))
    assert read_metadata(tmp_path / "0.safetensors") == strings
    found = load_file(tmp_path / "0.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
