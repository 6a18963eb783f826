"""Folders with vocab.json and merges.txt in place of a tokenizer.json: read by transformers, carried as a tokenizer.json."""

import json
from pathlib import Path

import pytest

from quantlab.errors import DataError
from quantlab.models.tokenizer_files import read_tokenizer_files, tokenizer_in
from quantlab.text import vocabulary_files
from quantlab.text.tokenizer import Tokenizer

pytest.importorskip("transformers", minversion="5")
tokenizers = pytest.importorskip("tokenizers")
END = "<|endoftext|>"


@pytest.fixture
def folder(python_sources: list[bytes], tmp_path: Path) -> Path:
    """A folder as those of GPT-2 were before tokenizer.json."""
    engine = tokenizers.ByteLevelBPETokenizer()
    engine.train_from_iterator([s.decode() for s in python_sources], vocab_size=400, special_tokens=[END], show_progress=False)
    engine.save_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "bos_token": END}))
    return tmp_path


def test_every_byte_comes_back(folder: Path, python_sources: list[bytes]) -> None:
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("huggingface", 400)
    assert tokenizer.bos_id == json.loads((folder / "vocab.json").read_text())[END]
    data = b"".join(python_sources) + "naïve \U0001f600".encode() + b"\xff\0 <|endoftext|>"
    assert tokenizer.decode(tokenizer.encode(data)) == data
    assert len(tokenizer.encode(python_sources[0])) < 0.7 * len(python_sources[0])


def test_an_artifact_carries_a_tokenizer_json(folder: Path) -> None:
    files = read_tokenizer_files(folder)
    assert "tokenizer.json" in files and "tokenizer_config.json" in files
    carried, own = tokenizer_in(files, "m.qlab"), Tokenizer.load(folder)
    assert carried is not None and (carried.sha256, carried.bos_id) == (own.sha256, own.bos_id)
    assert read_tokenizer_files(folder) == files


def test_a_tokenizer_json_beside_them_is_preferred(folder: Path) -> None:
    Tokenizer.load(folder)
    content = Tokenizer.load(folder).model_bytes + b" "
    (folder / "tokenizer.json").write_bytes(content)
    assert Tokenizer.load(folder).model_bytes == content == read_tokenizer_files(folder)["tokenizer.json"]


@pytest.mark.parametrize(("name", "text"), [("vocab.json", "{"), ("vocab.json", "[]"), ("merges.txt", "a b c d\nx")])
def test_damaged_files_are_one_line(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError) as caught:
        Tokenizer.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_code_of_the_folder_is_not_run(folder: Path) -> None:
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit(3)")
    with pytest.raises(DataError, match="transformers makes no tokenizer"):
        Tokenizer.load(folder)


def test_large_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_files, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"vocab\.json has .* bytes, at most 100 are read"):
        Tokenizer.load(folder)
