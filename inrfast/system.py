"""Operating systems: what Linux has and others lack, each under one name with the nearest thing that is there.

Each is looked for when it is needed, by its name and not by that of the system. macOS has no files without a name, no
reserved space and no ``O_PATH``; Windows, besides, no descriptors of folders, no ``flock``, no ``SIGHUP``, and neither
renames nor removes an open file.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _found(module: str) -> Any:
    """Return a module of Python's own that not every system has, else None."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


fcntl, msvcrt, resource = _found("fcntl"), _found("msvcrt"), _found("resource")

INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end."""

MOVES_OPEN = os.name != "nt"
"""Whether a file can be renamed and removed while it is open."""

BY_DESCRIPTOR = hasattr(os, "O_DIRECTORY") and {os.open, os.unlink, os.stat, os.rename} <= os.supports_dir_fd
"""Whether a folder can be opened, and files be named from there."""

PLAIN = getattr(os, "O_BINARY", 0)
"""Flag of every file that is opened: bytes are bytes."""

NO_LINK, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""Flags that refuse a symbolic link, and that do not wait for the other end of a pipe."""

LOCKED = 2**30
"""The byte of a file that is locked where locks are of bytes, and nobody else may read what is locked."""

LONGEST_NAME = 255
"""Characters of a file's name at most, where the system does not tell."""

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of :func:`reserve` on a file system that reserves nothing."""


# ---- folders -----------------------------------------------------------------------------------------------------


class Folder:
    """An open folder, whose files are named from there.

    It stays the same folder even if it is renamed, where folders have descriptors.

    Raises
    ------
    OSError
        There is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._at: dict[str, Any] = {}
        if BY_DESCRIPTOR:
            self._at["dir_fd"] = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
        elif not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._at:
            os.close(self._at["dir_fd"])

    def _named(self, name: str) -> str:
        return name if self._at else os.path.join(self.path, name)

    @property
    def device(self) -> int:
        """The device that it is on."""
        return os.stat(self._at.get("dir_fd", self.path)).st_dev

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Return a descriptor of a file."""
        return os.open(self._named(name), flags | PLAIN, mode, **self._at)

    def stat(self, name: str) -> os.stat_result:
        """Return what the system says of a name; a link is not followed."""
        return os.stat(self._named(name), follow_symlinks=False, **self._at)

    def unlink(self, name: str) -> None:
        """Remove a name."""
        os.unlink(self._named(name), **self._at)

    def link(self, descriptor: int, name: str) -> None:
        """Give a name to an open file that has none (Linux)."""
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=self._at["dir_fd"], follow_symlinks=True)

    def replace(self, name: str, new: str) -> None:
        """Rename a file; one that has the new name is replaced, in one step."""
        at = self._at.get("dir_fd")
        os.replace(self._named(name), self._named(new), src_dir_fd=at, dst_dir_fd=at)

    def free(self) -> int:
        """Return the bytes that are free on its disk."""
        return shutil.disk_usage(self.path).free


# ---- files -------------------------------------------------------------------------------------------------------


def lock(descriptor: int, wait: bool = False) -> None:
    """Lock an open file until it is closed, by this process or by its end.

    Raises
    ------
    BlockingIOError
        Another has locked it, and waiting was not asked for.
    OSError
        This file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    if msvcrt is None:
        raise OSError(errno.ENOSYS, "this system has no locks")
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, LOCKED, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(errno.EAGAIN, "another process has locked it") from error
        raise
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


_moving = threading.Lock()


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """Return up to so many bytes of a file from a place on."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, place)
    return bytes(_at(descriptor, place, lambda: os.read(descriptor, size)))


def write_at(descriptor: int, data: bytes | memoryview, place: int) -> int:
    """Write bytes to a file from a place on, and return how many it took."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    return int(_at(descriptor, place, lambda: os.write(descriptor, data)))


def _at(descriptor: int, place: int, act: Callable[[], Any]) -> Any:
    """Read or write elsewhere in a file, whose place is then as it was."""
    with _moving:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            os.lseek(descriptor, place, os.SEEK_SET)
            return act()
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)


def reserve(descriptor: int, size: int) -> None:
    """Reserve the first ``size`` bytes of a file on the disk; what it holds stays.

    Raises
    ------
    OSError
        Of a number of :data:`UNSUPPORTED`: this system or file system reserves nothing. Others: there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    os.posix_fallocate(descriptor, 0, size)


def sync(descriptor: int, data: bool = False) -> None:
    """Wait until a file is on the disk; ``data``: what it holds and its size are enough."""
    through = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync does not wait for the cache of the disk
    if through is not None:
        try:
            fcntl.fcntl(descriptor, through)
            return
        except OSError:  # a file system that has no such request
            pass
    if data and hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def largest_file() -> int | None:
    """Return the bytes that a file of this process may have, None if there is no limit."""
    return _limit("RLIMIT_FSIZE")


def longest_name(folder: Path) -> int:
    """Return how many bytes a name in a folder may have."""
    return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else LONGEST_NAME


# ---- processes ---------------------------------------------------------------------------------------------------


def address_space() -> int | None:
    """Return the bytes of memory that this process may map (``ulimit -v``), None if there is no limit."""
    return _limit("RLIMIT_AS")


def _limit(name: str) -> int | None:
    if resource is None:
        return None
    most = resource.getrlimit(getattr(resource, name))[0]
    return None if most == resource.RLIM_INFINITY else int(most)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """Return how many processes wanted a core, on average over the last minute; 0 where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def after_fork(act: Callable[[], object]) -> None:
    """Call ``act`` in every child of a fork, where there are forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)
