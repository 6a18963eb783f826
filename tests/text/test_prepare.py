"""Text to shards: both splits, the manifest, and a folder that appears whole or not at all."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard

from quantlab.errors import ConfigError, DataError
from quantlab.text.prepare import PrepareConfig, prepare
from quantlab.text.shards import open_shards, read_shards
from quantlab.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def documents(python_sources):
    return [part for source in python_sources for part in source.decode().split("\n\n")]


@pytest.fixture
def sources(documents, tmp_path):
    """The documents as compressed JSON lines, and one plain text after them."""
    lines = "\n".join(json.dumps({"text": text}) for text in documents)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (tmp_path / "b.txt").write_bytes(b"the last \xff document")
    return [tmp_path / "a.jsonl.zst", tmp_path / "b.txt"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_the_documents_in_order_cut_at_the_number_of_val_docs(sources, documents, tokenizer, tmp_path):
    manifest = prepare(sources, tokenizer, tmp_path / "out", PrepareConfig(name="web", val_docs=30, shard_tokens=5000))
    raw = [text.encode() for text in documents] + [b"the last \xff document"]
    val, train = (read_shards(f"{tmp_path}/out/web_{split}_*.bin") for split in ("val", "train"))
    assert val.tolist() == tokenizer.encode_documents(raw[:30]).tolist()
    assert train.tolist() == tokenizer.encode_documents(raw[30:]).tolist()
    stats = manifest["datasets"][0]["stats"]
    assert (stats["docs_val"], stats["docs_train"], stats["docs_total"]) == (30, len(raw) - 30, len(raw))
    assert (stats["tokens_val"], stats["tokens_train"]) == (len(val), len(train))
    assert (stats["bytes_val"], stats["bytes_total"]) == (sum(map(len, raw[:30])), sum(map(len, raw)))
    files = [len(open_shards(f"{tmp_path}/out/web_{split}_*.bin").paths) for split in ("val", "train")]
    assert [stats["files_val"], stats["files_train"]] == files and files[1] == -(-len(train) // 5000) > 3
    assert (val == tokenizer.bos_id).sum() == 30


def test_the_manifest_has_the_challenges_fields_and_no_paths_of_this_machine(sources, tokenizer_file, tmp_path):
    made = prepare(sources, Tokenizer.load(tokenizer_file), tmp_path / "out", PrepareConfig(val_docs=1))
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert json.loads(text) == made and str(tmp_path) not in text and str(tokenizer_file.parent) not in text
    (dataset,), (about,) = made["datasets"], made["tokenizers"]
    assert dataset["tokenizer_name"] == about["name"] == "tiny" and dataset["name"] == "fineweb_sp400"
    assert about["model_path"] == "tiny.model" and about["sha256"] == Tokenizer.load(tokenizer_file).sha256
    assert (dataset["stats"]["files_train"], dataset["stats"]["files_val"]) == (1, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json",
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
    }


def test_workers_do_not_change_a_byte(sources, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("quantlab.text.prepare.BATCH_BYTES", 3000)
    for workers in (1, 2):
        config = PrepareConfig(val_docs=20, shard_tokens=3000, workers=workers)
        prepare(sources, tokenizer, tmp_path / f"out{workers}", config)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


def test_splits_at_the_edges(sources, documents, tokenizer, tmp_path):
    every = len(documents) + 1
    for val_docs, names in ((0, {"train"}), (every, {"val"})):
        out = tmp_path / f"out{val_docs}"
        prepare(sources, tokenizer, out, PrepareConfig(val_docs=val_docs))
        assert set(contents(out)) == {"manifest.json"} | {f"fineweb_{name}_000000.bin" for name in names}
    with pytest.raises(DataError, match=f"{every} documents, fewer than the {every + 1} of the validation split") as caught:
        prepare(sources, tokenizer, tmp_path / "few", PrepareConfig(val_docs=every + 1))
    assert "--val-docs" in caught.value.hint
    assert not (tmp_path / "few").exists() and not list(tmp_path.glob(".*"))


def test_damage_in_the_middle_leaves_nothing(sources, tokenizer, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": 5}\n')
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"b\.jsonl line 2"):
            prepare([sources[0], tmp_path / "b.jsonl"], tokenizer, tmp_path / "out", PrepareConfig(val_docs=1, workers=workers))
    with pytest.raises(DataError, match=r"absent\.txt is not a file"):
        prepare([tmp_path / "absent.txt"], tokenizer, tmp_path / "out", PrepareConfig(val_docs=1))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_an_existing_folder_is_replaced_only_with_force_and_only_if_it_is_ours(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare(sources, tokenizer, out, PrepareConfig(val_docs=1, shard_tokens=3000))  # empty: fine
    before = contents(out)
    with pytest.raises(ConfigError, match=r"out exists and holds fineweb_train_000000\.bin") as caught:
        prepare(sources, tokenizer, out, PrepareConfig(val_docs=1))
    assert caught.value.hint == "pass --force to replace it" and contents(out) == before
    prepare(sources, tokenizer, out, PrepareConfig(val_docs=2, name="b"), force=True)
    assert set(contents(out)) == {"manifest.json", "b_train_000000.bin", "b_val_000000.bin"}
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex, which was not made by this command"):
        prepare(sources, tokenizer, out, PrepareConfig(val_docs=1), force=True)
    assert (out / "thesis.tex").read_text() == "mine" and not list(tmp_path.glob(".*"))
    for bad, message in (
        (tmp_path / "no" / "out", "does not exist"),
        (sources[1], "is a file, but a folder"),
        (Path("/"), "mount point"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(sources, tokenizer, bad, PrepareConfig(val_docs=1), force=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "name 'a/b' must be letters"),
        ({"name": ".a"}, "must be letters"),
        ({"name": "my_bytes"}, "without '_bytes_'"),
        ({"val_docs": -1}, "val docs must be 0 or more, got -1"),
        ({"shard_tokens": 0}, "shard tokens must be 1 to"),
        ({"workers": 0}, "workers must be 1 to 1024, got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**options)


@pytest.fixture
def long_run(documents, tokenizer_file, tmp_path):
    """A started `data prepare` of a few seconds with two processes, at work, and its command line."""
    text = "\n\n".join(documents)
    (tmp_path / "long.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 600)
    options = ["--tokenizer", tokenizer_file, "--out", tmp_path / "out", "--val-docs", 2, "--workers", 2]
    command = [sys.executable, "-m", "quantlab", "data", "prepare", tmp_path / "long.jsonl", *options, "--shard-tokens", 50_000]
    command = list(map(str, command))
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a shell's background jobs ignore it)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=heard, start_new_session=True, **pipes)
    until = time.monotonic() + 60
    while not (tmp_path / ".out.partial" / "fineweb_train_000003.bin").exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)
    yield process, command
    if process.poll() is None:
        process.kill()
    process.wait()


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_run_leaves_nothing_that_looks_finished_and_can_be_repeated(long_run, tmp_path):
    process, command = long_run
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists() and not glob.glob(f"{tmp_path}/*/fineweb_*")
    until = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, "processes outlive their parent"
        time.sleep(0.05)
    text = (tmp_path / "long.jsonl").read_text().splitlines()
    (tmp_path / "long.jsonl").write_text("\n".join(text[:5]))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train 3 documents" in done.stdout
    assert not list(tmp_path.glob(".*"))
    tokens = read_shards(f"{tmp_path}/out/fineweb_train_*.bin")
    assert np.count_nonzero(tokens == 1) == 3


def test_a_second_run_is_refused_and_ctrl_c_leaves_one_line_and_no_folder(long_run, tmp_path):
    process, command = long_run
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "another process is writing" in done.stderr
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
    _, err = process.communicate(timeout=30)
    lines = [line for line in err.splitlines() if not line.startswith("tokenize")]
    assert (process.returncode, lines) == (1, ["error: interrupted; nothing half-written was left"])
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_another_kind_of_tokenizer_is_named_in_the_manifest(sources, documents, tmp_path):
    made = prepare(sources, Tokenizer.load("byte260"), tmp_path / "out", PrepareConfig(val_docs=1))
    (dataset,), (about,) = made["datasets"], made["tokenizers"]
    assert (dataset["name"], about["kind"], "normalization" in about) == ("fineweb_byte260", "byte260", False)
    assert dataset["stats"]["tokens_val"] == 1 + dataset["stats"]["bytes_val"] == 1 + len(documents[0].encode())
