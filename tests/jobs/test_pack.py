"""The main job on a toy model: budgets, bits, and what is left behind when it fails."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantlab.artifact.decode import decode_artifact, parse_artifact, read_artifact
from quantlab.calib.fisher import predicted_kl
from quantlab.calib.sources import CalibrationConfig, sample_sequences
from quantlab.errors import BudgetError, ConfigError, FormatError
from quantlab.jobs import pack as job
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.pack import PackConfig, pack
from quantlab.methods.trellis.rounder import RoundingOptions
from quantlab.models.loading import load_artifact, load_checkpoint

BUDGET = 60_000
CALIBRATION = CalibrationConfig(tokens=2048, seq_len=64)
CONFIG = PackConfig(budget_bytes=BUDGET, method="gptq", calibration=CALIBRATION)
TRELLIS = replace(CONFIG, method="trellis", tune_steps=4)


@pytest.fixture(scope="module")
def packed(toy_checkpoint, tmp_path_factory):
    """One packing at 60 kB: (loaded, path, report)."""
    path = tmp_path_factory.mktemp("packed") / "toy.qlab"
    loaded = load_checkpoint(toy_checkpoint, None)
    return loaded, path, pack(loaded, CONFIG, path, checkpoint=toy_checkpoint)


def test_the_file_is_within_budget_and_close_to_it(packed):
    _, path, report = packed
    assert report.total_bytes == report.artifact_bytes == path.stat().st_size <= BUDGET
    assert report.slack_bytes == BUDGET - path.stat().st_size <= 0.003 * BUDGET
    assert sum(report.size_breakdown.values()) == report.artifact_bytes
    assert report.bpw == 8 * report.artifact_bytes / report.n_params
    assert {t.width_bits for t in report.tensors} <= {5, 6, 8}


def test_unpacked_tensors_are_those_that_were_measured(packed):
    """The report's predicted_kl, computed again from the file alone."""
    loaded, path, report = packed
    tensors = decode_artifact(*read_artifact(path))
    assert tensors.keys() == loaded.state.keys()
    stats = measure_statistics(loaded, CALIBRATION, None)
    for t in report.tensors:
        error = loaded.state[t.name] - torch.from_numpy(tensors[t.name])
        again = predicted_kl(error, stats.uses(t.name))
        assert again == pytest.approx(t.predicted_kl, rel=1e-6)


def test_kept_tensors_come_back_in_half_precision_or_better(packed):
    loaded, path, report = packed
    tensors = decode_artifact(*read_artifact(path))
    kept = {k["name"] for k in report.kept}
    assert kept == {n for n, t in loaded.state.items() if t.ndim < 2 or t.numel() < 4096}
    for name in kept:
        assert np.abs(tensors[name] - loaded.state[name].numpy()).max() <= 2.0**-11 * loaded.state[name].abs().max()


def test_packing_twice_gives_identical_files(packed, toy_checkpoint, tmp_path):
    _, path, _ = packed
    pack(load_checkpoint(toy_checkpoint, None), CONFIG, tmp_path / "again.qlab", checkpoint=toy_checkpoint)
    assert (tmp_path / "again.qlab").read_bytes() == path.read_bytes()


def test_the_number_of_processors_does_not_change_the_file(packed, toy_checkpoint, tmp_path, monkeypatch):
    _, path, _ = packed
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    pack(load_checkpoint(toy_checkpoint, None), CONFIG, tmp_path / "one.qlab", checkpoint=toy_checkpoint)
    assert (tmp_path / "one.qlab").read_bytes() == path.read_bytes()


def test_an_artifact_makes_the_model_again(packed):
    loaded, path, _ = packed
    again = load_artifact(path, None)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        p, q = loaded.model(ids).log_softmax(-1), again.model(ids).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    assert 0 < kl < 0.1  # 4.5 bits a weight


def test_gptq_beats_rtn_at_equal_bytes(packed, toy_checkpoint, tmp_path):
    loaded, _, report = packed
    rtn = pack(loaded, replace(CONFIG, method="rtn"), tmp_path / "rtn.qlab", checkpoint=toy_checkpoint)
    assert report.predicted_kl < rtn.predicted_kl
    assert abs(rtn.total_bytes - report.total_bytes) < 0.003 * BUDGET


@pytest.fixture(scope="module")
def trellis(toy_checkpoint, tmp_path_factory):
    """The default method at 60 kB: (path, report)."""
    path = tmp_path_factory.mktemp("trellis") / "toy.qlab"
    return path, pack(load_checkpoint(toy_checkpoint, None), TRELLIS, path, checkpoint=toy_checkpoint)


def test_a_trellis_file_is_within_budget_and_close_to_it(trellis):
    path, report = trellis
    assert 0.998 * BUDGET < report.total_bytes == path.stat().st_size <= BUDGET
    assert report.method == "trellis" and {t.codec for t in report.tensors} == {"rans"}


