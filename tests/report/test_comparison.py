"""Packed models side by side: the table, the sentences that follow from it, and scores that cannot be compared."""

import json
from dataclasses import replace

import pytest
from report_samples import DATA, TENSORS, entry, evaluation, tensor, without
from rich.console import Console

from quantlab.cli.display import show_whole
from quantlab.errors import ConfigError
from quantlab.report.comparison import compare_entries, label
from quantlab.report.tables import render_comparison

OTHER = (
    tensor(size=1200, kl=1e-4),
    tensor("blocks.1.attn.weight", 900, 8e-4),
    tensor("tok_emb.weight", 2504, 9e-4),
)

TABLE = """\
A  a.qlab
B  b.qlab

                                  A                   B
method                      trellis                gptq
  codes                       4,700               4,710
  scales                        600                 600
  entropy model                 100                 100
  passthrough                   500                 500
  framing                       100                 100
  code                            0                  50
total bytes                   6,000               6,060
budget                        6,100               6,100
bits per weight               2.930               2.935
predicted KL                0.00150             0.00180
KL                          0.00200              0.0300
top-1 flips                  3.00 %              3.00 %
BPB before                   1.6000              1.6000
BPB after                    1.6100              1.6500
gap                         +0.0115             +0.0115
  95 %           +0.0058 to +0.0173  +0.0058 to +0.0173
valid                           yes                 yes

tensor                shape  bytes A  bpw A  predicted KL A  bytes B-A  bpw B  predicted KL B/A
blocks.1.attn.weight  64x32    1,500  5.859        4.00e-04       -600  3.516              2.00
blocks.0.attn.weight  64x32    1,000  3.906        2.00e-04       +200  4.688             0.500
and 1 more; --top 3 shows all

scored on 1,000 tokens, 2,500 bytes, 3 documents (chunked, sequences of 100, token ids 5f5f5f5f5f5f)
terms: see the glossary (docs/glossary.md)
"""


@pytest.fixture
def pair():
    """Return two files whose totals are 1 % apart."""
    other = entry("b.qlab", kl=0.03, bpb=1.65, tensors=OTHER, total=6010, method="gptq", effort={}, code_bytes=50)
    return [entry(), replace(other, evaluation=evaluation(0.03, 1.65))]


def shown(comparison, capsys, top=20):
    show_whole(render_comparison(comparison, top=top))
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


def test_the_table_of_two_files(pair, capsys):
    assert shown(compare_entries(pair), capsys, top=2) == TABLE


def test_a_terminal_that_is_too_narrow_cuts_no_number(pair, capsys, monkeypatch):
    monkeypatch.setattr("quantlab.cli.display.console", lambda: Console(width=40, highlight=False, markup=False))
    assert shown(compare_entries(pair), capsys, top=2) == TABLE


def test_json_holds_every_number_of_the_table(pair):
    comparison = compare_entries(pair)
    raw = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    first, second = raw["files"]
    assert (first["label"], first["path"], first["total_bytes"], first["is_valid"]) == ("A", "a.qlab", 6000, True)
    assert second["kl"] == 0.03 and second["gap_bpb"] == pytest.approx([0.01154, 0.00577, 0.01731], abs=1e-5)
    assert second["slack_bytes"] == 40 and second["bpw"] == pytest.approx(8 * 6010 / 16384)
    assert [t["name"] for t in raw["tensors"]] == ["blocks.1.attn.weight", "blocks.0.attn.weight", "tok_emb.weight"]
    assert raw["tensors"][0]["cells"][1]["bytes"] == 900
    assert raw["evaluation_data"]["tokens_sha256"] == "5f" * 32


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("bytes", ["blocks.1", "blocks.0", "tok_emb"]),
        ("predicted_kl", ["blocks.1", "blocks.0", "tok_emb"]),
        ("bpw", ["blocks.1", "blocks.0", "tok_emb"]),
        ("name", ["blocks.0", "blocks.1", "tok_emb"]),
    ],
)
def test_tensors_come_in_the_order_of_their_difference(pair, sort, names):
    assert [row.name[:8].rstrip(".") for row in compare_entries(pair, sort=sort).tensors] == [n[:8] for n in names]


