"""An artifact of a folder of transformers carries its tokenizer, counted; the challenge's do where they are asked."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantlab
from quantlab.errors import BudgetError, ConfigError, DataError
from quantlab.models import tokenizer_files
from quantlab.text.shards import write_shard
from quantlab.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers", minversion="5")
tokenizers = pytest.importorskip("tokenizers")

QUICK = {"calib_tokens": 512, "calib_seq_len": 128, "effort": "fast", "device": "cpu"}
BUDGET = 220_000
TEXT = b"def f(x):\n    return x + 1\n" * 40
VOCAB = 288
pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a random Llama of 350,000 weights with a byte-level tokenizer of 257 ids, BOS last."""
    values = {"vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    values |= {"intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256}
    config = transformers.LlamaConfig(**(values | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, **changes: Any) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({character: number for number, character in enumerate(alphabet)}, [])
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.add_special_tokens(["<s>"])
    content = json.loads(engine.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"})
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama") / "model", torch.bfloat16)


@pytest.fixture(scope="module")
def artifact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed with no option, in a folder where nothing lies beside it but the text."""
    path = tmp_path_factory.mktemp("packed") / "m.qlab"
    quantlab.pack(folder, budget=BUDGET, output=path, **QUICK)
    (path.parent / "text.txt").write_bytes(TEXT)
    return path


def test_the_tokenizer_is_carried_and_counted(folder: Path, artifact: Path) -> None:
    opened = quantlab.open_artifact(artifact)
    names = ("tokenizer.json", "tokenizer_config.json")
    assert opened.files() == {name: (folder / name).read_bytes() for name in names}
    assert opened.manifest.tokenizer == {"sha256": Tokenizer.load(folder).sha256[:32], "vocab_size": VOCAB}
    sizes = opened.layout.size_breakdown
    assert 500 < sizes["tokenizer"] < 5000 and sum(sizes.values()) == artifact.stat().st_size <= BUDGET
    assert json.loads((artifact.parent / "m.report.json").read_text())["size_breakdown"]["tokenizer"] == sizes["tokenizer"]


def test_text_is_scored_with_the_carried_tokenizer(folder: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        record = quantlab.evaluate(artifact, text=artifact.parent / "text.txt", against=folder, seq_len=64)
    assert record.data.bytes == record.data.tokens == len(TEXT) // 64 * 64
    assert record.data.tokenizer_sha256 == Tokenizer.load(folder).sha256
    assert record.against is not None and record.against.val_bpb is not None and record.val_bpb is not None
    assert f"tokenizer tokenizer.json of {artifact}" in caplog.text


def test_calibration_on_text_needs_no_tokenizer_for_a_folder(folder: Path, artifact: Path) -> None:
    text = f"text:{artifact.parent / 'text.txt'}"
    stats = quantlab.calibrate(folder, calib=text, calib_tokens=256, calib_seq_len=64, device="cpu")
    assert Tokenizer.load(folder).decode(stats.ids_NT[0].tolist()) in TEXT


def test_a_folder_is_written_without_the_one_that_was_packed(folder: Path, artifact: Path, tmp_path: Path) -> None:
    tensors = quantlab.unpack(artifact, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    assert state and all(torch.equal(state[name], tensor.bfloat16()) for name, tensor in tensors.items())
    engine = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        engine.bos_token == "<s>"
        and (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    )


def test_packing_an_artifact_again_carries_its_tokenizer_on(artifact: Path, tmp_path: Path) -> None:
    quantlab.pack(artifact, budget=BUDGET - 20_000, output=tmp_path / "again.qlab", **QUICK)
    assert quantlab.open_artifact(tmp_path / "again.qlab").files() == quantlab.open_artifact(artifact).files()


def test_it_can_be_left_out(folder: Path, artifact: Path, tmp_path: Path) -> None:
    report = quantlab.pack(folder, budget=BUDGET, output=tmp_path / "m.qlab", with_tokenizer=False, **QUICK)
    opened = quantlab.open_artifact(tmp_path / "m.qlab")
    assert opened.files() == {} and "tokenizer" not in report.size_breakdown
    assert opened.manifest.tokenizer["sha256"]  # another one is refused
    with pytest.raises(ConfigError, match="no tokenizer: none was given"):
        quantlab.evaluate(tmp_path / "m.qlab", text=artifact.parent / "text.txt", seq_len=64)
    with pytest.raises(DataError, match="is not the one the artifact was packed with"):
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
        quantlab.evaluate(tmp_path / "m.qlab", text=artifact.parent / "text.txt", seq_len=64)


def test_a_budget_that_is_too_small_names_the_switch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        quantlab.pack(folder, budget=1500, output=tmp_path / "m.qlab", **QUICK)
    assert caught.value.hint == "raise the budget, or leave out the tokenizer with --no-tokenizer"


def test_the_challenge_s_artifacts_carry_one_where_they_are_asked(
    toy_checkpoint: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    options = {"budget": 80_000, "tokenizer": tokenizer_file, **QUICK}
    quantlab.pack(toy_checkpoint, output=tmp_path / "plain.qlab", **options)
    assert quantlab.open_artifact(tmp_path / "plain.qlab").files() == {}
    quantlab.pack(toy_checkpoint, output=tmp_path / "m.qlab", with_tokenizer=True, **options)
    assert quantlab.open_artifact(tmp_path / "m.qlab").files() == {"tokenizer.model": tokenizer_file.read_bytes()}
    carried, named = (
        quantlab.evaluate(tmp_path / "m.qlab", text=tmp_path / "text.txt", tokenizer=given, seq_len=64)
        for given in (None, tokenizer_file)
    )
    assert carried.val_bpb == named.val_bpb
    with pytest.raises(ConfigError, match="no tokenizer for the artifact to carry"):
        quantlab.pack(toy_checkpoint, budget=80_000, output=tmp_path / "none.qlab", with_tokenizer=True, **QUICK)


INEXACT = {"normalizer": {"type": "Lowercase"}}


def test_a_tokenizer_without_exact_bytes_is_carried_but_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, artifact = saved(tmp_path / "model"), tmp_path / "m.qlab"
    write_tokenizer(folder, **INEXACT)
    (tmp_path / "text.txt").write_bytes(TEXT)
    quantlab.pack(folder, budget=BUDGET, output=artifact, **QUICK)
    assert "cannot score it" in caplog.text and "normalizer Lowercase changes text" in caplog.text
    opened = quantlab.open_artifact(artifact)
    assert "tokenizer.json" in opened.files() and opened.manifest.tokenizer == {}
    with pytest.raises(DataError, match="normalizer Lowercase changes text"):
        quantlab.evaluate(artifact, text=tmp_path / "text.txt", seq_len=64)


def test_a_tokenizer_with_more_ids_than_the_model_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path / "model", vocab_size=250, bos_token_id=1)
    (tmp_path / "text.txt").write_bytes(TEXT)
    quantlab.pack(folder, budget=BUDGET, output=tmp_path / "m.qlab", **QUICK)
    assert "has 257 pieces, the model has 250" in caplog.text
    with pytest.raises(DataError, match="has 257 pieces, the model has 250"):
        quantlab.evaluate(tmp_path / "m.qlab", text=tmp_path / "text.txt", seq_len=64)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"bos_token": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}', b"\xff"])
def test_a_damaged_tokenizer_config_is_one_line(text: bytes, folder: Path) -> None:
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes(), "tokenizer_config.json": text}
    with pytest.raises(DataError, match=r"tokenizer_config.json of m.qlab") as caught:
        tokenizer_files.tokenizer_in(files, "m.qlab")
    assert "\n" not in str(caught.value)


def test_more_bytes_than_an_artifact_may_carry_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1,000 are read"):
        quantlab.load(folder)


def test_the_recorded_tokenizer_is_chosen_among_several(folder: Path, tokenizer: Tokenizer) -> None:
    files = tokenizer_files.read_tokenizer_files(folder) | tokenizer_files.files_of(tokenizer)
    json_tokenizer = Tokenizer.load(folder)
    for wanted in (tokenizer, json_tokenizer):
        found = tokenizer_files.tokenizer_in(files, "m.qlab", wanted.sha256[:32])
        assert found is not None and (found.sha256, found.bos_id) == (wanted.sha256, wanted.bos_id)
    again = tokenizer_files.tokenizer_in(tokenizer_files.files_of(json_tokenizer), "m.qlab")
    assert again is not None and (again.sha256, again.bos_id) == (json_tokenizer.sha256, 256)


def test_tokens_are_compared_without_a_tokenizer(
    toy_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """KL and flips are those with a tokenizer; there is no BPB, and a line says why."""
    artifact = tmp_path / "m.qlab"
    quantlab.pack(toy_checkpoint, budget=80_000, output=artifact, **QUICK)
    ids = np.random.default_rng(0).integers(1, 400, 400, dtype=np.uint16)
    write_shard(tmp_path / "val_000000.bin", ids)
    options = {"tokens": str(tmp_path / "val_*.bin"), "seq_len": 64}
    for mode in ("chunked", "sliding"):
        record = quantlab.evaluate(artifact, against=toy_checkpoint, mode=mode, **options)
        assert record.val_bpb is None and record.data.bytes == 0 and record.data.tokenizer_sha256 == ""
        assert record.against is not None and record.against.kl_mean > 0 and record.against.val_bpb is None
        assert record.against.gap_bpb is None and record.val_loss > 0
    assert "no bits per byte" in caplog.text and "tokenizer.model does not exist" in caplog.text
    with pytest.raises(ConfigError, match="no tokenizer"):
        quantlab.evaluate(artifact, **options)
