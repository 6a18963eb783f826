"""quantlab data: output, exit codes, help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantlab.cli.main import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(python_sources, tmp_path):
    documents = sorted({part for source in python_sources for part in source.decode().split("\n\n")} - {""})
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    return path, len(documents)


def prepare(corpus, tokenizer_file, out, *options):
    return run(["data", "prepare", *map(str, [corpus, "--tokenizer", tokenizer_file, "--out", out, "--workers", 1, *options])])


def test_prepare_then_check(corpus, tokenizer_file, tmp_path, capsys):
    path, count = corpus
    out = tmp_path / "shards"
    assert prepare(path, tokenizer_file, out, "--val-docs", 10) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"train {count - 10:,} documents, ") and lines[1].startswith("val   10 documents, ")
    assert lines[2] == f"wrote {out}"
    globs = ["--train", f"{out}/fineweb_train_*.bin", "--val", f"{out}/fineweb_val_*.bin"]
    assert run(["data", "check", *globs, "--tokenizer", str(tokenizer_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all(line.startswith("ok   ") for line in lines)
    assert lines[-1].startswith("ok   overlap: 0 of 10 validation documents with text")
    globs[1] = globs[3]
    assert run(["data", "check", *globs]) == 1
    out_text, err = capsys.readouterr()
    assert "FAIL overlap: 10 of 10 validation documents with text (100.00%)" in out_text and "error" not in err


def test_json(corpus, tokenizer_file, tmp_path, capsys):
    out = tmp_path / "shards"
    assert prepare(corpus[0], tokenizer_file, out, "--val-docs", 10, "--json", "--name", "web") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert run(["data", "check", "--train", f"{out}/web_train_*.bin", "--val", f"{out}/absent_*.bin", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False and result["findings"][0]["check"] == "val shards"
    assert result["splits"]["train"]["documents"] == manifest["datasets"][0]["stats"]["docs_train"]


def test_mistakes_are_one_line(corpus, tokenizer_file, tmp_path, capsys):
    def line(*arguments, code):
        assert prepare(*arguments) == code
        (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        return error

    path, count = corpus
    out = tmp_path / "shards"
    assert line(path, tokenizer_file, out, code=1) == f"error: {count} documents, fewer than the 50,000 of the validation split"
    assert "absent.model" in line(path, tmp_path / "absent.model", out, code=1)
    assert "absent.txt is not a file" in line(tmp_path / "absent.txt", tokenizer_file, out, code=1)
    assert "workers must be" in line(path, tokenizer_file, out, "--workers", "0", code=2)
    assert not out.exists()
    assert prepare(path, tokenizer_file, out, "--val-docs", 1) == 0
    assert "exists and holds" in line(path, tokenizer_file, out, "--val-docs", 1, code=2)
    assert prepare(path, tokenizer_file, out, "--val-docs", 1, "--force") == 0


@pytest.mark.parametrize("command", ["prepare", "check"])
def test_both_commands_have_help_with_an_example(command, capsys):
    assert run(["data", command, "--help"]) == 0
    assert f"Example: quantlab data {command}" in " ".join(capsys.readouterr().out.split())


def test_help_and_preparing_do_not_load_torch(corpus, tokenizer_file, tmp_path):
    options = ["--tokenizer", tokenizer_file, "--out", tmp_path / "o", "--val-docs", "1", "--workers", "1"]
    for arguments in (["--help"], ["prepare", "--help"], ["prepare", corpus[0], *options]):
        code = f"import sys; from quantlab.cli.main import run; c = run({['data', *map(str, arguments)]!r}); "
        code += "sys.exit(c or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0, arguments