def test_tensors_of_one_file_come_by_their_own_size():
    assert [row.name[:8] for row in compare_entries([entry()]).tensors] == ["tok_emb.", "blocks.1", "blocks.0"]


def test_an_unknown_sort_is_refused(pair):
    with pytest.raises(ConfigError, match="sort must be one of bytes, predicted_kl, bpw, name, got 'size'"):
        compare_entries(pair, sort="size")


def test_files_of_equal_bytes_are_ranked_by_measured_kl(capsys):
    entries = [entry(), entry("b.qlab", kl=0.03, total=6020, method="gptq"), entry("c.qlab", kl=0.001, total=6100)]
    (found,) = compare_entries(entries).equal_bytes
    assert (found.labels, found.measure, found.ratios) == (("A", "B"), "KL", (1.0, pytest.approx(15)))
    text = shown(compare_entries(entries), capsys)
    assert "at equal bytes (6,000 to 6,020): A has the least KL, 0.00200; B has 0.0300, 15 times that\n" in text


def test_without_scores_predictions_of_one_predictor_are_compared():
    a, b = (without(entry(path, tensors=t), evaluation=None) for path, t in (("a", TENSORS), ("b", OTHER)))
    (found,) = compare_entries([a, b]).equal_bytes
    assert (found.measure, found.labels) == ("predicted KL", ("A", "B"))
    assert found.kls == pytest.approx((1.5e-3, 1.8e-3))
    other_text = {"calibration": {"fingerprint": "beef"}}
    for change in ({"predictor": "diagonal"}, other_text):
        assert compare_entries([a, without(b, report=replace(b.report, **change))]).equal_bytes == ()
    assert compare_entries([a, without(b, report=replace(b.report, method="another"))]).equal_bytes == (found,)
    unknown = [without(e, report=replace(e.report, predictor="")) for e in (a, b)]
    assert compare_entries(unknown).equal_bytes == ()


def test_scores_against_different_references_are_not_ranked():
    a, b = entry(), entry("b.qlab", kl=0.03)
    other = replace(b.evaluation, against=replace(b.evaluation.against, fingerprint="1e55"))
    comparison = compare_entries([a, replace(b, evaluation=other)])
    assert [found.measure for found in comparison.equal_bytes] == ["predicted KL"]
    assert comparison.notes == (
        "the files were evaluated against different references: each KL and gap is to its own",
        "B: the reference model.pt is not the model that was packed",
    )


def test_at_equal_kl_bytes_are_interpolated_between_two_files_of_a_series(capsys):
    """log(KL) against bytes: 0.002 lies halfway between 0.001 and 0.004, so 8,000 bytes."""
    series = [entry(f"{kl}.qlab", kl=kl, total=total, budget=total) for kl, total in ((0.004, 6000), (0.001, 10000))]
    other = entry("g.qlab", kl=0.002, total=12000, budget=12000, method="gptq")
    (found,) = compare_entries([*series, other]).equal_kl
    assert (found.label, found.between, found.series_bytes) == ("C", ("A", "B"), pytest.approx(8000))
    assert found.ratio == pytest.approx(2 / 3)
    line = "at equal KL (0.00200): C takes 12,000 bytes; the series of A and B would take 8,000, "
    line += "0.667 times that (interpolated)"
    assert line in shown(compare_entries([*series, other]), capsys)


@pytest.mark.parametrize("kl", [0.0005, 0.005])
def test_nothing_is_extrapolated(kl):
    series = [entry(f"{kl}.qlab", kl=kl, total=total) for kl, total in ((0.004, 6000), (0.001, 10000))]
    assert compare_entries([*series, entry("g.qlab", kl=kl, total=12000, method="gptq")]).equal_kl == ()


