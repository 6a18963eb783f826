"""quantlab data fetch against a server on this machine that speaks the hub's protocol."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.jobs.fetch_data import PARTS, fetch_data
from quantlab.text.shards import read_shards, read_sidecars, write_shard

pytest.importorskip("huggingface_hub")
COMMIT = "0" * 39 + "1"
REPO = "someone/parameter-golf"


class Hub(ThreadingHTTPServer):
    """Files by name; requests are kept, and one file may be cut off once."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.cut = files, list[tuple[str, str, str]](), ""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        name = self.path.partition(f"/datasets/{REPO}/resolve/")[2].partition("/")[2]
        content = self.server.files.get(name)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if with_body:
            self.server.asked.append((name, self.command, str(start)))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(content))}"')
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if self.server.cut == name:
            self.server.cut = ""
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)


def shard(tmp_path: Path, count: int, seed: int = 0) -> bytes:
    path = tmp_path / "one.bin"
    tokens = np.random.default_rng(seed).integers(2, 400, count).astype(np.uint16)
    tokens[0] = 1
    write_shard(path, tokens)
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path, tokenizer, monkeypatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    sets = [("fineweb10B_sp400", "sp"), ("fineweb10B_caseops", "sp")]
    stats = {"files_val": 2, "files_train": 3}
    datasets = [{"name": name, "tokenizer_name": kind, "stats": stats} for name, kind in sets]
    manifest = {"datasets": datasets, "tokenizers": [{"name": "sp", "model_path": "tokenizers/sp_400.model"}]}
    files = {"datasets/manifest.json": json.dumps(manifest).encode(), "datasets/tokenizers/sp_400.model": tokenizer.model_bytes}
    for name, _ in sets:
        for n in range(3):
            files[f"datasets/datasets/{name}/fineweb_train_{n:06d}.bin"] = shard(tmp_path, 3000, n)
        for n in range(2):
            files[f"datasets/datasets/{name}/fineweb_val_{n:06d}.bin"] = shard(tmp_path, 2000, 9 + n)
            files[f"datasets/datasets/{name}/fineweb_val_bytes_{n:06d}.bin"] = shard(tmp_path, 2000, 9 + n)
    server = Hub(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, out: Path, variant: str = "sp400", **more):
    address = f"http://127.0.0.1:{hub.server_port}"
    return fetch_data(variant, out, repository=REPO, train_shards=more.pop("train_shards", 1), endpoint=address, **more)


def test_shards_and_tokenizer_lie_where_presets_look_for_them(hub, tmp_path, tokenizer):
    found = fetch(hub, tmp_path / "data")
    folder = tmp_path / "data/datasets/fineweb10B_sp400"
    assert (found.folder, found.tokenizer) == (folder, tmp_path / "data/tokenizers/sp_400.model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "fineweb_val_000001.bin",
    ]
    assert len(read_shards(str(folder / "fineweb_val_*.bin"))) == 4000
    assert found.tokenizer.read_bytes() == tokenizer.model_bytes and not (tmp_path / "data" / PARTS).exists()
    assert (found.files, found.new) == (4, 4)


def test_what_is_there_is_kept_and_the_rest_comes(hub, tmp_path):
    fetch(hub, tmp_path)
    hub.asked.clear()
    found = fetch(hub, tmp_path, train_shards=3)
    assert (found.files, found.new) == (6, 2)
    assert {name.rpartition("/")[2] for name, *_ in hub.asked} == {
        "manifest.json", "fineweb_train_000001.bin", "fineweb_train_000002.bin",
    }  # fmt: skip


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
    hub.cut = name = "datasets/datasets/fineweb10B_sp400/fineweb_val_000001.bin"
    try:
        fetch(hub, tmp_path)  # the library may go on by itself
    except QuantlabError as error:
        assert "goes on where it stopped" in error.hint
        assert not (tmp_path / "datasets/fineweb10B_sp400/fineweb_val_000001.bin").exists()
        fetch(hub, tmp_path)
    starts = [int(start) for asked, _, start in hub.asked if asked == name]
    assert starts[0] == 0 and starts[-1] > 0
    assert (tmp_path / "datasets/fineweb10B_sp400/fineweb_val_000001.bin").read_bytes() == hub.files[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shard: b"", "0 bytes, shorter than its header"),
        (lambda shard: shard[:-2], "bytes, must be 5,024 for its 2,000 tokens"),
        (lambda shard: bytes(4) + shard[4:], "magic 0, must be 20240520"),
    ],
)
def test_a_damaged_shard_never_appears_and_is_fetched_anew(hub, tmp_path, change, message):
    name = "datasets/datasets/fineweb10B_sp400/fineweb_val_000000.bin"
    whole = hub.files[name]
    hub.files[name] = change(whole)
    with pytest.raises(QuantlabError, match=message if change(whole) else "."):
        fetch(hub, tmp_path)
    place = tmp_path / "datasets/fineweb10B_sp400/fineweb_val_000000.bin"
    assert not place.exists()
    hub.files[name] = whole
    fetch(hub, tmp_path)
    assert place.read_bytes() == whole
    place.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="bytes, must be 5,024"):
        fetch(hub, tmp_path)


def test_caseops_comes_with_its_byte_counts(hub, tmp_path):
    found = fetch(hub, tmp_path, "caseops")
    assert len(read_sidecars(str(found.folder / "fineweb_val_*.bin"))) == 4000


def test_what_the_hub_does_not_have_is_named(hub, tmp_path):
    with pytest.raises(DataError, match="has no fineweb10B_sp9, it has fineweb10B_sp400, fineweb10B_caseops"):
        fetch(hub, tmp_path, "sp9")
    with pytest.raises(ConfigError, match="fineweb10B_sp400 has 3 training shards, 4 are asked for"):
        fetch(hub, tmp_path, train_shards=4)
    del hub.files["datasets/datasets/fineweb10B_sp400/fineweb_val_000001.bin"]
    with pytest.raises(
        QuantlabError, match="cannot fetch datasets/datasets/fineweb10B_sp400/fineweb_val_000001.bin of data set"
    ):
        fetch(hub, tmp_path)
    for wrong, message in [("../x", "variant must be a name"), ("sp7", "no data set is known for variant 'sp7'")]:
        with pytest.raises(ConfigError, match=message):
            fetch_data(wrong, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizers": [{"name": "sp", "model_path": "../../etc/passwd"}]}, "must be a path below the data set"),
        ({"tokenizers": []}, "has no tokenizer 'sp'"),
        ({"datasets": [{"name": "fineweb10B_sp400", "tokenizer_name": "sp", "stats": {"files_val": "2"}}]}, "files_val of"),
        ({"datasets": "x"}, "it has none"),
    ],
)
def test_a_manifest_of_others_is_checked(hub, tmp_path, change, message):
    manifest = json.loads(hub.files["datasets/manifest.json"])
    hub.files["datasets/manifest.json"] = json.dumps(manifest | change).encode()
    with pytest.raises(DataError, match=message):
        fetch(hub, tmp_path)
    assert not (tmp_path / "datasets").exists()
