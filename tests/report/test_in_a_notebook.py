"""In a notebook rich shows tables as rich output; what is written to a file or printed must still be text."""

import pytest
from report_samples import report

from quantlab.cli.display import console
from quantlab.pipeline.packing_stages import report_text


def test_text_is_written_where_rich_believes_to_be_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    sample = report()
    plain = report_text(sample)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert report_text(sample) == plain != ""
    console().print("a table")
    assert capsys.readouterr().out == "a table\n"
