import pytest

from quantlab.errors import ConfigError, DataError
from quantlab.text.tokenizer import Tokenizer, train_tokenizer


def test_the_same_documents_give_the_same_bytes(tokenizer, python_sources):
    assert train_tokenizer(iter(python_sources), vocab_size=400) == tokenizer.model_bytes


def test_a_subsample_is_drawn_by_seed_and_bounded(python_sources):
    lines = [line for source in python_sources for line in source.split(b"\n\n")]
    models = [train_tokenizer(lines, vocab_size=360, max_bytes=20_000, seed=seed) for seed in (0, 0, 1)]
    assert models[0] == models[1] != models[2]
    # within the bound: the same model comes from one document cut at it by hand
    one = python_sources[0]
    assert train_tokenizer([one], vocab_size=360, max_bytes=9000) == train_tokenizer([one[:9000]], vocab_size=360)


def test_ids_and_pieces_are_the_challenges(tokenizer):
    processor = tokenizer.vocabulary.processor
    ids = [processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()]
    assert ids == [0, 1, 2, 3]
    assert [processor.id_to_piece(4 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_digits_stay_single():
    dates = b"".join(b"20%02d-%02d-%02d is a day\n" % (i % 30, i % 12, i % 28) for i in range(1000))
    tokenizer = Tokenizer(train_tokenizer([dates], vocab_size=285))
    assert tokenizer.vocabulary.processor.encode("2024-12-10", out_type=str) == [*"2024-12-10"]


def test_newlines_and_indentation_have_pieces(tokenizer):
    pieces = {tokenizer.vocabulary.processor.id_to_piece(i) for i in range(400)}
    assert {"\n", "\n\n", "▁▁▁▁", "▁" * 8} <= pieces
    assert len(tokenizer.encode(b"\n        ")) == 2


def test_text_that_sentencepiece_reserves_or_cannot_decode_still_trains(python_sources, capfd):
    odd = [b"\0 \xff \xe2\x96\x85 \xe2\x96\x81\t" + source for source in python_sources]
    tokenizer = Tokenizer(train_tokenizer(odd, vocab_size=400))
    assert tokenizer.vocabulary.processor.piece_to_id("self") != 3, "a document with a reserved character must not be skipped"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("vocab_size", [260, 65537])
def test_impossible_sizes_are_refused(vocab_size):
    with pytest.raises(ConfigError, match=f"vocab_size must be 261 to 65536, got {vocab_size}"):
        train_tokenizer([b"abc"], vocab_size=vocab_size)


def test_too_little_text_is_refused(python_sources):
    with pytest.raises(ConfigError, match="max_bytes must be 1 or more, got 0"):
        train_tokenizer([b"abc"], max_bytes=0)
    for documents in ([], [b" \n", b"\xff"]):
        with pytest.raises(DataError, match=f"no text to train a tokenizer on in {len(documents)} documents"):
            train_tokenizer(documents)
    with pytest.raises(DataError, match="cannot train a tokenizer of 1024 pieces"):
        train_tokenizer([b"abc abc"])
    with pytest.raises(DataError, match="cannot train a tokenizer of 270 pieces"):
        train_tokenizer(python_sources, vocab_size=270)
