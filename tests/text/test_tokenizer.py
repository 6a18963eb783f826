import hashlib
import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.tokenizer import TokenBytes, Tokenizer

LETTERS = "the cat sat on the mat and the dog sat on the log then the cat ran"
ANY_BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))


def spm(**options: object) -> bytes:
    """A SentencePiece model with settings that train_tokenizer does not offer."""
    model = io.BytesIO()
    settings = {"model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([LETTERS] * 5), model_writer=model, **settings)
    return model.getvalue()


@pytest.fixture(scope="module")
def without_bytes() -> Tokenizer:
    return Tokenizer(spm(vocab_size=40), name="letters")


@pytest.fixture(scope="module")
def token_bytes(tokenizer) -> TokenBytes:
    return tokenizer.token_bytes()


@given(data=ANY_BYTES)
@example(b"")
@example(bytes(range(256)))
@example("naïve 日本語 ▁ \u2585 \ufeff\ufffd \r\n\t  x".encode())
@example(b"<s></s><unk><pad><0x41>")
@example(b" \xe2\x96\x81 \xe2\x96 \xed\xa0\x80 \xc0\x80 \xf4\x90\x80\x80")
def test_all_bytes_come_back_and_are_counted(tokenizer, token_bytes, data):
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    newline = tokenizer.encode(b"\n")  # a first token that is no boundary, so that a leading space counts
    stream = np.array(newline + ids)
    assert token_bytes.count(stream[:-1], stream[1:]).sum() == len(data)


def test_python_source_comes_back_and_is_counted(tokenizer, python_sources):
    stream = tokenizer.encode_documents(python_sources)
    assert stream.dtype == np.uint16
    assert tokenizer.decode(stream) == b"".join(python_sources)
    counts = tokenizer.token_bytes().count(stream[:-1], stream[1:])
    assert counts.sum() == sum(len(source) for source in python_sources)
    assert len(stream) < 0.6 * counts.sum()


def test_each_document_is_bos_and_its_tokens_without_eos(tokenizer):
    stream = tokenizer.encode_documents([b"a cat", b"", b"b\xff"])
    expected = [1, *tokenizer.encode(b"a cat"), 1, 1, *tokenizer.encode(b"b\xff")]
    assert tokenizer.bos_id == 1
    assert stream.tolist() == expected


def test_bytes_of_pieces_by_hand(tokenizer):
    token_bytes = tokenizer.token_bytes()
    by_piece = {tokenizer.vocabulary.processor.id_to_piece(i): i for i in range(tokenizer.vocab_size)}
    expected = {"<s>": 0, "<pad>": 0, "<unk>": 0, "<0xE2>": 1, "e": 1, "\n": 1, "▁": 0, "▁▁": 1, "▁t": 1, "self": 4}
    assert {piece: int(token_bytes.base[by_piece[piece]]) for piece in expected} == expected
    starts_with_space = {piece for piece, i in by_piece.items() if token_bytes.has_space[i]}
    assert starts_with_space == {piece for piece in by_piece if piece[0] == "▁"}
    boundaries = {piece for piece, i in by_piece.items() if token_bytes.is_boundary[i]}
    assert boundaries == {"<pad>", "<s>", "</s>", "<unk>"}
    assert (token_bytes.base.dtype, token_bytes.has_space.dtype, token_bytes.is_boundary.dtype) == (
        np.int32,
        bool,
        bool,
    )


def test_a_leading_space_counts_unless_a_boundary_comes_before(tokenizer):
    word, letter = tokenizer.vocabulary.processor.piece_to_id("▁t"), tokenizer.vocabulary.processor.piece_to_id("e")
    count = tokenizer.token_bytes().count(np.array([[letter, 1], [0, word]]), np.array([[word, word], [word, 1]]))
    assert count.tolist() == [[2, 1], [1, 0]]


def test_a_space_inside_a_piece_counts_one_byte():
    tokenizer = Tokenizer(spm(vocab_size=60, split_by_whitespace=False, add_dummy_prefix=False))
    pieces = [tokenizer.vocabulary.processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    inner = next(i for i, piece in enumerate(pieces) if "▁" in piece[1:-1] and piece[0] != "▁")
    assert tokenizer.token_bytes().base[inner] == len(pieces[inner])


def test_raw_bytes_are_refused_where_the_tokenizer_adds_spaces():
    """Each span of valid text would begin with a space that the text does not have, counted as a byte: too low a BPB."""
    adds = Tokenizer(spm(vocab_size=400, byte_fallback=True), name="adds")
    assert adds.token_bytes().count(np.array([adds.bos_id]), np.array(adds.encode(b"the")[:1])).sum() > 0
    with pytest.raises(DataError, match=r"adds: byte 0xff at offset 3 .* the tokenizer adds spaces around it"):
        adds.encode(b"the\xffcat")
    plain = Tokenizer(spm(vocab_size=400, byte_fallback=True, add_dummy_prefix=False), name="plain")
    assert plain.decode(plain.encode(b"the\xffcat")) == b"the\xffcat"


def test_a_byte_that_no_piece_holds_is_named_by_its_offset(without_bytes):
    assert without_bytes.decode(without_bytes.encode(b"the cat")) == b" the cat"
    with pytest.raises(DataError, match=r"letters: byte 0xff at offset 5 .* lacks byte pieces"):
        without_bytes.encode("thé ".encode() + b"\xff")


def test_load_gives_the_models_own_bytes_and_hash(tokenizer, tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(tokenizer.model_bytes)
    loaded = Tokenizer.load(path)
    assert loaded.model_bytes == tokenizer.model_bytes
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.vocab_size == 400
    assert loaded.encode(b"def f():\n") == tokenizer.encode(b"def f():\n")


def test_missing_empty_and_damaged_models_are_named(tokenizer, tmp_path):
    path = tmp_path / "a.model"
    with pytest.raises(DataError, match=r"a\.model: No such file"):
        Tokenizer.load(path)
    for damage in (
        b"",
        b"not a model",
        tokenizer.model_bytes[:-1],
        tokenizer.model_bytes.replace(b"<0x41>", b"<0x\xff1>"),
    ):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"a\.model is (empty|not a SentencePiece model)"):
            Tokenizer.load(path)


def test_models_that_would_miscount_are_refused(tokenizer):
    space = tokenizer.model_bytes.find(b"\n\x03\xe2\x96\x81\x15")  # the piece U+2581 alone: field 1, 3 bytes, then its score
    assert space > 0
    broken = bytearray(tokenizer.model_bytes)
    broken[space + 4] = 0x82  # now U+2582
    with pytest.raises(DataError, match=r"no piece for a single space \(U\+2581\)"):
        Tokenizer(bytes(broken))
    with pytest.raises(DataError, match="no BOS piece"):
        Tokenizer(spm(vocab_size=40, bos_id=-1))


def test_ids_are_uint32_above_65536_pieces(tokenizer):
    extra = b"".join(b"\n\x0e\n\x05" + f"{i:05d}".encode() + b"\x15\0\0\0\0\x18\1" for i in range(65536 - 400))
    assert Tokenizer(extra + tokenizer.model_bytes).dtype == np.uint16
    large = Tokenizer(b"\n\x0e\n\x05extra\x15\0\0\0\0\x18\1" + extra + tokenizer.model_bytes)
    assert large.vocab_size == 65537 and large.encode_documents([b"a cat"]).dtype == np.uint32


def test_normalization_is_named_and_what_it_changes_is_counted(tokenizer, caplog):
    assert tokenizer.normalization == ""
    challenge = {"vocab_size": 400, "byte_fallback": True, "add_dummy_prefix": False}
    assert Tokenizer(spm(**challenge, normalization_rule_name="identity")).normalization == "extra spaces removed"
    normalizes = Tokenizer(spm(**challenge, normalization_rule_name="nmt_nfkc"), name="nfkc")
    assert normalizes.normalization == "nmt_nfkc, extra spaces removed"
    normalizes.encode_documents([b"the cat"])
    assert not caplog.records
    normalizes.encode_documents(["ﬁt".encode(), b"the  cat", b"the cat"])
    assert "nfkc normalizes (nmt_nfkc, extra spaces removed): 2 of 3 documents changed" in caplog.text


def test_text_without_a_piece_is_refused_not_lost(without_bytes):
    with pytest.raises(DataError, match="letters: the text has characters that the vocabulary lacks"):
        without_bytes.encode_documents(["thé".encode()])


def test_no_documents_and_no_tokens_are_refused(tokenizer):
    for documents in ([], [b"", b""]):
        with pytest.raises(DataError, match=f"{len(documents)} documents gave no tokens"):
            tokenizer.encode_documents(documents)


def test_ids_out_of_range_are_not_decoded(tokenizer):
    for token in (-1, 400):
        with pytest.raises(DataError, match=f"token id {token} cannot be decoded, tokenizer tiny has 0 to 399"):
            tokenizer.decode([5, token])


def test_a_model_with_another_vocabulary_is_refused(tokenizer):
    tokenizer.check_vocab(400)
    with pytest.raises(DataError, match="tokenizer tiny has 400 pieces, the model has 4096"):
        tokenizer.check_vocab(4096)
