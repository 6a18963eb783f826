"""Texts are scored and calibrated on with tokenizers of each kind."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from conftest import TOY, random_state

from quantlab.calib.sources import CalibrationConfig, calibration_tokens
from quantlab.errors import ConfigError
from quantlab.jobs.evaluate import evaluate
from quantlab.models.loading import load
from quantlab.text.tokenizer import Tokenizer

TEXT = b"def f(x):\n    return x + 1\n" * 40


def checkpoint(folder: Path, vocab_size: int) -> Path:
    torch.save(random_state(dataclasses.replace(TOY, vocab_size=vocab_size)), folder / "toy.pt")
    (folder / "text.txt").write_bytes(TEXT)
    return folder / "toy.pt"


def write_byte_level_bpe(path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({character: number for number, character in enumerate(alphabet)}, [])
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.add_special_tokens(["<s>"])
    engine.save(str(path))


def test_byte260_is_named_like_a_file(tmp_path):
    target = checkpoint(tmp_path, 260)
    record = evaluate(target, text=tmp_path / "text.txt", tokenizer="byte260", seq_len=64)
    assert record.data.bytes == record.data.tokens == len(TEXT) // 64 * 64
    assert record.val_bpb == pytest.approx(record.val_loss / math.log(2), rel=1e-12) and record.normalization == ""
    assert record.data.tokenizer_sha256 == Tokenizer.load("byte260").sha256


def test_tokenizer_json_beside_a_model_with_more_rows_than_ids(tmp_path):
    """One token is one byte here, so bits per byte are bits per token."""
    write_byte_level_bpe(tmp_path / "tokenizer.json")
    target = checkpoint(tmp_path, 320)
    record = evaluate(target, text=tmp_path / "text.txt", seq_len=64)
    assert record.data.bytes == record.data.tokens == len(TEXT) // 64 * 64
    assert record.val_bpb == pytest.approx(record.val_loss / math.log(2), rel=1e-12)
    folder = evaluate(target, text=tmp_path / "text.txt", tokenizer=tmp_path, seq_len=64)
    assert (folder.data, folder.val_bpb) == (record.data, record.val_bpb)


def test_no_tokenizer_beside_the_target_names_both_files(tmp_path):
    target = checkpoint(tmp_path, 260)
    with pytest.raises(ConfigError, match=r"tokenizer\.model does not exist, nor tokenizer\.json there"):
        evaluate(target, text=tmp_path / "text.txt")


def test_calibration_text_of_each_kind(tmp_path):
    loaded = load(checkpoint(tmp_path, 260))
    write_byte_level_bpe(tmp_path / "tokenizer.json")
    for tokenizer in (Tokenizer.load("byte260"), Tokenizer.load(tmp_path).fitted(260)):
        config = CalibrationConfig(source=f"text:{tmp_path}/text.txt", tokens=64, seq_len=16)
        ids, _ = calibration_tokens(config, loaded.model, tokenizer, 260)
        assert ids.shape == (4, 16)
        assert all(tokenizer.decode(row.tolist()) in TEXT for row in ids)
