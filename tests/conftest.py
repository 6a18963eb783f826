"""Small things that many tests share, made once: a tokenizer, a model, its checkpoint on disk."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before any kernel module is imported; later has no effect
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["QUANTLAB_RUNS"] = ""  # commands under test leave no run folders
os.environ.pop("QUANTLAB_MIRROR", None)

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantlab.text.tokenizer import Tokenizer, train_tokenizer
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig

TOY = GPTConfig(vocab_size=400, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=2, mlp_hidden=128)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew; bump the format version")


@pytest.fixture(scope="session")
def python_sources() -> list[bytes]:
    """A few modules of the standard library, newlines and indentation included."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    return [(stdlib / name).read_bytes() for name in ("argparse.py", "textwrap.py", "dataclasses.py", "heapq.py")]


@pytest.fixture(scope="session")
def tokenizer(python_sources: list[bytes]) -> Tokenizer:
    """Identity normalization, byte pieces, 400 pieces."""
    return Tokenizer(train_tokenizer(python_sources, vocab_size=400), name="tiny")


def random_state(config: GPTConfig = TOY, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of the baseline's names whose every matrix matters: no zero projections."""
    generator = torch.Generator().manual_seed(seed)
    state = GPT(config, seed=seed).state_dict()
    return {
        name: torch.randn(t.shape, generator=generator) / (t.shape[1] ** 0.5 if name != "tok_emb.weight" else 4)
        if name.endswith(".weight")
        else t + 0.1 * torch.randn(t.shape, generator=generator)
        for name, t in state.items()
    }


@pytest.fixture(scope="session")
def toy_state() -> dict[str, Tensor]:
    """State dict of a toy GPT: 106,000 parameters, 13 matrices."""
    return random_state()


@pytest.fixture(scope="session")
def toy_checkpoint(toy_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy state dict as a .pt file."""
    path = tmp_path_factory.mktemp("checkpoint") / "toy.pt"
    torch.save(toy_state, path)
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer as a .model file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    path.write_bytes(tokenizer.model_bytes)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that they only lose time to threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
