"""report.md of a pipeline, from fixed results."""

from pathlib import Path
from types import SimpleNamespace

from report_samples import evaluation, report

from quantlab.pipeline.markdown_report import pipeline_report
from quantlab.pipeline.result import Clock, Result, StageTime


def cell(name="", budget=6100):
    return SimpleNamespace(name=name, values={}, config=SimpleNamespace(pack=SimpleNamespace(budget_bytes=budget)))


def result(name="", **changes):
    times = (StageTime("train", "a" * 12, True, 130.0, 120.0, 2), StageTime("pack", "b" * 12, False, 30.0, 30.0, 1))
    known = {
        "times": times,
        "clock": Clock({"train": 120.0, "pack": 30.0}, {"train": 10.0, "pack": 0.0}, 600.0),
        "artifact": Path("out") / "model.qlab",
        "packing": report(),
        "evaluation": evaluation(0.002, 1.61),
        "files": (Path("out/model.qlab"), Path("out/report.html")),
    }
    return Result(cell=cell(name), **known | changes)


def test_one_cell_is_a_table_a_card_and_the_times():
    text = pipeline_report([result()])
    assert text.startswith("# Report of a pipeline\n\n1 cell, 1 valid.\n")
    assert "| `the only one` | 6 kB | 6.1 kB | 1.6000 | 1.6100 | +0.0115 | 0.00200 | yes |" in text
    assert "\n## Scores\n" in text and "\n## Time\n" in text and "quantlab inspect model.qlab" in text
    assert "| train | `aaaaaaaaaaaa` | 2 min 0 s | 10 s | 2 |" in text and "2 min 30 s inside the clock of 10 min 0 s" in text
    assert "[report.html](<report.html>)" in text and "\n---\n" not in text


def test_a_matrix_has_a_section_for_each_cell_and_says_what_is_wrong():
    failed = Result(cell=cell("pack.budget=1kB|x", 1000), budget_problem="budget 1000 bytes is below `2816`")
    text = pipeline_report([result("seed=1"), failed])
    assert "2 cells, 1 valid." in text and "| `pack.budget=1kB/x` | - | 1 kB | - | - | - | - | no |" in text
    assert "## `seed=1`" in text and "\n### Scores\n" in text and "quantlab inspect cells/seed=1/model.qlab" in text
    assert "- not valid: `budget 1000 bytes is below '2816'`" in text
