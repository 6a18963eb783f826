"""Two processes train as one does; what cannot be shared is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantlab.errors import ConfigError
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.training_loop import micro_batch_rows
from quantlab.trainer.world import World, open_world

MODEL = GPTConfig(vocab_size=32, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, mlp_hidden=32)
CONFIG = TrainConfig(
    model=MODEL,
    seq_len=16,
    batch_tokens=128,
    micro_batch_tokens=32,
    steps=8,
    max_seconds=0.0,
    muon_momentum_warmup_steps=4,
    grad_clip=1.0,
    average="ema",
    checkpoint_every_seconds=0.0,
)
TOKENS = np.random.default_rng(0).integers(0, 32, size=1000).astype(np.uint16)

CODE = """
import json, sys
from pathlib import Path
import numpy as np
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.world import close_world, open_world

world, out = open_world(), Path(sys.argv[1])
config = TrainConfig.from_dict(json.loads((out / "config.json").read_text()))
stop = int(sys.argv[2])

def progress(record):
    if record.step == stop:
        raise SystemExit(0)

result = train(config, np.load(out / "tokens.npy"), out=out, world=world, resume=sys.argv[3] == "resume", progress=progress)
(out / f"losses.{world.rank}.json").write_text(json.dumps(result.losses))
close_world(world)
"""


SHARED = """
import json, sys
from pathlib import Path
import numpy as np, torch
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.world import close_world, open_world

world, out = open_world(), Path(sys.argv[1])
values = [torch.full((2, 3), float(world.rank)), torch.full((4,), 10.0 + world.rank)]
world.copy_from_main(values)
assert values[0].tolist() == [[0.0] * 3] * 2 and values[1].tolist() == [10.0] * 4
assert world.of_main([world.rank + 5.0]) == [5.0]
config = TrainConfig.from_dict(json.loads((out / "config.json").read_text()))
own = out / str(world.rank)  # no shared folder: what the main process wrote the other does not see
for resume in (False, True):
    train(config, np.load(out / "tokens.npy"), out=own, world=world, resume=resume)
"""


def run_two(
    folder: Path, config: TrainConfig, *, code: str = CODE, mode: str = "new", stop: int = 0
) -> subprocess.CompletedProcess:
    """Under torchrun, which stops both when one fails."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    np.save(folder / "tokens.npy", TOKENS)
    (folder / "run.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(folder / "run.py"), str(folder), str(stop), mode]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=240)


def test_two_processes_give_the_loss_curve_and_the_weights_of_one(tmp_path):
    one = train(CONFIG, TOKENS, out=tmp_path / "one")
    done = run_two(tmp_path / "two", CONFIG)
    assert done.returncode == 0, done.stderr
    losses = [json.loads((tmp_path / f"two/losses.{rank}.json").read_text()) for rank in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(one.losses, abs=1e-4)  # float32 sums in another order, through eight updates
    expected, got = load_file(one.model_path), load_file(tmp_path / "two/model.safetensors")
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-3, rtol=0)
    first, second = (load_file(tmp_path / f"{name}/training.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()  # also the momentum of matrices that the other process owns
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-3, rtol=0)


def test_one_process_goes_on_where_two_stopped(tmp_path):
    whole = train(CONFIG, TOKENS, out=tmp_path / "one")
    run_two(tmp_path / "two", replace(CONFIG, log_every=1), stop=5)
    resumed = train(replace(CONFIG, log_every=1), TOKENS, out=tmp_path / "two", resume=True)
    assert resumed.losses == pytest.approx(whole.losses[5:], abs=1e-4)


def test_processes_begin_with_the_main_ones_values_and_a_folder_that_is_not_shared_is_named(tmp_path):
    done = run_two(tmp_path / "two", CONFIG, code=SHARED)
    assert done.returncode != 0 and "AssertionError" not in done.stderr
    assert "process 1 has no" in done.stderr and "the folder must be shared" in done.stderr


@pytest.mark.parametrize(
    ("size", "change", "message"),
    [
        (3, {}, "3 processes cannot share a batch of 8 sequences"),
        (
            2,
            {"batch_tokens": 96, "micro_batch_tokens": 32},
            "each process' 48 tokens of a batch must be a multiple of micro_batch",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(size, change, message):
    with pytest.raises(ConfigError, match=message):
        micro_batch_rows(replace(CONFIG, **change), World(rank=0, size=size))


def test_micro_batches_shrink_with_the_share():
    assert micro_batch_rows(CONFIG, World(size=8)) == 1
    assert micro_batch_rows(CONFIG, World(size=2)) == 2


def test_an_environment_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK must be 0 to WORLD_SIZE - 1 = 1, got 4"):
        open_world()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK must be a whole number, got 'first'"):
        open_world()
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="of RANK and WORLD_SIZE only one is set"):
        open_world()
