"""The script that runs the examples of the docs and writes their output back."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))

from examples import MARK, PAGES, Options, commands, main, renewed  # noqa: E402

PAGE = """# Page

<!-- example -->
```
$ printf 'a\\nb\\n'
old
$ echo c \\
    d
```

```
$ echo not marked
old
```

<!-- example: lines=1 -->
```
$ printf '1\\n2\\n3\\n'
```

<!-- example: quiet -->
```
$ echo hidden
```
"""


def test_output_is_written_back_and_the_rest_stays(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["examples.py", "--work", str(tmp_path / "work"), str(page)])
    main()
    text = page.read_text()
    assert "$ printf 'a\\nb\\n'\na\nb\n$ echo c \\\n    d\nc d\n```" in text
    assert "$ echo not marked\nold" in text and "1\n...\n```" in text and "$ echo hidden\n```" in text
    main()
    assert page.read_text() == text  # a second time changes nothing


def test_a_command_that_two_pages_show_is_run_once(tmp_path, monkeypatch):
    pages = [tmp_path / "a.md", tmp_path / "b.md"]
    for page in pages:
        page.write_text("<!-- example -->\n```\n$ echo x >> log; wc -l < log\n```\n")
    monkeypatch.setattr("sys.argv", ["examples.py", "--work", str(tmp_path / "work"), *map(str, pages)])
    main()
    assert [page.read_text().splitlines()[3].strip() for page in pages] == ["1", "1"]


def test_a_failing_command_is_named_and_no_page_is_changed(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("echo hidden", "sh -c 'echo broken >&2; exit 3'"))
    before = page.read_text()
    monkeypatch.setattr("sys.argv", ["examples.py", "--work", str(tmp_path / "work"), str(page)])
    with pytest.raises(SystemExit, match="ended with 3: broken"):
        main()
    assert page.read_text() == before


def test_a_mark_with_an_unknown_word_is_refused():
    assert Options.of(": lines=3 quiet") == Options(3, True)
    with pytest.raises(SystemExit, match="'loud'"):
        Options.of(": loud")


def test_every_marked_block_of_the_docs_has_commands_and_the_first_is_the_demo():
    found = []
    for name in PAGES:
        text = (ROOT / name).read_text()
        blocks = [list(commands(match["body"])) for match in MARK.finditer(text)]
        assert len(blocks) == text.count("<!-- example") > 0, f"{name}: a mark has no block below it"
        assert all(blocks), f"{name}: a block has no command"
        assert renewed(text, lambda command: "") != ""
        found += [command for block in blocks for command in block]
    assert found[0] == "make demo" and all(re.match(r"make demo|quantlab ", command) for command in found)


def test_every_example_shows_what_came_of_it():
    """A page that was renewed by a run without output would show commands alone."""
    for page in PAGES:
        for match in MARK.finditer((ROOT / page).read_text()):
            if not Options.of(match["options"].strip()).is_quiet:
                typed = "\n".join(f"$ {command}" for command in commands(match["body"]))
                assert len(match["body"].strip()) > len(typed) + 80, f"{page}: {typed[:60]}"
