"""Budgets as people write them, and the files that count towards them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.budget import code_bytes, parse_bytes
from quantlab.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16000000", 16_000_000),
        ("16MB", 16_000_000),
        ("16MiB", 16_777_216),
        ("1.5 kB", 1500),
        ("2kib", 2048),
        ("7B", 7),
        ("16.4MB", 16_400_000),
    ],
)
def test_decimal_and_binary_units(text, size):
    assert parse_bytes(text) == size


@given(size=st.integers(1, 10**12))
def test_plain_numbers_are_bytes(size):
    assert parse_bytes(str(size)) == parse_bytes(f"{size:_}") == size


@pytest.mark.parametrize(
    "text",
    ["", "MB", "16XB", "-5", "0", "0.1B", "1e6", "16 MB 3", "nan", "_", "9" * 5000, "1__0KB", "10_KB", "_1KB", "\uff11KB"],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="budget must be"):
        parse_bytes(text)


def test_code_files_are_measured_on_disk(tmp_path):
    file = tmp_path / "train.py"
    file.write_bytes(b"x" * 123)
    assert code_bytes([file]) == {str(file): 123}
    with pytest.raises(ConfigError, match="does not exist"):
        code_bytes([tmp_path / "absent.py"])
