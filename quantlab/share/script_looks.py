"""Look at a submission's script and log for the known ways to an invalid score. The script is parsed, never run.

A look says where a person should read on; it proves nothing. A part of the script that is switched off by default, and that no
log shows to be on, is a note.
"""

import ast
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from quantlab.share.challenge_log import LogFacts
from quantlab.share.findings import LOOK, NOTE, UNCHECKED, Finding
from quantlab.share.submission_folder import Script, Submission


@dataclass(frozen=True, slots=True)
class KnownPath:
    """One way to an invalid score, by the words that its authors use for it."""

    name: str
    pattern: re.Pattern[str]
    question: str
    """What a person must find out."""


def _path(name: str, pattern: str, question: str) -> KnownPath:
    return KnownPath(name, re.compile(pattern, re.IGNORECASE), question)


KNOWN_PATHS = (
    _path(
        "training before quantization on scored text",
        r"pre_?q(?:uant)?(?:i[sz]ation)?[_ -]?(?:ttt|adapt)|pqt_|(?<!e)val_?only|train_on_val",
        "does it train on validation tokens that are scored afterwards?",
    ),
    _path("SLOT", r"(?:^|[^a-z])slot(?:$|[^a-z])", "is a delta fitted to the tokens whose score it changes?"),
    _path(
        "rescoring",
        r"two_?pass|multi_?pass|pass_?2|second_pass|full_?rescore|rescor(?:e|ing)|every_?epoch|min_?nll|best_pass"
        r"|[2-9] passes\b",
        "is a token scored twice, and the better or later score kept?",
    ),
    _path(
        "several epochs of test-time training",
        r"ttt_?epoch ?[:=]? ?\d+/(?:[2-9]|\d\d)|ttt\S* starting \d+ epochs",
        "is a token scored after the model was trained on it?",
    ),
    _path(
        "cache of evaluated tokens",
        r"(?<!bi)(?<!tri)n_?gram|phrase_?cache|dirichlet|(?:^|_)ctw|(?:^|_)knn|suffix_?(?:array|automaton)|backoff",
        "does every distribution sum to 1 before the token is seen?",
    ),
    _path("byte-level mixture", r"(?:^|[^a-z])ppmd?(?:$|[^a-z])|byte_?mix", "is it a distribution over the whole vocabulary?"),
    _path("activation realignment", r"(?:^|_)tara(?:$|_)|re_?alignment", "does it read the target?"),
    _path("text changed before it is cut", r"case_?fold", "are the scored bytes those of the original text?"),
)
_SCORED_DATA = re.compile(r"val_(?:tokens|data|loader|stream|files|ids)|fineweb_val", re.IGNORECASE)
_CALIBRATION = re.compile(r"hessian|calib|gptq|awq", re.IGNORECASE)
_OFF = re.compile(r"(?i)[:= ]\s*(?:(?:false|off|none|no)\b|0(?:\.0*)?(?![\d.]))")
WHOLE = ("main", "train_model", "train_and_eval", "run", "train")
"""Functions that train and score: their order cannot be told from names."""
_NO_GRAD = {"no_grad", "inference_mode"}
_NETWORK = {"requests", "urllib", "httpx", "huggingface_hub", "socket", "ftplib", "boto3"}


def path_findings(submission: Submission) -> Iterator[Finding]:
    """Yield what scripts and logs show of the known paths, once for each path and file."""
    shown_on: set[str] = set()
    for log in submission.logs:
        for known, finding in _in_log(log):
            if known.name not in shown_on:
                shown_on.add(known.name)
                yield finding
    for script in submission.scripts:
        try:
            yield from list(_in_script(script, shown_on, script is submission.main))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            yield Finding(level=UNCHECKED, check="path", text="the script is not Python that can be parsed", file=script.name)


def _in_script(script: Script, shown_on: set[str], is_main: bool) -> Iterator[Finding]:
    tree = ast.parse(script.source)
    yield from _in_names(script, tree, shown_on, is_main)
    yield from _data_uses(script, tree)
    yield from _network(script, tree, is_main)


def _in_log(log: LogFacts) -> Iterator[tuple[KnownPath, Finding]]:
    """Yield the first line after the source that names a path and does not say that it is off."""
    for known in KNOWN_PATHS:
        for number, line in log.results:
            match = known.pattern.search(line)
            if match and not _OFF.match(line[match.end() :].lstrip(string.ascii_letters + "_")):
                text = f"{known.name}: the log says {line.strip()[:100]!r}; {known.question}"
                yield known, Finding(level=LOOK, check="path", text=text, file=log.name, line=number)
                break


