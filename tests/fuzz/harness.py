"""The loop of the fuzz harness: draw a case, give it to a reader, note what must not happen.

A case follows from seed and number alone. A target draws its files and checks what a reader makes of them. A finding is an
exception that the target does not expect, a case that takes too long or too much memory, or the death of the process.
Workers are forks of one process, in which all samples were made once.
"""

import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

Files = dict[str, bytes]
"""Files of a case by name; a name may have folders."""

CASE_SECONDS = 5
"""Seconds of the processor that one case may take. Cases are small: most take less than 5 ms."""
CASE_WALL_SECONDS = 60
"""Seconds on the clock, for readers that wait without working; long, since other programs may have the processor."""
MEMORY_FLOOR, MEMORY_FACTOR = 1 << 27, 256
"""A case may raise the peak of resident memory by 128 MiB and 256 times the bytes of its files."""
ADDRESS_SPACE = 4 << 30
"""Bytes of address space that a worker may take beyond those that it begins with."""
SILENT_SECONDS = 180
"""Seconds without a finished case after which a worker is ended: it hangs where no signal is handled."""


class Target(Protocol):
    """One reader under attack."""

    name: str
    weight: int
    """Share of the cases, relative to the other targets."""

    def draw(self, rng: random.Random) -> Files:
        """Return the files of a case."""

    def check(self, files: Files, folder: Path) -> None:
        """Read the files; raise for anything that must not happen. They need not lie in `folder` yet, which is empty."""


class Finding(Exception):  # noqa: N818 (a finding of the harness, not an error of the program)
    """Something that must not happen, in words."""


class TooLong(BaseException):
    """A case exceeded its time; no reader catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of a whole session."""

    cases: dict[str, int]
    """Finished cases by target."""
    findings: int
    seconds: float
    folders: tuple[str, ...]
    """One saved case for each kind of finding and worker."""

    @property
    def total(self) -> int:
        """Number of finished cases."""
        return sum(self.cases.values())


def write_files(files: Files, folder: Path) -> None:
    """Write a case's files below `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def scratch_folder() -> Path:
    """Return a new folder in memory where the system has one."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def case_of(targets: Sequence[Target], seed: int, number: int) -> tuple[Target, Files]:
    """Return the target and the files of a case."""
    rng = random.Random(f"{seed} {number}")
    target = rng.choices(targets, [target.weight for target in targets])[0]
    return target, target.draw(rng)