def test_a_trellis_beats_row_grids_at_equal_bytes(packed, toy_checkpoint, tmp_path):
    """By what the models predict on fresh text of their own. Calibration is long enough to have seen most of the 400 tokens:
    steps of rows that it hardly saw are the largest."""
    loaded, calibration = packed[0], CalibrationConfig(tokens=32768, seq_len=64)
    ids = sample_sequences(loaded.model, 32, 64, seed=77)
    kl = {}
    for method in ("trellis", "gptq"):
        config = replace(TRELLIS, method=method, tune_steps=0, calibration=calibration)
        pack(loaded, config, tmp_path / method, checkpoint=toy_checkpoint)
        with torch.no_grad():
            p, q = (m(ids).log_softmax(-1) for m in (loaded.model, load_artifact(tmp_path / method, None).model))
        kl[method] = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0 < kl["trellis"] < 0.8 * kl["gptq"]


def test_unpacked_trellis_tensors_are_those_that_were_measured(packed, trellis):
    loaded, (path, report) = packed[0], trellis
    tensors, stats = decode_artifact(*read_artifact(path)), measure_statistics(loaded, CALIBRATION, None)
    assert tensors.keys() == loaded.state.keys()
    for t in report.tensors:
        error = loaded.state[t.name] - torch.from_numpy(tensors[t.name])
        assert predicted_kl(error, stats.fisher_uses(t.name)) == pytest.approx(t.predicted_kl, rel=1e-6)
    assert sum(report.size_breakdown.values()) == report.artifact_bytes
    coded = sum(t.bytes for t in report.tensors)
    assert 0.97 * report.artifact_bytes < coded + report.size_breakdown["kept"] < 1.03 * report.artifact_bytes


def test_a_trellis_file_is_the_same_every_time_on_any_number_of_processors(trellis, toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    pack(load_checkpoint(toy_checkpoint, None), TRELLIS, tmp_path / "again.qlab", checkpoint=toy_checkpoint)
    assert (tmp_path / "again.qlab").read_bytes() == trellis[0].read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"rounding": RoundingOptions(states=1)},
        {"rounding": RoundingOptions(row_feedback=False)},
        {"rounding": RoundingOptions(row_shape=False, column_shape=False)},
    ],
)
def test_every_part_of_the_trellis_method_pays(change, trellis, packed, toy_checkpoint, tmp_path):
    less = pack(packed[0], replace(TRELLIS, tune_steps=0, **change), tmp_path / "l.qlab", checkpoint=toy_checkpoint)
    assert less.total_bytes <= BUDGET and less.predicted_kl > 1.02 * trellis[1].predicted_kl


@pytest.mark.parametrize("budget", [25_000, 100_000])
def test_trellis_files_of_other_budgets_are_within_them(budget, packed, trellis, toy_checkpoint, tmp_path):
    config = replace(TRELLIS, budget_bytes=budget, tune_steps=0)
    report = pack(packed[0], config, tmp_path / "b.qlab", checkpoint=toy_checkpoint)
    assert 0.998 * budget < report.total_bytes <= budget
    assert (report.predicted_kl < trellis[1].predicted_kl) == (budget > BUDGET)


def test_a_trellis_budget_below_reach_names_a_size_that_is_reachable(packed, toy_checkpoint, tmp_path):
    config = replace(TRELLIS, tune_steps=0)
    with pytest.raises(BudgetError, match="below the smallest reachable size, ") as caught:
        pack(packed[0], replace(config, budget_bytes=1000), tmp_path / "s.qlab", checkpoint=toy_checkpoint)
    smallest = caught.value.smallest_bytes
    report = pack(packed[0], replace(config, budget_bytes=smallest), tmp_path / "s.qlab", checkpoint=toy_checkpoint)
    assert report.total_bytes <= smallest


def test_refining_the_grids_lowers_the_distortion(packed, toy_checkpoint, tmp_path, monkeypatch):
    loaded, _, report = packed
    monkeypatch.setattr("quantlab.methods.classic.allocation.ROUNDS", 0)
    coarse = pack(loaded, CONFIG, tmp_path / "coarse.qlab", checkpoint=toy_checkpoint)
    assert report.predicted_kl < 0.98 * coarse.predicted_kl


def test_a_larger_budget_is_never_worse(packed, toy_checkpoint, tmp_path):
    loaded, _, report = packed
    larger = pack(loaded, replace(CONFIG, budget_bytes=80_000), tmp_path / "l.qlab", checkpoint=toy_checkpoint)
    assert larger.predicted_kl < report.predicted_kl and larger.total_bytes <= 80_000


