"""The file of a search, its trials on disk, who proposes, and the report; no trial runs here."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantlab.errors import ConfigError, QuantlabError
from quantlab.pipeline.proposers import proposer_of
from quantlab.pipeline.search import is_hopeless, is_spent
from quantlab.pipeline.search_report import importance_of, report_lines, report_of
from quantlab.pipeline.search_space import Space, read_space
from quantlab.pipeline.search_store import DONE, FAILED, RUNNING, Trial, TrialStore, frontier_of
from quantlab.pipeline.search_trial import curve_of
from quantlab.pipeline.shared_stages import SharedStages
from quantlab.runs.origin import this_process
from quantlab.runs.run_record import Process

ROOT = Path(__file__).resolve().parents[2]
ME = this_process()
GONE = replace(ME, pid=2**22 + 7)
SPACE = """
[search]
pipeline = "p.toml"
proposer = "random"
trials = 8
[space]
train.matrix_lr = {low = 0.01, high = 0.1, log = true}
train.steps = {low = 5, high = 9, integer = true}
pack.states = [1, 4, 8]
[set]
report.html = false
"""
PIPELINE = """
[train]
preset = "demo"
max_seconds = 0.0
[pack]
budget = "250kB"
"""


def write(folder: Path, text: str = SPACE) -> Path:
    (folder / "p.toml").write_text(PIPELINE)
    (folder / "s.toml").write_text(text)
    return folder / "s.toml"


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return read_space(write(tmp_path))


def trial(number: int, bpb: float | None = None, **values) -> Trial:
    known = {"train.matrix_lr": 0.02, "train.steps": 6, "pack.states": 4} | values
    state = DONE if bpb is not None else FAILED
    size = 1000 + int(known["pack.states"])
    return Trial(number=number, values=known, state=state, process=ME, bpb=bpb, total_bytes=size, problem="" if bpb else "over")


def test_a_trial_is_the_pipeline_with_its_values(space: Space):
    config = space.cell({"train.matrix_lr": 0.03, "train.steps": 7, "pack.states": 8}).config
    assert config.train is not None
    assert (config.train.config.matrix_lr, config.train.config.steps, config.report.html) == (0.03, 7, False)
    assert config.pack.options.states == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pack.states = [1, 4, 8]", "pack.stats = [1, 4, 8]", "stats"),
        ("pack.states = [1, 4, 8]", "pack.states = [1, 5]", "states"),
        ("pack.states = [1, 4, 8]", "pack.states = [1]", "two values or more"),
        ("low = 5, high = 9", "low = 9, high = 5", "low must be below high"),
        ("low = 0.01", "low = 0.0", "with log, low must be above 0"),
        ("train.steps", "train.seed", "seeds are not searched"),
        ('proposer = "random"', 'proposer = "grid"', "must be random, tpe, cma, nsga or command:PROGRAM, got 'grid'"),
        ('proposer = "random"', 'proposer = "command:"', "needs a program"),
        ("trials = 8", "trials = 0", "search.trials must be at least 1, got 0"),
        ("trials = 8", "tries = 8", "tries"),
        ("trials = 8", "cost = 3.0", "needs search.cost_per_hour"),
        ('pipeline = "p.toml"', 'pipeline = "q.toml"', "q.toml"),
    ],
)
def test_a_wrong_file_is_an_error_before_the_first_trial(tmp_path: Path, old: str, new: str, message: str):
    assert old in SPACE
    with pytest.raises(ConfigError, match=message):
        read_space(write(tmp_path, SPACE.replace(old, new)))


def test_values_outside_of_the_space_are_refused(space: Space):
    good = {"train.matrix_lr": 0.03, "train.steps": 7, "pack.states": 8}
    for wrong in (
        {"train.steps": 7.5},
        {"train.steps": 10},
        {"pack.states": 2},
        {"train.matrix_lr": True},
        {"pack.budget": "1B"},
    ):
        with pytest.raises(ConfigError):
            space.cell(good | wrong)
    with pytest.raises(ConfigError, match="needs a value of pack.states"):
        space.cell({key: value for key, value in good.items() if key != "pack.states"})


@pytest.mark.parametrize("name", ["random", "tpe", "cma", "nsga"])
def test_every_proposer_stays_in_the_space_and_depends_on_the_history_alone(space: Space, name: str):
    if name != "random":
        pytest.importorskip("optuna", reason="optuna is not installed")
    if name == "cma":
        pytest.importorskip("cmaes", reason="cmaes is not installed")
    propose, trials = proposer_of(name), []
    for number in range(7):
        values = propose(space, trials)
        space.cell(values)
        assert values == propose(space, list(trials))
        trials.append(trial(number, 1.0 + 0.1 * abs(values["train.steps"] - 6) if number % 3 else None, **values))
    assert len({json.dumps(t.values) for t in trials}) > 3


def test_tpe_tries_better_values_than_chance(space: Space):
    pytest.importorskip("optuna", reason="optuna is not installed")

    def mean_after(name: str, count: int) -> float:
        trials: list[Trial] = []
        for number in range(count):
            values = proposer_of(name)(space, trials)
            trials.append(trial(number, 1.0 + 10 * abs(values["train.matrix_lr"] - 0.08), **values))
        return sum(t.bpb for t in trials[count // 2 :])

    assert mean_after("tpe", 30) < mean_after("random", 30)


PROGRAM = """
import json, sys
lines = [json.loads(line) for line in sys.stdin]
assert lines[0]["space"][0]["key"] == "train.matrix_lr"
assert "process" not in json.dumps(lines)
print(json.dumps({"train.matrix_lr": 0.05, "train.steps": 5 + len(lines) - 1, "pack.states": 4}))
"""


def test_a_program_reads_the_history_and_answers_with_values(space: Space, tmp_path: Path):
    (tmp_path / "p.py").write_text(PROGRAM)
    propose = proposer_of(f"command:{sys.executable} {tmp_path / 'p.py'}")
    assert propose(space, []) == {"train.matrix_lr": 0.05, "train.steps": 5, "pack.states": 4}
    assert propose(space, [trial(0, 1.5), trial(1)])["train.steps"] == 7


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no idea')", "ended with exit code 1: no idea"),
        ("print('hello')", "answered no JSON object"),
        ("print('[1]')", "answered no JSON object"),
        ('print(\'{"pack.budget": "1GB"}\')', "pack.budget"),
        ('print(\'{"train.matrix_lr": 0.5, "train.steps": 6, "pack.states": 4}\')', "must be 0.01 to 0.1, got 0.5"),
    ],
)
def test_a_program_that_answers_wrongly_is_named(space: Space, tmp_path: Path, code: str, message: str):
    (tmp_path / "p.py").write_text(code)
    with pytest.raises(QuantlabError, match=message):
        proposer_of(f"command:{sys.executable} {tmp_path / 'p.py'}")(space, [])


def test_a_dead_trial_is_taken_over_as_often_as_it_may(tmp_path: Path):
    store = TrialStore.open_(tmp_path / "s", "k")
    dead = store.add({"a": 1}, GONE, "random")
    mine = store.add({"a": 2}, ME, "random")
    assert (dead.number, mine.number) == (0, 1)
    taken = store.take_dead(ME, attempts=2)
    assert taken is not None
    assert (taken.number, taken.attempts, taken.process) == (0, 2, ME)
    assert store.take_dead(ME, attempts=2) is None
    store.write(replace(taken, process=GONE))
    assert store.take_dead(ME, attempts=2) is None
    assert store.all()[0].problem == "its process ended 2 times"
    elsewhere = Process(host="elsewhere", pid=1)
    store.write(replace(mine, process=elsewhere))
    assert store.take_dead(ME, attempts=9) is None  # nobody can know whether it is gone


def test_two_searches_never_get_one_number(tmp_path: Path):
    one, other = (TrialStore.open_(tmp_path / "s", "k") for _ in range(2))
    one.place(0).mkdir()  # another process is just writing it
    assert [one.add({}, ME, "").number, other.add({}, ME, "").number] == [1, 2]


def test_a_folder_of_another_search_is_refused(tmp_path: Path, space: Space):
    TrialStore.open_(tmp_path / "s.search", space.key)
    TrialStore.open_(tmp_path / "s.search", space.key)
    with pytest.raises(ConfigError, match="holds trials of another search"):
        TrialStore.open_(tmp_path / "s.search", "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not the folder of a search"):
        TrialStore.open_(tmp_path / "mine", space.key)


def test_a_damaged_trial_is_named_and_left_out(tmp_path: Path):
    store = TrialStore.open_(tmp_path / "s", "k")
    store.add({}, ME, "")
    (store.place(0) / "trial.json").write_text('{"number": 0}')
    assert store.all() == []
    assert "trial.json" in store.broken[0]


def test_budgets_end_a_search(space: Space):
    some = [replace(trial(n, 1.0), seconds=1800.0) for n in range(4)]
    options = space.options
    assert not is_spent(space, some)
    assert is_spent(space, some * 2)
    assert is_spent(replace(space, options=replace(options, hours=2.0)), some)
    assert not is_spent(replace(space, options=replace(options, hours=2.1)), some)
    assert is_spent(replace(space, options=replace(options, cost=6.0, cost_per_hour=3.0)), some)


def test_a_training_is_ended_early_only_below_the_median_at_its_step():
    finished = [replace(trial(n, 1.0), curve=((100, value), (200, value - 0.2))) for n, value in enumerate((1.5, 1.6, 1.7))]
    assert (
        is_hopeless([(100, 1.61)], finished) == "validation 1.6100 BPB at step 100, the median of 3 finished trials is 1.6000"
    )
    assert is_hopeless([(100, 1.6)], finished) == ""
    assert is_hopeless([(150, 9.0)], finished) == ""
    assert is_hopeless([(100, 9.0)], finished[:1]) == ""


def test_curves_are_read_also_from_a_file_that_a_kill_cut(tmp_path: Path):
    (tmp_path / "train-0").mkdir()
    lines = [json.dumps({"kind": "validation", "step": n, "bpb": 2.0 - n / 100}) for n in (1, 2)]
    (tmp_path / "train-0" / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "valid']))
    assert curve_of(tmp_path) == ((1, 1.99), (2, 1.98))


def test_the_report_says_best_frontier_importance_and_why_the_others_lost(space: Space):
    trials = [trial(n, 1.0 + n / 10, **{"train.steps": 9 - n, "pack.states": (8, 4, 1)[n % 3]}) for n in range(5)]
    trials += [trial(5), replace(trial(6), state=RUNNING)]
    report = report_of(space, trials)
    assert (report.best.number, report.scored, report.running) == (0, 5, 1)
    assert [t.number for t in report.frontier] == [t.number for t in frontier_of(trials)] == [2, 1, 0]
    first = report.importance[0]
    assert (first.key, first.share, first.direction) == ("train.steps", pytest.approx(1.0), "higher")
    assert dict(report.lost)[5] == "over"
    assert dict(report.lost)[1] == "+0.1000 BPB with train.steps 8 for 9, pack.states 4 for 8"
    assert len(report.next) == 3
    lines = report_lines(report)
    assert lines[0] == "5 of 7 trials scored, 1 at work, 0.00 hours"
    assert importance_of(space, trials[:4]) == []
    assert report_lines(report_of(space, [trial(0)]))[1] == "no valid trial"


class _Stage:
    def __init__(self, name: str) -> None:
        self.name = name

    def folder(self, root: Path) -> Path:
        return root / f"{self.name}-0"


class _Pipeline:
    stages = (_Stage("train"), _Stage("pack"))


def test_finished_stages_are_shared_and_unfinished_ones_are_not(tmp_path: Path):
    one, other, shared = tmp_path / "one", tmp_path / "other", SharedStages(tmp_path / "stages")
    for name in ("train-0", "pack-0"):
        (one / name).mkdir(parents=True)
        (one / name / "model").write_text("weights")
    (one / "train-0" / "stage.json").write_text("{}")
    other.mkdir()
    shared.give(_Pipeline, one)
    shared.give(_Pipeline, one)
    assert shared.take(_Pipeline, other) == ["train-0"]
    assert shared.take(_Pipeline, other) == []
    assert os.path.samefile(one / "train-0" / "model", other / "train-0" / "model")
    shutil.rmtree(one)
    assert (other / "train-0" / "model").read_text() == "weights"


def test_what_a_killed_pipeline_left_of_a_shared_stage_goes(tmp_path: Path):
    """Otherwise a search that goes on would train twice what another of its trials has trained."""
    one, other, shared = tmp_path / "one", tmp_path / "other", SharedStages(tmp_path / "stages")
    for root, content in ((one, "weights"), (other, "half of them")):
        (root / "train-0").mkdir(parents=True)
        (root / "train-0" / "model").write_text(content)
    (one / "train-0" / "stage.json").write_text("{}")
    shared.give(_Pipeline, one)
    assert shared.take(_Pipeline, other) == ["train-0"]
    assert os.path.samefile(one / "train-0" / "model", other / "train-0" / "model")


def test_the_example_is_a_search():
    space = read_space(ROOT / "examples" / "search.toml")
    assert space.options.trials == 20
    assert [axis.key for axis in space.axes] == ["train.matrix_lr", "train.weight_decay", "pack.effort"]
