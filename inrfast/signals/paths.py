"""Checks of paths before anything is opened: whether a loader can read a file, and a writer can write it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from inrfast.errors import nearest
from inrfast.files import opened, shown, target_of


def as_path(path: Any) -> Path:
    """Return ``path`` as a :class:`pathlib.Path`; anything but a path or a string is a TypeError."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {type(path).__name__}")
    return Path(path)


def readable(path: Any, kind: str, suffixes: Collection[str] | None = None) -> Path:
    """Return the path of an existing file that is not empty: a file, or a link to one, but no pipe and no device.

    Parameters
    ----------
    path
        What the caller was given.
    kind
        What the file should be, with its article, for the messages: ``"an image"``.
    suffixes
        In lower case, those that are accepted; None leaves the format to the file's content.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, OSError
        No such file; a folder; a named pipe, a socket, a device; a file that may not be read.
    ValueError, TypeError
        The file is empty or has another suffix; ``path`` is no path, or a name that no file can have.
    """
    file = as_path(path)
    with opened(file, f"{kind} file") as content:
        if suffixes is not None:
            _check_suffix(file, kind, suffixes)
        if os.fstat(content.fileno()).st_size == 0:
            raise ValueError(f"{shown(file)} is empty (0 bytes), not {kind}")
    return file


def writable(path: Any, kind: str, suffixes: Collection[str]) -> Path:
    """Return the path of a file that can be written: a known suffix, an existing folder, no folder or device of that
    name.

    Of a symbolic link its target counts, whether it exists or not.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, IsADirectoryError, OSError
        The folder is missing, or no folder; ``path`` is a folder itself, a named pipe, a socket, a device, too long.
    ValueError, TypeError
        Another suffix than those; ``path`` is no path, or a name that no file can have.
    """
    target = as_path(path)
    _check_suffix(target, kind, suffixes)
    folder = target_of(target).parent
    if not folder.is_dir():
        error = NotADirectoryError if folder.exists() else FileNotFoundError
        raise error(f"cannot write {shown(target)}: {shown(folder)} is not an existing folder")
    return target


def _check_suffix(path: Path, kind: str, suffixes: Collection[str]) -> None:
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        hint = nearest(suffix, suffixes) if suffix else ""
        known = ", ".join(sorted(suffixes))
        raise ValueError(f"path must end in the suffix of {kind} ({known}), got {shown(path)}.{hint}")
