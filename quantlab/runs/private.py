"""Keep out of run records what names a person or a machine: paths, user and host names, and words that look like secrets."""

import getpass
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_CUDA = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG")
_TORCH = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_MAX_AUTOTUNE", "PYTORCH_CUDA_ALLOC_CONF")
_NCCL = ("NCCL_ALGO", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_P2P_DISABLE", "NCCL_PROTO")
_OTHERS = (
    "TRITON_INTERPRET",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "PYTHONHASHSEED",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)
ALLOWED = frozenset((*_THREADS, *_CUDA, *_TORCH, *_NCCL, *_OTHERS))
"""The variables that a record may have: they change what a run computes or how fast, and hold neither names nor paths."""
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.,:=+-]{0,120}")
"""A variable with any other value is left out."""
COMMON_NAMES = frozenset({"root", "user", "ubuntu", "admin", "runner", "localhost", "test", "data", "home", "tmp", "main"})
"""Names of users and hosts that name nobody and are words of their own."""
HIDDEN = "..."
_WORDS = r"(?:secret|token(?!s|iz)|passw|credential|api[_-]?key|auth(?!or))"
_SECRETS = (
    (re.compile(r"(\w+://)[^/\s@]+@"), rf"\1{HIDDEN}@"),  # user and password of an address
    (re.compile(r"(\w+://[^\s?#]+)[?#]\S+"), rf"\1?{HIDDEN}"),  # the signature of one
    (re.compile(rf"(?i)([\w.-]*{_WORDS}[\w.-]*\s*=\s*)[^\s,;]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|sk-|xox[abp]-|AKIA|glpat-)[A-Za-z0-9_-]{8,}"), HIDDEN),
)
_SECRET_OPTION = re.compile(rf"(?i)--?[\w-]*{_WORDS}[\w-]*")
_ABSOLUTE = re.compile(r"(?<![\w.~/])/(?!/)[^\s'\"(),;:]+")
"""A path that begins at the root, as a word of its own or after a kind, as in `tokens:/data/*.bin`."""


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a record keeps."""
    return {
        name: environment[name] for name in sorted(ALLOWED & environment.keys()) if PLAIN_VALUE.fullmatch(environment[name])
    }


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Takes private words out of texts.

    Paths in the home begin with ~, other absolute ones become relative to the working directory.
    """

    directory: str
    """The working directory."""
    home: str
    names: tuple[str, ...]
    """Names of the user and the host."""

    def text(self, text: str) -> str:
        """Return a text without private words."""
        text = _ABSOLUTE.sub(lambda match: self._path(match[0]), text)
        for pattern, instead in _SECRETS:
            text = pattern.sub(instead, text)
        for name in self.names:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "NAME", text, flags=re.IGNORECASE)
        return text

    def _path(self, path: str) -> str:
        inside = os.path.relpath(path, self.directory)
        if not inside.startswith(".."):
            return inside
        is_home = len(self.home) > 1 and (path == self.home or path.startswith(self.home + "/"))
        return f"~{path[len(self.home) :]}" if is_home else inside

    def value(self, value: Any) -> Any:
        """Return JSON values with every string cleaned, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value

    def command(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """Return a command line; what follows an option whose name suggests a secret is hidden too."""
        after = zip(("", *arguments), arguments, strict=False)
        return tuple(HIDDEN if _SECRET_OPTION.fullmatch(before) else self.text(word) for before, word in after)


def cleaner() -> Cleaner:
    """Return the cleaner for this process: its working directory, home, user and host."""
    names = {_known(getpass.getuser), *socket.gethostname().split(".")[:1], Path(os.path.expanduser("~")).name}
    told = sorted(name for name in names if len(name) > 2 and name.lower() not in COMMON_NAMES)
    return Cleaner(str(Path.cwd()), os.path.expanduser("~").rstrip("/"), tuple(told))


def _known(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (OSError, KeyError):  # a user id without a name
        return ""
