"""Tokenizers in the files of before tokenizer.json: vocab.json and merges.txt, which transformers makes into one."""

import importlib
import logging
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, DataError, first_line

VOCABULARY, MERGES = "vocab.json", "merges.txt"
MAX_BYTES = 1 << 26
"""Most bytes that each of both files may have: the largest known have about 10 MB."""


def has_vocabulary_files(folder: Path) -> bool:
    """Return whether a folder has both files."""
    return (folder / VOCABULARY).is_file() and (folder / MERGES).is_file()


def tokenizer_json_of(folder: Path) -> bytes:
    """Return the tokenizer.json of a folder that has vocab.json and merges.txt in its place.

    What tokenizer_config.json and special_tokens_map.json say is used; no code of the folder runs, nothing is fetched.

    Raises:
        ConfigError: transformers is not installed.
        DataError: the files are damaged or too large, or transformers makes no such tokenizer of them.
    """
    for name in (VOCABULARY, MERGES):
        if (size := (folder / name).stat().st_size) > MAX_BYTES:
            raise DataError(f"{folder / name} has {size:,} bytes, at most {MAX_BYTES:,} are read")
    try:
        library: Any = importlib.import_module("transformers")
        messages: Any = importlib.import_module("transformers.utils.logging")
    except ImportError as error:
        problem = f"the tokenizer in {folder} is a {VOCABULARY} and a {MERGES}, which transformers reads"
        raise ConfigError(problem, hint="install quantlab-llm[hf]") from error
    level = messages.get_verbosity()
    messages.set_verbosity(logging.CRITICAL)
    try:
        found = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        content: str = found.backend_tokenizer.to_str()
    except Exception as error:  # a damaged file fails in any way: KeyError, ValueError, AttributeError, ...
        problem = f"transformers makes no tokenizer of {VOCABULARY} and {MERGES} in {folder}: {first_line(error)}"
        raise DataError(problem, hint="save it as a tokenizer.json, with save_pretrained of a fast tokenizer") from error
    finally:
        messages.set_verbosity(level)
    return content.encode()
