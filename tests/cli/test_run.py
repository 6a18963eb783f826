"""quantlab run as a user types it: what runs and what does not, what is printed, what a kill leaves."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pipeline_samples
import pytest
from pipeline_samples import PIPELINE

from quantlab.cli.main import run
from quantlab.jobs import train as train_job
from quantlab.pipeline import training_stages
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.packing_stages import build
from quantlab.pipeline.read import read_pipeline
from quantlab.pipeline.stage import StageJob
from quantlab.pipeline.stage_folder import LOCK_NAME, locked_folder
from quantlab.progress import silent
from quantlab.tensor_file import read_metadata

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["data", "train", "calibrate", "pack", "evaluate", "report"]
pytestmark = pytest.mark.usefixtures("one_thread")


def write_pipeline(folder, tokenizer_file, text=PIPELINE):
    return str(pipeline_samples.write_pipeline(folder, Path(tokenizer_file), text))


@pytest.fixture(scope="module")
def folder(tokenizer_file, tmp_path_factory):
    """A pipeline that has run once: p.toml, its texts, and p.out."""
    folder = tmp_path_factory.mktemp("pipeline")
    assert run(["run", write_pipeline(folder, tokenizer_file)]) == 0
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def stages(pipeline, *options, capsys):
    """{stage: whether it ran} of one run."""
    capsys.readouterr()
    assert run(["run", str(pipeline), "--json", *options]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    return {stage["stage"]: stage["is_new"] for stage in cell["stages"]}


def fails(capsys, arguments, code, *parts):
    capsys.readouterr()
    assert run(["run", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert all(part in line for part in parts), line
    return out


def with_keys_hidden(text):
    return re.sub(r"\b[0-9a-f]{12}\b", "KEY", text)


def test_the_last_line_says_what_counts(folder, capsys):
    capsys.readouterr()
    assert run(["run", str(folder / "p.toml")]) == 0
    *lines, clock, last = capsys.readouterr().out.splitlines()
    report = json.loads((folder / "p.out/model.report.json").read_text())
    score = json.loads((folder / "p.out/model.eval.json").read_text())
    assert last == (
        f"{folder}/p.out/model.qlab: {report['total_bytes']:,} of 40,000 bytes, BPB {score['against']['val_bpb']:.4f} before, "
        f"{score['val_bpb']:.4f} after, KL {score['against']['kl_mean']:.5f} nats per token, valid"
    )
    assert (folder / "p.out/model.qlab").stat().st_size == report["artifact_bytes"] <= 40_000
    assert [line.split()[0] for line in lines] == ["stage", *STAGES]
    assert re.fullmatch(r"clock: \d+\.\d s inside, \d+\.\d s outside", clock)


def test_the_artifact_is_that_of_the_single_commands(folder, tmp_path, capsys):
    options = ["--budget", "40kB", "--no-tune", "--states", "4", "--calib-tokens", "512", "--calib-seq-len", "32"]
    train = next((folder / "p.out").glob("train-*"))
    assert run(["train", str(train / "train.toml"), "--out", str(tmp_path / "t")]) == 0
    model, tokenizer = tmp_path / "t/model.safetensors", ["--tokenizer", str(folder / "tiny.model")]
    assert model.read_bytes() == (train / "model.safetensors").read_bytes()
    assert run(["pack", str(model), "-o", str(tmp_path / "m.qlab"), *options, *tokenizer]) == 0
    assert (tmp_path / "m.qlab").read_bytes() == (folder / "p.out/model.qlab").read_bytes()


def test_a_second_run_does_nothing_and_takes_no_time(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in (folder / "p.out").rglob("*") if path.is_file()}
    started = time.process_time()
    assert stages(folder / "p.toml", capsys=capsys) == dict.fromkeys(STAGES, False)
    assert time.process_time() - started < 0.5
    touched = {path.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert touched <= {LOCK_NAME, "hashes.json"}


PLAN = """\
stage      key           plan
data       KEY  up to date
train      KEY  up to date
calibrate  KEY  up to date
pack       KEY  runs: budget_bytes 41000, was 40000, options.states 8, was 4, ...
evaluate   KEY  runs: pack is new
report     KEY  runs: evaluate is new
3 of 6 stages to run
"""
FORCED = """\
stage      key           plan
data       KEY  up to date
train      KEY  runs: forced by --from train
calibrate  KEY  runs: forced by --from train
pack       KEY  runs: forced by --from train
evaluate   KEY  runs: forced by --from train
report     KEY  runs: forced by --from train
5 of 6 stages to run
"""
NEW = """\
stage      key           plan
cell pack.budget=40kB
data       KEY  runs: no result yet
train      KEY  runs: data is new
calibrate  KEY  runs: train is new
pack       KEY  runs: calibrate is new
evaluate   KEY  runs: pack is new
report     KEY  runs: evaluate is new
cell pack.budget=41kB
data       KEY  as in pack.budget=40kB
train      KEY  as in pack.budget=40kB
calibrate  KEY  as in pack.budget=40kB
pack       KEY  runs: calibrate is new
evaluate   KEY  runs: pack is new
report     KEY  runs: evaluate is new
9 of 9 stages to run
"""


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (["--set", "pack.budget=41kB", "--set", "pack.states=8", "--set", "pack.emit_decoder=true"], PLAN),
        (["--from", "train"], FORCED),
        (["--set", 'matrix.pack.budget=["40kB", "41kB"]', "--out", "absent"], NEW),
    ],
)
def test_a_dry_run_says_what_would_run_and_why_and_writes_nothing(folder, options, plan, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert run(["run", "p.toml", "--dry-run", *options]) == 0
    assert with_keys_hidden(capsys.readouterr().out) == plan
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_dry_run_for_a_program(folder, capsys):
    capsys.readouterr()
    assert run(["run", str(folder / "p.toml"), "--dry-run", "--json", "--set", "report.html=true"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert [s["runs"] for s in about["cells"][0]["stages"]] == [False] * 5 + [True]
    assert about["cells"][0]["stages"][5]["why"] == "html true, was false" and about["out"] == f"{folder}/p.out"


def test_a_changed_option_runs_the_stages_that_it_reaches(copied, capsys):
    before = (copied / "p.out/model.qlab").read_bytes()
    (copied / "p.out/decoder.py").write_text("of a pipeline that had one")
    ran = stages(copied / "p.toml", "--set", "evaluate.mode=sliding", "--set", "evaluate.stride=16", capsys=capsys)
    assert ran == dict.fromkeys(STAGES[:4], False) | dict.fromkeys(STAGES[4:], True)
    assert (copied / "p.out/model.qlab").read_bytes() == before and not (copied / "p.out/decoder.py").exists()
    assert json.loads((copied / "p.out/model.eval.json").read_text())["data"]["mode"] == "sliding"
    assert not any(stages(copied / "p.toml", capsys=capsys).values())  # both results are kept
    assert json.loads((copied / "p.out/model.eval.json").read_text())["data"]["mode"] == "chunked"


UNSCORED = PIPELINE.replace('val = "text:val.txt"\n', "")


def test_a_matrix_shares_what_its_cells_have_in_common(tmp_path, tokenizer_file, capsys):
    text = UNSCORED + '[matrix]\npack.budget = ["30kB", "3kB", "40kB"]\n[clock]\nmax_seconds = 1000\n'
    path = write_pipeline(tmp_path, tokenizer_file, text)
    out = fails(capsys, [path, "--json"], 3, "1 of 3 cells are not valid; pack.budget=3kB: budget 3000 bytes is below the")
    first, failed, last = json.loads(out)["cells"]
    assert [stage["is_new"] for stage in first["stages"]] == [True] * 5
    assert [stage["is_new"] for stage in last["stages"]] == [False] * 3 + [True] * 2
    assert not failed["valid"] and failed["artifact"] is None and first["bpb_after"] is None
    results = tmp_path / "p.out/cells"
    assert sorted(p.name for p in results.iterdir()) == ["pack.budget=30kB", "pack.budget=40kB"]
    assert (results / "pack.budget=30kB/model.qlab").stat().st_size <= 30_000 < last["total_bytes"] <= 40_000
    assert len(list((tmp_path / "p.out").glob("pack-*/stage.json"))) == 2
    out = fails(capsys, [path], 3, "below the smallest reachable size")
    assert [line.rpartition(", ")[2] for line in out.splitlines()] == ["valid", "not valid", "valid"]


def test_force_runs_a_stage_and_those_after_it_again(copied, capsys):
    ran = stages(copied / "p.toml", "--from", "report", capsys=capsys)
    assert ran == dict.fromkeys(STAGES[:5], False) | {"report": True}
    fails(capsys, [copied / "p.toml", "--from", "trian"], 2, "--from must be a stage of this pipeline (data, train,", "'trian'")


def test_a_run_with_work_to_do_is_recorded(copied, tmp_path, capsys):
    runs = ["--runs", str(tmp_path / "runs")]
    stages(copied / "p.toml", *runs, capsys=capsys)
    assert not (tmp_path / "runs").exists()
    stages(copied / "p.toml", "--from", "report", *runs, capsys=capsys)
    (path,) = (tmp_path / "runs").glob("*-run-*/run.json")
    record, result = json.loads(path.read_text()), json.loads((copied / "p.out/result.json").read_text())["cells"][0]
    assert (record["kind"], record["status"], record["seeds"]) == ("run", "done", {"calibrate": 0, "train": 5})
    assert record["artifact"]["sha256"] == record["packing"]["artifact_sha256"] == result["artifact_sha256"]
    assert record["evaluations"][0]["val_bpb"] == result["bpb_after"] and record["options"]["pack"]["budget"] == "40kB"
    assert {f["copy"] for f in record["files"]} == {"model.report.json", "model.eval.json", "report.txt"}


def test_another_result_of_an_earlier_stage_makes_later_ones_stale(copied, capsys):
    """As after a training that the clock ended, made again under the same key."""
    (record,) = (copied / "p.out").glob("train-*/stage.json")
    about = json.loads(record.read_text())
    model = record.parent / "model.safetensors"
    model.write_bytes(model.read_bytes().replace(b'"gpt_config"', b'"gpt_c0nfig"'))
    about["outputs"]["model.safetensors"]["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    record.write_text(json.dumps(about))
    capsys.readouterr()
    assert run(["run", str(copied / "p.toml"), "--dry-run"]) == 0
    lines = with_keys_hidden(capsys.readouterr().out).splitlines()
    assert lines[2:5] == [
        "train      KEY  up to date",
        "calibrate  KEY  runs: made from another result of train",
        "pack       KEY  runs: calibrate is new",
    ]


def test_a_damaged_stage_is_named_and_can_be_made_anew(copied, capsys):
    path, place = copied / "p.toml", copied / "p.out"
    (page,) = place.glob("report-*/report.txt")
    page.write_text("other")
    fails(capsys, [path], 1, "report.txt is not what the stage report wrote")
    fails(capsys, [path, "--dry-run"], 1, "report.txt is not what the stage report wrote")
    page.unlink()
    fails(capsys, [path], 1, "report.txt is missing")
    (page.parent / "stage.json").write_text('{"stage": "report"')
    fails(capsys, [path], 1, f"{page.parent.name}/stage.json is not JSON")
    (page.parent / "stage.json").write_text('{"stage": "report"}')
    fails(capsys, [path], 1, "stage.json: key 'attempts' is missing")
    assert stages(path, "--from", "report", capsys=capsys)["report"]
    assert not any(stages(path, capsys=capsys).values())


def test_only_one_process_works_in_an_output_directory(copied, capsys):
    path = copied / "p.toml"
    with locked_folder(copied / "p.out"):
        fails(capsys, [path], 2, f"p.out is in use by process {os.getpid()}")
        assert run(["run", str(path), "--dry-run"]) == 0
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (copied / "p.out" / LOCK_NAME).write_text(f"{gone.pid}\n")
    assert not any(stages(path, capsys=capsys).values())
    assert (copied / "p.out" / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_mistakes_are_one_clear_line(folder, tmp_path, capsys, monkeypatch):
    path = folder / "p.toml"
    assert fails(capsys, [tmp_path / "absent.toml"], 2, "cannot read pipeline", "absent.toml") == ""
    fails(capsys, [path, "--set", "pack.bugdet=1"], 2, "unknown key pack.bugdet")
    fails(capsys, [path, "--set", "data.val=text:absent.txt"], 1, "data.val: cannot read", "absent.txt")
    fails(capsys, [path, "--set", "pack.budget"], 2, "--set must look like key=value")
    (tmp_path / "thesis.tex").write_text("mine")
    fails(capsys, [path, "--out", tmp_path], 2, "is not the output directory of a pipeline: it holds thesis.tex")
    fails(capsys, [path, "--out", tmp_path / "thesis.tex"], 2, "is a file")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    monkeypatch.setenv("RANK", "0")
    fails(capsys, [path], 2, "set train.processes, and run it without torchrun")


def test_a_budget_of_bytes_or_seconds_that_is_not_met_ends_with_3(copied, capsys):
    path = copied / "p.toml"
    out = fails(capsys, [path, "--set", "clock.max_seconds=0.01"], 3, "s inside the clock, 0.01 s allowed, over by", "(train ")
    assert "model.qlab: " in out and out.endswith(", not valid\n") and " of 0.01 s inside, " in out
    assert fails(capsys, [path, "--set", "pack.budget=3kB"], 3, "budget 3000 bytes is below the smallest") == ""
    inside = '["report"]'
    assert run(["run", str(path), "--set", "clock.max_seconds=1000", "--set", f"clock.inside={inside}"]) == 0


def test_a_checkpoint_is_packed_without_training_and_its_decoder_counts(folder, tmp_path, capsys):
    (checkpoint,) = (folder / "p.out").glob("train-*/model.safetensors")
    (tmp_path / "p.toml").write_text(
        f'[pack]\nbudget = "45kB"\ncheckpoint = "{checkpoint}"\nstates = 1\ntune = false\nemit_decoder = true\n'
        f'[calibrate]\nsource = "text:{folder}/train.txt"\ntokens = 512\nseq_len = 32\n[report]\nhtml = false\n'
    )
    capsys.readouterr()
    arguments = [str(tmp_path / "p.toml"), "--set", f"pack.tokenizer={folder}/tiny.model", "--json"]
    assert run(["run", *arguments]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert [stage["stage"] for stage in cell["stages"]] == ["calibrate", "pack", "report"]
    decoder = tmp_path / "p.out/decoder.py"
    assert cell["code_bytes"] == decoder.stat().st_size and cell["total_bytes"] <= 45_000


def test_sources_are_cut_into_splits_and_training_tokens_can_calibrate(folder, tmp_path):
    documents = [json.dumps({"text": text}) for text in (folder / "train.txt").read_text().split("\n\n")]
    (tmp_path / "docs.jsonl").write_text("\n".join(documents))
    text = PIPELINE.replace('train = "text:train.txt"\nval = "text:val.txt"\n', 'sources = ["docs.jsonl"]\nval_docs = 4\n')
    (tmp_path / "p.toml").write_text(text.replace("[calibrate]", '[calibrate]\nsource = "train"'))
    config = read_pipeline(tmp_path / "p.toml", [f"data.tokenizer={folder}/tiny.model"])[0].config
    pipeline = build(config, FileHashes())
    for part in (pipeline.train.data, pipeline.train, pipeline.calibrate):
        place = part.stage.folder(tmp_path)
        place.mkdir()
        done = part.stage.work(StageJob(tmp_path, place, silent, 0))
        assert all((place / name).is_file() for name in (*done.outputs, *done.logs))
    source = json.loads(read_metadata(pipeline.calibrate.statistics(tmp_path))["quantlab_statistics"])
    assert source["source"]["file"] == "text_train_*.bin"
    assert config.data.has_validation and pipeline.evaluate is not None


def test_several_processes_are_told_what_one_would_be(folder, tmp_path, monkeypatch):
    """Their request is answered here, in one process, on the data of the output directory."""

    def in_one(module, request, *, processes, progress, lock):
        assert (module, processes, lock) == (train_job.__name__, 2, 7)
        return train_job._answer(json.loads(json.dumps(request)), progress)

    monkeypatch.setattr(training_stages, "run_child", in_one)
    root = shutil.copytree(folder / "p.out", tmp_path / "out")
    config = read_pipeline(folder / "p.toml", ["train.processes=2"])[0].config
    stage = build(config, FileHashes()).train.stage
    stage.folder(root).mkdir()
    outcome = stage.work(StageJob(root, stage.folder(root), silent, 7))
    (alone,) = (folder / "p.out").glob("train-*")
    assert 0 < outcome.inside_seconds < 60 and list(outcome.outputs) == ["model.safetensors", "tokenizer.model"]
    assert (stage.folder(root) / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_an_evaluation_in_several_processes_is_that_of_one(folder, tmp_path):
    root = shutil.copytree(folder / "p.out", tmp_path / "out")
    config = read_pipeline(folder / "p.toml", ["evaluate.processes=2"])[0].config
    stage = build(config, FileHashes()).evaluate.stage
    stage.folder(root).mkdir()
    seen = []
    with locked_folder(root) as lock:
        stage.work(StageJob(root, stage.folder(root), lambda *call: seen.append(call[0]), lock))
    two, one = (json.loads((place / "model.eval.json").read_text()) for place in (stage.folder(root), folder / "p.out"))
    assert "compare" in seen and two["data"] == one["data"]
    assert two["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-9) and two["against"]["kl_mean"] == one["against"]["kl_mean"]


@pytest.mark.slow
def test_kill_in_every_stage_then_the_same_command_gives_the_same_file(folder, tokenizer_file, tmp_path):
    path, out = write_pipeline(tmp_path, tokenizer_file), tmp_path / "killed"
    driver = [sys.executable, str(Path(__file__).with_name("kill_pipeline.py")), path, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(driver, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *killed, end = map(json.loads, done.stdout.splitlines())
    assert [k["code"] for k in killed] == [-signal.SIGKILL] * len(killed) and end["code"] == 0, done.stderr
    at = [re.split(r"\W", k["point"])[0] for k in killed]
    assert [k["done"] for k in killed if k["point"][:3] != "bet"] == [sorted(STAGES[: STAGES.index(s)]) for s in at[:-1]]
    assert at == ["data", "train", "calibrate", "pack", "pack", "evaluate", "report", "between"]
    for name in ("model.qlab", "model.eval.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (folder / "p.out" / name).read_bytes(), name
    attempts = {s["stage"]: s["attempts"] for s in json.loads((out / "result.json").read_text())["cells"][0]["stages"]}
    assert attempts == {"data": 2, "train": 2, "calibrate": 2, "pack": 3, "evaluate": 2, "report": 2}
    log = next(out.glob("train-*/train.log")).read_text()
    assert [log.count(f"step:{n}/6 train_loss:") for n in range(1, 7)] == [1] * 6  # no step was done again
    assert not [p for p in out.rglob(".*")]
