"""Who proposes the next trial: chance, Optuna's samplers, or a program. The history is all that they know.

Nothing is kept between two proposals but the store's trials, so a search that was killed goes on as it was, and two searches on
one store see each other's trials.
"""

import json
import random
import shlex
import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.pipeline.search_space import COMMAND, Axis, Space, Values
from quantlab.pipeline.search_store import RUNNING, Trial

EXTRA = "pip install 'quantlab-llm[search]'"
PROGRAM_SECONDS = 600.0
MOST_ANSWER_BYTES = 1 << 20
REPEATS = 20
"""Draws before a trial is proposed a second time."""

Propose = Callable[[Space, Sequence[Trial]], Values]


def proposer_of(name: str) -> Propose:
    """Return a proposer by its name. ConfigError if it needs a package that is not installed."""
    if name == "random":
        return propose_by_chance
    if name.startswith(COMMAND):
        return lambda space, trials: propose_by_program(name.removeprefix(COMMAND), space, trials)
    if find_spec("optuna") is None:
        raise ConfigError(f"proposer {name} needs the package optuna", hint=EXTRA)
    return lambda space, trials: propose_by_optuna(name, space, trials)


def propose_by_chance(space: Space, trials: Sequence[Trial]) -> Values:
    """Return values by chance, other ones than those of the trials as long as chance finds them."""
    source = random.Random(f"{space.options.seed} {len(trials)}")
    known = [trial.values for trial in trials]
    for _ in range(REPEATS):
        values = {axis.key: axis.draw(source) for axis in space.axes}
        if values not in known:
            break
    return values


def propose_by_program(command: str, space: Space, trials: Sequence[Trial]) -> Values:
    """Return what a program answers. It reads one JSON line with the space, one a trial, and prints one object of values.

    Raises:
        QuantlabError: the program fails, or its answer is no trial of the space.
    """
    lines = [{"space": space.about(), "objective": "bpb", "trials": len(trials)}, *(t.for_programs() for t in trials)]
    history = "".join(json.dumps(line) + "\n" for line in lines).encode()
    try:
        done = subprocess.run(shlex.split(command), input=history, capture_output=True, timeout=PROGRAM_SECONDS, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise QuantlabError(f"proposer {command}: {error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise QuantlabError(f"proposer {command} ended with exit code {done.returncode}: {said[-1] if said else 'no message'}")
    try:
        answer = json.loads(done.stdout[:MOST_ANSWER_BYTES].decode())
    except (ValueError, RecursionError) as error:
        raise QuantlabError(f"proposer {command} answered no JSON object: {done.stdout[:80]!r}") from error
    if not isinstance(answer, dict):
        raise QuantlabError(f"proposer {command} answered no JSON object: {done.stdout[:80]!r}")
    try:
        space.cell(answer)
    except ConfigError as error:
        raise QuantlabError(f"proposer {command}: {error}", hint=error.hint) from error
    return answer


def propose_by_optuna(name: str, space: Space, trials: Sequence[Trial]) -> Values:
    """Return what a sampler of Optuna proposes from the history.

    For nsga there are two objectives, bits per byte and bytes. A trial at work counts as one with the median score, so that
    parallel workers do not propose the same.
    """
    optuna: Any = import_module("optuna")  # whose types differ between versions
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {axis.key: _distribution(optuna, axis) for axis in space.axes}
    has_two = name == "nsga"
    study = optuna.create_study(directions=["minimize"] * (2 if has_two else 1), sampler=_sampler(optuna, name, space, trials))
    for trial in trials:
        values = _told(trial, trials, has_two)
        state = optuna.trial.TrialState.COMPLETE if values else optuna.trial.TrialState.FAIL
        told = {"params": trial.values, "distributions": distributions, "values": values, "state": state}
        study.add_trial(optuna.trial.create_trial(**told))
    asked = study.ask(distributions)
    return {axis.key: _of_axis(axis, asked.params[axis.key]) for axis in space.axes}


def _sampler(optuna: Any, name: str, space: Space, trials: Sequence[Trial]) -> Any:
    seed = random.Random(f"{space.options.seed} {len(trials)}").getrandbits(31)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(space.options.trials // 4, 2)))
    if name == "cma":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(space.options.trials // 4, 4))


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.choices:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if axis.integer:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _told(trial: Trial, trials: Sequence[Trial], has_two: bool) -> list[float] | None:
    """Return the objectives of a trial; None if it failed or was ended early."""
    if trial.is_scored:
        return [float(trial.bpb or 0.0), float(trial.total_bytes or 0)][: 1 + has_two]
    scored = sorted((t for t in trials if t.is_scored), key=lambda t: t.bpb or 0.0)
    if trial.state == RUNNING and scored:
        middle = scored[len(scored) // 2]
        return [float(middle.bpb or 0.0), float(middle.total_bytes or 0)][: 1 + has_two]
    return None


def _of_axis(axis: Axis, value: Any) -> Any:
    return value if axis.choices else axis.rounded(float(value))
