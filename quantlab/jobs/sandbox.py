"""Score a model in a process without network that can read the model, its tokenizer and the tokens alone.

`python -m quantlab.jobs.sandbox REQUEST` is that process (child_process.py, confine.py).
"""

import glob
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.child_process import run_child, serve
from quantlab.confine import confine
from quantlab.errors import ConfigError
from quantlab.progress import Progress, silent

if TYPE_CHECKING:
    from quantlab.evaluation.evaluation_record import EvaluationRecord


def evaluate_in_sandbox(target: Path, asked: Mapping[str, Any], *, progress: Progress = silent) -> "EvaluationRecord":
    """Return what `evaluate(target, **asked)` returns in the sandbox, with a check that says what it could read.

    Args:
        asked: the other arguments of `quantlab.evaluate`, without a reference, and without save and force.
    Raises:
        ConfigError: a reference is asked for, or several processes.
        QuantlabError: this system does not permit a sandbox; or see `evaluate`.
    """
    from quantlab.evaluation.evaluation_record import EvaluationRecord, Probe
    from quantlab.fields import read_fields

    if asked.get("against") is not None:
        raise ConfigError("a reference is not shown in the sandbox", hint="leave out --against or --sandbox")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("the sandbox is one process", hint="leave out torchrun or --sandbox")
    known = {**asked, "target": target}
    files, listed = _shown(known)
    request = {name: str(value) if isinstance(value, Path) else value for name, value in known.items()}
    with tempfile.TemporaryDirectory(prefix="quantlab-sandbox-") as scratch:
        view = {"files": list(map(str, files)), "listed": list(map(str, listed)), "scratch": scratch}
        answer = run_child("quantlab.jobs.sandbox", {"view": view, "evaluate": request}, progress=progress)
    record = read_fields(EvaluationRecord, answer, "quantlab.jobs.sandbox")
    detail = f"no network; of files outside Python {len(files):,} could be read: {', '.join(path.name for path in files)}"
    others = [probe for probe in record.probes if probe.name != "sandbox"]
    return replace(record, probes=(*others, Probe(name="sandbox", passed=True, detail=detail[:500])))


def _shown(asked: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """Return the files that an evaluation reads, and the folders that it lists; all exist."""
    from quantlab.report.pack_report import report_path
    from quantlab.text.tokenizer import tokenizer_file

    target, model, tokens = Path(asked["target"]), asked.get("model") or "", asked.get("tokens")
    tokenizer = asked.get("tokenizer") or tokenizer_file(target if target.is_dir() else target.parent) or target
    code = Path(model.rpartition(":")[0] if ":" in model else model)
    patterns = [pattern for pattern in (tokens, asked.get("trained_on")) if pattern]
    shards = [Path(path) for pattern in patterns for path in glob.glob(pattern)]
    named = [target, report_path(target), Path(tokenizer), *([asked["text"]] if asked.get("text") else [])]
    beside = [Path(tokenizer).with_name("tokenizer_config.json")]
    found = dict.fromkeys(Path(path).resolve() for path in (*named, *beside, *shards, code) if Path(path).is_file())
    folders = [Path(path).resolve() for path in {target, Path(tokenizer)} if Path(path).is_dir()]
    return [*found, *folders], sorted({path.resolve().parent for path in shards})


def _answer(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    view = request["view"]
    confine(map(Path, view["files"]), map(Path, view["listed"]), Path(view["scratch"]))
    from quantlab.jobs.evaluate import evaluate  # after it, for torch starts threads

    return evaluate(**request["evaluate"], progress=progress).to_dict()


if __name__ == "__main__":
    serve(_answer)
