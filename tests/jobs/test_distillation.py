"""A training that learns from a teacher: the loss by hand, the student comes nearer, its file names what the teacher read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantlab.errors import ConfigError
from quantlab.jobs.teacher import as_teacher, load_teacher, with_past_of
from quantlab.models.loading import load
from quantlab.models.provenance import Provenance
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.packing_stages import build
from quantlab.pipeline.read import read_pipeline
from quantlab.tensor_file import write_safetensors
from quantlab.text.document_sample import DocumentSample
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.training_loop import TrainingLoop
from quantlab.trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = World(device=torch.device("cpu"))


def config(toy, teacher: Path | str = "", weight: float = 0.0, **changes) -> TrainConfig:
    known = {"seq_len": 16, "batch_tokens": 128, "micro_batch_tokens": 128, "steps": 30, "max_seconds": 0.0}
    return TrainConfig(model=toy, teacher=str(teacher), distill_weight=weight, **(known | changes))


@pytest.fixture
def toy(toy_state):
    from conftest import TOY

    return TOY


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 400, 4000).astype(np.uint16)


def test_the_loss_is_that_of_the_formula(toy, toy_checkpoint: Path, tokens, tmp_path: Path):
    settings = config(toy, toy_checkpoint, 0.3)
    teacher = as_teacher(load(toy_checkpoint), CPU.device)
    loop = TrainingLoop(settings, tokens, tmp_path, CPU, teacher=teacher)
    ids = torch.from_numpy(tokens[:64].astype(np.int64)).view(4, 16)
    targets = torch.from_numpy(tokens[1:65].astype(np.int64)).view(4, 16)
    mine, theirs = (F.log_softmax(model(ids), dim=-1) for model in (loop.model, load(toy_checkpoint).model))
    kl = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    hard = -mine.gather(-1, targets[..., None]).mean()
    assert loop.mean_loss(ids, targets).item() == pytest.approx((0.7 * hard + 0.3 * kl).item(), rel=1e-5)


def test_a_student_comes_nearer_to_its_teacher_than_one_without(toy, toy_checkpoint: Path, tokens, tmp_path: Path):
    teacher = as_teacher(load(toy_checkpoint), CPU.device)
    ids = torch.from_numpy(tokens[2000:2512].astype(np.int64)).view(32, 16)
    wanted = F.log_softmax(teacher(ids), dim=-1)

    def distance(settings: TrainConfig, name: str) -> float:
        model = train(settings, tokens, out=tmp_path / name, world=CPU, teacher=teacher).model
        with torch.no_grad():
            found = F.log_softmax(model(ids), dim=-1)
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean").item()

    assert distance(config(toy, toy_checkpoint, 1.0), "with") < 0.9 * distance(config(toy), "without")


def test_a_teacher_and_its_weight_belong_together(toy, toy_checkpoint: Path, tokens, tmp_path: Path):
    for changes in ({"teacher": "x.pt"}, {"weight": 0.5}):
        with pytest.raises(ConfigError, match="give both teacher and distill_weight or neither"):
            config(toy, **changes)
    with pytest.raises(ConfigError, match="distill_weight must be 0 to 1"):
        config(toy, "x.pt", 1.5)
    with pytest.raises(ConfigError, match="does not go with by_document"):
        config(toy, "x.pt", 0.5, by_document=True)
    with pytest.raises(ConfigError, match="a teacher is needed"):
        train(config(toy, "x.pt", 0.5), tokens, out=tmp_path, world=CPU)
    assert load_teacher(config(toy), "") is None


def test_a_teacher_of_another_tokenizer_is_refused_and_its_documents_are_kept(toy, toy_state, tmp_path: Path):
    past = Provenance(tokenizer_sha256="a" * 32, training=DocumentSample(1, (7,)).to_text())
    write_safetensors(tmp_path / "t.safetensors", toy_state, past.to_metadata())
    settings = config(toy, tmp_path / "t.safetensors", 0.5)
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        load_teacher(settings, "b" * 64)
    loaded = load_teacher(settings, "a" * 64)
    mine = Provenance(training=DocumentSample(1, (3,)).to_text())
    assert DocumentSample.from_text(with_past_of(mine, loaded).training, "x").hashes == (3, 7)
    assert with_past_of(mine, None) == mine


def test_the_content_of_the_teacher_decides_the_stage(toy_checkpoint: Path, tmp_path: Path):
    (tmp_path / "t.pt").write_bytes(toy_checkpoint.read_bytes())
    text = '[train]\npreset = "demo"\nteacher = "t.pt"\ndistill_weight = 0.5\n[pack]\nbudget = "250kB"\n'
    (tmp_path / "p.toml").write_text(text)

    def key() -> str:
        (cell,) = read_pipeline(tmp_path / "p.toml")
        return next(stage.key for stage in build(cell.config, FileHashes()).stages if stage.name == "train")

    first = key()
    (tmp_path / "t.pt").rename(tmp_path / "u.pt")
    (tmp_path / "p.toml").write_text(text.replace("t.pt", "u.pt"))
    assert key() == first
    (tmp_path / "u.pt").write_bytes(b"another")
    assert key() != first
