"""The table of invalid paths in docs/valid_scores.md has all 25, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = [row.split("|") for row in (ROOT / "docs/valid_scores.md").read_text().splitlines() if re.match(r"\| \d+ \|", row)]


def test_there_are_25_ways_with_a_check_and_a_test_each():
    assert [int(row[1]) for row in ROWS] == list(range(1, 26)) and all(len(row) == 6 for row in ROWS)
    assert all(re.search(r"\w", cell) for row in ROWS for cell in row[2:5])


def test_every_test_that_is_named_exists():
    named = [name for row in ROWS for name in re.findall(r"`(tests/[^`]+)`", row[4])]
    assert len(named) >= 25
    for name in named:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(), name
