"""Check one submission folder, or many: what its files show, what they contradict, and what they leave open.

The check never calls a submission valid. What it cannot read from files (causality, normalization, what a model read) it says.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import read_regular
from quantlab.progress import Progress, silent
from quantlab.share.findings import LOOK, NOTE, UNCHECKED, CheckedFolder, Finding, ordered
from quantlab.share.number_checks import (
    claim_checks,
    clock_checks,
    seed_checks,
    size_checks,
    split_checks,
)
from quantlab.share.script_looks import path_findings
from quantlab.share.significance import MARGIN_NATS, compare_scores
from quantlab.share.submission_folder import Submission, read_submission

CHECKS: tuple[Callable[[Submission], Iterator[Finding | str]], ...] = (
    size_checks,
    clock_checks,
    split_checks,
    claim_checks,
    seed_checks,
)
ALWAYS_UNCHECKED = (
    "whether predictions are causal and sum to 1: quantlab eval or quantlab probe with the model",
    "whether training or calibration read validation text: quantlab data check with the shards",
    "whether evaluation reads other files or the network: quantlab eval --sandbox",
)
FEWEST_LINES = 20
"""Lines of a log's source from which it is compared with the script."""
SIMILAR = 0.98
"""Share of equal lines from which two scripts count as the same."""
LIST_SUFFIXES = (".txt", ".lst", ".list")
MOST_LIST_BYTES = 1 << 22


def check_submission(folder: Path, against: Sequence[float] = ()) -> CheckedFolder:
    """Return the findings of one folder.

    Args:
        against: bits per byte of the submission to beat, one a seed; with them significance is computed.
    Raises:
        ConfigError: there is no such folder.
    """
    submission = read_submission(folder)
    results = [result for check in CHECKS for result in check(submission)]
    results += [*submission.findings, *path_findings(submission), *_provenance(submission), *_code_of_log(submission)]
    results += list(_significance(submission, against))
    results += [Finding(level=UNCHECKED, check="path", text=text) for text in ALWAYS_UNCHECKED]
    found = [result for result in results if isinstance(result, Finding)]
    passed = tuple(dict.fromkeys(result for result in results if isinstance(result, str)))
    return CheckedFolder(name=submission.path.name, claimed_bpb=submission.claimed_bpb, findings=ordered(found), passed=passed)


def triage(source: Path, against: Sequence[float] = (), *, progress: Progress = silent) -> list[CheckedFolder]:
    """Return the findings of every submission folder in `source`: a folder, or a text file with a folder a line.

    A folder that cannot be read is a result of its own.

    Raises:
        ConfigError: `source` has no submission folder.
    """
    folders = _listed(source) if source.is_file() else sorted(_below(source))
    if not folders:
        raise ConfigError(f"{source} has no submission folder", hint="a submission folder holds submission.json")
    found = []
    for number, folder in enumerate(folders):
        progress("check submissions", number, len(folders))
        found.append(_checked(folder, against))
    progress("check submissions", len(folders), len(folders))
    return found


def _listed(source: Path) -> list[Path]:
    if source.suffix not in LIST_SUFFIXES:
        raise ConfigError(f"{source} is a file: a list of folders is .txt, .lst or .list", hint="or name a folder")
    lines = read_regular(source, ConfigError, most=MOST_LIST_BYTES).decode("utf-8", "replace").splitlines()
    return [source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _below(folder: Path, depth: int = 4) -> Iterator[Path]:
    """Yield the folders below `folder` that hold a submission*.json, or a README and a training script."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist")
    names = [path.name for path in folder.iterdir() if not path.is_symlink()]
    is_script = any(name.startswith("train") and name.endswith(".py") for name in names)
    if any(name.startswith("submission") and name.endswith(".json") for name in names) or (is_script and "README.md" in names):
        yield folder
        return
    if depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from _below(path, depth - 1)


def _checked(folder: Path, against: Sequence[float]) -> CheckedFolder:
    try:
        return check_submission(folder, against)
    except QuantlabError as error:
        finding = Finding(level=UNCHECKED, check="folder", text=str(error))
        return CheckedFolder(name=folder.name, claimed_bpb=None, findings=(finding,))


def _provenance(submission: Submission) -> Iterator[Finding]:
    """Yield what a reader of the folder would need and does not find."""
    if not submission.claims_file:
        yield Finding(level=LOOK, check="provenance", text="there is no submission.json")
    for key in ("author", "github_id", "name", "date"):
        if submission.claims and not submission.claims.get(key):
            yield Finding(level=NOTE, check="provenance", text=f"the claims have no {key}", file=submission.claims_file)
    if not submission.readme:
        yield Finding(level=NOTE, check="provenance", text="there is no README.md")
    if not submission.scored:
        yield Finding(level=LOOK, check="provenance", text="there is no log with a score after training")


def _code_of_log(submission: Submission) -> Iterator[Finding | str]:
    """Compare the script that a log begins with and the one that is shipped."""
    main = submission.main
    shipped = set(_lines(main.source)) if main else set()
    for log in submission.scored:
        lines = _lines(log.source)
        if len(lines) < FEWEST_LINES or main is None:
            continue
        share = sum(line in shipped for line in lines) / len(lines)
        if share >= SIMILAR:
            yield f"code: {log.name} holds the shipped script"
        else:
            text = f"{100 * share:.0f} % of the lines of the script in the log are in {main.name}: was another script run?"
            yield Finding(level=NOTE, check="code", text=text, file=log.name, line=1)


def _lines(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if len(line.strip()) > 3]


def _significance(submission: Submission, against: Sequence[float]) -> Iterator[Finding | str]:
    """Yield the tests over seeds; the scores are those of the label that the claim is a mean of, else the last ones."""
    logs = submission.scored
    if not against:
        text = f"significance ({MARGIN_NATS} nats, p < 0.01): give the scores to beat with --against"
        yield Finding(level=UNCHECKED, check="significance", text=text)
        return
    if not logs:
        yield Finding(level=UNCHECKED, check="significance", text="no log shows a score")
        return
    by_seed = {log.seed if log.seed is not None else log.name: log.scores[-1] for log in logs}
    scores = list(by_seed.values())
    ratios = [score.loss / score.bpb for score in scores if score.bpb > 0]
    result = compare_scores([score.bpb for score in scores], list(against), sum(ratios) / len(ratios) / math.log(2))
    if result.is_record:
        yield f"significance: {result.to_text()}"
    else:
        yield Finding(level=LOOK, check="significance", text=f"not a record by the rule: {result.to_text()}")