def _in_names(script: Script, tree: ast.AST, shown_on: set[str], is_main: bool) -> Iterator[Finding]:
    """Yield where functions and options carry the name of a path."""
    names = list(_names(tree))
    for known in KNOWN_PATHS:
        hits = [(name, line, is_off) for name, line, is_off in names if known.pattern.search(name)]
        if not hits or known.name in shown_on:
            continue
        is_off = any(off for _, _, off in hits) or not is_main
        name, line, _ = hits[0]
        why = " (off by default, and no log shows it on)" if is_off else ""
        text = f"{known.name}: the script has {name!r}{why}; {known.question}"
        yield Finding(level=NOTE if is_off else LOOK, check="path", text=text, file=script.place(), line=line)


def _names(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Yield the names of functions, classes and environment options with their line, and whether an option is off."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno, False
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            first = node.args[0].value
            if isinstance(first, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{2,60}", first):
                yield first, node.lineno, _is_off(node)


def _is_off(call: ast.Call) -> bool:
    """Return whether a call like os.environ.get("NAME", "0") has a default that means off."""
    default = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else ""
    return default is False or str(default).lower() in ("0", "false", "off", "none", "0.0")


def _data_uses(script: Script, tree: ast.AST) -> Iterator[Finding]:
    """Yield where validation tokens reach calibration, or training without a score before it."""
    after_scores = _called_by_scorers(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _CALIBRATION.search(_name_of(node.func)) and (name := _scored_argument(node)):
            text = f"calibration on scored text: {_name_of(node.func)} is given {name}"
            yield Finding(level=LOOK, check="path", text=text, file=script.place(), line=node.lineno)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _trains_on_split(node):
            text = f"training on scored text: {ast.unparse(_target(node))[:60]} holds the validation split"
            yield Finding(level=LOOK, check="path", text=text, file=script.place(), line=node.lineno)
        if isinstance(node, ast.FunctionDef) and _trains_unscored(node) and node.name not in after_scores:
            text = f"training on scored text: {node.name} steps an optimizer over validation tokens and scores none first"
            yield Finding(level=LOOK, check="path", text=text, file=script.place(), line=node.lineno)


def _trains_on_split(node: ast.Assign | ast.AnnAssign) -> bool:
    """Return whether something that is named for training is given the validation split's files."""
    constants = [inner.value for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)] if node.value else []
    return "train" in ast.unparse(_target(node)).lower() and any("fineweb_val" in str(value) for value in constants)


def _target(node: ast.Assign | ast.AnnAssign) -> ast.expr:
    return node.targets[0] if isinstance(node, ast.Assign) else node.target


def _scored_argument(call: ast.Call) -> str:
    """Return the first argument that is named like validation data; empty if there is none."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return next((name for name in map(_name_of, arguments) if re.match(r"val_(?!bpb|loss)", name)), "")


def _name_of(node: ast.AST) -> str:
    """Return the last name of an expression like a.b.c."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _trains_unscored(function: ast.FunctionDef) -> bool:
    """Return whether a function takes optimizer steps on validation data, and has no block without gradients."""
    inner = list(ast.walk(function))
    names = {_name_of(node) for node in inner} | {node.arg for node in inner if isinstance(node, ast.arg)}
    has_step = any(isinstance(node, ast.Call) and _name_of(node.func) == "backward" for node in inner)
    reads = any(_SCORED_DATA.search(name) for name in names)
    return has_step and reads and not names & _NO_GRAD and function.name not in WHOLE


def _called_by_scorers(tree: ast.AST) -> set[str]:
    """Return the names that functions with a block without gradients call: a score may come before them there."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name not in WHOLE]
    called: set[str] = set()
    for function in functions:
        inner = list(ast.walk(function))
        if {_name_of(node) for node in inner} & _NO_GRAD:
            called |= {_name_of(node.func) for node in inner if isinstance(node, ast.Call)}
    return called


def _network(script: Script, tree: ast.AST, is_main: bool) -> Iterator[Finding]:
    """Yield the first import by which the counted script can reach the network."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)] if is_main else []
    for node in imports:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if found := next((module for module in modules if module.partition(".")[0] in _NETWORK), ""):
            text = f"the script imports {found}: does it reach the network in training or evaluation?"
            yield Finding(level=NOTE, check="path", text=text, file=script.place(), line=node.lineno)
            return
