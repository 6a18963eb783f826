"""Records, reports and configs under attack: JSON and TOML that anyone may have written."""

import json
import os
import random
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from damages import STRINGS, damaged, damaged_tree, json_text
from harness import Files, write_files
from neighbours import report_samples, run_samples

from quantlab.errors import QuantlabError
from quantlab.evaluation.evaluation_record import read_evaluation
from quantlab.jobs.compare import compare, read_entry
from quantlab.jobs.train_file import read_train_config
from quantlab.pipeline.read import read_pipeline
from quantlab.report.pack_report import read_report
from quantlab.report.tables import render_comparison, render_report
from quantlab.runs.frontier import best_of, by_data, candidates
from quantlab.runs.listing import by_key, diff_lines, differences, flat, show_lines
from quantlab.runs.live import live_runs
from quantlab.runs.run_table import table_lines, table_rows
from quantlab.runs.runs_page import runs_page
from quantlab.runs.store import join, read_store

ROOT = Path(__file__).resolve().parents[2]


class RunsTarget:
    """A folder of run folders: listed, shown, compared, and drawn as a frontier."""

    name, weight = "runs", 4

    def __init__(self) -> None:
        one, other = run_samples.packed(1, "a"), run_samples.scored(2, "a", 1.5)
        trained = run_samples.record(3, "train", metrics={"steps": 6}, options={"model": {"num_layers": 2}})
        third = run_samples.packed(4, "b", status="failed", exit_code=3, error="no")
        self.records = [json.loads(record.to_json()) for record in (one, other, trained, third)]
        self.names = [run_samples.name_of(n, record["kind"]) for n, record in enumerate(self.records)]

    def draw(self, rng: random.Random) -> Files:
        """Damage one or two of the records."""
        texts = [json.dumps(record).encode() for record in self.records]
        for at in rng.sample(range(len(texts)), rng.choice((1, 1, 2))):
            texts[at] = json_text(rng, damaged_tree(rng, json.loads(texts[at]), self.records))
        return {f"{name}/run.json": text for name, text in zip(self.names, texts, strict=True)}

    def check(self, files: Files, folder: Path) -> None:
        """A damaged record is named among the broken ones; every other can be listed, shown, compared and ranked."""
        write_files(files, folder)
        store = read_store(folder)
        assert len(store.runs) + len(store.broken) == len(files), "a run is neither read nor named as broken"
        joined = join(store.runs)
        for row in table_rows(joined):
            assert all(map(str.isprintable, row.cells.values()))
        list(table_lines(table_rows(joined), 60)) if joined else ()
        runs_page(store, beside=folder)
        live_runs(store.runs)
        rows = [flat(one) for one in joined]
        for row in rows:
            show_lines(row)
            diff_lines("a", "b", differences(rows[0], row))
            json.dumps(row, allow_nan=False)
        with suppress(QuantlabError):
            by_key(rows, "-seconds")
        found = candidates(store.runs)
        by_data(found)
        with suppress(QuantlabError):
            best_of(found, 1000)


class ReportTarget:
    """A packing's report and the record of an evaluation: read, compared and printed."""

    name, weight = "report", 4

    def __init__(self) -> None:
        report = json.loads(report_samples.report().to_json())
        evaluation = json.loads(report_samples.evaluation().to_json())
        self.trees = {"m.report.json": report, "m.eval.json": evaluation}
        self.other = {"n.report.json": report, "n.eval.json": evaluation}

    def draw(self, rng: random.Random) -> Files:
        """Damage one of the two files, or both; an unchanged pair lies beside it."""
        files = {name: json.dumps(tree).encode() for name, tree in (self.trees | self.other).items()}
        for name in rng.sample(sorted(self.trees), rng.choice((1, 1, 2))):
            tree = damaged_tree(rng, json.loads(files[name]), list(self.trees.values()))
            files[name] = json_text(rng, tree)
        return files

    def check(self, files: Files, folder: Path) -> None:
        """Reading, comparing and printing either work or fail with an error of quantlab's."""
        write_files(files, folder)
        for read in (read_report, read_evaluation):
            with suppress(QuantlabError):
                read(folder / ("m.report.json" if read is read_report else "m.eval.json"))
        with suppress(QuantlabError):
            entry = read_entry(folder / "m.report.json")
            comparison = compare([folder / "m.report.json", folder / "n.report.json"])
            if is_printed := zlib.crc32(files["m.report.json"]) % 4 == 0:  # printing takes ten times as long as the rest
                _printed(render_comparison(comparison, top=5))
            if is_printed and entry.report:
                _printed(render_report(entry.report))
            json.dumps(comparison.to_dict())


def _printed(renderable: Any) -> None:
    from rich.console import Console

    with open(os.devnull, "w") as nowhere:
        Console(file=nowhere, width=100).print(renderable)


WORD = re.compile(rb"[A-Za-z0-9_.:*/\"'-]+")


class ConfigTarget:
    """Pipeline and training files in TOML."""

    name, weight = "config", 6

    def __init__(self) -> None:
        self.pipelines = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.toml"))]
        self.trainings = [path.read_bytes() for path in sorted((ROOT / "trainer" / "presets").glob("*.toml"))]
        self.words = sorted({word for text in self.pipelines + self.trainings for word in WORD.findall(text)})

    def draw(self, rng: random.Random) -> Files:
        """Damage a file as bytes, or replace words and values."""
        name, texts = rng.choice((("pipeline.toml", self.pipelines), ("train.toml", self.trainings)))
        text = b"\n".join(line.partition(b"#")[0] for line in rng.choice(texts).splitlines())
        if rng.random() < 0.3:
            return {name: damaged(rng, text, texts)}
        for _ in range(rng.choice((1, 1, 2, 3))):
            found = list(WORD.finditer(text))
            if found:
                start, end = rng.choice(found).span()
                text = text[:start] + self._word(rng) + text[end:]
        return {name: text}

    def _word(self, rng: random.Random) -> bytes:
        plain = ("0", "-1", "1e400", "nan", "inf", "true", "[]", "{}", "[[1], []]", "''", "1979-05-27", "9" * 5000, "[" * 3000)
        kind = rng.randrange(3)
        if kind == 0:
            return rng.choice(self.words)
        return (rng.choice(plain) if kind == 1 else json.dumps(rng.choice(STRINGS))).encode()

    def check(self, files: Files, folder: Path) -> None:
        """A config is read, or refused with an error of quantlab's."""
        write_files(files, folder)
        (name,) = files
        with suppress(QuantlabError):
            if name == "pipeline.toml":
                read_pipeline(folder / name)
            else:
                read_train_config(str(folder / name))
