"""The tokenizer of a model where none is given: the one that it carries, or the one beside its file."""

import logging
from pathlib import Path

from quantlab.errors import ConfigError, DataError
from quantlab.models.loading import LoadedModel, Source, file_of, load_tokenizer, own_tokenizer
from quantlab.text.huggingface_vocabulary import FILE_NAME as HUGGINGFACE_FILE
from quantlab.text.tokenizer import Tokenizer, tokenizer_file

TOKENIZER_NAME = "tokenizer.model"
_log = logging.getLogger(__name__)


def found_tokenizer(target: Source, loaded: LoadedModel, *, say: bool = True) -> Tokenizer:
    """Return the tokenizer that the target carries, or else the one beside it, and log which.

    Raises:
        ConfigError: there is none.
        DataError: it cannot be used; see `load_tokenizer`.
    """
    own = own_tokenizer(loaded)
    if own is not None and say:
        _log.info("tokenizer %s", own.name)
    return own or load_tokenizer(tokenizer_beside(target, say=say), loaded)


def usable_tokenizer(loaded: LoadedModel) -> Tokenizer | None:
    """Return the model's own tokenizer; None, with a line that says why, where scores in bits per byte cannot use it."""
    try:
        return own_tokenizer(loaded)
    except (ConfigError, DataError) as error:
        _log.warning("the model's own tokenizer cannot score it, bits per byte need another: %s", error)
        return None


def tokenizer_beside(target: Source, *, say: bool = True) -> Path:
    """Return the file tokenizer.model or tokenizer.json in the target's folder, and log it. ConfigError if there is none."""
    place = file_of(target)
    if place is None:
        raise ConfigError("no tokenizer: a module in memory has no file beside it", hint="pass tokenizer=FILE.model")
    folder = place if place.is_dir() else place.parent
    path = tokenizer_file(folder)
    if path is None:
        missing = f"{folder / TOKENIZER_NAME} does not exist, nor {HUGGINGFACE_FILE} there"
        raise ConfigError(f"no tokenizer: none was given and {missing}", hint="name the tokenizer's file")
    if say:
        _log.info("tokenizer %s", path)
    return path