def test_nothing_is_interpolated_over_more_than_a_bit_a_weight():
    series = [entry(f"{kl}.qlab", kl=kl, total=total) for kl, total in ((0.0041, 6000), (0.001, 10000))]
    assert compare_entries([*series, entry("g.qlab", kl=0.002, total=12000, method="gptq")]).equal_kl == ()


def test_scores_of_different_data_are_refused_and_the_fields_named():
    shorter = replace(DATA, seq_len=50, stride=50, tokens_sha256="99" * 32)
    unscored = without(entry("none.qlab"), evaluation=None)
    entries = [entry(), unscored, entry("b.qlab", data=shorter), entry("c.qlab", data=shorter)]
    with pytest.raises(ConfigError) as caught:
        compare_entries(entries)
    assert str(caught.value) == (
        "scores of different evaluation data cannot be compared: tokens_sha256 is 5f5f5f5f5f5f in a.qlab, "
        "999999999999 in b.qlab and c.qlab; seq_len is 100 in a.qlab, 50 in b.qlab and c.qlab; "
        "stride is 100 in a.qlab, 50 in b.qlab and c.qlab"
    )
    assert caught.value.exit_code == 2


def test_scores_of_other_devices_are_noted():
    a, b = entry(), entry("b.qlab")
    comparison = compare_entries([a, replace(b, evaluation=replace(b.evaluation, device="NVIDIA H100"))])
    assert comparison.notes == ("scores were computed on different devices (NVIDIA H100, cpu), whose arithmetic differs",)


def test_what_is_not_there_is_a_dash(capsys):
    bare = without(entry("b.qlab"), report=None, evaluation=None)
    text = shown(compare_entries([entry(), bare]), capsys)
    lines = {line[:16].strip(): line.split()[-1] for line in text.splitlines() if line}
    missing = ("budget", "predicted KL", "KL", "BPB before", "BPB after", "gap", "95 %", "code")
    assert {lines[name] for name in missing} == {"-"}
    assert lines["total bytes"] == "6,000" and lines["bits per weight"] == "2.930" and lines["valid"] == "no"
    assert "B is not valid: no report, not evaluated\n" in text
    assert "width B\n" in text and "blocks.0.attn.weight  64x32    1,000  3.906        2.00e-04        8\n" in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: without(e, evaluation=None), "not evaluated"),
        (lambda e: without(e, file=None), "the artifact is not here"),
        (lambda e: without(e, report=replace(e.report, budget_bytes=5990)), "10 bytes over the budget"),
        (lambda e: without(e, report=replace(e.report, code_bytes=101)), "1 bytes over the budget"),
        (
            lambda e: without(e, report=replace(e.report, artifact_sha256="")),
            "the report does not identify the file that was decoded",
        ),
    ],
)
def test_a_result_is_valid_only_if_score_and_size_both_survive(change, problem):
    assert compare_entries([entry()]).files[0].is_valid
    row = compare_entries([change(entry())]).files[0]
    assert (row.is_valid, row.problems) == (False, (problem,))


def test_tensors_that_only_one_file_has_stay_in_the_table(capsys):
    fewer = entry("b.qlab", tensors=TENSORS[:2])
    text = shown(compare_entries([entry(), fewer], sort="name"), capsys)
    assert "tok_emb.weight        64x32    2,500  9.766        9.00e-04          -      -                 -\n" in text


def test_names_out_of_files_cannot_break_a_line(capsys):
    hostile = entry(tensors=(tensor("a\nb\x1b[31m\r"),))
    text = shown(compare_entries([hostile, hostile]), capsys)
    assert "a\\nb\\x1b[31m\\r" in text and "\x1b" not in text


def test_labels_go_on_after_z():
    assert [label(n) for n in (0, 25, 26)] == ["A", "Z", "F27"]
