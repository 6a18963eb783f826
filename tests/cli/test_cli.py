"""The commands as a user types them: output, exit code, and one clear line for every mistake."""

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.artifact.reader import open_artifact
from quantlab.cli.main import run
from quantlab.text.shards import write_shard

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--calib-tokens", "1024", "--calib-seq-len", "64"]


def fails(capsys, arguments, code, *parts):
    """Run, check the exit code, and that stderr's error line holds every part; returns the line."""
    assert run([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert all(part in line for part in parts), line
    return line


@pytest.mark.parametrize(("given", "used"), [(None, "passive"), ("active", "active")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch, tmp_path, given, used):
    """The variable is set before the command fails on a checkpoint that is not there."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert run(["calibrate", str(tmp_path / "absent.pt"), "-o", str(tmp_path / "s")]) == 1
    assert os.environ["OMP_WAIT_POLICY"] == used


@pytest.fixture(scope="module")
def artifact(toy_checkpoint, tokenizer_file, tmp_path_factory):
    """Packed once by the command line, at 60 kB, with the tokenizer recorded."""
    path = tmp_path_factory.mktemp("cli") / "toy.qlab"
    arguments = ["pack", toy_checkpoint, "--budget", "60kB", "-o", path, "--tokenizer", tokenizer_file, *FAST]
    assert run([str(a) for a in arguments]) == 0
    return path


def test_pack_prints_a_table_and_echoes_the_budget(toy_checkpoint, tmp_path, capsys):
    assert run(["pack", str(toy_checkpoint), "--budget", "58KiB", "-o", str(tmp_path / "m.qlab"), *FAST]) == 0
    out, err = capsys.readouterr()
    assert "budget 59,392 bytes" in err
    assert "tok_emb.weight" in out and "of 59,392 bytes" in out and "decoded again by a fresh process: equal" in out
    report = json.loads((tmp_path / "m.report.json").read_text())
    assert report["budget_bytes"] == 59392 and report["total_bytes"] == (tmp_path / "m.qlab").stat().st_size


def test_pack_json_is_the_report(toy_checkpoint, tmp_path, capsys):
    out = tmp_path / "m.qlab"
    code = tmp_path / "train.py"
    code.write_bytes(b"#" * 5000)
    options = ["--code", str(code), "--report", str(tmp_path / "r.json"), "--json", "--method", "rtn", "--widths", "6"]
    assert run(["pack", str(toy_checkpoint), "--budget", "70000", "-o", str(out), *FAST, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["code_bytes"] == 5000 and report["total_bytes"] == out.stat().st_size + 5000 <= 70000
    assert {t["width_bits"] for t in report["tensors"]} == {6} and report["method"] == "rtn"


def test_statistics_measured_once_give_the_same_file(toy_checkpoint, artifact, tokenizer_file, tmp_path, capsys):
    stats = str(tmp_path / "s.safetensors")
    assert run(["calibrate", str(toy_checkpoint), "-o", stats, "--tokenizer", str(tokenizer_file), *FAST]) == 0
    assert "9 tensors measured on 1,024 tokens (self)" in capsys.readouterr().out
    out = tmp_path / "m.qlab"
    options = ["--stats", stats, "--tokenizer", str(tokenizer_file)]
    assert run(["pack", str(toy_checkpoint), "--budget", "60kB", "-o", str(out), *options]) == 0
    assert out.read_bytes() == artifact.read_bytes()


def test_inspect_lists_every_tensor_and_byte(artifact, capsys):
    assert run(["inspect", str(artifact), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(about["size_breakdown"].values()) == artifact.stat().st_size
    assert len(about["tensors"]) == 22 and about["model"]["num_heads"] == 4 and about["origin"]["method"] == "trellis"
    assert run(["inspect", str(artifact)]) == 0
    assert "blocks.1.mlp.proj.weight" in capsys.readouterr().out


def test_eval_scores_text_shards_and_both_kinds_of_target(
    artifact, toy_checkpoint, tokenizer, tokenizer_file, tmp_path, capsys
):
    text = tmp_path / "t.txt"
    text.write_bytes(b"import os\n\ndef main():\n    return 0\n" * 30)
    write_shard(tmp_path / "v_0.bin", tokenizer.encode_documents([text.read_bytes()]))
    common = ["--tokenizer", str(tokenizer_file), "--seq-len", "64", "--json"]
    scores = []
    for target in (toy_checkpoint, artifact):
        for data in (["--text", str(text)], ["--tokens", f"{tmp_path}/v_*.bin"]):
            assert run(["eval", str(target), *data, *common]) == 0
            scores.append(json.loads(capsys.readouterr().out))
    probes = [score.pop("probes") for score in scores]  # shards have a check of their tokenizer
    assert all({p["name"] for p in a} <= {p["name"] for p in b} for a, b in (probes[:2], probes[2:]))
    for score in scores:
        score.pop("unchecked", None)
    assert scores[0] == scores[1] and scores[2] == scores[3]
    assert all(set(["val_bpb", "val_loss", "tokens", "bytes"]) <= s.keys() for s in scores)
    assert scores[0]["val_bpb"] != scores[2]["val_bpb"]
    assert scores[0]["val_bpb"] == pytest.approx(scores[0]["nats"] / np.log(2) / scores[0]["bytes"])


def test_eval_compares_an_artifact_with_its_checkpoint(artifact, toy_checkpoint, tokenizer_file, tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_bytes(b"import os\n\ndef main():\n    return 0\n" * 30)
    scoring = ["eval", str(artifact), "--text", str(text), "--tokenizer", str(tokenizer_file), "--seq-len", "32"]
    assert run([*scoring, "--against", str(toy_checkpoint), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert run([*scoring[:1], str(toy_checkpoint), *scoring[2:], "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    against = packed["against"]
    assert against["kl_mean"] > 0 and against["tokens"] == packed["tokens"]
    # both sum the same float32 losses, here in another order
    assert against["loss_difference"] == pytest.approx(packed["val_loss"] - whole["val_loss"], abs=1e-6)
    assert against["loss_difference_low"] < against["loss_difference"] < against["loss_difference_high"]
    assert run([*scoring, "--against", str(toy_checkpoint)]) == 0
    assert "KL" in capsys.readouterr().out


def test_eval_finds_the_tokenizer_beside_the_target_and_says_so(artifact, tokenizer, tmp_path, capsys, caplog):
    (tmp_path / "m.qlab").write_bytes(artifact.read_bytes())
    (tmp_path / "t.txt").write_bytes(b"x = 1\n" * 100)
    arguments = ["eval", str(tmp_path / "m.qlab"), "--text", str(tmp_path / "t.txt"), "--seq-len", "16"]
    fails(capsys, arguments, 2, "no tokenizer", "tokenizer.model does not exist")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    caplog.set_level(logging.INFO)  # which `main` sends to stderr
    assert run(arguments) == 0
    assert "val_bpb" in capsys.readouterr().out and caplog.messages == [f"tokenizer {tmp_path / 'tokenizer.model'}"]


MODEL_FILE = """
import torch
from torch import nn

class Bigram(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.emb, self.head = nn.Embedding(*state["emb.weight"].shape), nn.Linear(64, 400, bias=False)
        self.register_buffer("table", torch.zeros(8))
        self.load_state_dict(state)
    def forward(self, ids):
        return self.head(torch.tanh(self.emb(ids)))

def make(state):
    return Bigram({k: v.float() for k, v in state.items()})

def broken(state):
    raise KeyError("no such layer")
"""


def test_a_model_of_the_users_own(tmp_path, tokenizer_file, capsys):
    (tmp_path / "my.py").write_text(MODEL_FILE)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(400, 64, generator=generator) for n in ("emb.weight", "head.weight")}
    state["table"] = 1000.0 ** -torch.linspace(0, 1, 8)
    torch.save(state, tmp_path / "my.pt")
    spec = f"{tmp_path}/my.py:make"
    packing = ["pack", tmp_path / "my.pt", "--budget", "30kB", "-o", tmp_path / "my.qlab"]
    fails(capsys, packing, 1, "no model matches")
    assert run([str(a) for a in [*packing, "--model", spec, *FAST]]) == 0
    capsys.readouterr()
    (tmp_path / "t.txt").write_bytes(b"x = 1\n" * 100)
    kept = open_artifact(tmp_path / "my.qlab").arrays()["table"]
    assert np.array_equal(kept, state["table"].numpy())  # a buffer keeps every bit, a parameter would become float16
    scoring = ["eval", tmp_path / "my.qlab", "--text", tmp_path / "t.txt", "--tokenizer", tokenizer_file, "--seq-len", "16"]
    fails(capsys, scoring, 2, "packed from a model of its own")
    assert run([str(a) for a in [*scoring, "--model", spec]]) == 0
    capsys.readouterr()
    fails(capsys, [*packing, "--force", "--model", f"{tmp_path}/my.py:broken"], 1, "no such layer")
    fails(capsys, [*packing, "--force", "--model", f"{tmp_path}/my.py"], 2, "path/to/file.py:factory")


def test_bad_input_is_one_clear_line(toy_checkpoint, toy_state, artifact, tmp_path, capsys):
    out = tmp_path / "m.qlab"

    def packing(checkpoint, *options, budget="60kB"):
        return ["pack", checkpoint, "--budget", budget, "-o", out, *FAST, *options]

    fails(capsys, packing(tmp_path / "absent.pt"), 1, "absent.pt does not exist")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    fails(capsys, packing(tmp_path / "junk.pt"), 1, "junk.pt", "damaged")
    torch.save({**toy_state, "tok_emb.weight": toy_state["tok_emb.weight"] * float("nan")}, tmp_path / "nan.pt")
    fails(capsys, packing(tmp_path / "nan.pt"), 1, "tok_emb.weight", "not finite")
    torch.save({**toy_state, "blocks.1.mlp.fc.weight": torch.zeros(9, 9)}, tmp_path / "shape.pt")
    fails(capsys, packing(tmp_path / "shape.pt"), 1, "no model matches", "blocks.1.mlp.fc.weight", "[9, 9]")
    fails(capsys, packing(toy_checkpoint, "--widths", "5,x"), 2, "widths must be whole numbers", "'5,x'")
    fails(
        capsys, packing(toy_checkpoint, "--widths", "12"), 2, "widths of method trellis must be among 2,3,4,5,6,7,8,16, got 12"
    )
    fails(capsys, packing(toy_checkpoint, "--states", "7"), 2, "states must be one of 1, 4, 8, 16, 32, 64, 256, got 7")
    fails(capsys, packing(toy_checkpoint, "--method", "magic"), 2, "method must be one of gptq, rtn, trellis, got 'magic'")
    fails(capsys, packing(toy_checkpoint, "--calib", "web"), 2, "calibration source must be self")
    stats = ["pack", toy_checkpoint, "--budget", "60kB", "-o", out, "--stats", tmp_path / "absent"]
    fails(capsys, stats, 1, "cannot read statistics")
    fails(capsys, [*stats, "--calib-tokens", "1024"], 2, "the statistics bring their own calibration")
    fails(capsys, packing(toy_checkpoint, "--report", out), 2, "is also another output", "m.qlab")
    fails(capsys, [*stats, "--calib", "random"], 2, "65536 random tokens in sequences of 512 cannot be used with them")
    fails(capsys, packing(toy_checkpoint, "--code", tmp_path / "absent.py"), 2, "absent.py does not exist")
    fails(capsys, packing(toy_checkpoint, budget="lots"), 2, "budget must be a number of bytes", "'lots'")
    fails(capsys, packing(toy_checkpoint, budget="3kB"), 3, "below the smallest reachable size, ", "budget 3000 bytes")
    fails(capsys, packing(toy_checkpoint, "--tokenizer", tmp_path / "absent.model"), 1, "absent.model")
    fails(capsys, packing(toy_checkpoint, "--frobnicate"), 2, "--frobnicate")
    fails(capsys, ["pack", toy_checkpoint, "-o", out], 2, "--budget")
    fails(capsys, ["inspect", toy_checkpoint, "--model", "x.py"], 2, "model must")
    fails(capsys, ["unpack", artifact, "-o", tmp_path / "no" / "s.safetensors"], 2, "does not exist")
    assert not out.exists() and not (tmp_path / "m.report.json").exists()


def test_outputs_are_not_replaced_without_force(artifact, toy_checkpoint, tmp_path, capsys):
    before = artifact.read_bytes()
    line = fails(capsys, ["pack", toy_checkpoint, "--budget", "50kB", "-o", artifact, *FAST], 2, "exists")
    assert str(artifact) in line and artifact.read_bytes() == before
    state = tmp_path / "s.safetensors"
    assert run(["unpack", str(artifact), "-o", str(state)]) == 0
    capsys.readouterr()
    fails(capsys, ["unpack", artifact, "-o", state], 2, "s.safetensors exists")
    assert run(["unpack", str(artifact), "-o", str(state), "--force"]) == 0


def test_text_and_tokens_must_fit_the_model(artifact, toy_checkpoint, tokenizer_file, python_sources, tmp_path, capsys):
    from quantlab.text.tokenizer import train_tokenizer

    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(python_sources, vocab_size=420))
    same_size = tmp_path / "same.model"
    same_size.write_bytes(train_tokenizer(python_sources[:2], vocab_size=400))
    (tmp_path / "t.txt").write_bytes(b"x = 1\n" * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    scoring = ["eval", artifact, "--text", tmp_path / "t.txt", "--seq-len", "16"]
    fails(capsys, [*scoring, "--tokenizer", other], 1, "420", "400")
    fails(capsys, [*scoring, "--tokenizer", same_size], 1, "is not the one the artifact was packed with")
    known = ["--tokenizer", tokenizer_file]
    fails(capsys, ["eval", artifact, "--text", tmp_path / "empty.txt", *known], 1, "empty.txt")
    fails(capsys, ["eval", artifact, "--text", tmp_path / "t.txt", *known], 1, "1,024")
    fails(capsys, ["eval", artifact, *known], 2, "exactly one of text and tokens")
    fails(capsys, ["eval", artifact, "--tokens", f"{tmp_path}/none_*.bin", *known], 1, "none_*.bin")
    (tmp_path / "bad_0.bin").write_bytes(bytes(2000))
    fails(capsys, ["eval", artifact, "--tokens", f"{tmp_path}/bad_*.bin", *known], 1, "bad_0.bin", "magic")


def test_statistics_of_another_checkpoint_are_refused(toy_checkpoint, toy_state, tmp_path, capsys):
    torch.save({**toy_state, "tok_emb.weight": toy_state["tok_emb.weight"] * 1.01}, tmp_path / "other.pt")
    stats = tmp_path / "s.safetensors"
    assert run(["calibrate", str(tmp_path / "other.pt"), "-o", str(stats), *FAST]) == 0
    capsys.readouterr()
    packing = ["pack", toy_checkpoint, "--budget", "60kB", "-o", tmp_path / "m.qlab", "--stats", stats]
    fails(capsys, packing, 1, "were measured on model")


def _command(*arguments):
    return [sys.executable, "-m", "quantlab", *map(str, arguments)]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_one_line_and_no_files(stop, toy_checkpoint, tmp_path):
    packing = _command("pack", toy_checkpoint, "--budget", "60kB", "-o", tmp_path / "m.qlab", "--calib-tokens", 2_000_000)
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a shell's background jobs ignore it)
    process = subprocess.Popen(packing, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stderr is not None
    for line in process.stderr:  # until it is at work
        if line.startswith("sample calibration text"):
            break
    time.sleep(0.3)
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 1
    assert [x for x in rest.splitlines() if not x.startswith("sample")] == ["error: interrupted; nothing half-written was left"]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_line(artifact, tmp_path):
    """The file-size limit of the process stands for the disk: the write fails halfway."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    unpacking = _command("unpack", artifact, "-o", tmp_path / "s.safetensors")
    done = subprocess.run(unpacking, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: cannot write {tmp_path}/s.safetensors: File too large\n"
    assert not list(tmp_path.iterdir())


COMMANDS = ["demo", "pack", "unpack", "inspect", "eval", "compare", "calibrate", "train", "run", "probe", "doctor"]
COMMANDS += ["estimate", "sensitivity", "sample", "card"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_line_in_the_readme(command, capsys):
    assert run([command, "--help"]) == 0
    assert f"Example: quantlab {command}" in " ".join(capsys.readouterr().out.split())
    assert f"quantlab {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["runs"], ["data"], ["runs", "-h"]])
def test_help_is_printed_where_it_is_asked_for_or_nothing_else_is_said(arguments, capsys):
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: ") and "Commands:" in shown.out and shown.err == ""
    if not {"runs", "data"} & set(arguments):
        assert "..." not in shown.out.split("Commands:")[-1], "a line of the list of commands is cut"


def test_the_list_of_commands_is_the_one_of_the_whole_command_line_and_comes_fast(capsys):
    from quantlab.cli.main import app

    assert run(["--help"]) == 0
    quick = capsys.readouterr().out
    app(["--help"], standalone_mode=False)
    assert quick == capsys.readouterr().out
    code = (
        "import sys, time; from quantlab.cli.main import run; run(['--help']); "
        "heavy = {'rich', 'torch', 'numpy', 'quantlab.runs.recording', 'quantlab.artifact.reader'} & set(sys.modules); "
        "sys.exit(f'{heavy} {time.process_time()}' if heavy or time.process_time() > 1.0 else 0)"  # 0.17 where it is compiled
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_completion_asks_the_whole_command_line(monkeypatch, capsys):
    monkeypatch.setenv("_QUANTLAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "quantlab pack --bud")
    monkeypatch.setenv("COMP_CWORD", "2")
    from quantlab.cli import main

    monkeypatch.setattr(main, "_list_of_commands", lambda: pytest.fail("its commands have no options"))
    with contextlib.suppress(SystemExit):
        run([])


def test_estimate_sensitivity_sample_and_card(toy_checkpoint, tokenizer_file, tmp_path, capsys):
    stats, m = tmp_path / "s.safetensors", tmp_path / "m.qlab"
    base = ["--calib-tokens", "2048", "--calib-seq-len", "64"]
    assert run([str(a) for a in ["calibrate", toy_checkpoint, "-o", stats, *base]]) == 0
    capsys.readouterr()
    assert run([str(a) for a in ["estimate", toy_checkpoint, "--stats", stats, "--budgets", "40kB:80kB"]]) == 0
    assert "should be within" in capsys.readouterr().out
    assert run([str(a) for a in ["estimate", toy_checkpoint, "--stats", stats, "--budgets", "40kB,80kB", "--json"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["total_bytes"] for p in found["points"]] == [40_000, 80_000] and found["smallest_bytes"] < 40_000
    assert {"predicted_kl", "kl", "low", "high"} <= found["points"][0].keys()
    assert (
        run([str(a) for a in ["sensitivity", toy_checkpoint, "--stats", stats, "--budget", "50kB", "-o", tmp_path / "s.png"]])
        == 0
    )
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 128
    assert run([str(a) for a in ["pack", toy_checkpoint, "--budget", "40kB", "--stats", stats, "--no-tune", "-o", m]]) == 0
    capsys.readouterr()
    sampling = ["sample", m, "--prompt", "def", "--tokens", 5, "--tokenizer", tokenizer_file, "--against", toy_checkpoint]
    assert run([str(a) for a in sampling]) == 0
    assert capsys.readouterr().out.count("tokens per second") == 2
    assert run([str(a) for a in ["card", m, "-o", tmp_path / "CARD.md", "--picture", tmp_path / "l.png"]]) == 0
    card = (tmp_path / "CARD.md").read_text()
    assert "Not evaluated" in card and "](<l.png>)" in card and (tmp_path / "l.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    page = ["estimate", toy_checkpoint, "--stats", stats, "-o", tmp_path / "e.html"]
    fails(capsys, [*page, "--budgets", "40kB"], 2, "a page needs two sizes or more")
    fails(capsys, [*page[:-2], "--budgets", "40kB", "--score", m], 2, "is for the page that -o names")
    assert run([str(a) for a in [*page, "--budgets", "40kB:80kB"]]) == 0 and 'id="budget"' in (tmp_path / "e.html").read_text()
    capsys.readouterr()
    fails(capsys, ["sensitivity", toy_checkpoint, "--stats", stats, "-o", tmp_path / "s.svg"], 2, "must end in .png")
    capsys.readouterr()
    fails(capsys, ["card", m, "-o", tmp_path / "CARD.md"], 2, "exists")


def test_help_says_that_model_runs_the_users_code(capsys):
    assert run(["pack", "--help"]) == 0
    assert "This runs your code" in " ".join(capsys.readouterr().out.split())


def test_a_demo_does_not_fill_a_folder_of_other_files(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    fails(capsys, ["demo", "--out", tmp_path], 2, "thesis.tex")
    fails(capsys, ["demo", "--out", tmp_path / "thesis.tex"], 2, "is a file")
    fails(capsys, ["demo", "--out", tmp_path / "d", "--minutes", "0"], 2, "minutes must be 0.1 to 600, got 0")
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_doctor_fails_where_a_kernel_is_wrong(capsys, monkeypatch):
    from quantlab.kernels.check import Check

    wrong = Check("unpack", "kernel", "float64", 0.5, 1e-7)
    monkeypatch.setattr("quantlab.jobs.doctor.check_kernels", lambda device: [wrong])
    fails(capsys, ["doctor"], 1, "kernel unpack differs from float64 by 0.5, allowed is 1e-07")


def test_version_and_doctor(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("quantlab 0.")
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["round_trip"].startswith("ok") and found["torch"] == torch.__version__


TRAIN_FILE = """
seq_len = 32
batch_tokens = 256
micro_batch_tokens = 256
steps = 6
max_seconds = 0.0
[model]
vocab_size = 400
num_layers = 2
model_dim = 32
num_heads = 2
num_kv_heads = 1
mlp_hidden = 64
[data]
train = "text:TEXT"
tokenizer = "TOKENIZER"
"""


def test_train_then_pack_then_eval(tmp_path, tokenizer_file, capsys):
    text = tmp_path / "t.txt"
    text.write_bytes((ROOT / "quantlab/cli/main.py").read_bytes() * 3)
    config = TRAIN_FILE.replace("TEXT", str(text)).replace("TOKENIZER", str(tokenizer_file))
    (tmp_path / "c.toml").write_text(config)
    assert run(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")]) == 0
    assert "6 steps" in capsys.readouterr().out
    model, out = tmp_path / "run" / "model.safetensors", tmp_path / "run" / "m.qlab"
    before = model.read_bytes()
    fails(capsys, ["train", tmp_path / "c.toml", "--out", tmp_path / "run"], 2, "model.safetensors exists")
    assert run(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert model.read_bytes() == before
    capsys.readouterr()
    assert run(["pack", str(model), "--budget", "30kB", "-o", str(out), *FAST]) == 0
    assert run(["eval", str(out), "--text", str(text), "--seq-len", "32"]) == 0
    capsys.readouterr()
    (tmp_path / "bad.toml").write_text(config.replace("steps = 6", "stepz = 6"))
    fails(capsys, ["train", tmp_path / "bad.toml", "--out", tmp_path / "x"], 2, "stepz")
    (tmp_path / "bad.toml").write_text(config.replace("tokenizer =", "tokeniser ="))
    fails(capsys, ["train", tmp_path / "bad.toml", "--out", tmp_path / "x"], 2, "tokeniser")
