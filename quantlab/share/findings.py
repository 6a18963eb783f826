"""What a check of somebody's submission found: each finding with the file and the line that shows it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

BROKEN, LOOK, NOTE, UNCHECKED = LEVELS = ("broken", "look", "note", "unchecked")
"""broken: the folder's own files contradict a rule. look: a person must decide. note: small, or missing."""
WEIGHTS = {BROKEN: 100, LOOK: 10, NOTE: 1, UNCHECKED: 0}
LONGEST_TEXT = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of a check."""

    level: str
    """broken, look, note or unchecked."""
    check: str
    """Name of the check: size, clock, split, bytes, claim, seeds, path, data, provenance, significance, code."""
    text: str
    """What was found, with its numbers."""
    file: str = ""
    """Path inside the folder; empty where no file shows it."""
    line: int = 0
    """Number of the line from 1; 0 for the whole file."""

    @property
    def place(self) -> str:
        """File and line, as `train.log:12`."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedFolder:
    """All findings of one submission folder."""

    name: str
    claimed_bpb: float | None
    findings: tuple[Finding, ...]
    passed: tuple[str, ...] = ()
    """What was compared and holds, a line each."""

    def count(self, level: str) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line, which never calls a submission valid: what cannot be read from files is not checked."""
        parts = [f"{self.count(BROKEN)} rules broken"] if self.count(BROKEN) else []
        parts += [f"{self.count(LOOK)} things to look at"] if self.count(LOOK) else []
        first = ", ".join(parts) if parts else "nothing found that breaks a rule"
        return f"{first}; {self.count(UNCHECKED)} things not checked"

    @property
    def rank(self) -> int:
        """How much a person should look at it: broken rules weigh most."""
        return sum(WEIGHTS[finding.level] for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        counts = {level: self.count(level) for level in LEVELS}
        return {**asdict(self), "counts": counts, "rank": self.rank, "verdict": self.verdict}


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return each finding once, the gravest first; equal ones keep their order."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: LEVELS.index(finding.level)))


def page_lines(checked: CheckedFolder) -> list[str]:
    """Return the page of one folder: its verdict, then one line a finding, then what holds."""
    claim = "" if checked.claimed_bpb is None else f", claims {checked.claimed_bpb:.5f} BPB"
    lines = [f"{checked.name}{claim}", checked.verdict, ""]
    for finding in checked.findings:
        where = f"  [{finding.place}]" if finding.place else ""
        lines.append(f"{finding.level:<9}  {finding.check:<12}  {_cut(finding.text)}{where}")
    return [*lines, *(f"{'holds':<9}  {_cut(text)}" for text in checked.passed)]


def triage_rows(folders: Sequence[CheckedFolder]) -> list[tuple[str, ...]]:
    """Return a table with its head: the folders that need a person first; of equal ones the better claim first."""
    first = sorted(folders, key=lambda folder: (-folder.rank, folder.claimed_bpb or float("inf"), folder.name))
    rows: list[tuple[str, ...]] = [("broken", "look", "note", "unchecked", "claim", "folder", "first finding")]
    for folder in first:
        claim = "-" if folder.claimed_bpb is None else f"{folder.claimed_bpb:.4f}"
        grave = next((f for f in folder.findings if f.level in (BROKEN, LOOK)), None)
        shown = f"{grave.check}: {_cut(grave.text)}" if grave else "-"
        rows.append((*(str(folder.count(level)) for level in LEVELS), claim, folder.name, shown))
    return rows


def _cut(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= LONGEST_TEXT else one_line[: LONGEST_TEXT - 3] + "..."