def problem_of(target: Target, files: Files, folder: Path) -> str:
    """Return what is wrong with a case; an empty string if nothing is. `folder` is empty before and after."""
    size, before, start = sum(map(len, files.values())), _peak_bytes(), (time.process_time(), time.monotonic())

    def tick(*_: object) -> None:
        if time.process_time() - start[0] > CASE_SECONDS or time.monotonic() - start[1] > CASE_WALL_SECONDS:
            raise TooLong(f"the case took {time.process_time() - start[0]:.1f} s of the processor")

    old = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS, 1)
    try:
        target.check(files, folder)
    except (Exception, TooLong, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    grown = _peak_bytes() - before
    allowed = MEMORY_FLOOR + MEMORY_FACTOR * size
    return f"MemoryPeak: files of {size} bytes took {grown} bytes, {allowed} are allowed\n" if grown > allowed else ""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def signature_of(problem: str) -> str:
    """Return what tells kinds of findings apart: the type of the exception and the last line of code of quantlab's."""
    lines = problem.strip().splitlines()
    places = [line.strip() for line in lines if line.lstrip().startswith("File") and "/quantlab/" in line]
    return f"{lines[-1].partition(':')[0]} {places[-1] if places else lines[-1][:60]}"


def save(target: Target, files: Files, problem: str, seed: int, number: int, findings: Path) -> Path:
    """Save a case so that `fuzz.py FOLDER` runs it again; return its folder."""
    folder = findings / f"{target.name}-{seed}-{number}"
    write_files(files, folder / "files")
    (folder / "problem.txt").write_text(problem, errors="backslashreplace")
    return folder


class _Board:
    """Numbers that workers write and the first process reads, by worker: case, its time, findings, cases by target."""

    def __init__(self, workers: int, targets: int) -> None:
        self._memory = mmap.mmap(-1, 8 * workers * (targets + 3))
        self.rows = np.frombuffer(self._memory, np.int64).reshape(workers, targets + 3)

    def begin(self, worker: int, number: int) -> None:
        self.rows[worker, 0], self.rows[worker, 1] = number, int(time.monotonic())

    def end(self, worker: int, target: int, *, is_finding: bool) -> None:
        self.rows[worker, 3 + target] += 1
        self.rows[worker, 2] += is_finding


class Session:
    """One run of the harness."""

    def __init__(self, targets: Sequence[Target], *, seed: int, seconds: float, most_cases: int, findings: Path) -> None:
        """Prepare.

        Args:
            seconds, most_cases: the session ends with whichever comes first.
            findings: folder in which cases are saved.
        """
        self.targets, self.seed, self.findings = list(targets), seed, findings
        self.most_cases, self.seconds = most_cases, seconds
        self._started = time.monotonic()

    def run(self, workers: int = 2) -> Outcome:
        """Run all cases in forks, and begin a worker that died anew behind the case that killed it."""
        self._board, self._workers = _Board(workers, len(self.targets)), workers
        alive = {self._fork(worker, worker): worker for worker in range(workers)}
        while alive:
            self._end_silent(alive)
            done, status = os.waitpid(-1, os.WNOHANG)
            if not done:
                time.sleep(0.05)
            elif done in alive:
                worker = alive.pop(done)
                if status and (number := self._after_death(worker, status)) < self.most_cases and not self._is_over():
                    alive[self._fork(worker, number)] = worker
        rows = self._board.rows
        counts = {target.name: int(rows[:, 3 + n].sum()) for n, target in enumerate(self.targets)}
        folders = sorted(str(path) for path in self.findings.glob(f"*-{self.seed}-*"))
        return Outcome(counts, int(rows[:, 2].sum()), time.monotonic() - self._started, tuple(folders))

    def _is_over(self) -> bool:
        return time.monotonic() - self._started > self.seconds

    def _fork(self, worker: int, first: int) -> int:
        self._board.begin(worker, first)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                self._work(worker, first)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return child

    def _work(self, worker: int, first: int) -> None:
        _limit_address_space()
        folder, known = scratch_folder(), set[str]()
        try:
            for number in range(first, self.most_cases, self._workers):
                if self._is_over():
                    return
                self._board.begin(worker, number)
                target, files = case_of(self.targets, self.seed, number)
                problem = problem_of(target, files, folder)
                if problem and (kind := signature_of(problem)) not in known:
                    known.add(kind)
                    self._report(save(target, files, problem, self.seed, number, self.findings), kind)
                self._board.end(worker, self.targets.index(target), is_finding=bool(problem))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _after_death(self, worker: int, status: int) -> int:
        """Save the case that a worker died of; return the number of the next one."""
        number = int(self._board.rows[worker, 0])
        target, files = case_of(self.targets, self.seed, number)
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        problem = f"Death: the process ended with {how}\n"
        self._report(save(target, files, problem, self.seed, number, self.findings), problem.strip())
        self._board.end(worker, self.targets.index(target), is_finding=True)
        return number + self._workers

    def _end_silent(self, alive: dict[int, int]) -> None:
        for process, worker in alive.items():
            if time.monotonic() - self._board.rows[worker, 1] > SILENT_SECONDS:
                os.kill(process, signal.SIGKILL)
                self._board.rows[worker, 1] = int(time.monotonic())

    def _report(self, folder: Path, kind: str) -> None:
        print(f"finding: {kind}; saved as {folder}", file=sys.stderr, flush=True)


def _limit_address_space() -> None:
    """Let this process take ADDRESS_SPACE more than it has; a child may raise the limit again."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, hard))
