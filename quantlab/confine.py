"""Confine this process: no network, and no files but those that are named. Linux alone; nothing of it can be undone.

The network goes with a new user and network namespace, the files with Landlock (docs.kernel.org/userspace-api/landlock.html).
Sockets of local services that have a path can still be reached.
"""

import ctypes
import os
import socket
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantlab.errors import QuantlabError

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
PR_SET_NO_NEW_PRIVS = 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of Landlock's system calls, on every architecture."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
"""Rights that a file can have; 14 is truncation, 15 are commands to devices."""
HANDLED = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights on files that each version of Landlock knows; later versions have as many as 5."""
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/opt/cuda")
SYSTEM_FILES = ("/etc/ld.so.cache", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/urandom")
DEVICES = ("/dev/null", "/dev/zero", "/dev/nvidia*")
OWN_PACKAGES = ("quantlab", "calib", "kernels", "trainer")
FORBIDDEN_FILE = Path("/etc/passwd")
"""A file that every system has and that no confined process may read: the proof that Landlock holds."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine(files: Iterable[Path], listed: Iterable[Path], scratch: Path) -> None:
    """Take from this process the network and every file but those that are named, and prove that both are gone.

    The process must have one thread. Python, its packages and the system's libraries stay readable.

    Args:
        files: files and folders that may be read.
        listed: folders whose names may be listed, not read.
        scratch: the folder that may be written; it becomes the place of temporary files and caches.
    Raises:
        QuantlabError: this system does not permit it; nothing is confined by half.
    """
    if sys.platform != "linux":
        raise QuantlabError(f"a sandbox needs Linux, this is {sys.platform}", hint="leave out --sandbox")
    handled = _handled_rights()
    _leave_network()
    _set_caches(scratch)
    read = EXECUTE | READ_FILE | READ_DIR
    rules = [(path, read) for path in (*_system(), *files)] + [(path, READ_DIR) for path in listed]
    devices = [found for pattern in DEVICES for found in sorted(Path("/").glob(pattern.lstrip("/")))]
    rules += [(path, handled) for path in (scratch, *devices)]
    _restrict(handled, rules)
    _prove()


def _handled_rights() -> int:
    version = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        raise _refused("Landlock, which hides files")
    return (1 << HANDLED.get(version, HANDLED[5])) - 1


def _leave_network() -> None:
    """Enter a user namespace, in which the user and the group keep their ids, and a network namespace without an interface."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC):
        raise _refused("user and network namespaces")
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise _refused("user namespaces with this user") from error


def _set_caches(scratch: Path) -> None:
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR")
    os.environ.update(dict.fromkeys(names, str(scratch)))


def _system() -> list[Path]:
    """Return what Python needs: the system's libraries, the interpreter, its packages, and the packages of quantlab."""
    root = Path(__file__).resolve().parents[1]
    known = {Path(place) for place in (*SYSTEM_FOLDERS, *SYSTEM_FILES, sys.prefix, sys.base_prefix)}
    known |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    known |= {Path(sys.executable).resolve().parent, *(root / name for name in OWN_PACKAGES)}
    return sorted(path for path in known if path.exists())


def _restrict(handled: int, rules: Sequence[tuple[Path, int]]) -> None:
    attributes = ctypes.c_uint64(handled)
    ruleset = _libc.syscall(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(8), ctypes.c_uint(0))
    if ruleset < 0:
        raise _refused("Landlock, which hides files")
    for path, rights in rules:
        _allow(int(ruleset), path, rights & handled)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)):
        raise _refused("Landlock, which hides files")
    os.close(int(ruleset))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise QuantlabError(f"the sandbox cannot show {path}: {error.strerror}") from error
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & FILE_RIGHTS, file)
        if _libc.syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint(0)):
            raise QuantlabError(f"the sandbox cannot show {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(file)


def _prove() -> None:
    """Raise QuantlabError if a file that was not named can be read, or an address can be reached."""
    try:
        FORBIDDEN_FILE.read_bytes()
        raise QuantlabError(f"the sandbox does not hold: {FORBIDDEN_FILE} can be read")
    except PermissionError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 53))  # an address of documentation; nothing is sent
        except OSError:
            return
    raise QuantlabError("the sandbox does not hold: there is a network")


def _refused(what: str) -> QuantlabError:
    reason = os.strerror(ctypes.get_errno())
    return QuantlabError(f"a sandbox needs {what}: {reason}", hint="leave out --sandbox, or permit it on this system")
