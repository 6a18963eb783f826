"""Checks of an evaluation besides its probes: what was scored, what the model has read before, code of its own, the clock."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantlab.evaluation.data_checks import overlap_checks, split_check, training_is_unknown
from quantlab.evaluation.evaluation_record import Probe
from quantlab.evaluation.scoring import Score
from quantlab.evaluation.shard_text import shard_text_checks
from quantlab.evaluation.windows import scored_part
from quantlab.files import hash_file
from quantlab.models.loading import LoadedModel
from quantlab.models.presets import is_code
from quantlab.report.pack_report import read_report, report_path
from quantlab.text.document_sample import DocumentSample, sample_documents
from quantlab.text.shards import ShardStream
from quantlab.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Clock:
    """When the evaluation began, and how long it may take."""

    started: float
    max_seconds: float | None

    def check(self) -> list[Probe]:
        """Return whether the limit, if there is one, is not over yet."""
        if self.max_seconds is None:
            return []
        seconds = time.perf_counter() - self.started
        detail = f"{seconds:.1f} s until the score, {self.max_seconds:g} s are allowed"
        return [Probe(name="clock", passed=seconds <= self.max_seconds, detail=detail)]


def data_checks(
    loaded: LoadedModel,
    place: Path | None,
    ids: NDArray[Any],
    tokenizer: Tokenizer | None,
    shards: str | None,
    score: Score,
    trained: ShardStream | None = None,
) -> list[Probe]:
    """Return the checks of what was scored: no document that calibration or training has read, a whole split, its own tokens.

    Args:
        trained: the tokens that training read, where somebody names them.
    """
    stream = scored_part(ids, score.mode, score.seq_len)
    bos_id = tokenizer.bos_id if tokenizer else loaded.first_id()
    samples = _documents_read(loaded, place)
    if trained is not None:
        samples["training shards"] = sample_documents(trained, bos_id, len(trained))
    found = overlap_checks(stream, bos_id, samples)
    if not any(name.startswith("training") for name in samples):
        found.append(training_is_unknown())
    vocab_size = (tokenizer or loaded).vocab_size
    found.append(split_check(shards, vocab_size, split=score.split, tokens=score.tokens, documents=score.documents))
    return [*found, *(shard_text_checks(stream, tokenizer) if shards and tokenizer else [])]


def _documents_read(loaded: LoadedModel, place: Path | None) -> dict[str, DocumentSample]:
    """Return samples of what training and calibration have read: of the report of packing, which has more, or of the file."""
    past, where = loaded.provenance, loaded.name or "model"
    texts = {"training": past.training, "calibration": past.calibration}
    path = report_path(place) if place is not None and not place.is_dir() else None
    if path is not None and place is not None and path.is_file():
        report = read_report(path)
        if report.artifact_sha256 == hash_file(place)[1]:
            texts |= {"training": report.training_documents or texts["training"]}
            texts |= {"calibration": str(report.calibration.get("documents", texts["calibration"]))}
    return {name: DocumentSample.from_text(text, where) for name, text in texts.items() if text}


def code_check(model: str | None) -> list[Probe]:
    """Return what was not checked of a model that is somebody's own code; nothing for any other, which runs none."""
    if model is None or not is_code(model):
        return []
    detail = "the model's own code may read files and the network; --sandbox forbids it"
    return [Probe(name="sandbox", passed=None, detail=detail)]
