"""Reports and evaluation records: what is written is read again, and damage is one line that names the place."""

import json

import pytest
from report_samples import evaluation, report

from quantlab.errors import ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation, record_path
from quantlab.fields import read_fields
from quantlab.report.entry import Place, chosen_slope, place_of, slope_of
from quantlab.report.pack_report import PackReport, TensorReport, read_report, report_path


def test_a_report_and_a_record_are_read_as_they_were_written(tmp_path):
    for value, read in ((report(), read_report), (evaluation(), read_evaluation)):
        path = tmp_path / "r.json"
        path.write_bytes(value.to_json())
        assert read(path) == value


def test_they_lie_beside_the_artifact(tmp_path):
    assert report_path(tmp_path / "m.qlab") == tmp_path / "m.report.json"
    assert record_path(tmp_path / "m.qlab") == tmp_path / "m.eval.json"


def test_a_field_that_a_later_quantlab_adds_is_passed_over():
    raw = evaluation().to_dict() | {"colour": "blue"}
    assert read_fields(EvaluationRecord, raw, "x") == evaluation()


def test_fields_with_defaults_may_be_missing():
    raw = json.loads(report().to_json())
    del raw["artifact_sha256"], raw["tensors"][0]["points"]
    assert read_fields(PackReport, raw, "x").artifact_sha256 == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_bytes": "16MB"}, 'x: budget_bytes must be a whole number, got "16MB"'),
        ({"budget_bytes": 1.5}, "x: budget_bytes must be a whole number, got 1.5"),
        ({"budget_bytes": True}, "x: budget_bytes must be a whole number, got true"),
        ({"budget_bytes": 10**30}, "x: budget_bytes must be a whole number, got 1000000000000000000000000000000"),
        ({"bpw": float("nan")}, "x: bpw must be a number, got NaN"),
        ({"bpw": float("inf")}, "x: bpw must be a number, got Infinity"),
        ({"bpw": None}, "x: bpw must be a number, got null"),
        ({"method": ["t"] * 100}, 'x: method must be a string, got ["t", "t", "t", "t", "t", "t", "t", "...'),
        ({"size_breakdown": {"codes": "many"}}, 'x: size_breakdown: codes must be a whole number, got "many"'),
        ({"size_breakdown": 7}, "x: size_breakdown must be an object, got 7"),
        ({"tensors": 7}, "x: tensors must be a list, got 7"),
        ({"tensors": [3]}, "x: tensors[0] must be an object, got 3"),
        ({"tensors": [{"name": "a"}]}, "x: tensors[0]: key 'bpw' is missing"),
    ],
)
def test_a_damaged_report_is_one_line(change, message):
    with pytest.raises(ReportError) as caught:
        read_fields(PackReport, json.loads(report().to_json()) | change, "x")
    assert str(caught.value) == message and caught.value.exit_code == 1


def test_a_point_is_a_pair():
    raw = json.loads(report().to_json())["tensors"][0] | {"points": [[1, 2.0, 3]]}
    with pytest.raises(ReportError, match=r"x: points\[0\] must have 2 values, got 3"):
        read_fields(TensorReport, raw, "x")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"{", b"[" * 100_000, b"1" * 5000, b'"\\ud800"'])
def test_what_is_no_json_is_one_line(data, tmp_path):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(ReportError, match="r.json is not JSON: ") as caught:
        read_report(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"cannot read .*r.json: No such file or directory"):
        read_report(tmp_path / "r.json")


def test_a_gap_is_a_loss_difference_over_the_bytes_of_its_own_tokens():
    from dataclasses import replace
    from math import log

    against = evaluation().against
    assert against.gap_bpb == pytest.approx([nats * 1000 / 2500 / log(2) for nats in (0.02, 0.01, 0.03)])
    assert replace(against, bytes=0).gap_bpb is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.mlp.fc.weight", Place("blocks", 3, "mlp.fc")),
        ("model.layers.11.self_attn.q_proj.weight", Place("model.layers", 11, "self_attn.q_proj")),
        ("3.weight", Place("", 3, "weight")),
        ("tok_emb.weight", Place("", None, "tok_emb")),
        ("banks", Place("", None, "banks")),
        ("", Place("", None, "")),
        ("a\nb.1.c", Place("a\nb", 1, "c")),
        ("9" * 50 + ".x", Place("", None, "9" * 50 + ".x")),
    ],
)
def test_a_tensors_place_is_read_off_its_name(name, place):
    assert place_of(name) == place


def test_a_slope_is_that_of_the_measured_curve():
    """A curve whose cost halves every 100 bytes: at 2e-4 a byte saves ln 2 / 100 of it; points within 3 % say nothing."""
    import math

    from quantlab.report.entry import TensorFacts

    def facts(*points):
        return TensorFacts(name="t", shape=(8, 8), width_bits=8, bytes=1000, predicted_kl=2e-4, points=points)

    wanted = pytest.approx(2e-4 * math.log(2) / 100)
    far, near = ((800, 8e-4), (1100, 1e-4)), ((995, 1.7e-4), (1001, 2.1e-4))
    assert slope_of(facts(*far)) == slope_of(facts(*far, *near)) == slope_of(facts(far[0])) == wanted
    assert slope_of(facts(*near)) is None and slope_of(facts()) is None and slope_of(facts((900, 1e-4))) is None
    assert chosen_slope([facts(*far), facts(), facts((900, 2.2e-4))]) == pytest.approx(
        (slope_of(facts(*far)) + slope_of(facts((900, 2.2e-4)))) / 2
    )


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"kl_before": 0.1, "kl_after": 0.2}, "tuned: key 'accepted' is missing"),
        ({"kl_before": "low", "kl_after": 0.2, "accepted": True}, 'tuned: kl_before must be a number, got "low"'),
    ],
)
def test_what_tuning_did_is_checked_too(tmp_path, tuned, message):
    path = tmp_path / "x.report.json"
    path.write_bytes(report(tuned=tuned).to_json())
    with pytest.raises(ReportError) as caught:
        read_report(path)
    assert str(caught.value) == f"{path}: {message}"
