"""quantlab publish, fetch, index and runs merge: against a folder, fsspec's memory, a server of S3, and a stub of the hub."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from torch import Tensor

import quantlab
from quantlab.cli.main import run
from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.evaluation.evaluation_record import EvaluationData, EvaluationRecord, Probe, record_path
from quantlab.files import hash_file
from quantlab.jobs import publish as job
from quantlab.report.pack_report import read_report
from quantlab.runs.merge import NOT_VERIFIED
from quantlab.runs.run_record import RECORD_NAME, FileRef, Process, RunRecord, packing_of
from quantlab.runs.store import join, read_store
from quantlab.share import place as place_module
from quantlab.share.place import FileSystemPlace, HubPlace, open_place
from quantlab.share.publication import MANIFEST_NAME, UPLOADING_NAME, read_publication

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "20260724T101501.000000Z-pack-00000001"
BPB = 2500.0 / (math.log(2) * 2400)


@pytest.fixture(scope="module")
def packed(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed toy model with its report and a score beside it, and a folder of runs that recorded the packing."""
    folder = tmp_path_factory.mktemp("packed")
    artifact = folder / "toy.qlab"
    report = quantlab.pack(toy_checkpoint, budget="90kB", output=artifact, method="rtn", calib="random", calib_tokens=1024)
    size, sha256 = hash_file(artifact)
    data = EvaluationData(
        tokens_sha256="0" * 64,
        tokens=1000,
        bytes=2400,
        documents=3,
        mode="chunked",
        seq_len=64,
        stride=64,
        tokenizer_sha256="a" * 64,
    )
    probes = (Probe(name="flip", passed=True, detail="0 of 64"),)
    score = EvaluationRecord(
        target="toy.qlab",
        target_sha256=sha256,
        target_bytes=size,
        data=data,
        val_bpb=BPB,
        val_loss=2.5,
        nats=2500.0,
        probes=probes,
    )
    record_path(artifact).write_bytes(score.to_json())
    record = RunRecord(
        kind="pack",
        status="done",
        started="2026-07-24T10:15:01.000000Z",
        process=Process(host="elsewhere", pid=1),
        exit_code=0,
        directory="../..",
        seeds={"seed": 0},
        artifact=FileRef(path="toy.qlab", bytes=size, sha256=sha256),
        packing=packing_of(report),
        evaluations=(score,),
    )
    (folder / "runs" / NAME).mkdir(parents=True)
    (folder / "runs" / NAME / RECORD_NAME).write_bytes(record.to_json())
    return folder


