"""Files of a tokenizer that travel with a model: found in a folder, carried by an artifact, and made a tokenizer again.

They are data of others: names are a closed set, sizes are bounded, and what is in them is checked where it is used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from quantlab.artifact.manifest import FILE_NAMES, MAX_FILE_BYTES
from quantlab.errors import DataError
from quantlab.fields import json_object
from quantlab.text.huggingface_vocabulary import CONFIG_NAME, special_tokens_of
from quantlab.text.huggingface_vocabulary import FILE_NAME as HUGGINGFACE_FILE
from quantlab.text.tokenizer import FILE_NAMES as MAIN_NAMES
from quantlab.text.tokenizer import Tokenizer
from quantlab.text.vocabulary_files import has_vocabulary_files, tokenizer_json_of

SENTENCEPIECE_FILE = "tokenizer.model"


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the tokenizer in a folder, by name; none where there is no tokenizer.

    A vocab.json and merges.txt become a tokenizer.json.

    Raises:
        DataError: a file cannot be read, or they have more bytes than an artifact may carry.
        ConfigError: transformers, which reads vocab.json, is not installed.
    """
    found = [folder / name for name in FILE_NAMES if (folder / name).is_file()]
    made = {}
    if not any(path.name in MAIN_NAMES for path in found):
        if not has_vocabulary_files(folder):
            return {}
        made = {HUGGINGFACE_FILE: tokenizer_json_of(folder)}
    try:
        if (total := sum(path.stat().st_size for path in found) + sum(map(len, made.values()))) > MAX_FILE_BYTES:
            raise DataError(f"the tokenizer in {folder} has {total:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        files = made | {path.name: path.read_bytes() for path in found}
    except OSError as error:
        raise DataError(f"cannot read the tokenizer in {folder}: {error.strerror or error}") from error
    return {name: content for name, content in files.items() if content}


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return files from which `tokenizer_in` makes this tokenizer again, by name."""
    name = SENTENCEPIECE_FILE if tokenizer.kind in ("sentencepiece", "caseops") else HUGGINGFACE_FILE
    special = {f"{key}_token": text for key, text in sorted(tokenizer.special_tokens.items()) if text}
    config = {CONFIG_NAME: json.dumps(special).encode()} if special else {}
    return {name: tokenizer.model_bytes, **config}


def tokenizer_in(files: Mapping[str, bytes], place: str, sha256: str = "") -> Tokenizer | None:
    """Return the tokenizer in these files; None if there is none.

    Args:
        place: folder or artifact that has the files, for errors.
        sha256: first hex digits of the wanted file's hash; without them tokenizer.model is preferred to tokenizer.json.
    Raises:
        ConfigError: the package that reads this kind is not installed.
        DataError: a file is damaged, or the bytes of its tokens cannot be counted exactly.
    """
    found = [name for name in MAIN_NAMES if name in files]
    matching = [name for name in found if sha256 and hashlib.sha256(files[name]).hexdigest().startswith(sha256)]
    if not found:
        return None
    main = next(iter(matching or found))
    bos, eos = "", ""
    if main == HUGGINGFACE_FILE and CONFIG_NAME in files:
        bos, eos = special_tokens_of(json_object(files[CONFIG_NAME], f"{CONFIG_NAME} of {place}", DataError))
    return Tokenizer(files[main], name=f"{main} of {place}", bos=bos, eos=eos)
