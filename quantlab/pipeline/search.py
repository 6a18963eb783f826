"""Search over a pipeline: trials in parallel processes, until a number of trials, hours or money is spent."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import IO

from quantlab.child_process import bound, child_environment, end
from quantlab.pipeline.proposers import Propose, proposer_of
from quantlab.pipeline.search_space import Space, read_space
from quantlab.pipeline.search_store import FAILED, PRUNED, RUNNING, Trial, TrialStore
from quantlab.pipeline.search_trial import OUT, curve_of
from quantlab.progress import Progress, silent
from quantlab.runs.origin import this_process

POLL_SECONDS = 0.2
PRUNE_SECONDS = 2.0
"""Seconds between two looks at the validations of the trials at work."""


@dataclass(slots=True)
class _Worker:
    """A trial at work."""

    trial: Trial
    process: "subprocess.Popen[bytes]"
    slot: int
    said: IO[bytes]
    started: float = field(default_factory=time.monotonic)


def search(
    file: Path,
    out: Path,
    *,
    runs: Path | None = None,
    command: Sequence[str] = (),
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> list[Trial]:
    """Run trials until the budget is spent; return all trials of the store.

    A killed search leaves its trials: the next one begins those again that were at work, and goes on. Several searches may work
    on one store. A trial is a process of its own and a recorded run.

    Args:
        file: the search, as SPACE.toml.
        out: the store; made if it is absent.
        runs: folder of runs that records the trials; None for none.
        command: the command line, for the records.
        note: called with one line for each trial that ends.
    Raises:
        ConfigError: the file is wrong, `out` holds another search, or a package of the proposer is missing.
        QuantlabError: a proposer that is a program fails.
    """
    space = read_space(file)
    propose = proposer_of(space.options.proposer)
    store = TrialStore.open_(out, space.key)
    team = _Team(space, store, propose, file, runs, command, note)
    try:
        while team.step():
            done = sum(trial.state != RUNNING for trial in store.all())
            progress("search", min(done, space.options.trials), space.options.trials)
            time.sleep(POLL_SECONDS)
    finally:
        team.end_()
    progress("search", space.options.trials, space.options.trials)
    return store.all()


def spent_hours(trials: Sequence[Trial]) -> float:
    """Return the hours of all trials together."""
    return sum(trial.seconds for trial in trials) / 3600


def is_spent(space: Space, trials: Sequence[Trial]) -> bool:
    """Return whether no further trial may begin."""
    options, hours = space.options, spent_hours(trials)
    if len(trials) >= options.trials:
        return True
    return bool((options.hours and hours >= options.hours) or (options.cost and hours * options.cost_per_hour >= options.cost))


class _Team:
    """The workers of one search."""

    def __init__(
        self,
        space: Space,
        store: TrialStore,
        propose: Propose,
        file: Path,
        runs: Path | None,
        command: Sequence[str],
        note: Callable[[str], None],
    ) -> None:
        self.space, self.store, self.propose, self.note = space, store, propose, note
        self._request = {"space": str(file), "out": str(store.folder), "runs": str(runs or ""), "command": list(command)}
        self._workers: list[_Worker] = []
        self._looked = time.monotonic()

    def step(self) -> bool:
        """Collect what has ended and begin what may begin; return whether there is still work."""
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
            self._workers.remove(worker)
            self._collect(worker)
        if self.space.options.prune and time.monotonic() - self._looked >= PRUNE_SECONDS:
            self._looked = time.monotonic()
            self._prune()
        while len(self._workers) < self.space.options.workers and (trial := self._next()) is not None:
            self._begin(trial)
        return bool(self._workers)

    def end_(self) -> None:
        """End the processes that are still at work; their trials stay, and are begun again by the next search."""
        for worker in self._workers:
            end(worker.process)
            worker.said.close()
        self._workers.clear()

    def _next(self) -> Trial | None:
        """Return a dead trial, or else a new one; None if the budget is spent."""
        with self.store.locked():
            me = this_process()
            if dead := self.store.take_dead(me, self.space.options.attempts):
                return dead
            trials = self.store.all()
            if is_spent(self.space, trials):
                return None
            values = self.propose(self.space, trials)
            return self.store.add(values, me, self.space.options.proposer)

    def _begin(self, trial: Trial) -> None:
        used = {worker.slot for worker in self._workers}
        slot = next(n for n in range(self.space.options.workers) if n not in used)
        environment = child_environment()
        threads = max((os.cpu_count() or 1) // self.space.options.workers, 1)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if self.space.options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self.space.options.gpus)
        request = json.dumps({**self._request, "number": trial.number})
        command = bound([sys.executable, "-m", "quantlab.pipeline.search_trial", request])
        said = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the worker)
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        self._workers.append(_Worker(trial, process, slot, said))

    def _collect(self, worker: _Worker) -> None:
        """Take note of a trial whose process has ended: what it wrote, or that it died, which is tried again."""
        trial = next(trial for trial in self.store.all() if trial.number == worker.trial.number)
        if trial.state == RUNNING:
            trial = self._died(worker, trial)
        worker.said.close()
        if trial.state != RUNNING:
            what = f"{trial.bpb:.4f} BPB, {trial.total_bytes:,} bytes" if trial.is_scored else trial.problem
            self.note(f"trial {trial.number}: {what}")

    def _died(self, worker: _Worker, trial: Trial) -> Trial:
        worker.said.seek(0)
        lines = worker.said.read().decode("utf-8", "replace").strip().splitlines()
        seconds = trial.seconds + time.monotonic() - worker.started
        why = f"exit code {worker.process.returncode}: {lines[-1] if lines else 'no message'}"
        if trial.attempts < self.space.options.attempts:
            again = replace(trial, attempts=trial.attempts + 1, seconds=round(seconds, 3))
            self.store.write(again)
            self.note(f"trial {trial.number} died ({why}): once more")
            self._begin(again)
            return again
        failed = replace(
            trial, state=FAILED, problem=f"its process died {trial.attempts} times, {why}", seconds=round(seconds, 3)
        )
        self.store.write(failed)
        return failed

    def _prune(self) -> None:
        """End trials whose last validation is worse than the median of finished trials at the same step."""
        finished = [trial for trial in self.store.all() if trial.is_scored]
        if len(finished) < self.space.options.prune_after:
            return
        for worker in list(self._workers):
            curve = curve_of(self.store.place(worker.trial.number) / OUT)
            if not curve or not (why := is_hopeless(curve, finished)):
                continue
            end(worker.process)
            self._workers.remove(worker)
            trial = next(trial for trial in self.store.all() if trial.number == worker.trial.number)
            if trial.state == RUNNING:
                seconds = round(trial.seconds + time.monotonic() - worker.started, 3)
                self.store.write(replace(trial, state=PRUNED, problem=why, seconds=seconds, curve=curve))
            self._collect(worker)


def is_hopeless(curve: Sequence[tuple[int, float]], finished: Sequence[Trial]) -> str:
    """Return why a training is ended early; empty if it may go on."""
    step, bpb = curve[-1]
    others = [value for trial in finished for at, value in trial.curve if at == step]
    if len(others) < 2 or bpb <= (middle := median(others)):
        return ""
    return f"validation {bpb:.4f} BPB at step {step}, the median of {len(others)} finished trials is {middle:.4f}"
