"""Other binary files under attack: statistics, token shards, checkpoints, folders of transformers, a pack's work folder."""

import io
import json
import random
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import torch
from damages import NUMBERS, damaged, damaged_safetensors, damaged_tree, json_text
from harness import Files, Finding, write_files
from neighbours import statistics, torch_bytes, write_int6, write_int8, write_npz
from safetensors.torch import save
from torch import Tensor

from quantlab.calib.statistics import read_statistics, write_statistics
from quantlab.errors import QuantlabError
from quantlab.models.checkpoint import DTYPES, LARGEST_VALUE, read_checkpoint
from quantlab.models.huggingface import read_about
from quantlab.models.loading import load
from quantlab.models.ptz import decompress, unshuffled
from quantlab.text.shards import HEADER_BYTES, open_shards, read_shard, shard_header, write_shard


def _written(write: Callable[[Path], Any]) -> bytes:
    """Return the file that `write` writes at a path."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


SHAPES = {"a": (2, 3), "b": (5, 4)}
"""Of the matrices in the sample of statistics."""


class StatisticsTarget:
    """The file of calibration statistics."""

    name, weight = "statistics", 8

    def __init__(self) -> None:
        other = statistics(products={}, lookups={}, fishers={"a": statistics().fishers["a"]}, row_agreement={}, source={})
        self.files = [_written(lambda path, stats=stats: write_statistics(path, stats)) for stats in (statistics(), other)]

    def draw(self, rng: random.Random) -> Files:
        """Damage header, metadata or values."""
        return {"s.safetensors": damaged_safetensors(rng, self.files)}

    def check(self, files: Files, folder: Path) -> None:
        """Every matrix is read and has its shape, or the file is refused."""
        write_files(files, folder)
        with suppress(QuantlabError):
            stats = read_statistics(folder / "s.safetensors")
            json.dumps(stats.source)
            _ = stats.fingerprint, stats.tokens, stats.matrices, stats.is_plain
            for name in {*stats.products, *stats.lookups, *stats.fishers}:
                with suppress(QuantlabError):
                    for use in (*stats.uses(name), *stats.fisher_uses(name)):
                        if not (torch.isfinite(use.H_II).all() and torch.isfinite(use.g_O).all()):
                            raise Finding(f"statistics of {name} are not finite")
            stats.check(SHAPES)
            for name, (rows, columns) in SHAPES.items():
                for use in stats.uses(name):
                    if use.H_II.shape[-1] != columns or use.g_O.shape[-1] != rows:
                        raise Finding(f"statistics of {name} passed the check with other shapes")


class ShardTarget:
    """Token shards."""

    name, weight = "shards", 30

    def __init__(self) -> None:
        tokens = (np.arange(50, dtype=np.uint16), np.arange(70_000, 70_030, dtype=np.uint32))
        self.files = [_written(lambda path, ids=ids: write_shard(path, ids)) for ids in tokens]

    def draw(self, rng: random.Random) -> Files:
        """Damage a shard, or give it a header with other numbers; a whole shard follows it in the stream."""
        data = rng.choice(self.files)
        if rng.random() < 0.5:
            count = max(-(2**31), min(2**31 - 1, rng.choice(NUMBERS) * rng.choice((1, -1))))
            header = np.frombuffer(shard_header(1), "<i4").copy()
            header[:3] = header[0], rng.choice((1, 2, 0, 3)), count
            data = header.tobytes() + data[HEADER_BYTES:]
        return {"x_000000.bin": damaged(rng, data, self.files), "x_000001.bin": self.files[0]}

    def check(self, files: Files, folder: Path) -> None:
        """A shard is refused, or has just the tokens that its bytes hold."""
        write_files(files, folder)
        with suppress(QuantlabError):
            tokens = read_shard(folder / "x_000000.bin")
            raw = files["x_000000.bin"][HEADER_BYTES:]
            if tokens.astype(tokens.dtype.newbyteorder("<")).tobytes() != raw:
                raise Finding("a shard gives other tokens than its bytes")
        with suppress(QuantlabError):
            stream = open_shards(str(folder / "x_*.bin"))
            stream.max()
            if len(stream[:]) != len(stream) or stream[len(stream) - 50 :].tolist() != list(range(50)):
                raise Finding("a stream of shards gives other tokens")


def _rezipped(rng: random.Random, data: bytes, change: Callable[[random.Random, bytes], bytes]) -> bytes:
    """Return a zip archive with one entry changed, renamed, dropped or doubled, its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        entries = [(info.filename, source.read(info)) for info in source.infolist()]
        at, kind = rng.randrange(len(entries)), rng.randrange(10)
        name, content = entries[at]
        pickles = [n for n, (path, _) in enumerate(entries) if path.endswith(".pkl")]
        if kind < 7:
            at = rng.choice(pickles) if pickles and kind < 4 else at
            entries[at] = (entries[at][0], change(rng, entries[at][1]))
        elif kind == 7:
            entries[at] = (rng.choice(entries)[0] + rng.choice(("", "x", "/../x")), content)
        elif kind == 8:
            del entries[at]
        else:
            entries.append((name + "2", content))
        for path, raw in entries:
            method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
            if path not in target.namelist():
                target.writestr(zipfile.ZipInfo(path), raw, method)
    return out.getvalue()