@pytest.fixture(params=["file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The address of an empty place."""
    if request.param == "file":
        yield f"file://{tmp_path}/place/model"
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}/model"
        fsspec.filesystem("memory").rm("/", recursive=True)
    else:
        yield from _s3(request)


def _s3(request: pytest.FixtureRequest) -> Any:
    server = pytest.importorskip("moto.server", reason="moto, a local server of S3, is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    patch = request.getfixturevalue("monkeypatch")
    bucket = request.node.name.partition("[")[0].replace("_", "-")[:60].strip("-")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        patch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3", endpoint_url=f"http://{host}:{port}", skip_instance_cache=True).mkdir(bucket)
    yield f"s3://{bucket}/model"
    running.stop()


def test_what_was_published_is_fetched_and_verified(packed: Path, address: str, tmp_path: Path):
    done = job.publish(packed / "toy.qlab", address)
    assert set(done.moved) == {"README.md", "model.qlab", "model.report.json", "model.eval.json"}
    assert done.publication.about["bpb"] == BPB
    assert done.publication.about["architecture"] == "GPT 2x64"
    fetched = job.fetch(address, tmp_path / "here")
    assert fetched.is_decoded_equal is True
    assert (tmp_path / "here" / "model.qlab").read_bytes() == (packed / "toy.qlab").read_bytes()
    card = (tmp_path / "here" / "README.md").read_text()
    assert f"{BPB:.4f} bits per byte" in card
    assert "quantlab inspect model.qlab" in card
    assert job.fetch(address, tmp_path / "here").moved == ()
    again = quantlab.unpack(tmp_path / "here" / "model.qlab")
    assert all(isinstance(tensor, Tensor) for tensor in again.values())


def test_a_killed_upload_goes_on_and_is_no_model_before_it_ends(packed: Path, address: str, tmp_path: Path, monkeypatch):
    def failing(self: FileSystemPlace, source: Path, name: str) -> None:
        if name == "model.qlab":
            raise QuantlabError("the network is gone")
        original(self, source, name)

    original = FileSystemPlace.put
    monkeypatch.setattr(FileSystemPlace, "put", failing)
    with pytest.raises(QuantlabError, match="network is gone"):
        job.publish(packed / "toy.qlab", address)
    monkeypatch.setattr(FileSystemPlace, "put", original)
    with pytest.raises(QuantlabError, match="its upload has not ended"):
        job.fetch(address, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    done = job.publish(packed / "toy.qlab", address)
    assert "README.md" not in done.moved
    assert "model.qlab" in done.moved
    assert job.fetch(address, tmp_path / "here").is_decoded_equal


def test_a_file_that_was_altered_never_takes_its_name(packed: Path, tmp_path: Path):
    there = tmp_path / "place"
    job.publish(packed / "toy.qlab", f"file://{there}")
    data = bytearray((there / "model.qlab").read_bytes())
    data[-1] ^= 1
    (there / "model.qlab").write_bytes(data)
    here = tmp_path / "here"
    here.mkdir()
    (here / "model.qlab").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists and is another file"):
        job.fetch(f"file://{there}", here)
    with pytest.raises(QuantlabError, match="is not what quantlab.json says"):
        job.fetch(f"file://{there}", here, force=True)
    assert (here / "model.qlab").read_bytes() == b"mine"
    (there / "model.qlab").write_bytes(bytes(data) * 2)
    with pytest.raises(QuantlabError, match="has more than the"):
        job.fetch(f"file://{there}", here, force=True)
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda raw: raw["files"].update({"../evil": raw["files"]["model.qlab"]}), "no plain file name"),
        (lambda raw: raw["files"].update({".profile": raw["files"]["model.qlab"]}), "no plain file name"),
        (lambda raw: raw.update(format=2), "has format 2, this quantlab reads 1"),
        (lambda raw: raw["files"]["model.qlab"].update(sha256="x"), "size or hash of model.qlab is wrong"),
        (lambda raw: raw.update(files={f"f{n}": {"bytes": 1, "sha256": "0" * 64} for n in range(101)}), "names 101 files"),
        (lambda raw: raw.pop("name"), "name"),
    ],
)
def test_a_hostile_manifest_is_refused(packed: Path, tmp_path: Path, change, error: str):
    place = tmp_path / "place"
    job.publish(packed / "toy.qlab", f"file://{place}")
    raw = json.loads((place / MANIFEST_NAME).read_text())
    change(raw)
    with pytest.raises(ReportError, match=error):
        read_publication(json.dumps(raw).encode(), "x")


def test_another_publication_is_not_replaced_without_force(packed: Path, tmp_path: Path):
    to = f"file://{tmp_path}/place"
    job.publish(packed / "toy.qlab", to, name="one")
    assert job.publish(packed / "toy.qlab", to, name="one").moved == ()
    with pytest.raises(ConfigError, match="holds another publication, one"):
        job.publish(packed / "toy.qlab", to, name="two")
    job.publish(packed / "toy.qlab", to, name="two", force=True)
    assert job.fetch(to, tmp_path / "here").publication.name == "two"


