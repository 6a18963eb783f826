import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.documents import read_documents


@pytest.mark.parametrize("name", ["a.txt", "a.md", "noending", "a.txt.zst"])
@pytest.mark.parametrize("data", [b"one\n\ntwo \xff\r\n", b"x" * 200_000])
def test_a_text_file_is_one_document_byte_for_byte(tmp_path, name, data):
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    assert list(read_documents(tmp_path / name)) == [data]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), compressed=st.booleans())
def test_json_lines_give_back_their_texts(tmp_path_factory, texts, compressed):
    data = b"\n".join(json.dumps({"text": text, "id": 1}).encode() for text in texts)
    path = tmp_path_factory.mktemp("docs") / ("a.jsonl.zst" if compressed else "a.jsonl")
    path.write_bytes(zstandard.compress(data) if compressed else data)
    assert list(read_documents(path)) == [text.encode() for text in texts]


def test_lines_longer_than_a_chunk_raw_utf8_and_blank_lines(tmp_path):
    long = "é" * 100_001
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "{long}"}}\r\n\n  \n{{"text": "b"}}\n'.encode())
    assert list(read_documents(tmp_path / "a.jsonl")) == [long.encode(), b"b"]


def test_every_zstd_frame_is_read(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert list(read_documents(tmp_path / "a.txt.zst")) == [b"one two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json}", "line 3: not JSON"),
        (b'{"text": "\xff"}', "line 3: not JSON in UTF-8"),
        (b"[" * 100_000, "line 3: not JSON"),
        (b'{"txt": "a"}', 'line 3: must be an object with a string "text"'),
        (b'{"text": 7}', 'line 3: must be an object with a string "text"'),
        (b'["text"]', "line 3: must be an object"),
        (rb'{"text": "ab\ud800"}', r"line 3: .*half a surrogate pair, \\ud800, at character 2"),
    ],
)
def test_a_bad_line_is_named_after_the_good_ones_before_it(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    documents = read_documents(tmp_path / "a.jsonl")
    assert next(documents) == b"a"
    with pytest.raises(DataError, match=message) as caught:
        next(documents)
    assert str(tmp_path / "a.jsonl") in str(caught.value)


def test_zstd_cut_anywhere_is_refused(tmp_path):
    whole = zstandard.compress(b'{"text": "some text that is compressed"}\n')
    path = tmp_path / "a.jsonl.zst"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged zstd" if size else "empty"):
            list(read_documents(path))


def test_a_file_that_is_not_zstd_is_refused(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(b"plain text, only named so")
    with pytest.raises(DataError, match=r"a\.txt\.zst: damaged zstd"):
        list(read_documents(tmp_path / "a.txt.zst"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_missing_and_empty_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: No such file"):
        list(read_documents(tmp_path / name))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"no documents in .*{name}"):
        list(read_documents(tmp_path / name))
