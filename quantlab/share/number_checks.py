"""Check a submission's numbers against each other and the rules: sizes, clock, split, bytes, claims and seeds."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from quantlab.share.challenge_log import LogFacts, Number, Score
from quantlab.share.findings import BROKEN, LOOK, NOTE, UNCHECKED, Finding
from quantlab.share.submission_folder import CODE, Script, Submission, as_number
from quantlab.share.wrapped_code import wrapped_bytes
from quantlab.text.known_splits import KNOWN_SPLITS, KnownSplit

CAP_BYTES = 16_000_000
BEST_WRAPPER = 0.9
"""Size of the best wrapper of a script, as a share of the one that this check makes: above it a size is called broken."""
SECONDS = 600.0
STEP_SECONDS = 1.0
"""The clock is read after a step, so that training may end one step late."""
GPUS = 8
"""The clock's seconds are those of 8 GPUs; logs of fewer have their own."""
DOCUMENTS = 50_000
LEAKY_SHARDS = 1499
"""Training shards of a preparation that leaves most validation documents in the training split."""
BYTES_SLACK = 2e-3
"""Largest relative difference of implied bytes: scores are printed with four decimal places or more."""
CUT_TOKENS = 65_536
"""Tokens that a longer sequence may cut from the end of the split."""
CLAIM_SLACK = 6e-5
"""A claim that was rounded to four decimal places."""
FEWEST_SEEDS = 3


def size_checks(submission: Submission) -> Iterator[Finding | str]:
    """Yield findings on the size, and as strings what holds."""
    claimed = submission.number("bytes_total", "artifact_bytes_max", "total_bytes")
    if claimed is not None and claimed > CAP_BYTES:
        yield _claim(submission, BROKEN, "size", f"claims {claimed:,.0f} bytes, {claimed - CAP_BYTES:,.0f} over {CAP_BYTES:,}")
    known = [(log, total) for log in submission.logs if (total := log.last("total_bytes"))]
    for log, total in known:
        yield from _size_of(submission, log, total)
    if not known:
        yield Finding(level=UNCHECKED, check="size", text="no log has a line 'Total submission size'")
    elif all(total.value <= CAP_BYTES for _, total in known):
        yield f"size: at most {max(total.value for _, total in known):,.0f} of {CAP_BYTES:,} bytes in {len(known)} logs"
    if claimed is not None and known and not _is_near(claimed, [total.value for _, total in known]):
        yield _claim(submission, NOTE, "size", f"claims {claimed:,.0f} bytes, the logs {_span(t.value for _, t in known)}")
    yield from _code_checks(submission)


def _size_of(submission: Submission, log: LogFacts, total: Number) -> Iterator[Finding]:
    """Yield what is wrong with the size that one log counts, or with that of artifact and scripts as they lie in the folder."""
    model, scripts = log.last("model_bytes"), used_scripts(submission)
    shipped = model.value + sum(script.size for script in scripts) if model and scripts else None
    if total.value <= CAP_BYTES and (shipped is None or shipped <= CAP_BYTES):
        return
    code = sum(wrapped_bytes(script.source) for script in scripts)
    wrapped = model.value + code if model and scripts else None
    near = model is not None and bool(scripts) and model.value + BEST_WRAPPER * code <= CAP_BYTES
    fits = [f"with the scripts as they lie here {size:,.0f}" for size in (shipped,) if size and size <= CAP_BYTES]
    fits += [f"with the scripts wrapped by this check {size:,.0f}" for size in (wrapped,) if size and size <= CAP_BYTES]
    if total.value > CAP_BYTES:
        text = f"the log counts {total.value:,.0f} bytes, {total.value - CAP_BYTES:,.0f} over {CAP_BYTES:,}"
        text += f"; {fits[0]}" if fits else ""
        yield Finding(level=LOOK if fits or near else BROKEN, check="size", text=text, file=log.name, line=total.line)
    elif shipped is not None:
        text = (
            f"artifact and scripts on disk are {shipped:,.0f} bytes, over {CAP_BYTES:,}: the log counts a wrapper that is not "
        )
        text += f"in the folder; {fits[0] if fits else 'wrapped by this check they are over, too'}"
        yield Finding(level=NOTE if fits else LOOK, check="size", text=text, file=log.name, line=total.line)


