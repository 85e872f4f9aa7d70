"""Safe files: reads take regular files only, writes appear whole or not at all, and a lock keeps a second writer out.

A file is written without a name until it is complete, where the file system supports that (Linux, ``O_TMPFILE``);
otherwise under a hidden name beside its target, ``.inrfast-`` and a hash of the target's name. The writer holds a lock
on it, and a lock ends with its process. A hidden file without a lock was left by a killed process; the next writer of
the same target removes it. What other systems lack is in :mod:`inrfast.system`.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from inrfast import system
from inrfast.system import NO_LINK, NO_WAIT, Folder

SLOTS = 8
"""Hidden names per target that are searched for leftovers: more writers of one target at a time are not expected."""

KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFLNK: "link to itself",
}

CLOSED = -1
"""In place of the descriptor of a file that is closed."""

LEFT_SECONDS = 60
"""How long a hidden file has been left alone before it is removed, where a lock does not tell that it is in use."""

_held: set[int] = set()
"""Descriptors that this process has locked. A forked child closes them, so that it does not keep the locks."""

_nameless: set[int] = set()
"""Devices known to support files that get their name after they were written."""


# ---- names -------------------------------------------------------------------------------------------------------


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as one printable line, whatever bytes it contains."""
    text = os.fspath(path).encode("utf-8", "surrogateescape" if _possible(path) else "surrogatepass")
    return "".join(s if s.isprintable() else ascii(s)[1:-1] for s in text.decode("utf-8", "backslashreplace"))


def _possible(path: str | os.PathLike[str]) -> bool:
    """Return whether a file can have this name."""
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return bool(name) and b"\0" not in name


def _check_name(path: str | os.PathLike[str]) -> None:
    if not _possible(path):
        raise ValueError(f"no file can have the name {shown(path)!r}")


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return the file that is written for this path: all symbolic links are followed, the last one too.

    Raises
    ------
    OSError
        Something else has the name (a folder, a named pipe, a device), or the name is too long.
    ValueError
        No file can have such a name.
    """
    with writing_told(path):
        return _target_of(path)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return :func:`target_of` a path if it can be written, so that errors come before the work.

    Raises
    ------
    OSError, ValueError
        As :func:`whole_file`, except for a disk that fills up later.
    """
    with writing_told(path):
        target = _target_of(path)
        with _folder_of(target) as folder:
            _let_go(*_new_file(folder, target.name, 0o600), folder)
        return target


