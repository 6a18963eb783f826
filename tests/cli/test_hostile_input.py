"""Whatever a file or a path holds, a command ends with one visible line and the right exit code, and never waits."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.artifact.container import read_container, write_container
from quantlab.cli.display import StageMeter, console, note, print_json, say
from quantlab.cli.main import run
from quantlab.printable import printable

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v1_all_kinds.qlab"
HOSTILE = "\x1b[2J\x9b31m\u202egnp.w\u200b\nerror: none"


def fails(capsys: pytest.CaptureFixture[str], arguments: list[object], code: int, *parts: str) -> str:
    """Run, check the exit code, and that stderr holds one visible error line with every part; return the line."""
    assert run([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert all(printable(line) == line for line in captured.err.split("\n"))
    (line,) = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert all(part in line for part in parts), line
    return line


def renamed(tmp_path: Path, name: str) -> Path:
    """The golden artifact with one tensor and its producer renamed."""
    manifest, sections = read_container(GOLDEN.read_bytes())
    manifest["tensors"][1]["name"] = manifest["producer"] = manifest["model"][name] = name
    path = tmp_path / "renamed.qlab"
    path.write_bytes(write_container(manifest, sections))
    return path


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_shows_escapes_for_names_that_would_steer_the_terminal(tmp_path, capsys, as_json):
    path = renamed(tmp_path, HOSTILE)
    assert run(["inspect", str(path), *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    assert all(printable(line) == line for line in out.split("\n"))
    if as_json:
        assert json.loads(out)["tensors"][1]["name"] == json.loads(out)["producer"] == HOSTILE
    else:
        assert out.count(printable(HOSTILE)) == 3 and "\nerror: none" not in out


def test_compare_shows_escapes_too(tmp_path, capsys):
    assert run(["compare", str(renamed(tmp_path, HOSTILE)), str(GOLDEN)]) == 0
    out = capsys.readouterr().out
    assert all(printable(line) == line for line in out.split("\n")) and printable(HOSTILE)[:30] in out


def test_every_way_out_of_the_program_escapes(capsys):
    say(HOSTILE)
    note(HOSTILE)
    print_json([HOSTILE])
    console().print(HOSTILE.replace("\n", ""))
    meter = StageMeter(HOSTILE, 0, 0.0)
    meter.update(1, 2, HOSTILE, 1.0)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, meter.line()):
        assert all(printable(line) == line for line in text.split("\n")), text


def test_only_one_module_prints():
    """Everything that a command shows goes through display.py."""
    for path in (ROOT / "quantlab" / "cli").glob("*.py"):
        text = path.read_text()
        assert path.name == "display.py" or not any(word in text for word in (" print(", "typer.echo", "sys.stdout.write")), (
            path
        )


def test_error_lines_and_usage_errors_are_visible_and_short(tmp_path, capsys):
    fails(capsys, ["inspect", tmp_path / HOSTILE], 1, r"\x1b[2J", r"\u202e")
    fails(capsys, [HOSTILE], 2, "No such command", r"\x1b[2J")
    fails(capsys, ["inspect", GOLDEN, f"--{HOSTILE}"], 2, "No such option", r"\x1b[2J")
    line = fails(capsys, ["train", tmp_path / "c.toml", "--out", tmp_path / "o", "--set", "x" * 5000], 2)
    assert len(line) < 1100


def test_a_refused_pickle_is_told_in_our_words(tmp_path, capsys):
    class Command:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"w": Command()}, tmp_path / "m.pt")
    pack = ["pack", tmp_path / "m.pt", "--budget", "1MB", "-o", tmp_path / "m.qlab"]
    line = fails(capsys, pack, 1, "holds more than tensors, numbers, strings and containers, namely posix.system")
    assert "weights_only" not in line and "trusted" not in line


def test_tiny_checkpoints_that_ask_for_much_are_refused(tmp_path, capsys):
    files = {
        "expanded": ({"w": torch.zeros(1).expand(2**40)}, "is a view that makes 4398046511104 bytes of 4"),
        "meta": ({"w": torch.zeros(3, device="meta")}, "tensor w is on the device meta"),
        "shared": ({f"w{n}": t for n, t in enumerate([torch.zeros(2**14)] * 200)}, "its tensors have 13107200 bytes"),
    }
    for name, (state, message) in files.items():
        torch.save(state, tmp_path / f"{name}.pt")
        pack = ["pack", tmp_path / f"{name}.pt", "--budget", "1MB", "-o", tmp_path / "m.qlab"]
        fails(capsys, pack, 1, f"{name}.pt", message)


def test_memory_that_torch_or_numpy_cannot_get_is_one_line(toy_checkpoint, tmp_path, capsys):
    options = ["--calib-tokens", 2**46, "--calib", "random", "-o", tmp_path / "m.qlab"]
    fails(capsys, ["pack", toy_checkpoint, "--budget", "1MB", *options], 1, "out of memory")


def deep(text: str) -> str:
    return text.replace("DEEP", "[" * 100_000)


LONG = "1" * 5000
PREPARE = ["data", "prepare", "--tokenizer", "byte260", "--out", "out"]


@pytest.mark.parametrize(
    ("name", "text", "arguments", "code", "message"),
    [
        ("c.toml", "a = DEEP", ["train", "F", "--out", "o"], 2, "nested too deep"),
        ("c.toml", f"a = {LONG}", ["train", "F", "--out", "o"], 2, "a number of more than 4,300 digits"),
        ("p.toml", "a = DEEP", ["run", "F"], 2, "nested too deep"),
        ("p.toml", f"a = {LONG}", ["run", "F"], 2, "a number of more than 4,300 digits"),
        ("c.toml", "", ["train", "F", "--out", "o", "--set", f"seed={LONG}"], 2, "a number of more than 4,300 digits"),
        ("c.toml", "", ["train", "F", "--out", "o", "--set", "seed=DEEP"], 2, "nested too deep"),
        ("c.toml", f"matrix_lr = {'9' * 400}", ["train", "F", "--out", "o"], 2, "must be float"),
        ("x.report.json", "DEEP", ["compare", "F", "--json"], 1, "nested too deep"),
        ("x.report.json", LONG, ["compare", "F", "--json"], 1, "a number of more than 4,300 digits"),
        ("model.safetensors.index.json", "DEEP", ["probe", "D"], 1, "nested too deep"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../m.safetensors"}}',
            ["probe", "D"],
            1,
            "no file of the folder",
        ),
        ("config.json", "DEEP", ["probe", "D"], 1, "nested too deep"),
        ("tokenizer.json", '{"a": DEEP', ["eval", "T", "--text", "F"], 1, "nested too deep"),
        (
            "docs.jsonl",
            '{"text": DEEP',
            ["data", "prepare", "F", "--tokenizer", "byte260", "--out", "out"],
            1,
            "nested too deep",
        ),
    ],
)
def test_deep_nesting_and_long_numbers_are_one_line(
    name, text, arguments, code, message, tmp_path, toy_checkpoint, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(deep(text))
    target = shutil.copy(toy_checkpoint, tmp_path / "toy.pt") if "T" in arguments else ""
    places = {"F": tmp_path / name, "D": tmp_path, "T": target}
    line = fails(capsys, [places.get(a, deep(a)) for a in arguments], code, message)
    assert "set_int_max_str_digits" not in line


@pytest.fixture
def pipe(tmp_path):
    """A named pipe into which nobody writes: opening it to read would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    ("suffix", "arguments", "code"),
    [
        (".qlab", ["inspect", "F"], 1),
        (".qlab", ["unpack", "F", "-o", "x.safetensors"], 1),
        (".qlab", ["compare", "F", "--json"], 1),
        (".report.json", ["compare", "F", "--json"], 1),
        (".pt", ["probe", "F"], 1),
        (".ptz", ["probe", "F"], 1),
        (".npz", ["probe", "F"], 1),
        (".safetensors", ["probe", "F"], 1),
        (".safetensors", ["pack", "T", "--stats", "F", "--budget", "1MB", "-o", "x.qlab"], 1),
        (".model", ["eval", "T", "--tokenizer", "F", "--text", "t.txt"], 1),
        (".txt", ["eval", "T", "--tokenizer", "M", "--text", "F"], 1),
        (".bin", ["eval", "T", "--tokenizer", "M", "--tokens", "F"], 1),
        (".toml", ["train", "F", "--out", "o"], 2),
        (".toml", ["run", "F"], 2),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(
    suffix, arguments, code, pipe, tmp_path, toy_checkpoint, tokenizer_file, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pipe = pipe.rename(tmp_path / f"pipe{suffix}")
    places = {"F": pipe, "T": toy_checkpoint, "M": tokenizer_file}
    fails(capsys, [places.get(a, a) for a in arguments], code, f"pipe{suffix}", "it is a pipe, a regular file is needed")


def test_a_device_is_refused(capsys):
    fails(capsys, ["inspect", "/dev/zero"], 1, "/dev/zero: it is a device")


def test_a_path_need_not_be_utf_8(tmp_path, capsys, toy_checkpoint, monkeypatch):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    fails(capsys, ["inspect", odd], 1, r"m\xff")
    shutil.copy(GOLDEN, odd.with_suffix(".qlab"))
    assert run(["inspect", str(odd.with_suffix(".qlab"))]) == 0
    assert "model: vocab_size 3" in capsys.readouterr().out
    shutil.copy(toy_checkpoint, odd.with_suffix(".pt"))
    odd.with_suffix(".py").write_text("pass")
    pack = ["pack", odd.with_suffix(".pt"), "--budget", "60kB", "-o", tmp_path / "out.qlab", "--method", "rtn"]
    options = ["--calib-tokens", 256, "--calib-seq-len", 32, "--code", odd.with_suffix(".py"), "--runs", tmp_path / "runs"]
    assert run([str(a) for a in (*pack, *options)]) == 0
    capsys.readouterr()
    assert run(["runs", "list", "--runs", str(tmp_path / "runs")]) == 0
    assert "out.qlab" in capsys.readouterr().out
    assert run(["compare", str(tmp_path / "out.qlab"), "--json"]) == 0  # reads the report, which names the code file
    assert json.loads(capsys.readouterr().out)["files"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "CKPT", "--budget", "60kB", "-o", "ODD.qlab"],
        ["pack", "CKPT", "--budget", "60kB", "-o", "new.qlab", "--report", "ODD.json"],
        ["calibrate", "CKPT", "-o", "ODD.safetensors"],
        ["unpack", GOLDEN, "-o", "ODD.pt"],
        ["train", "demo", "--out", "ODD"],
        ["demo", "--out", "ODD"],
        ["run", "p.toml", "--out", "ODD"],
        ["data", "prepare", "text.txt", "--out", "ODD", "--tokenizer", "byte260"],
    ],
)
def test_an_output_that_is_not_utf_8_is_refused_before_any_work(arguments, tmp_path, capsys, toy_checkpoint, monkeypatch):
    """Libraries that write tensors cannot write it: before, the error came after the statistics."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "p.toml").write_text('[train]\npreset = "demo"\n[pack]\nbudget = "250kB"\n')
    odd = os.fsdecode(b"m\xff")
    places = {"CKPT": toy_checkpoint}
    before = sorted(os.listdir(os.fsencode(tmp_path)))
    fails(capsys, [str(places.get(a, a)).replace("ODD", odd) for a in arguments], 2, r"output", r"m\xff", "is not UTF-8")
    assert sorted(os.listdir(os.fsencode(tmp_path))) == before


FACTORY = """
import sys, torch
def imported(state): return torch.nn.Linear(1, 1)
class Leaves(torch.nn.Module):
    def forward(self, ids): sys.exit(3)