def test_counted_code_takes_its_share(packed, toy_checkpoint, tmp_path):
    loaded, _, report = packed
    with_code = replace(CONFIG, code={"train.py": 10_000})
    smaller = pack(loaded, with_code, tmp_path / "c.qlab", checkpoint=toy_checkpoint)
    assert smaller.total_bytes == smaller.artifact_bytes + 10_000 <= BUDGET
    assert smaller.predicted_kl > report.predicted_kl


def test_a_budget_below_reach_names_the_size_that_is_reachable(packed, toy_checkpoint, tmp_path):
    loaded = packed[0]
    with pytest.raises(BudgetError, match="below the smallest reachable size, ") as caught:
        pack(loaded, replace(CONFIG, budget_bytes=5000), tmp_path / "s.qlab", checkpoint=toy_checkpoint)
    assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())
    smallest = caught.value.smallest_bytes
    with pytest.raises(BudgetError) as one_less:
        pack(loaded, replace(CONFIG, budget_bytes=smallest - 1), tmp_path / "s.qlab", checkpoint=toy_checkpoint)
    assert one_less.value.smallest_bytes == smallest
    report = pack(loaded, replace(CONFIG, budget_bytes=smallest), tmp_path / "s.qlab", checkpoint=toy_checkpoint)
    assert report.total_bytes <= smallest


def test_a_budget_beyond_reach_gives_the_finest_plan(packed, toy_checkpoint, tmp_path):
    loaded, _, report = packed
    huge = pack(loaded, replace(CONFIG, budget_bytes=10**9), tmp_path / "h.qlab", checkpoint=toy_checkpoint)
    assert huge.total_bytes < 130_000 and huge.predicted_kl < 0.1 * report.predicted_kl


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (9,)}, "widths of trellis must be among 2,3,4,5,6,7,8,16, got 9"),
        ({"widths": (16,), "method": "gptq"}, "widths of gptq must be among 2,3,4,5,6,7,8, got 16"),
        ({"widths": ()}, "widths of trellis must be among .* got none"),
        ({"method": "magic"}, "method must be one of trellis, gptq, rtn, got 'magic'"),
        ({"method": "shaped"}, "method must be one of trellis, gptq, rtn, got 'shaped'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PackConfig(budget_bytes=1000, **options)


def test_code_alone_beyond_the_budget_is_refused_at_once():
    with pytest.raises(BudgetError, match="code files take 2000 bytes, the budget is 1000"):
        PackConfig(budget_bytes=1000, code={"a": 2000})


def test_a_file_that_reads_back_differently_is_never_left(packed, toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "digest_in_fresh_process", lambda path: "0" * 64)
    with pytest.raises(FormatError, match="decodes the file to other tensors"):
        pack(packed[0], CONFIG, tmp_path / "m.qlab", checkpoint=toy_checkpoint)
    assert not list(tmp_path.iterdir())


def test_damage_anywhere_in_a_packed_model_is_noticed(packed):
    data = packed[1].read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 300):
        with pytest.raises(FormatError):
            parse_artifact(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
    for size in rng.integers(0, len(data), 100):
        with pytest.raises(FormatError):
            parse_artifact(data[:size])


def test_report_is_json(packed):
    raw = json.loads(json.dumps(packed[2].to_dict()))
    needed = {"budget_bytes", "artifact_bytes", "code_bytes", "total_bytes", "n_params", "bpw", "method", "seed"}
    assert needed | {"timings_s", "tensors"} <= raw.keys()
    assert all({"name", "shape", "width_bits", "bpw", "bytes", "predicted_kl"} <= t.keys() for t in raw["tensors"])


def test_unpack_writes_what_decoding_gives(packed, tmp_path):
    from quantlab.cli.main import run

    assert run(["unpack", str(packed[1]), "-o", str(tmp_path / "s.safetensors")]) == 0
    state, tensors = load_file(tmp_path / "s.safetensors"), decode_artifact(*read_artifact(packed[1]))
    assert state.keys() == tensors.keys()
    assert all(np.array_equal(state[n].numpy(), tensors[n]) and state[n].numpy().dtype == tensors[n].dtype for n in state)


@pytest.mark.parametrize(("limit_s", "effort"), [(1e-3, {"states": 1, "tune_steps": 0}), (1e4, {"states": 8, "tune_steps": 2})])
def test_a_time_limit_decides_the_effort_and_the_report_says_which(toy_checkpoint, tmp_path, limit_s, effort):
    config = replace(TRELLIS, tune_steps=2, time_limit_s=limit_s)
    report = pack(load_checkpoint(toy_checkpoint, None), config, tmp_path / "m.qlab", checkpoint=toy_checkpoint)
    assert report.effort == effort and bool(report.tuned) == bool(effort["tune_steps"])
    manifest, _ = read_artifact(tmp_path / "m.qlab")
    assert {t.states for t in manifest.tensors if t.kind == "trellis_grid"} == {effort["states"]}
