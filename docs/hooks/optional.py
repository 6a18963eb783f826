"""Pages that the navigation may name before they are written."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take pages that `extra.optional_pages` names, and that do not exist, out of the navigation, and sections left empty."""
    missing = {page for page in config.extra.get("optional_pages", ()) if not _exists(config, page)}
    config.nav = [kept for entry in config.nav or [] if (kept := _without(entry, missing))]
    return config


def _exists(config: MkDocsConfig, page: str) -> bool:
    return (Path(config.docs_dir) / page).is_file()


def _without(entry: Any, missing: set[str]) -> Any:
    """The entry, or something empty where nothing is left of it."""
    if isinstance(entry, str):
        return "" if entry in missing else entry
    if isinstance(entry, list):
        return [kept for inner in entry if (kept := _without(inner, missing))]
    return {title: kept for title, inner in entry.items() if (kept := _without(inner, missing))}
