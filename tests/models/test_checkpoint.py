"""Checkpoints of every common kind are read, and every way in which one can be wrong is named."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from quantlab.errors import CheckpointError
from quantlab.models.checkpoint import read_checkpoint
from quantlab.models.loading import load
from quantlab.models.weights import is_matrix, split_state
from quantlab.tensor_file import fingerprint, read_metadata, write_safetensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.ones(3, dtype=torch.bfloat16)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}, "step": 7},
        {"state_dict": STATE, "epoch": torch.tensor(3), "rng": torch.zeros(5)},
        {f"module.{k}": v for k, v in STATE.items()},
        {"model": {f"_orig_mod.module.{k}": v for k, v in STATE.items()}},
        {**STATE, "step": 12, "note": "x"},
    ],
    ids=["plain", "nested", "state_dict", "ddp", "compiled", "with scalars"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_torch_files_plain_or_nested(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(content, path)
    assert same(read_checkpoint(path), STATE)


def test_safetensors_and_shards(tmp_path):
    save_file(STATE, tmp_path / "one.safetensors")
    assert same(read_checkpoint(tmp_path / "one.safetensors"), STATE)
    folder = tmp_path / "shards"
    folder.mkdir()
    for index, (name, tensor) in enumerate(STATE.items()):
        save_file({name: tensor}, folder / f"model-{index}.safetensors")
    assert same(read_checkpoint(folder), STATE)
    save_file({"b": torch.zeros(1)}, folder / "model-9.safetensors")
    with pytest.raises(CheckpointError, match="tensor b is in .*model-9.* earlier shard"):
        read_checkpoint(folder)


def test_a_folder_follows_its_index_and_leaves_our_own_files_out(tmp_path):
    names = list(STATE)
    for index, name in enumerate(names):
        save_file({name: STATE[name]}, tmp_path / f"model-{index}.safetensors")
    write_safetensors(tmp_path / "stats.safetensors", {"product.H.a": torch.eye(2)}, {"quantlab_statistics": "{}"})
    assert same(read_checkpoint(tmp_path), STATE)
    weight_map = {name: f"model-{index}.safetensors" for index, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "other.safetensors").write_bytes(b"junk that the index does not list")
    assert same(read_checkpoint(tmp_path), STATE)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json must be a JSON object"):
        read_checkpoint(tmp_path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    for name, writer in (("a.pt", torch.save), ("b.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        writer({"w": Evil()}, tmp_path / name)
        with pytest.raises(CheckpointError, match="damaged or holds more than tensors|damaged"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "damaged"),
        ("junk.pt", b"not a checkpoint at all", "damaged"),
        ("junk.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "damaged"),
        ("weights.npz", b"", "damaged"),
        ("weights.ptz", b"", "damaged"),
        ("weights.gguf", b"", r"must be \.pt"),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_every_truncation_of_a_torch_file_is_noticed(tmp_path):
    torch.save(STATE, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "m.pt").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.tensor([1.0, float("nan"), float("inf")])}, "tensor a has 2 values that are not finite"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor a is torch.complex64, allowed are float16"),
        ({"a": torch.tensor([1e31])}, "tensor a has a value beyond"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
        ({"step": 3}, "no state dict among its keys: step"),
        ([torch.ones(1)], "holds a list"),
        ({}, "no state dict"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "two tensors are named a"),
    ],
)
def test_unusable_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "m.pt")


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors"):
        read_checkpoint(tmp_path)


def test_metadata_of_a_safetensors_file(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", STATE, {"gpt_config": "{}"})
    assert read_metadata(tmp_path / "m.safetensors") == {"gpt_config": "{}"}
    torch.save(STATE, tmp_path / "m.pt")
    assert read_metadata(tmp_path / "m.pt") == {}


BIG = torch.zeros(64, 64)


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("tok_emb.weight", BIG, True),
        ("blocks.0.attn.proj.weight", BIG.bfloat16(), True),
        ("model.layers.3.mlp.gate_proj.weight", BIG, True),
        ("blocks.0.mlp.fc.weight", torch.zeros(63, 64), False),
        ("skip_weights", torch.zeros(8, 1024), False),
        ("blocks.0.attn.attn_gate", torch.zeros(8, 512), False),
        ("mlp.gate.weight", BIG, True),
        ("lora_a.weight", torch.zeros(8, 1024), True),
        ("blocks.0.resid_mix", torch.zeros(2, 4096), False),
        ("blocks.1.attn_scale", torch.zeros(5000), False),
        ("final_norm.weight", torch.zeros(5000), False),
        ("table", BIG.long(), False),
        ("conv.weight", torch.zeros(4, 4, 64, 64), False),
    ],
)
def test_what_is_a_matrix(name, tensor, expected):
    assert is_matrix(name, tensor) is expected


def test_split_is_complete_and_ordered():
    state = {"z.weight": BIG, "a.weight": BIG.half(), "n": torch.ones(3)}
    split = split_state(state)
    assert list(split.matrices) == ["a.weight", "z.weight"] and list(split.unquantized) == ["n"]
    assert all(m.dtype == torch.float32 for m in split.matrices.values())


def test_fingerprint_sees_names_shapes_types_and_values():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"c": base["a"], "b": base["b"]},
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3).half()},
        {**base, "b": torch.ones(1) * 2},
    ]
    assert len({fingerprint(s) for s in [base, *others]}) == 5
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)


class _Code:
    """Runs a command where a pickle is loaded without protection."""

    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_refused_pickle_names_what_it_asked_for_and_gives_no_advice_on_how_to_run_it(tmp_path, is_zip):
    torch.save({"a": torch.zeros(2), "b": _Code()}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"m\.pt is damaged or holds more than tensors.*posix\.system") as caught:
        read_checkpoint(tmp_path / "m.pt")
    assert "weights_only" not in f"{caught.value} {caught.value.hint}"


def test_compiled_modules_are_refused_without_advice_too(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors.* TorchScript") as caught:
        read_checkpoint(tmp_path / "m.pt")
    assert "weights_only" not in f"{caught.value} {caught.value.hint}"


def test_torch_files_are_not_inflated(tmp_path):
    torch.save({"a": torch.zeros(2**18)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="compressed or overlapping entries"):
        read_checkpoint(tmp_path / "b.pt")


def test_views_that_repeat_memory_are_refused_and_tied_weights_are_not(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": tied, "b": tied, "c": tied.T, "d": tied[1:]}, tmp_path / "m.pt")
    assert same(read_checkpoint(tmp_path / "m.pt"), {"a": tied, "b": tied, "c": tied.T, "d": tied[1:]})
    for state, message in (
        ({"a": torch.zeros(1).expand(2**40)}, r"tensor a \[1099511627776\] is a view that makes 4398046511104 bytes of 4"),
        ({"a": tied, "s": torch.zeros(3, device="meta")}, "tensor s is on the device meta"),
        ({f"w{n}": t for n, t in enumerate([torch.zeros(2**14)] * 200)}, "its tensors have 13107200 bytes, a file of"),
    ):
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "m.pt")


def test_a_module_without_values_is_refused():
    with pytest.raises(CheckpointError, match=r"in memory: tensor weight is on the device meta"):
        load(torch.nn.Linear(2, 2, device="meta"))


def test_a_zip_that_claims_several_disks_is_damaged(tmp_path):
    locator = b"PK\x06\x07" + (0).to_bytes(4, "little") + (0).to_bytes(8, "little") + (2).to_bytes(4, "little")
    end = b"PK\x05\x06" + bytes(16) + bytes(2)
    (tmp_path / "m.pt").write_bytes(bytes(100) + locator + end)
    with pytest.raises(CheckpointError, match=r"checkpoint .*m\.pt is damaged: .*zipfiles that span multiple disks"):
        read_checkpoint(tmp_path / "m.pt")