def _target_of(path: str | os.PathLike[str]) -> Path:
    _check_name(path)
    target = Path(os.path.realpath(path))
    try:
        kind = stat.S_IFMT(os.lstat(target).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return target
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is a {KINDS.get(kind, 'special file')}, not a file")
    return target


@contextmanager
def writing_told(path: str | os.PathLike[str], action: str = "write") -> Iterator[None]:
    """Raise errors of this block as one sentence that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise _error(error.errno, f"cannot {action} {shown(path)}: {error.strerror or error}") from error


def _error(number: int | None, words: str) -> OSError:
    """Return the OSError subclass for this errno (``FileNotFoundError``, ...) that prints as these words alone."""
    error = type(OSError(number, words))(words)
    error.errno = number
    return error


def _hidden(name: str, what: object) -> str:
    """Return a hidden name that belongs to a target: a hash, since the target's name may have the greatest length."""
    return f".inrfast-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}-{what}"


@contextmanager
def _folder_of(target: Path) -> Iterator[Folder]:
    """Yield the target's folder."""
    try:
        folder = Folder(target.parent)
    except OSError as error:
        raise OSError(error.errno, f"the folder {shown(target.parent)}: {error.strerror}") from error
    with folder:
        yield folder


# ---- reading -----------------------------------------------------------------------------------------------------


def opened(path: str | os.PathLike[str], kind: str = "a file") -> IO[bytes]:
    """Open a regular file for reading. Named pipes would wait for a writer and devices never end: both are refused.

    Parameters
    ----------
    path
        Of the file, or a link to it; any bytes that a name can hold.
    kind
        What it should be, with its article, for the messages: ``"an image"``.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError
        There is no such file, it is something else, or it may not be read.
    ValueError
        No file can have such a name.
    """
    _check_name(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT | system.PLAIN)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {shown(path)}") from None
    except OSError as error:
        if os.path.isdir(path):  # Windows does not open folders
            raise IsADirectoryError(f"{shown(path)} is a folder, not {kind}") from error
        if error.errno == errno.ENXIO:  # what opening a socket gives
            raise OSError(f"{shown(path)} is a socket, not {kind}") from error
        raise _error(error.errno, f"cannot read {shown(path)}: {error.strerror}") from error
    try:
        what = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if what == stat.S_IFDIR:
            raise IsADirectoryError(f"{shown(path)} is a folder, not {kind}")
        if what != stat.S_IFREG:
            raise OSError(f"{shown(path)} is a {KINDS.get(what, 'special file')}, not {kind}")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


# ---- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: str | os.PathLike[str], *, size: int | None = None, durable: bool = False) -> Iterator[IO[bytes]]:
    """Yield a new file, open for writing and reading, that becomes ``path`` at the end of the block.

    It is removed if the block fails. A replaced file hands on its mode, and its owner where that is allowed. A symbolic
    link stays; the file that it names is replaced.

    Parameters
    ----------
    path
        The final name.
    size
        Bytes to reserve before anything is written: the file then has this length from the start, and writing within it
        cannot fail, through a memory map either.
    durable
        Whether to wait until the data are on the disk (fsync).

    Raises
    ------
    OSError
        The folder is missing or read-only, the disk is full, the name is too long or that of a folder, pipe or device;
        what was there before is as it was, and nothing is left behind.
    """
    with _becoming(path, size, durable) as descriptor, open(descriptor, "w+b", closefd=False) as file:
        yield file


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` as :func:`whole_file` does."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def _becoming(path: str | os.PathLike[str], size: int | None, durable: bool) -> Iterator[int]:
    """Yield the descriptor of a new file that becomes ``path``."""
    with writing_told(path):
        target = _target_of(path)
        with _folder_of(target) as folder:
            _remove_leftovers(folder, target.name)
            # The mode of the replaced file is only read at the end, and may be narrower than a new file's.
            descriptor, name = _new_file(folder, target.name, 0o600 if target.exists() else 0o666)
            try:
                if size:
                    _reserve(descriptor, size, folder)
                yield descriptor
                _take_over(descriptor, target)
                if durable:
                    system.sync(descriptor)
                if name is None:
                    name = _given_name(folder, descriptor, target.name)
                if not system.MOVES_OPEN:
                    _close(descriptor)
                    descriptor = CLOSED
                folder.replace(name, target.name)
                name = None
                if durable:
                    _sync(folder)
            finally:
                _let_go(descriptor, name, folder)


def _new_file(folder: Folder, target: str, mode: int) -> tuple[int, str | None]:
    """Return an open, locked, empty file: without a name, or with a hidden one where the file system needs one."""
    if _names_late(folder, target):
        with suppress(OSError):  # the fallback reports the reason
            return _lock(folder.open(".", os.O_TMPFILE | os.O_RDWR, mode)), None
    for slot in itertools.count():
        name = _hidden(target, slot)
        try:
            descriptor = folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        _let_go(descriptor, None, folder)  # another writer removed it before it was locked
    raise AssertionError


def _names_late(folder: Folder, target: str) -> bool:
    """Return whether files in this folder can be created without a name and linked later; tested once per device."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    device = folder.device
    if device not in _nameless:
        with suppress(OSError):
            descriptor = _lock(folder.open(".", os.O_TMPFILE | os.O_RDWR, 0o600))
            try:
                folder.unlink(_given_name(folder, descriptor, target))
                _nameless.add(device)
            finally:
                _let_go(descriptor, None, folder)
    return device in _nameless


def _given_name(folder: Folder, descriptor: int, target: str) -> str:
    """Link an unnamed file to a hidden name, and return it: only a rename can replace an existing file."""
    for slot in itertools.count():
        name = _hidden(target, slot)
        try:
            folder.link(descriptor, name)
            return name
        except FileExistsError:
            continue
    raise AssertionError


def _reserve(descriptor: int, size: int, folder: Folder) -> None:
    """Reserve ``size`` bytes of the disk."""
    try:
        try:
            system.reserve(descriptor, size)
        except OSError as error:
            if error.errno not in system.UNSUPPORTED:
                raise
            for start in range(0, size, 1 << 20):  # this file system cannot reserve space: write zeros
                system.write_at(descriptor, bytes(min(1 << 20, size - start)), start)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        most = system.largest_file()
        room = f"{folder.free():,} are free"
        if error.errno == errno.EFBIG:
            limited = most is not None and most < size
            room = f"a file of this process may have {most:,} (ulimit -f)" if limited else "more than this disk allows"
        raise OSError(error.errno, f"{error.strerror}: it takes {size:,} bytes, {room}") from error


def _take_over(descriptor: int, target: Path) -> None:
    """Set the owner and mode of the new file to those of the one that it replaces."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        return
    if not hasattr(os, "fchown"):  # Windows: a file has the rights of its folder
        return
    mode, new = stat.S_IMODE(old.st_mode) & 0o777, os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except OSError:
            try:
                os.fchown(descriptor, -1, old.st_gid)
            except OSError:  # the group bits were meant for another group: leave what everybody may do
                mode = mode & ~0o070 | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)


def _sync(folder: Folder) -> None:
    with suppress(OSError):  # some systems cannot sync folders
        descriptor = folder.open(".", os.O_RDONLY)
        try:
            system.sync(descriptor)
        finally:
            os.close(descriptor)


# ---- locks -------------------------------------------------------------------------------------------------------


@contextmanager
def sole_writer(path: str | os.PathLike[str], work: str = "fit") -> Iterator[None]:
    """Hold the only right to write ``path`` for the block; remove what killed writers have left.

    ``work`` is what writes it, for the message of a second writer.

    The lock (``flock``) is on a hidden file beside the target, which is removed at the end. If the process is killed,
    the lock ends with it, and the next writer takes over the file. On file systems without locks nobody is refused.

    Raises
    ------
    BlockingIOError
        Another writer, in this process or in one that the message names, has the file.
    OSError, ValueError
        As :func:`whole_file`.
    """
    with writing_told(path):
        target = _target_of(path)
    name = _hidden(target.name, "lock")
    with ExitStack() as stack:
        with writing_told(path):
            folder = stack.enter_context(_folder_of(target))
            descriptor = _sole(folder, name, work)
            stack.callback(_let_go, descriptor, name, folder)
            _remove_leftovers(folder, target.name)
            with suppress(OSError):  # for the error of a second writer, and for who finds the file after a crash
                text = f"process {os.getpid()} on {socket.gethostname()} writes {shown(target.name)}\n".encode()
                system.write_at(descriptor, text, 0)
                os.ftruncate(descriptor, len(text))
        yield


def _sole(folder: Folder, name: str, work: str) -> int:
    """Return a locked descriptor of the lock file."""
    while True:
        descriptor = folder.open(name, os.O_RDWR | os.O_CREAT | NO_LINK | NO_WAIT)
        try:
            _lock(descriptor, wait=False)
            if _is_named(descriptor, folder, name):
                return descriptor
        except BlockingIOError:
            words = system.read_at(descriptor, 500, 0).decode(errors="replace").partition(" writes ")[0]
            mine = words.startswith(f"process {os.getpid()} on {socket.gethostname()}")
            who = f"another {work} of this process" if mine else words or "another process"
            os.close(descriptor)
            raise BlockingIOError(errno.EAGAIN, f"{who} is writing it; give each its own file") from None
        _let_go(descriptor, None, folder)  # its last owner removed it just now


def _lock(descriptor: int, wait: bool = True) -> int:
    """Lock an open file for as long as this process has it open, and return it.

    Raises
    ------
    BlockingIOError
        It is locked by another, and waiting was not asked for.
    """
    try:
        system.lock(descriptor, wait)
    except BlockingIOError:
        raise
    except OSError:  # no locks on this file system
        pass
    _held.add(descriptor)
    return descriptor


def _let_go(descriptor: int, name: str | None, folder: Folder) -> None:
    """Close a file and remove its hidden name, if it has one; a forked child leaves that to its parent."""
    if not system.MOVES_OPEN:
        _close(descriptor)
    elif descriptor not in _held:
        return
    if name is not None:
        with suppress(OSError):
            folder.unlink(name)
    _close(descriptor)


def _close(descriptor: int) -> None:
    """Close a file that this process has locked, unless it is closed already."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _is_named(descriptor: int, folder: Folder, name: str) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat(name))
    except FileNotFoundError:
        return False


def _remove_leftovers(folder: Folder, target: str) -> None:
    """Remove hidden files of this target that no living process has locked."""
    for slot in range(SLOTS):
        name = _hidden(target, slot)
        try:
            descriptor = folder.open(name, os.O_RDWR | NO_LINK | NO_WAIT)
        except OSError:
            continue
        try:
            system.lock(descriptor)
            left = _is_named(descriptor, folder, name)
            if system.MOVES_OPEN:
                if left:
                    folder.unlink(name)
            else:  # a writer closes its file before it renames it
                left = left and time.time() - os.fstat(descriptor).st_mtime > LEFT_SECONDS
        except OSError:  # a running process holds it, or locks do not work here
            left = False
        finally:
            os.close(descriptor)
        if left and not system.MOVES_OPEN:
            with suppress(OSError):
                folder.unlink(name)


def _forked() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


system.after_fork(_forked)