def used_scripts(submission: Submission) -> list[Script]:
    """Return the counted script and the Python files of the folder that it names."""
    main = submission.main
    if main is None:
        return []
    return [main, *(s for s in submission.scripts if s is not main and _is_used(s.name, main.source))]


def _code_checks(submission: Submission) -> Iterator[Finding | str]:
    main = submission.main
    if main is None:
        yield Finding(level=UNCHECKED, check="code", text="there is no train_gpt.py or other training script")
        return
    logged = {int(n.value): (log, n) for log in submission.logs for n in log.numbers.get("code_bytes", ())}
    if logged and main.size not in logged:
        log, number = next(iter(logged.values()))
        text = f"{main.name} has {main.size:,} bytes, the log counts {_span(logged)}"
        yield Finding(level=NOTE, check="code", text=text, file=log.name, line=number.line)
    others = [
        name for name in submission.sizes if Path(name).suffix in CODE and name != main.name and _is_used(name, main.source)
    ]
    if others:
        sizes = ", ".join(f"{name} {submission.sizes[name]:,}" for name in others)
        yield Finding(
            level=LOOK, check="code", text=f"{main.name} uses other code files, do they count? {sizes}", file=main.name
        )


def _is_used(name: str, source: str) -> bool:
    path = Path(name)
    imported = f"import {path.stem}" in source or f"from {path.stem} " in source
    return path.name in source or (path.suffix == ".py" and imported)


def clock_checks(submission: Submission) -> Iterator[Finding | str]:
    """Yield findings on the seconds of training, calibration and evaluation."""
    within = 0
    for log in submission.scored:
        world = log.last("world_size")
        is_bound = submission.is_record_track and (world is None or world.value >= GPUS)
        level = BROKEN if is_bound else NOTE
        trained = log.train_seconds
        if trained and trained.value > SECONDS + STEP_SECONDS:
            text = f"training took {trained.value:.1f} s, {SECONDS:g} s are allowed"
            yield Finding(level=level, check="clock", text=text, file=log.name, line=trained.line)
        within += bool(trained and trained.value <= SECONDS + STEP_SECONDS)
        hessians = log.hessian_seconds
        if trained and hessians and trained.value + hessians.value > SECONDS + STEP_SECONDS:
            text = f"Hessians are collected until {trained.value + hessians.value:.1f} s: calibration on training data counts"
            yield Finding(level=NOTE, check="clock", text=text, file=log.name, line=hessians.line)
        for number in (n for n in log.eval_seconds if n.value > SECONDS):
            text = f"an evaluation took {number.value:.1f} s, {SECONDS:g} s are allowed"
            yield Finding(level=level, check="clock", text=text, file=log.name, line=number.line)
    if not any(log.train_seconds for log in submission.scored):
        yield Finding(level=UNCHECKED, check="clock", text="no log says how long training took")
    elif within:
        yield f"clock: training within {SECONDS:g} s (and a step) in {within} of {len(submission.scored)} logs"


