"""What a checkpoint or an artifact says of its own training and calibration, as far as an honest evaluation needs it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantlab.errors import CheckpointError, FormatError, QuantlabError
from quantlab.fields import JSON, Reader

KEY = "quantlab_provenance"
"""Metadata key in the header of a model's .safetensors file."""
LONGEST = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Facts of a model's past; what is empty or 0 is not known."""

    seq_len: int = 0
    """Tokens in a sequence of its training and validation."""
    mode: str = ""
    """How its validation was cut: chunked, sliding or document."""
    tokenizer_sha256: str = ""
    """First 32 hex digits of the tokenizer that made its training tokens."""
    training: str = ""
    """Sample of the documents of its training data (`DocumentSample.to_text`)."""
    calibration: str = ""
    """Sample of the documents on which it was calibrated."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is known."""
        return {key: value for key, value in asdict(self).items() if value}

    def to_metadata(self) -> dict[str, str]:
        """Return the strings for the header of a .safetensors file."""
        return {KEY: json.dumps(self.to_dict(), sort_keys=True)}


def of_metadata(metadata: Mapping[str, str], where: str) -> Provenance:
    """Return what the header of a checkpoint says. CheckpointError if it is damaged."""
    try:
        return _read(json.loads(metadata.get(KEY, "{}")), where, CheckpointError)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {where}: its provenance is damaged: it is not JSON") from error


def of_origin(origin: Mapping[str, Any], where: str) -> Provenance:
    """Return what the manifest of an artifact says. FormatError if it is damaged."""
    return _read(origin.get("provenance", {}), where, FormatError)


def _read(raw: Any, where: str, error: type[QuantlabError]) -> Provenance:
    reader = Reader(error=error, refuses_unknown_keys=False, refuses_large_numbers=True, notation=JSON)
    found = reader.read(Provenance, raw, f"{where}: provenance")
    if not 0 <= found.seq_len <= LONGEST:
        raise error(f"{where}: provenance: seq_len must be 0 to {LONGEST}, got {found.seq_len}")
    if found.mode not in ("", "chunked", "sliding", "document"):
        raise error(f"{where}: provenance: mode must be chunked, sliding or document, got {found.mode!r}")
    return found
