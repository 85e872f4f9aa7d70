"""Safe files: reads take regular files only, writes appear whole or not at all, and a lock keeps a second writer out.

A file is written without a name until it is complete, where the file system supports that (``O_TMPFILE``); otherwise
under a hidden name beside its target, ``.inrfast-`` and a hash of the target's name. The writer holds a lock on it, and
a lock ends with its process. A hidden file without a lock was left by a killed process; the next writer of the same
target removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

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
def _folder_of(target: Path) -> Iterator[int]:
    """Yield a descriptor of the target's folder, which stays the same folder even if it is renamed."""
    try:
        folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise OSError(error.errno, f"the folder {shown(target.parent)}: {error.strerror}") from error
    try:
        yield folder
    finally:
        os.close(folder)


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
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {shown(path)}") from None
    except OSError as error:
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
                    _reserve(descriptor, size)
                yield descriptor
                _take_over(descriptor, target)
                if durable:
                    os.fsync(descriptor)
                if name is None:
                    name = _given_name(folder, descriptor, target.name)
                os.replace(name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
                name = None
                if durable:
                    _sync(folder)
            finally:
                _let_go(descriptor, name, folder)


def _new_file(folder: int, target: str, mode: int) -> tuple[int, str | None]:
    """Return an open, locked, empty file: without a name, or with a hidden one where the file system needs one."""
    if _names_late(folder, target):
        with suppress(OSError):  # the fallback reports the reason
            return _lock(os.open(".", os.O_TMPFILE | os.O_RDWR, mode, dir_fd=folder)), None
    for slot in itertools.count():
        name = _hidden(target, slot)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        except FileExistsError:
            continue
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        _let_go(descriptor, None, folder)  # another writer removed it before it was locked
    raise AssertionError


def _names_late(folder: int, target: str) -> bool:
    """Return whether files in this folder can be created without a name and linked later; tested once per device."""
    device = os.fstat(folder).st_dev
    if device not in _nameless:
        with suppress(OSError):
            descriptor = _lock(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=folder))
            try:
                os.unlink(_given_name(folder, descriptor, target), dir_fd=folder)
                _nameless.add(device)
            finally:
                _let_go(descriptor, None, folder)
    return device in _nameless


def _given_name(folder: int, descriptor: int, target: str) -> str:
    """Link an unnamed file to a hidden name, and return it: only a rename can replace an existing file."""
    for slot in itertools.count():
        name = _hidden(target, slot)
        try:
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=folder, follow_symlinks=True)
            return name
        except FileExistsError:
            continue
    raise AssertionError


def _reserve(descriptor: int, size: int) -> None:
    """Reserve ``size`` bytes of the disk."""
    try:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            for start in range(0, size, 1 << 20):  # this file system cannot reserve space: write zeros
                os.pwrite(descriptor, bytes(min(1 << 20, size - start)), start)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        at, most = os.fstatvfs(descriptor), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        room = f"{at.f_bavail * at.f_frsize:,} are free"
        if error.errno == errno.EFBIG:
            limited = most != resource.RLIM_INFINITY and most < size
            room = f"a file of this process may have {most:,} (ulimit -f)" if limited else "more than this disk allows"
        raise OSError(error.errno, f"{error.strerror}: it takes {size:,} bytes, {room}") from error


def _take_over(descriptor: int, target: Path) -> None:
    """Set the owner and mode of the new file to those of the one that it replaces."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
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


def _sync(folder: int) -> None:
    with suppress(OSError):  # some file systems cannot sync folders
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        try:
            os.fsync(descriptor)
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
                os.pwrite(descriptor, text, 0)
                os.ftruncate(descriptor, len(text))
        yield


def _sole(folder: int, name: str, work: str) -> int:
    """Return a locked descriptor of the lock file."""
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=folder)
        try:
            _lock(descriptor, wait=False)
            if _is_named(descriptor, folder, name):
                return descriptor
        except BlockingIOError:
            words = os.pread(descriptor, 500, 0).decode(errors="replace").partition(" writes ")[0]
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
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # no locks on this file system
        pass
    _held.add(descriptor)
    return descriptor


def _let_go(descriptor: int, name: str | None, folder: int) -> None:
    """Close a file and remove its hidden name, if it has one; a forked child leaves that to its parent."""
    if descriptor not in _held:
        return
    if name is not None:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
    _held.discard(descriptor)
    os.close(descriptor)


def _is_named(descriptor: int, folder: int, name: str) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove_leftovers(folder: int, target: str) -> None:
    """Remove hidden files of this target that no living process has locked."""
    for slot in range(SLOTS):
        name = _hidden(target, slot)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, folder, name):
                os.unlink(name, dir_fd=folder)
        except OSError:  # a running process holds it, or locks do not work here
            pass
        finally:
            os.close(descriptor)


def _forked() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forked)
