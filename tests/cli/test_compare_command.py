"""quantlab compare and eval --save on files: what lies beside an artifact is found, must belong to it, and is held together."""

import json
import re
import shutil
from pathlib import Path

import pytest
from test_cli import fails

from quantlab.artifact.reader import MOST_COUNTED_CODE, open_artifact
from quantlab.cli.main import run
from quantlab.evaluation.evaluation_record import read_evaluation
from quantlab.jobs.compare import read_entry
from quantlab.report.assets import PACKAGES

TEXT = b"import os\n\ndef main():\n    return 0\n" * 30
PACKINGS = {
    "a": ["--budget", "60kB", "--method", "trellis", "--states", "1", "--no-tune"],
    "b": ["--budget", "70kB", "--method", "rtn"],
}


def quantlab(*arguments):
    assert run([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def packed(toy_checkpoint, tokenizer_file, tmp_path_factory):
    """a.qlab and b.qlab with reports and evaluation records against the toy model, made by the commands alone."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "t.txt").write_bytes(TEXT)
    shutil.copy(tokenizer_file, folder / "tokenizer.model")
    shutil.copy(toy_checkpoint, folder / "toy.pt")
    random = ["--calib", "random", "--calib-tokens", "1024", "--calib-seq-len", "64"]
    for name, options in PACKINGS.items():
        quantlab("pack", toy_checkpoint, "-o", folder / f"{name}.qlab", *random, *options)
        quantlab("eval", folder / f"{name}.qlab", *scoring(folder), "--against", toy_checkpoint, "--save")
    return folder


@pytest.fixture
def files(packed, tmp_path):
    """A copy of all of it."""
    return Path(shutil.copytree(packed, tmp_path / "files"))


def scoring(folder, text="t.txt"):
    return ["--text", folder / text, "--seq-len", "32"]


def test_a_record_holds_what_eval_printed_and_names_file_and_data(packed, toy_checkpoint, capsys):
    quantlab("eval", packed / "a.qlab", *scoring(packed), "--against", toy_checkpoint, "--json")
    printed = json.loads(capsys.readouterr().out)
    record = read_evaluation(packed / "a.eval.json")
    assert (record.val_bpb, record.nats, record.data.tokens) == (printed["val_bpb"], printed["nats"], printed["tokens"])
    assert record.against.kl_mean == printed["against"]["kl_mean"] and record.against.file == toy_checkpoint.name
    quantlab("eval", toy_checkpoint, *scoring(packed), "--tokenizer", packed / "tokenizer.model", "--json")
    reference = json.loads(capsys.readouterr().out)
    assert record.against.val_bpb == pytest.approx(reference["val_bpb"], rel=1e-6)
    assert record.against.gap_bpb[0] == pytest.approx(record.val_bpb - reference["val_bpb"], abs=1e-6)
    entry = read_entry(packed / "a.qlab")
    assert record.target_sha256 == entry.file.sha256 == entry.report.artifact_sha256
    assert record.against.fingerprint == entry.file.checkpoint


def test_other_modes_score_the_reference_in_the_same_mode(files, toy_checkpoint, capsys):
    mode = ["--mode", "sliding", "--stride", "16"]
    quantlab("eval", files / "a.qlab", *scoring(files), *mode, "--against", toy_checkpoint, "--save", "--force")
    quantlab("eval", files / "toy.pt", *scoring(files), *mode, "--save")
    record, reference = read_evaluation(files / "a.eval.json"), read_evaluation(files / "toy.eval.json")
    assert record.data == reference.data and record.data.stride == 16
    assert (record.against.val_bpb, record.against.val_loss) == (reference.val_bpb, reference.val_loss)
    assert record.against.tokens < record.data.tokens  # KL is of sequences that do not overlap
    note = "bits per byte are sliding; gap and KL are of sequences that do not overlap"
    capsys.readouterr()
    quantlab("compare", files / "a.qlab", "--json")
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


def test_a_record_is_not_replaced_unless_told_so(files, capsys):
    before = (files / "a.eval.json").read_bytes()
    saving = ["eval", files / "a.qlab", *scoring(files), "--save"]
    fails(capsys, saving, 2, "a.eval.json exists")
    assert (files / "a.eval.json").read_bytes() == before
    quantlab(*saving, "--force")
    assert read_evaluation(files / "a.eval.json").against is None


def test_two_files_side_by_side(packed, capsys):
    quantlab("compare", packed / "a.qlab", packed / "b.qlab", "--top", "1")
    out = capsys.readouterr().out
    lines = {line[:16].strip(): line.split()[1:] for line in out.splitlines()}
    totals = [f"{(packed / name).stat().st_size:,}" for name in ("a.qlab", "b.qlab")]
    assert lines["total bytes"] == ["bytes", *totals]
    assert lines["valid"] == ["yes", "yes"] and lines["method"] == ["trellis", "rtn"]
    assert "and 8 more; --top 9 shows all" in out and "of different" not in out


def test_a_report_stands_for_its_artifact_and_both_ways_tell_the_same(files, capsys):
    quantlab("compare", files / "a.qlab", files / "b.qlab", "--json")
    whole = json.loads(capsys.readouterr().out)
    quantlab("compare", files / "a.report.json", files / "b.report.json", "--json")
    assert json.loads(capsys.readouterr().out) == whole
    (files / "a.qlab").unlink()
    quantlab("compare", files / "a.report.json", files / "b.report.json", "--json")
    alone = json.loads(capsys.readouterr().out)
    assert alone["files"][0]["problems"] == ["the artifact is not here"] and alone["files"][1] == whole["files"][1]
    assert alone["files"][0]["kl"] == whole["files"][0]["kl"] and alone["tensors"] == whole["tensors"]


def test_an_artifact_without_a_report_tells_what_is_in_it(files):
    for name in "ab":
        with_report = read_entry(files / f"{name}.qlab")
        (files / f"{name}.report.json").unlink()
        alone = read_entry(files / f"{name}.qlab")
        assert alone.report is None and alone.evaluation == with_report.evaluation
        assert alone.size_breakdown == with_report.report.size_breakdown and alone.n_params == with_report.report.n_params
        assert [(t.name, t.width_bits) for t in alone.tensors] == [(t.name, t.width_bits) for t in with_report.tensors]
        told = [t.bytes if name == "b" else None for t in with_report.tensors]  # a trellis shares one stream
        assert [t.bytes for t in alone.tensors] == told


def test_codes_of_the_report_add_up_to_those_of_the_file(packed):
    for name in "ab":
        report = read_entry(packed / f"{name}.qlab").report
        rest = report.size_breakdown["codes"] - sum(t.code_bytes for t in report.tensors)
        assert rest == 0 if name == "b" else 0 < rest < 200
        for t in report.tensors:
            sizes, costs = zip(*t.points, strict=True) if t.points else ((), ())
            assert list(sizes) == sorted(sizes) and list(costs) == sorted(costs, reverse=True)
            assert t.bytes / 2 < min(sizes, default=t.bytes) <= max(sizes, default=t.bytes) < 2 * t.bytes
        assert any(t.points for t in report.tensors)


def test_every_code_is_counted(packed):
    for name in "ab":
        artifact = open_artifact(packed / f"{name}.qlab")
        counts = artifact.code_counts()
        shapes = {t.name: t.shape for t in artifact.manifest.tensors if t.kind != "raw"}
        assert {n: sum(tally) for n, tally in counts.items()} == {n: rows * columns for n, (rows, columns) in shapes.items()}
        assert all(len(tally) == 2 * MOST_COUNTED_CODE + 1 for tally in counts.values())


def test_what_belongs_to_another_file_is_refused_by_name(files, capsys):
    a, b = files / "a.qlab", files / "b.qlab"
    shutil.copy(files / "b.eval.json", files / "a.eval.json")
    fails(capsys, ["compare", a, b], 1, "a.eval.json is of another file: b.qlab, sha256 ", "a.qlab has sha256 ")
    shutil.copy(files / "b.report.json", files / "a.report.json")
    fails(capsys, ["compare", a, b], 1, f"a.report.json is of another file: {b.stat().st_size:,} bytes", "a.qlab has ")
    raw = json.loads((files / "b.report.json").read_bytes())
    (files / "b.report.json").write_text(json.dumps(raw | {"artifact_sha256": "00" * 32}))
    fails(capsys, ["compare", b, "--json"], 1, "b.report.json is of another file", "sha256 000000000000")
    (files / "b.report.json").write_text(json.dumps(raw | {"artifact_sha256": "", "artifact_bytes": 1}))
    fails(capsys, ["compare", b, "--json"], 1, "b.report.json is of another file: 1 bytes")


def test_scores_of_other_data_are_refused(files, capsys):
    (files / "other.txt").write_bytes(TEXT.replace(b"0", b"1"))
    quantlab("eval", files / "b.qlab", *scoring(files, "other.txt"), "--save", "--force")
    capsys.readouterr()
    comparing = ["compare", files / "a.qlab", files / "b.qlab"]
    line = fails(capsys, comparing, 2, "scores of different evaluation data cannot be compared: ", "tokens_sha256 is ")
    assert f"in {files / 'a.qlab'}, " in line and "seq_len" not in line


def test_misuse_and_damage_are_one_clear_line(files, capsys):
    a, b = files / "a.qlab", files / "b.qlab"
    fails(capsys, ["compare", a], 2, "compare needs two files or more, got")
    fails(capsys, ["compare"], 2, "A [B ...]")
    fails(capsys, ["compare", a, b, "--sort", "size"], 2, "sort must be one of bytes, predicted_kl, bpw, name, got 'size'")
    fails(capsys, ["compare", a, b, "--top", "-1"], 2, "--top")
    fails(capsys, ["compare", a, files / "absent.qlab"], 1, "cannot read", "absent.qlab: No such file")
    fails(capsys, ["compare", a, files / "absent.report.json"], 1, "cannot read", "absent.report.json")
    fails(capsys, ["compare", a, files / "toy.pt"], 1, "toy.pt: not a .qlab file")
    fails(capsys, ["compare", a, files], 1, "cannot read", "Is a directory")
    fails(capsys, ["compare", a, b, "--html", files / "no" / "c.html"], 2, "does not exist")
    (files / "b.eval.json").write_text("{}")
    fails(capsys, ["compare", a, b], 1, "b.eval.json: key 'data' is missing")
    (files / "b.report.json").write_text("[1, ")
    fails(capsys, ["compare", a, b], 1, "b.report.json is not JSON")
    b.write_bytes(b.read_bytes()[:-1])
    fails(capsys, ["compare", a, b], 1, "b.qlab: ")


def test_a_page_of_one_file_or_of_two(files, capsys, monkeypatch):
    page = files / "c.html"
    quantlab("compare", files / "a.qlab", "--html", page)
    assert capsys.readouterr() == ("", f"wrote {page}\n") and "<title>quantlab: a.qlab (trellis, " in page.read_text()
    comparing = ["compare", files / "a.qlab", files / "b.qlab", "--html", page]
    fails(capsys, comparing, 2, "c.html exists")
    quantlab(*comparing, "--force")
    assert "total bytes" in capsys.readouterr().out and re.search(
        r"<title>quantlab: a\.qlab \(trellis, [\d, kB.]+\), b\.qlab \(rtn, ", page.read_text()
    )
    fails(capsys, [*comparing[: comparing.index("--html")], "--estimates", "e.json"], 2, "is for the page that --html names")
    monkeypatch.setattr("quantlab.report.assets.PACKAGES", (*PACKAGES, "no_such_package"))
    fails(capsys, [*comparing, "--force"], 1, "an HTML page needs the package no_such_package")