def test_a_run_is_published_with_its_provenance_and_its_weights(packed: Path, toy_checkpoint: Path, tmp_path: Path, capsys):
    to, words = f"file://{tmp_path}/place", ["--runs", str(packed / "runs")]
    assert run(["publish", "00000001", "--to", to, "--what", "both", *words]) == 2
    assert "the weights in full precision are not known" in capsys.readouterr().err
    assert run(["publish", "00000001", "--to", to, "--what", "both", "--float", str(toy_checkpoint), "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == NAME
    assert run(["fetch", to, "-o", str(tmp_path / "here")]) == 0
    out = capsys.readouterr().out
    assert "every file has the published size and sha256, the artifact decodes to its tensors" in out
    about = json.loads((tmp_path / "here" / MANIFEST_NAME).read_text())
    assert about["provenance"]["seeds"] == {"seed": 0}
    assert about["provenance"]["parents"] == [quantlab.open_artifact(packed / "toy.qlab").manifest.origin["checkpoint"]]
    assert about["run"]["process"]["host"] == ""
    assert (tmp_path / "here" / "model.pt").read_bytes() == toy_checkpoint.read_bytes()


def test_an_index_lists_models_and_its_runs_are_merged_but_not_believed(packed: Path, tmp_path: Path, capsys):
    index = f"file://{tmp_path}/index"
    for name in ("a", "b"):
        words = ["--to", f"file://{tmp_path}/{name}", "--name", name, "--index", index, "--runs", str(packed / "runs")]
        assert run(["publish", "00000001" if name == "a" else str(packed / "toy.qlab"), *words]) == 0
    (tmp_path / "index" / "entry-0000000000000000.json").write_text("{")
    capsys.readouterr()
    assert run(["index", index, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [(row["name"], row["bpb"]) for row in json.loads(out)] == [("a", BPB), ("b", BPB)]
    assert "broken entry" in err
    merged = tmp_path / "merged"
    assert run(["runs", "merge", index, "--runs", str(merged)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [NAME]
    assert "has no recorded run" in err
    (joined,) = join(read_store(merged).runs)
    assert joined.problems == (f"{NOT_VERIFIED}: file://{tmp_path}/a",)
    assert run(["runs", "merge", index, "--runs", str(tmp_path / "trusted"), "--trust"]) == 0
    assert join(read_store(tmp_path / "trusted").runs)[0].is_valid


def test_run_folders_are_merged_once(packed: Path, tmp_path: Path, capsys):
    merge = ["runs", "merge", str(packed / "runs"), "--runs", str(tmp_path / "mine")]
    assert run(merge) == 0
    assert capsys.readouterr().out.splitlines() == [NAME]
    assert run(merge) == 0
    assert capsys.readouterr().out == ""
    assert join(read_store(tmp_path / "mine").runs)[0].is_valid
    assert run(["runs", "merge", str(packed / "runs"), "--runs", str(packed / "runs")]) == 2


class StubHub:
    """The part of huggingface_hub.HfApi that a place uses, on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(repo_id)
        self.folder.mkdir(exist_ok=True)

    def list_repo_files(self, repo_id: str) -> list[str]:
        if not self.folder.is_dir():
            raise type("RepositoryNotFoundError", (Exception,), {})(repo_id)
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str) -> None:
        target = self.folder / path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(path_or_fileobj).read_bytes())

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        return str(self.folder / filename)


def test_the_hub_is_used_through_its_client(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = StubHub(tmp_path / "hub")
    monkeypatch.setattr(place_module, "_hub_api", lambda: hub)
    job.publish(packed / "toy.qlab", "hf://somebody/tiny/v1")
    assert hub.calls == ["somebody/tiny"]
    assert (tmp_path / "hub" / "v1" / MANIFEST_NAME).is_file()
    assert job.fetch("hf://somebody/tiny/v1", tmp_path / "here").is_decoded_equal
    with pytest.raises(QuantlabError, match="is no published model"):
        job.fetch("hf://somebody/tiny", tmp_path / "other")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("model", "'model' is no address"),
        ("/folder", "is no address"),
        ("nothing://x/y", "nothing:// cannot be used"),
        ("hf://user", "is no repository of the hub"),
    ],
)
def test_what_is_no_place_is_refused(url: str, message: str):
    with pytest.raises(ConfigError, match=message):
        open_place(url)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    def missing(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match="Install s3fs") as caught:
        open_place("s3://bucket/x")
    assert caught.value.hint == "pip install 'quantlab-llm[share]'"


def test_places_keep_other_errors_on_one_line(tmp_path: Path):
    stub = SimpleNamespace(list_repo_files=lambda repo: (_ for _ in ()).throw(OSError("no route\nto host")))
    with pytest.raises(QuantlabError, match="cannot be listed: OSError: no route"):
        HubPlace("hf://a/b", "a/b", api=stub).names()
    with pytest.raises(QuantlabError, match="cannot be read"):
        list(open_place(f"file://{tmp_path}").blocks("missing"))


def test_a_report_of_another_file_is_not_published(packed: Path, tmp_path: Path):
    other = tmp_path / "toy.qlab"
    other.write_bytes((packed / "toy.qlab").read_bytes())
    report = read_report(packed / "toy.report.json")
    (tmp_path / "toy.report.json").write_bytes(replace(report, artifact_sha256="0" * 64).to_json())
    with pytest.raises(QuantlabError):
        job.publish(other, f"file://{tmp_path}/place")
    assert not (tmp_path / "place" / UPLOADING_NAME).exists()