def split_checks(submission: Submission) -> Iterator[Finding | str]:
    """Yield findings on the validation split: its tokens, documents and bytes, and the training shards."""
    for log in submission.scored:
        tokens = log.last("val_tokens")
        split = _split_of(int(tokens.value)) if tokens else None
        yield from _bytes_of(log, split)
        documents = log.last("documents")
        if documents and documents.value != DOCUMENTS:
            text = f"{documents.value:,.0f} documents are evaluated, the split has {DOCUMENTS:,}"
            level = BROKEN if submission.is_record_track else LOOK
            yield Finding(level=level, check="split", text=text, file=log.name, line=documents.line)
        shards = log.last("train_shards")
        if shards and shards.value == LEAKY_SHARDS:
            text = f"{LEAKY_SHARDS} training shards are those of a local preparation that trains on validation documents"
            yield Finding(level=LOOK, check="data", text=text, file=log.name, line=shards.line)
    for script in submission.scripts:
        line = next((n for n, text in enumerate(script.source.splitlines(), 1) if _is_leaky_default(text)), 0)
        if line:
            text = "the preparation's default leaves 40,000 of 50,000 validation documents in the training split"
            yield Finding(level=NOTE, check="data", text=text, file=script.place(), line=line)


def _is_leaky_default(line: str) -> bool:
    return "--val-docs" in line and ("10_000" in line or "10000" in line)


def _split_of(tokens: int) -> KnownSplit | None:
    """Return the public split of which a log scores all tokens, but for those that a sequence length cuts off."""
    near = [split for split in KNOWN_SPLITS if -CUT_TOKENS <= tokens - split.scored_tokens <= 2048]
    return min(near, key=lambda split: abs(tokens - split.scored_tokens), default=None)


def _bytes_of(log: LogFacts, split: KnownSplit | None) -> Iterator[Finding | str]:
    """Compare tokens, loss and bits per byte of the last score: together they say how many bytes of text were scored."""
    score, tokens = log.scores[-1], log.last("val_tokens")
    ratio = score.loss / (math.log(2) * score.bpb) if score.bpb > 0 else math.inf
    known = next((s for s in KNOWN_SPLITS if abs(ratio * s.scored_tokens / s.bytes - 1) < BYTES_SLACK), None)
    if tokens is None:
        if known:
            yield f"bytes: {log.name} has {ratio:.4f} bytes a token, as {known.name}"
        else:
            text = f"{ratio:.4f} bytes a token are those of no public split, and the log does not say how many tokens it scores"
            yield Finding(level=UNCHECKED, check="bytes", text=text, file=log.name, line=score.line)
        return
    implied = tokens.value * ratio
    whole = [s for s in KNOWN_SPLITS if abs(implied / s.bytes - 1) < BYTES_SLACK]
    if whole:
        yield f"bytes: {log.name} scores {implied / 1e6:.2f} million bytes, the whole of {(split or whole[0]).name}"
        return
    text = (
        f"{score.label}: {tokens.value:,.0f} tokens at {score.loss} nats and {score.bpb} BPB are {implied / 1e6:.2f} million "
        f"bytes, the public split has {KNOWN_SPLITS[0].bytes / 1e6:.2f}"
    )
    level = BROKEN if split is not None or implied > KNOWN_SPLITS[0].bytes else LOOK
    yield Finding(level=level, check="bytes", text=text, file=log.name, line=score.line)
    if split is None and implied < KNOWN_SPLITS[0].bytes:
        text = f"{tokens.value:,.0f} validation tokens are no public split: is it a part?"
        yield Finding(level=LOOK, check="split", text=text, file=log.name, line=tokens.line)


