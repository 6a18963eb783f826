"""A shared index of published models: a place with one JSON file a publication, so that many people can write to it at once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantlab.errors import QuantlabError, ReportError
from quantlab.fields import json_object
from quantlab.share.place import Place
from quantlab.share.publication import MOST_MANIFEST_BYTES, Publication, read_publication

PREFIX, SUFFIX = "entry-", ".json"
MOST_ENTRIES = 10_000
COLUMNS = ("bpb", "data", "total_bytes", "budget_bytes", "method", "architecture", "tokenizer", "name", "place")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One published model of an index."""

    place: str
    """Address of its files."""
    publication: Publication

    def row(self) -> dict[str, Any]:
        """Return the columns of the list."""
        about = {key: self.publication.about.get(key) for key in COLUMNS}
        return about | {"name": self.publication.name, "place": self.place}


def entry_name(place: str) -> str:
    """Return the name of an entry, the same for every publication at one address."""
    return f"{PREFIX}{hashlib.sha256(place.encode()).hexdigest()[:16]}{SUFFIX}"


def add_to_index(index: Place, place: str, publication: Publication) -> str:
    """Write or replace the entry of a published model; return its name. QuantlabError if the index cannot be written."""
    name = entry_name(place)
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(json.dumps({"place": place, "publication": json.loads(publication.to_json())}, indent=2) + "\n")
        index.put(file, name)
    return name


def read_index(index: Place) -> tuple[list[IndexEntry], list[str]]:
    """Return the entries of an index, best score first, and a line for each that cannot be read.

    Raises:
        QuantlabError: the index cannot be listed.
    """
    found: list[IndexEntry] = []
    broken: list[str] = []
    names = [name for name in index.names() if name.startswith(PREFIX) and name.endswith(SUFFIX)]
    for name in names[:MOST_ENTRIES]:
        try:
            found.append(_entry(index, name))
        except QuantlabError as error:
            broken.append(str(error))
    return sorted(found, key=_order), broken


def _entry(index: Place, name: str) -> IndexEntry:
    where = f"{index.url}/{name}"
    raw = json_object(index.read(name, MOST_MANIFEST_BYTES), where, ReportError)
    if not isinstance(raw.get("place"), str):
        raise ReportError(f"{where} names no place")
    publication = read_publication(json.dumps(raw.get("publication")).encode(), where)
    return IndexEntry(raw["place"], publication)


def _order(entry: IndexEntry) -> tuple[str, float, str, str]:
    bpb = entry.publication.about.get("bpb")
    score = bpb if isinstance(bpb, int | float) else float("inf")
    return str(entry.publication.about.get("data")), score, entry.publication.name, entry.place


def rows_of(entries: Sequence[IndexEntry]) -> list[dict[str, Any]]:
    """Return the rows of the list."""
    return [entry.row() for entry in entries]