def _small_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "tok_emb.weight": torch.randn(64, 70, generator=generator),
        "blocks.0.mlp.fc.weight": torch.randn(70, 64, generator=generator),
        "skip_weights": torch.ones(2, 4),
        "gain": torch.ones(3),
    }


class CheckpointTarget:
    """Checkpoint files of every kind, and folders of safetensors shards."""

    name, weight = "checkpoint", 10

    def __init__(self) -> None:
        state = _small_state()
        small = {name: tensor[:2, :3].clone() if tensor.ndim == 2 else tensor for name, tensor in state.items()}
        kinds = [small, {"model": small, "step": 3}, {"a": torch.arange(4), "b": torch.zeros(2, dtype=torch.bfloat16)}]
        self.torch_files = [torch_bytes(content) for content in kinds]
        self.safetensors = [save(small), save(kinds[2], {"gpt_config": '{"vocab_size":3}'})]
        self.ptz = [_written(lambda path, write=write: write(path, state)) for write in (write_int8, write_int6)]
        self.unpacked = [unshuffled(Path("m"), decompress(Path("m"), data)) for data in self.ptz]
        self.npz = _written(lambda path: write_npz(path, state))

    def draw(self, rng: random.Random) -> Files:
        """Damage a file's bytes, the entries of its archive, its header, or what its compressed stream holds."""
        kind = rng.choice((".pt", ".pt", ".safetensors", ".ptz", ".npz", "folder"))
        if kind == "folder":
            return self._folder(rng)
        if kind == ".safetensors":
            return {"m.safetensors": damaged_safetensors(rng, self.safetensors)}
        files = {".pt": self.torch_files, ".ptz": self.ptz, ".npz": [self.npz]}[kind]
        if rng.random() < 0.4:
            return {f"m{kind}": damaged(rng, rng.choice(files), files)}
        if kind == ".ptz":
            raw = _rezipped(rng, rng.choice(self.unpacked), damaged)
            return {"m.ptz": rng.choice((lambda r: zlib.compress(r, 1), lambda r: brotli.compress(r, quality=1)))(raw)}
        return {f"m{kind}": _rezipped(rng, rng.choice(files), damaged)}

    def _folder(self, rng: random.Random) -> Files:
        index: Any = {"metadata": {}, "weight_map": {"gain": "a.safetensors", "a": "b.safetensors"}}
        index = damaged_tree(rng, index) if rng.random() < 0.8 else index
        shards = {"a.safetensors": self.safetensors[0], "b.safetensors": self.safetensors[1]}
        if rng.random() < 0.3:
            shards["b.safetensors"] = damaged_safetensors(rng, self.safetensors)
        files = {f"m/{name}": data for name, data in shards.items()}
        return files | ({"m/model.safetensors.index.json": json_text(rng, index)} if rng.random() < 0.8 else {})

    def check(self, files: Files, folder: Path) -> None:
        """The tensors are plain, finite and no larger than their file justifies, or the checkpoint is refused."""
        write_files(files, folder)
        name = next(iter(files)).partition("/")[0]
        with suppress(QuantlabError):
            for key, tensor in read_checkpoint(folder / name).items():
                if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
                    raise Finding(f"tensor {key!r} is not plain")
                if tensor.is_floating_point() and tensor.numel() and not float(tensor.abs().max()) <= LARGEST_VALUE:
                    raise Finding(f"tensor {key!r} is not finite")


class TransformersTarget:
    """A folder that transformers saved: its JSON files and the headers of its weights."""

    name, weight = "transformers", 1

    def __init__(self) -> None:
        import transformers
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        base = {"vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        llama = transformers.LlamaConfig(**base, **sizes, intermediate_size=24, num_key_value_heads=1)
        gpt2 = transformers.GPT2Config(**base, n_embd=16, n_layer=1, n_head=2, n_positions=16)
        self.folders: list[Files] = []
        for config in (llama, gpt2):
            with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
                transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
                self.folders.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        self.weights = [files["model.safetensors"] for files in self.folders]

    def draw(self, rng: random.Random) -> Files:
        """Damage the config most of the time, else how it generates, or the weights."""
        files = dict(rng.choice(self.folders))
        kind = rng.random()
        if kind < 0.75:
            name = "config.json" if kind < 0.65 else "generation_config.json"
            trees = [json.loads(other[name]) for other in self.folders]
            files[name] = json_text(rng, damaged_tree(rng, json.loads(files[name]), trees))
        elif kind < 0.9:
            files["model.safetensors"] = damaged_safetensors(rng, self.weights)
        else:
            index = {"metadata": {}, "weight_map": {"lm_head.weight": "w.safetensors"}}
            files["w.safetensors"] = files.pop("model.safetensors")
            files["model.safetensors.index.json"] = json_text(rng, damaged_tree(rng, index))
        return {f"m/{name}": data for name, data in files.items()}

    def check(self, files: Files, folder: Path) -> None:
        """The model runs on its own ids, or the folder is refused."""
        write_files(files, folder)
        with suppress(QuantlabError):
            read_about(folder / "m")
        with suppress(QuantlabError):
            loaded = load(folder / "m")
            if loaded.vocab_size < 1 or not loaded.state:
                raise Finding("a model without ids or weights was accepted")