def built(state): sys.exit(3)
def called(state): return Leaves()
"""


@pytest.mark.parametrize("function", ["built", "called"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_model_file_that_ends_the_program_has_failed(function, code, toy_checkpoint, tmp_path, capsys):
    path = tmp_path / "model.py"
    path.write_text(FACTORY.replace("exit(3)", f"exit({code})"))
    fails(capsys, ["probe", toy_checkpoint, "--model", f"{path}:{function}"], 1, f"it called sys.exit({code})")


def test_exit_codes_of_a_model_file_are_not_ours(monkeypatch, capsys, tmp_path):
    """A file that ends the program later than on the first four tokens."""

    def leave(*args, **kwargs):
        sys.exit(0)

    monkeypatch.setattr("quantlab.jobs.probe.probe", leave)
    fails(capsys, ["probe", tmp_path / "m.pt"], 1, "called sys.exit(0)")


@pytest.mark.parametrize("text", ["1__0KB", "_10KB", "10_KB", "\uff11\uff16MB"])
def test_budgets_that_no_one_writes_are_refused(text, tmp_path, capsys):
    fails(capsys, ["pack", "m.pt", "--budget", text, "-o", tmp_path / "m.qlab"], 2, "budget must be a number of bytes")


def python(program: str, **options) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, **options)


def test_pack_without_numba_says_so(toy_checkpoint, tmp_path):
    arguments = ["pack", str(toy_checkpoint), "--budget", "60kB", "-o", str(tmp_path / "m.qlab")]
    options = ["--calib-tokens", "256", "--calib-seq-len", "32", "--no-tune"]
    done = python(
        "import sys\nsys.modules['numba'] = None\nfrom quantlab.cli.main import run\n"
        f"sys.exit(run({[*arguments, *options]!r}))\n"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: this needs the package numba, which is not installed\nhint: pip install numba\n" in done.stderr
    assert not (tmp_path / "m.qlab").exists()


def test_closed_and_full_outputs_end_in_one_line(tmp_path):
    """The shell closes a stream with >&- and gives up reading with head."""
    inspect = f"{sys.executable} -m quantlab inspect {GOLDEN}"
    for redirect, code, message in (
        (">&-", 1, "error: standard output is closed\n"),
        (">/dev/full", 1, ": No space left on device\n"),
        ("2>&-", 0, ""),
    ):
        done = subprocess.run(["bash", "-c", f"{inspect} {redirect}"], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert message in done.stderr and "Exception ignored" not in done.stderr
        assert bool(done.stdout) == (redirect == "2>&-")
    many = tmp_path / "many.qlab"
    manifest, sections = read_container(GOLDEN.read_bytes())
    manifest["origin"] = {"note": np.random.default_rng(0).bytes(100_000).hex()}  # beyond the buffer of a pipe
    many.write_bytes(write_container(manifest, sections))
    piped = f"set -o pipefail; {inspect.replace(str(GOLDEN), str(many))} | head -1"
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "" and done.stdout.count("\n") == 1


def test_output_that_the_terminal_cannot_show_is_escaped():
    program = "import sys\nfrom quantlab.cli import main\nsys.argv[1:] = ['inspect', 'größe.qlab']\nmain.main()\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(r"error: gr\xf6\xdfe.qlab does not exist")


def test_warnings_of_the_library_are_visible_too():
    program = (
        "import logging\nfrom quantlab.cli import main\n"
        "main.run = lambda arguments: logging.getLogger('quantlab').warning('name %s', '\\x1b[2J') or 0\nmain.main()\n"
    )
    assert python(program).stderr == "name \\x1b[2J\n"


def test_a_stream_without_a_reader_does_not_stop_the_rest(monkeypatch):
    """As head leaves, also in the middle of a table of rich."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert run(["inspect", str(GOLDEN)]) == 1
    assert told.getvalue() == ""
