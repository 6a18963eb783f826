"""Two processes measure what one does."""

import os
import subprocess
import sys

import pytest
import torch

from quantlab.calib.collect import collect
from quantlab.calib.labels import label_draws
from quantlab.calib.processes import Alone
from quantlab.calib.statistics import read_statistics
from quantlab.errors import ConfigError
from quantlab.jobs.calibrate import calibrate


@pytest.mark.parametrize("sequences", [3, 7])  # of 3, the second process has none in the first half
def test_two_processes_give_the_statistics_of_one(tmp_path, toy_checkpoint, sequences):
    about = {"calib": "random", "calib_tokens": 16 * sequences, "calib_seq_len": 16, "seed": 5}
    one = calibrate(toy_checkpoint, output=tmp_path / "one", device="cpu", **about)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    options = [
        "--calib",
        "random",
        "--calib-tokens",
        str(16 * sequences),
        "--calib-seq-len",
        "16",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    command = [*launch, "-m", "quantlab", "calibrate", str(toy_checkpoint), "-o", str(tmp_path / "two"), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1  # by the main process alone
    two = read_statistics(tmp_path / "two")
    assert torch.equal(two.ids_NT, one.ids_NT)
    assert two.source == one.source | {"processes": 2}  # so that codes of one are not taken for those of the other
    assert two.row_agreement == pytest.approx(one.row_agreement, abs=1e-3)  # float32 within a batch, float64 across
    for kind in ("products", "lookups", "fishers"):
        found, known = getattr(two, kind), getattr(one, kind)
        assert set(found) == set(known)
        for name, use in known.items():
            for value, wanted in ((found[name].H_II, use.H_II), (found[name].g_O, use.g_O)):
                assert float((value - wanted).norm() / wanted.norm()) < 1e-5, (kind, name)  # float32 sums in another order


def test_labels_depend_on_the_sequence_alone():
    together = label_draws(7, range(4), 9)
    assert torch.equal(together[[1, 3]], label_draws(7, range(1, 4, 2), 9))
    assert not torch.equal(together, label_draws(8, range(4), 9))
    assert float(together.min()) >= 0 and float(together.max()) < 1
    assert label_draws(2**63 - 1, [0], 2).shape == (1, 2)


def test_more_processes_than_sequences_and_unknown_devices_are_refused(toy_checkpoint):
    class Three(Alone):
        size = 3

    with pytest.raises(ConfigError, match="3 processes cannot share 2 calibration sequences"):
        collect(torch.nn.Linear(1, 1), torch.zeros(2, 4).long(), {}, model_fingerprint="", source={}, processes=Three())
    with pytest.raises(ConfigError, match="device must be cpu or cuda, got 'tpu'"):
        calibrate(toy_checkpoint, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            calibrate(toy_checkpoint, device="cuda")
