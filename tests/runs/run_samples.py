"""Samples for tests: run folders as quantlab writes them, made without training, packing or scoring."""

import hashlib
import json
import math
from pathlib import Path

from quantlab.evaluation.evaluation_record import EvaluationData, EvaluationRecord, Probe
from quantlab.runs.run_record import RECORD_NAME, Checkpoint, FileRef, Git, Packing, Process, RunRecord

PASSED = (Probe(name="flip", passed=True, detail="0 of 64 predictions change with later tokens"),)
FAILED = (Probe(name="flip", passed=False, detail="64 of 64 predictions change with later tokens"),)
ELSEWHERE = Process(host="elsewhere", pid=1)


def sha_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def name_of(number: int, kind: str) -> str:
    return f"20260724T1015{number:02}.000000Z-{kind}-{number:08x}"


def data(tokens: int = 1000, **changes) -> EvaluationData:
    known = {"tokens_sha256": sha_of(f"tokens {tokens}"), "tokens": tokens, "bytes": 2400, "documents": 3, "mode": "chunked"}
    return EvaluationData(**{**known, "seq_len": 64, "stride": 64, "tokenizer_sha256": sha_of("tokenizer"), **changes})


def score(artifact: str, bpb: float, on: EvaluationData | None = None, size: int = 900) -> EvaluationRecord:
    on = on or data()
    about = {"target": f"{artifact}.qlab", "target_sha256": sha_of(artifact), "target_bytes": size}
    nats = bpb * math.log(2) * on.bytes
    return EvaluationRecord(**about, data=on, val_bpb=bpb, val_loss=nats / on.tokens, nats=nats, probes=PASSED)


def file_of(artifact: str, size: int = 900) -> FileRef:
    return FileRef(path=f"{artifact}.qlab", bytes=size, sha256=sha_of(artifact))


def packing(artifact: str, size: int = 900, budget: int = 1000, code: int = 0, is_decoded_equal: bool = True) -> Packing:
    sizes = {"artifact_bytes": size, "code_bytes": code, "budget_bytes": budget}
    return Packing(artifact_sha256=sha_of(artifact), **sizes, is_decoded_equal=is_decoded_equal, method="trellis", bpw=3.5)


def record(number: int, kind: str, **changes) -> RunRecord:
    """Return the record of a run that is done."""
    known = {
        "status": "done",
        "started": f"2026-07-24T10:15:{number:02}.000000Z",
        "ended": f"2026-07-24T10:16:{number:02}.000000Z",
        "seconds": 60.0,
        "exit_code": 0,
        "process": ELSEWHERE,
        "command": ("quantlab", kind, "x"),
        "directory": "/nowhere",
        "versions": {"quantlab": "0.1.0"},
        "git": Git(commit="c" * 40, is_dirty=False),
    }
    return RunRecord(kind=kind, **{**known, **changes})


def packed(number: int, stem: str, *, size: int = 900, budget: int = 1000, code: int = 0, **changes) -> RunRecord:
    known = {
        "options": {"method": "trellis", "budget_bytes": budget, "rounding": {"states": 8}},
        "seeds": {"seed": 0},
        "checkpoint": Checkpoint(path="m.pt", fingerprint="f" * 32),
        "artifact": file_of(stem, size),
        "packing": packing(stem, size, budget, code),
    }
    return record(number, "pack", **{**known, **changes})


def scored(number: int, stem: str, bpb: float, on: EvaluationData | None = None, size: int = 900, **changes) -> RunRecord:
    known = {"artifact": file_of(stem, size), "evaluations": (score(stem, bpb, on, size),)}
    return record(number, "eval", **{**known, **changes})


def write(folder: Path, *records: RunRecord) -> list[str]:
    """Write a run folder for each record, numbered by the second in which it began; return their names."""
    names = []
    for one in records:
        name = name_of(int(one.started[17:19]), one.kind)
        (folder / name).mkdir(parents=True)
        (folder / name / RECORD_NAME).write_bytes(one.to_json())
        names.append(name)
    return names


def write_many(folder: Path, count: int) -> None:
    """Write pairs of a packing and its score, as large as real records are."""
    options = {f"option_{i}": i for i in range(40)}
    for number in range(count // 2):
        pair = packed(1, f"m{number}", options=options), scored(2, f"m{number}", 1.5 + number / count, options=options)
        for one in pair:
            place = folder / f"20260724T1015{number // 60 % 60:02}.{number:06}Z-{one.kind}-{number:08x}"
            place.mkdir(parents=True)
            (place / RECORD_NAME).write_bytes(one.to_json())


def change(folder: Path, name: str, **changes) -> None:
    """Overwrite keys of a run.json, as somebody with an editor would."""
    path = folder / name / RECORD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