def claim_checks(submission: Submission) -> Iterator[Finding | str]:
    """Yield findings on the claimed score against the scores in the logs."""
    claim, logs = submission.claimed_bpb, submission.scored
    if claim is None:
        where = submission.claims_file or "submission.json"
        yield Finding(level=LOOK, check="claim", text="no val_bpb is claimed as a number", file=where)
        return
    if not logs:
        yield Finding(level=UNCHECKED, check="claim", text="no log shows a score after training")
        return
    scores = [(log, score) for log in logs for score in log.scores]
    single = [(log, score) for log, score in scores if abs(score.bpb - claim) < CLAIM_SLACK]
    means = {label: sum(found) / len(found) for label, found in _by_label(logs).items() if len(found) > 1}
    mean = next((label for label, value in means.items() if abs(value - claim) < CLAIM_SLACK), None)
    if mean is not None:
        yield f"claim: {claim} is the mean of {mean} over {len(_by_label(logs)[mean])} logs"
    elif single:
        yield f"claim: {claim} is {single[-1][1].label} of {single[-1][0].name}"
        yield from _is_best_seed(submission, single[-1][1], claim)
    else:
        near_log, near = min(scores, key=lambda pair: abs(pair[1].bpb - claim))
        text = f"no log and no mean over logs shows {claim}; the nearest is {near.bpb} ({near.label})"
        is_far = min(abs(value - claim) for value in (near.bpb, *means.values())) > 1e-3
        level = LOOK if is_far else NOTE
        yield Finding(level=level, check="claim", text=text, file=near_log.name, line=near.line)
    yield from _seed_results(submission)


def _by_label(logs: Iterable[LogFacts]) -> dict[str, list[float]]:
    """Return the last score of each label of each log."""
    found: dict[str, list[float]] = defaultdict(list)
    for log in logs:
        for label, score in {score.label: score for score in log.scores}.items():
            found[label].append(score.bpb)
    return found


def _is_best_seed(submission: Submission, score: Score, claim: float) -> Iterator[Finding]:
    same = _by_label(submission.scored)[score.label]
    if len(same) > 1 and claim < min(same) + CLAIM_SLACK and max(same) - claim > CLAIM_SLACK:
        text = f"claims {claim}, the best of {len(same)} logs, whose mean is {sum(same) / len(same):.5f}"
        yield _claim(submission, NOTE, "claim", text)


def _seed_results(submission: Submission) -> Iterator[Finding]:
    by_seed = {log.seed: log for log in submission.scored}
    for seed, values in submission.seed_results.items():
        claimed, log = as_number(values.get("val_bpb")), by_seed.get(int(seed))
        if log is None or claimed is None:
            continue
        logs = [other for other in submission.scored if other.seed == int(seed)]
        if not any(abs(score.bpb - claimed) < CLAIM_SLACK for other in logs for score in other.scores):
            score = log.scores[-1]
            text = f"claims {claimed} for seed {seed}, its log ends with {score.bpb}"
            yield Finding(level=LOOK, check="claim", text=text, file=log.name, line=score.line)


def seed_checks(submission: Submission) -> Iterator[Finding | str]:
    """Yield findings on the seeds: how many there are, and whether those of the logs are those of the claims."""
    logged = {log.seed for log in submission.scored if log.seed is not None}
    claimed = set(submission.claimed_seeds)
    if len(logged) < FEWEST_SEEDS and submission.is_record_track:
        text = f"logs of {len(logged)} seeds; a record needs {FEWEST_SEEDS} or more to be significant"
        yield Finding(level=NOTE, check="seeds", text=text)
    elif logged:
        yield f"seeds: logs of {', '.join(map(str, sorted(logged)))}"
    if logged and claimed and (missing := sorted(claimed - logged)):
        yield _claim(submission, LOOK, "seeds", f"no log of seeds {', '.join(map(str, missing))}, which are claimed")
    if claimed and (more := sorted(logged - claimed)):
        text = f"logs of seeds {', '.join(map(str, more))}, which are not among the claimed ones: were seeds picked?"
        yield _claim(submission, LOOK, "seeds", text)


def _claim(submission: Submission, level: str, check: str, text: str) -> Finding:
    return Finding(level=level, check=check, text=text, file=submission.claims_file)


def _is_near(value: float, others: Sequence[float]) -> bool:
    """Return whether a claimed size is one of the logs', or their mean."""
    mean = sum(others) / len(others)
    return any(abs(value - other) < 1 for other in (*others, mean))


def _span(values: Iterable[float]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,.0f}" if len(found) == 1 else f"{found[0]:,.0f} to {found[-1]:,.0f}"
