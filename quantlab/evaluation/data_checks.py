"""Checks of the data of an evaluation: whole splits, and documents that training or calibration has read."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantlab.evaluation.evaluation_record import Probe
from quantlab.text.document_sample import DocumentSample, sample_documents
from quantlab.text.known_splits import KNOWN_SPLITS, KnownSplit

MAX_TRAINING_OVERLAP = 0.01
"""Share of the scored documents that may begin like a training document: the web repeats itself (quantlab data check)."""
CUT_DOCUMENTS = 64
"""Documents that may lie in the tokens after the last whole sequence."""
CHALLENGE_NAME = re.compile(r"fineweb_val_[\w*?\[\]-]*\.bin")
"""Names of the challenge's validation shards, and patterns of them."""
_DIGITS = re.compile(r"\d+")


def overlap_checks(scored: NDArray[Any], bos_id: int, samples: Mapping[str, DocumentSample]) -> list[Probe]:
    """Compare the documents that begin in the scored stream, by their first 64 tokens, with those that were read before.

    Args:
        scored: token ids, [N].
        samples: samples of documents by what has read them: a name that begins with training, or with calibration.
    Returns:
        A check for each sample. A calibration may have no document in common, a training `MAX_TRAINING_OVERLAP` of them.
    """
    if not samples:
        return []
    documents = sample_documents(scored, bos_id, len(scored))
    return [_overlap(name, sample, documents) for name, sample in samples.items()]


def _overlap(name: str, sample: DocumentSample, scored: DocumentSample) -> Probe:
    met, among = sample.meet(scored)
    is_training = name.startswith("training")
    is_ok = met <= MAX_TRAINING_OVERLAP * among if is_training else met == 0
    allowed = f"{MAX_TRAINING_OVERLAP:.0%} may" if is_training else "none may"
    what = f"{met:,} of {among:,} scored documents that could be compared begin like one of the {name}"
    return Probe(name=f"{name} overlap", passed=is_ok, detail=f"{what}, which read {sample.documents:,}; {allowed}")


def training_is_unknown() -> Probe:
    """Return the line for a model that does not say what its training read."""
    detail = "the model does not say what its training read; --trained-on names the shards"
    return Probe(name="training overlap", passed=None, detail=detail)


def split_check(shards: str | None, vocab_size: int, *, split: str, tokens: int, documents: int) -> Probe:
    """Check that a split of the challenge is whole; of other shards say what is known of their whole.

    Args:
        shards: the pattern of the shards; None for text.
        split: name of the public split with this number of tokens; empty if there is none.
        tokens, documents: those that were scored.
    """
    known = next((known for known in KNOWN_SPLITS if split and known.name == split), None)
    if known is not None:
        return _documents_check(known, documents)
    name = (shards or "").rpartition("/")[2]
    wholes = [known for known in KNOWN_SPLITS if known.vocab_size == vocab_size and known.documents is not None]
    if not wholes or not CHALLENGE_NAME.fullmatch(name):
        return Probe(name="whole split", passed=None, detail=_siblings(shards))
    sizes = " or ".join(f"{known.scored_tokens:,} ({known.name})" for known in wholes)
    detail = f"{tokens:,} tokens of {documents:,} documents are not a whole public split, which has {sizes}"
    return Probe(name="whole split", passed=False, detail=detail)


def _siblings(shards: str | None) -> str:
    """Return how many of the shards that bear the same name but for its digits are scored."""
    scored = [Path(path) for path in glob.glob(shards)] if shards else []
    if not scored:
        return "no whole is known of this text"
    kin = {(path.parent, _DIGITS.sub("#", path.name)) for path in scored}
    there = {path for folder in {folder for folder, _ in kin} for path in folder.iterdir()}
    among = sum((path.parent, _DIGITS.sub("#", path.name)) in kin for path in there)
    return f"no whole is known of these tokens; {len(scored):,} of {among:,} shards of this name are scored"


def _documents_check(known: KnownSplit, documents: int) -> Probe:
    whole = known.documents
    is_ok = whole is None or whole - CUT_DOCUMENTS <= documents <= whole
    detail = f"{documents:,} documents are scored, the public split {known.name} has {whole or 'an unknown number'}"
    return Probe(name="whole split", passed=is_ok, detail=detail)
