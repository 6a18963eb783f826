"""A place that published files lie in: file://, s3:// or any other protocol of fsspec, and hf:// repositories of the hub."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError, first_line

EXTRA = "pip install 'quantlab-llm[share]'"
BLOCK_BYTES = 1 << 20
_URL = re.compile(r"([a-z][a-z0-9+]{0,15})://(\S+)")
_REPOSITORY = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:/(.+))?")
ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
"""Names another server for s3://, as the tools of AWS read it."""


class Place(ABC):
    """Files under one address. Errors of the network and of libraries become one QuantlabError that names the file."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files that lie directly there; an empty list where the place does not exist yet."""

    @abstractmethod
    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file. QuantlabError if it is not there or cannot be read."""

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Write a local file there under a name; an existing one is replaced. QuantlabError if it cannot be written."""

    def read(self, name: str, most: int) -> bytes:
        """Return a small file. QuantlabError as in `blocks`, or if it has more bytes than `most`."""
        found = bytearray()
        for block in self.blocks(name):
            found += block
            if len(found) > most:
                raise QuantlabError(f"{self.url}/{name} has more than {most:,} bytes")
        return bytes(found)

    def _failed(self, name: str, what: str, error: Exception) -> QuantlabError:
        return QuantlabError(f"{self.url}/{name}: cannot be {what}: {first_line(error)}")


def open_place(url: str) -> Place:
    """Return the place that an address names; nothing is read or written yet.

    Raises:
        ConfigError: it is no address, its protocol is unknown, or a package for it is missing.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError(f"{url!r} is no address", hint="hf://user/repo, s3://bucket/folder or file:///folder")
    return HubPlace(url, match[2]) if match[1] == "hf" else FileSystemPlace(url, match[1])


class FileSystemPlace(Place):
    """A folder of a file system that fsspec knows."""

    def __init__(self, url: str, protocol: str) -> None:
        super().__init__(url)
        try:
            import fsspec

            options = {"endpoint_url": os.environ[ENDPOINT_VARIABLE]} if _has_endpoint(protocol) else {}
            self._system, self._folder = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{protocol}:// cannot be used: {first_line(error)}", hint=EXTRA) from error

    def names(self) -> list[str]:
        try:
            self._system.invalidate_cache()
            found = self._system.ls(self._folder, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # each protocol has errors of its own
            raise self._failed("", "listed", error) from error
        return sorted(Path(item["name"]).name for item in found if item["type"] == "file")

    def blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self._system.open(f"{self._folder}/{name}", "rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        except QuantlabError:
            raise
        except Exception as error:
            raise self._failed(name, "read", error) from error

    def put(self, source: Path, name: str) -> None:
        target = f"{self._folder}/{name}"
        try:
            if not target.startswith("/") or self._system.protocol not in ("file", ("file", "local")):
                self._system.put_file(str(source), target)  # object stores: whole or not at all
                return
            self._system.makedirs(self._folder, exist_ok=True)
            self._system.put_file(str(source), f"{self._folder}/.{name}.partial")
            os.replace(f"{self._folder}/.{name}.partial", target)
        except Exception as error:
            raise self._failed(name, "written", error) from error


def _has_endpoint(protocol: str) -> bool:
    return protocol in ("s3", "s3a") and ENDPOINT_VARIABLE in os.environ


class HubPlace(Place):
    """A model repository of the Hugging Face hub, or a folder in it. The token is the one that huggingface_hub finds."""

    def __init__(self, url: str, path: str, api: Any = None) -> None:
        super().__init__(url)
        match = _REPOSITORY.fullmatch(path.rstrip("/"))
        if match is None:
            raise ConfigError(f"{url} is no repository of the hub", hint="hf://user/repo or hf://user/repo/folder")
        self._repository, self._folder = match[1], match[2] or ""
        self._api = api or _hub_api()
        self._is_made = False

    def names(self) -> list[str]:
        try:
            found = self._api.list_repo_files(self._repository)
        except Exception as error:
            if type(error).__name__ in ("RepositoryNotFoundError", "EntryNotFoundError"):
                return []
            raise self._failed("", "listed", error) from error
        prefix = f"{self._folder}/" if self._folder else ""
        inside = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        return sorted(name for name in inside if "/" not in name)

    def blocks(self, name: str) -> Iterator[bytes]:
        try:
            path = self._api.hf_hub_download(self._repository, self._inside(name))
            with open(path, "rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        except Exception as error:
            raise self._failed(name, "read", error) from error

    def put(self, source: Path, name: str) -> None:
        try:
            if not self._is_made:
                self._api.create_repo(self._repository, exist_ok=True)
                self._is_made = True
            self._api.upload_file(path_or_fileobj=str(source), path_in_repo=self._inside(name), repo_id=self._repository)
        except Exception as error:
            raise self._failed(name, "written", error) from error

    def _inside(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name


def _hub_api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("hf:// needs the package huggingface_hub", hint=EXTRA) from error
    return HfApi()
