"""The main job on a toy model: budgets, bits, and what is left behind when it fails."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantlab.artifact.decode import parse_artifact
from quantlab.artifact.reader import open_artifact
from quantlab.calib.fisher import predicted_kl
from quantlab.calib.sources import CalibrationConfig, sample_sequences
from quantlab.errors import BudgetError, ConfigError, FormatError, TimeLimitError
from quantlab.jobs import packer
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.pack import pack
from quantlab.methods.trellis import TrellisOptions
from quantlab.models.challenge import gpt_from_state_dict
from quantlab.models.loading import load

BUDGET = 60_000
CALIBRATION = CalibrationConfig(tokens=2048, seq_len=64)
SAMPLE = {"calib_tokens": 2048, "calib_seq_len": 64}
GPTQ = {"budget": BUDGET, "method": "gptq", **SAMPLE}
TRELLIS = {"budget": BUDGET, "tune_steps": 4, **SAMPLE}


@pytest.fixture(scope="module")
def packed(toy_checkpoint, tmp_path_factory):
    """One packing at 60 kB: (loaded, path, report)."""
    path = tmp_path_factory.mktemp("packed") / "toy.qlab"
    loaded = load(toy_checkpoint)
    return loaded, path, pack(loaded, output=path, **GPTQ)


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
    tensors = open_artifact(path).arrays()
    assert tensors.keys() == loaded.state.keys()
    stats = measure_statistics(loaded, CALIBRATION, None)
    for t in report.tensors:
        error = loaded.state[t.name] - torch.from_numpy(tensors[t.name])
        again = predicted_kl(error, stats.uses(t.name))
        assert again == pytest.approx(t.predicted_kl, rel=1e-6)


def test_unquantized_tensors_come_back_in_half_precision_or_better(packed):
    loaded, path, report = packed
    tensors = open_artifact(path).arrays()
    kept = {k["name"] for k in report.passthrough}
    assert kept == {n for n, t in loaded.state.items() if t.ndim < 2 or t.numel() < 4096}
    for name in kept:
        assert np.abs(tensors[name] - loaded.state[name].numpy()).max() <= 2.0**-11 * loaded.state[name].abs().max()


def test_packing_twice_gives_identical_files(packed, toy_checkpoint, tmp_path):
    _, path, _ = packed
    pack(load(toy_checkpoint), output=tmp_path / "again.qlab", **GPTQ)
    assert (tmp_path / "again.qlab").read_bytes() == path.read_bytes()


def test_the_number_of_processors_does_not_change_the_file(packed, toy_checkpoint, tmp_path, monkeypatch):
    _, path, _ = packed
    monkeypatch.setattr("quantlab.methods.workers.processors", lambda: 1)
    pack(load(toy_checkpoint), output=tmp_path / "one.qlab", **GPTQ)
    assert (tmp_path / "one.qlab").read_bytes() == path.read_bytes()


def test_an_artifact_makes_the_model_again(packed):
    loaded, path, _ = packed
    again = load(path)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        p, q = loaded.model(ids).log_softmax(-1), again.model(ids).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    assert 0 < kl < 0.1  # 4.5 bits a weight


def test_gptq_beats_rtn_at_equal_bytes(packed, tmp_path):
    loaded, _, report = packed
    rtn = pack(loaded, output=tmp_path / "rtn.qlab", **(GPTQ | {"method": "rtn"}))
    assert report.predicted_kl < rtn.predicted_kl
    assert abs(rtn.total_bytes - report.total_bytes) < 0.003 * BUDGET


@pytest.fixture(scope="module")
def trellis(toy_checkpoint, tmp_path_factory):
    """The default method at 60 kB: (path, report)."""
    path = tmp_path_factory.mktemp("trellis") / "toy.qlab"
    return path, pack(load(toy_checkpoint), output=path, **TRELLIS)


def test_a_trellis_file_is_within_budget_and_close_to_it(trellis):
    path, report = trellis
    assert 0.998 * BUDGET < report.total_bytes == path.stat().st_size <= BUDGET
    assert report.method == "trellis" and {t.codec for t in report.tensors} == {"rans"}


def test_a_trellis_beats_row_grids_at_equal_bytes(packed, tmp_path):
    """By what the models predict on fresh text of their own. Calibration is long enough to have seen most of the 400 tokens:
    steps of rows that it hardly saw are the largest."""
    loaded = packed[0]
    ids = sample_sequences(loaded.model, 32, 64, seed=77)
    kl = {}
    for method in ("trellis", "gptq"):
        config = {"budget": BUDGET, "method": method, "calib_tokens": 32768, "calib_seq_len": 64}
        config |= {"tune": False} if method == "trellis" else {}
        pack(loaded, output=tmp_path / method, **config)
        with torch.no_grad():
            p, q = (m(ids).log_softmax(-1) for m in (loaded.model, load(tmp_path / method).model))
        kl[method] = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0 < kl["trellis"] < 0.8 * kl["gptq"]


def test_unpacked_trellis_tensors_are_those_that_were_measured(packed, trellis):
    loaded, (path, report) = packed[0], trellis
    tensors, stats = open_artifact(path).arrays(), measure_statistics(loaded, CALIBRATION, None)
    assert tensors.keys() == loaded.state.keys()
    for t in report.tensors:
        error = loaded.state[t.name] - torch.from_numpy(tensors[t.name])
        assert predicted_kl(error, stats.fisher_uses(t.name)) == pytest.approx(t.predicted_kl, rel=1e-6)
    assert sum(report.size_breakdown.values()) == report.artifact_bytes
    coded = sum(t.bytes for t in report.tensors)
    assert 0.97 * report.artifact_bytes < coded + report.size_breakdown["passthrough"] < 1.03 * report.artifact_bytes


def test_a_trellis_file_is_the_same_every_time_on_any_number_of_processors(trellis, toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("quantlab.methods.workers.processors", lambda: 1)
    pack(load(toy_checkpoint), output=tmp_path / "again.qlab", **TRELLIS)
    assert (tmp_path / "again.qlab").read_bytes() == trellis[0].read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"states": 1},
        {"row_feedback": False},
        {"row_scales": False, "column_scales": False},
    ],
)
def test_every_part_of_the_trellis_method_pays(change, trellis, packed, tmp_path):
    less = pack(packed[0], output=tmp_path / "l.qlab", **(TRELLIS | {"tune": False, **change}))
    assert less.total_bytes <= BUDGET and less.predicted_kl > 1.02 * trellis[1].predicted_kl


@pytest.mark.parametrize("budget", [25_000, 100_000])
def test_trellis_files_of_other_budgets_are_within_them(budget, packed, trellis, tmp_path):
    config = TRELLIS | {"budget": budget, "tune": False}
    report = pack(packed[0], output=tmp_path / "b.qlab", **config)
    assert 0.998 * budget < report.total_bytes <= budget
    assert (report.predicted_kl < trellis[1].predicted_kl) == (budget > BUDGET)


def test_a_trellis_budget_below_reach_names_a_size_that_is_reachable(packed, tmp_path):
    config = TRELLIS | {"tune": False}
    with pytest.raises(BudgetError, match="below the smallest reachable size, ") as caught:
        pack(packed[0], output=tmp_path / "s.qlab", **(config | {"budget": 1000}))
    smallest = caught.value.smallest_bytes
    report = pack(packed[0], output=tmp_path / "s.qlab", **(config | {"budget": smallest}))
    assert report.total_bytes <= smallest


def test_refining_the_grids_lowers_the_predicted_kl(packed, tmp_path, monkeypatch):
    loaded, _, report = packed
    monkeypatch.setattr("quantlab.methods.classic.allocation.ESTIMATED_ROUNDS", 0)
    monkeypatch.setattr("quantlab.methods.classic.allocation.CORRECTED_ROUNDS", 1)
    coarse = pack(loaded, output=tmp_path / "coarse.qlab", **GPTQ)
    assert report.predicted_kl < 0.98 * coarse.predicted_kl


def test_a_larger_budget_is_never_worse(packed, tmp_path):
    loaded, _, report = packed
    larger = pack(loaded, output=tmp_path / "l.qlab", **(GPTQ | {"budget": 80_000}))
    assert larger.predicted_kl < report.predicted_kl and larger.total_bytes <= 80_000


def test_counted_code_takes_its_share(packed, tmp_path):
    loaded, _, report = packed
    (tmp_path / "train.py").write_bytes(b"#" * 10_000)
    with_code = GPTQ | {"code": [tmp_path / "train.py"]}
    smaller = pack(loaded, output=tmp_path / "c.qlab", **with_code)
    assert smaller.total_bytes == smaller.artifact_bytes + 10_000 <= BUDGET
    assert smaller.predicted_kl > report.predicted_kl


def test_a_budget_below_reach_names_the_size_that_is_reachable(packed, tmp_path):
    loaded = packed[0]
    with pytest.raises(BudgetError, match="below the smallest reachable size, ") as caught:
        pack(loaded, output=tmp_path / "s.qlab", **(GPTQ | {"budget": 5000}))
    assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())
    smallest = caught.value.smallest_bytes
    with pytest.raises(BudgetError) as one_less:
        pack(loaded, output=tmp_path / "s.qlab", **(GPTQ | {"budget": smallest - 1}))
    assert one_less.value.smallest_bytes == smallest
    report = pack(loaded, output=tmp_path / "s.qlab", **(GPTQ | {"budget": smallest}))
    assert report.total_bytes <= smallest


def test_a_budget_beyond_reach_gives_the_finest_plan(packed, tmp_path):
    loaded, _, report = packed
    huge = pack(loaded, output=tmp_path / "h.qlab", **(GPTQ | {"budget": 10**9}))
    assert huge.total_bytes < 130_000 and huge.predicted_kl < 0.1 * report.predicted_kl


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (9,)}, "widths of method trellis must be among 2,3,4,5,6,7,8,16, got 9"),
        ({"widths": (16,), "method": "gptq"}, "widths of method gptq must be among 2,3,4,5,6,7,8, got 16"),
        ({"widths": ()}, "widths of method trellis must be among .* got none"),
        ({"widths": (3,)}, "the widest of widths must be 4 bits or more for the trellis, got 3"),
        ({"method": "magic"}, "method must be one of gptq, rtn, trellis, got 'magic'"),
        ({"method": "gptq", "states": 8}, "states is not an option of method gptq"),
        ({"state": 8}, "method trellis has no option state"),
        ({"time_limit": 0.0}, "time limit must be above 0 seconds, got 0"),
        ({"budget": 0}, "budget must be at least 1 byte, got 0"),
    ],
)
def test_unknown_options_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pack("nothing.pt", **({"budget": 1000, "output": tmp_path / "m.qlab"} | options))
    assert not list(tmp_path.iterdir())


def test_code_alone_beyond_the_budget_is_refused_at_once(tmp_path):
    (tmp_path / "a.py").write_bytes(b"#" * 2000)
    with pytest.raises(BudgetError, match="code files take 2000 bytes, the budget is 1000"):
        pack("nothing.pt", budget=1000, output=tmp_path / "m.qlab", code=[tmp_path / "a.py"])


def test_an_output_is_replaced_only_when_asked(packed, tmp_path):
    (tmp_path / "m.qlab").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="m.qlab exists"):
        pack(packed[0], output=tmp_path / "m.qlab", **GPTQ)
    assert (tmp_path / "m.qlab").read_bytes() == b"mine"


def test_a_module_packs_to_the_bytes_of_its_checkpoint(packed, toy_state, tmp_path):
    """A path is only recorded; the module has a config that says more than its tensors, which the manifest keeps."""
    model = gpt_from_state_dict(toy_state).train()
    report = pack(model, output=tmp_path / "m.qlab", **GPTQ)
    assert (tmp_path / "m.qlab").read_bytes() == packed[1].read_bytes()
    assert report.checkpoint == "" and all(module.training for module in model.modules())


def test_a_file_that_reads_back_differently_is_never_left(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packer, "digest_in_fresh_process", lambda path: "0" * 64)
    with pytest.raises(FormatError, match="decodes the file to other tensors"):
        pack(packed[0], output=tmp_path / "m.qlab", **GPTQ)
    assert [path.name for path in tmp_path.iterdir()] == [".m.qlab.work"]  # memory or disk may be to blame


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
    state, tensors = load_file(tmp_path / "s.safetensors"), open_artifact(packed[1]).arrays()
    assert state.keys() == tensors.keys()
    assert all(np.array_equal(state[n].numpy(), tensors[n]) and state[n].numpy().dtype == tensors[n].dtype for n in state)


def test_a_time_limit_that_is_kept_changes_nothing(toy_checkpoint, tmp_path):
    report = pack(load(toy_checkpoint), output=tmp_path / "m.qlab", **TRELLIS | {"tune_steps": 2, "time_limit": 1e4})
    assert report.effort == {"states": 8, "tune_steps": 2} and report.tuned
    stages = report.forecast["stages_s"]
    assert stages.keys() == {"sampling", "statistics", "rounding", "tuning", "held-out KL", "reading back"}
    assert report.forecast["total_s"] == pytest.approx(sum(stages.values()), abs=0.01) and report.forecast["peak_bytes"] > 0


def test_a_short_time_limit_takes_less_effort_and_the_report_says_which(toy_checkpoint, tmp_path, monkeypatch, caplog):
    seconds = {8: 5000.0, 4: 30.0, 1: 5.0}
    monkeypatch.setattr(TrellisOptions, "forecast", lambda self, shapes, token_s: {"rounding": seconds[self.states]})
    caplog.set_level("INFO")
    report = pack(load(toy_checkpoint), output=tmp_path / "m.qlab", **TRELLIS | {"time_limit": 1000.0})
    assert report.effort == {"states": 4, "tune_steps": 0} and not report.tuned
    manifest = open_artifact(tmp_path / "m.qlab").manifest
    assert {t.states for t in manifest.tensors if t.kind == "trellis_grid"} == {4}
    said = [record.message for record in caplog.records]
    assert said[0] == "to keep the time limit: tune False instead of True, states 4 instead of 8"
    assert said[1].startswith("forecast: about ") and "rounding 30 s, held-out KL " in said[1]
    assert "reading back 4.0 s), peak memory about " in said[1]


def test_a_time_limit_that_cannot_be_kept_is_said_before_any_work(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(packer, "measure_statistics", None)  # it would fail
    with pytest.raises(
        TimeLimitError, match=r"the time limit of 0\.0 s cannot be kept: the least effort takes about \d"
    ) as error:
        pack(toy_checkpoint, output=tmp_path / "m.qlab", **TRELLIS | {"time_limit": 1e-3})
    assert error.value.exit_code == 3 and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_device_is_checked_before_any_work(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="^device cuda is asked for, but torch finds no GPU$"):
        pack(toy_checkpoint, output=tmp_path / "m.qlab", device="cuda", **TRELLIS)
    with pytest.raises(ConfigError, match="^device must be cpu or cuda, got 'tpu'$"):
        pack(toy_checkpoint, output=tmp_path / "m.qlab", device="tpu", **TRELLIS)
    options = TRELLIS | {"tune": False, "states": 1}
    a, b = (
        pack(toy_checkpoint, output=tmp_path / f"{n}.qlab", device=device, **options) for n, device in enumerate(("cpu", None))
    )
    assert a.artifact_sha256 == b.artifact_sha256
