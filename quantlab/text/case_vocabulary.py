"""SentencePiece models for text with case operators (CaseOps): they encode and decode the operators by themselves."""

from itertools import pairwise
from typing import Any

import numpy as np
import sentencepiece

from quantlab.text.case_operators import OPERATORS, decode_case, encode_case, original_bytes
from quantlab.text.sentencepiece_vocabulary import SPACE, SentencePieceVocabulary
from quantlab.text.vocabulary import runs_of


class CaseVocabulary(SentencePieceVocabulary):
    """A SentencePiece model with a piece for each operator; see `quantlab.text.vocabulary.Vocabulary` for the fields.

    Text that the model's own normalization changes still has the counts of the bytes that it had before.
    """

    kind = "caseops"

    def __init__(self, model_bytes: bytes, *, name: str) -> None:
        """Load a model; DataError as for `SentencePieceVocabulary`."""
        super().__init__(model_bytes, name=name)
        self.operator_ids = tuple(self.processor.piece_to_id(operator) for operator in OPERATORS)

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of raw bytes, with operators."""
        return super().encode(_with_operators(data))

    def encode_counted(self, data: bytes) -> tuple[list[int], list[int]]:
        """Return the ids of raw bytes, and how many of these bytes each stands for; the counts add up to all of them.

        Raises:
            DataError: as in `encode`.
        """
        ids: list[int] = []
        counts: list[int] = []
        waiting = offset = 0  # bytes of spaces that the normalization removed, with no token before them
        for text, raw, is_raw in runs_of(_with_operators(data), SPACE):
            if is_raw:
                ids += self._encode_raw(raw, offset)
                counts += [1] * len(raw)
            else:
                found, ends = ids_and_ends(self.processor, text)
                sizes = np.concatenate(([0], np.cumsum(original_bytes(text))))
                marks = [0, *ends[:-1], len(text)] if ends else []
                ids += found
                counts += [int(sizes[b] - sizes[a]) for a, b in pairwise(marks)]
                waiting += 0 if ends else int(sizes[-1])
            offset += len(raw)
        if waiting and counts:
            counts[-1] += waiting
        return ids, counts

    def restore(self, data: bytes) -> bytes:
        """Return the text of the pieces' bytes: operators become capitals."""
        text = data.decode("utf-8", "surrogateescape")
        return decode_case(text).encode("utf-8", "surrogateescape")


def has_operators(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Return whether a SentencePiece model has a piece for each of the four operators."""
    return all(processor.id_to_piece(processor.piece_to_id(operator)) == operator for operator in OPERATORS)


def ids_and_ends(processor: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the ids of a text, and the character of the text, before normalization, after which each ends."""
    if hasattr(processor, "encode_as_offset_mapping"):  # from SentencePiece 0.2.2 on
        found = processor.encode_as_offset_mapping(text)
        return list(found["ids"]), [end for _, end in found["offsets"]]
    pieces = processor.encode(text, out_type="immutable_proto").pieces
    return [piece.id for piece in pieces], [piece.end for piece in pieces]


def _with_operators(data: bytes) -> bytes:
    return encode_case(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
