"""Paths at the door: what a loader can read and a writer can write, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from inrfast.errors import nearest

AUDIO_SUFFIXES = (".flac", ".oga", ".ogg", ".opus", ".rf64", ".wav", ".wave")
VOLUME_SUFFIXES = (".npy", ".npz")
MESH_SUFFIXES = (".glb", ".obj", ".off", ".ply", ".stl")
"""The endings that name a format, but for images, whose formats are Pillow's."""


def as_path(path: Any) -> Path:
    """Return ``path`` as a :class:`pathlib.Path`; anything but a path or a string is a TypeError."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {type(path).__name__}")
    return Path(path)


def readable(path: Any, kind: str, suffixes: Collection[str] | None = None) -> Path:
    """Return the path of an existing file that is not empty.

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
    FileNotFoundError, IsADirectoryError
        No such file; a folder.
    ValueError, TypeError
        The file is empty or has another suffix; ``path`` is no path.
    """
    file = as_path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no file {file}")
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder, not {kind} file")
    if suffixes is not None:
        _check_suffix(file, kind, suffixes)
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty (0 bytes), not {kind}")
    return file


def writable(path: Any, kind: str, suffixes: Collection[str]) -> Path:
    """Return the path of a file that can be written: a known suffix, in an existing folder, and no folder itself.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, IsADirectoryError
        The folder is missing, or no folder; ``path`` is a folder itself.
    ValueError, TypeError
        Another suffix than those; ``path`` is no path.
    """
    target = as_path(path)
    _check_suffix(target, kind, suffixes)
    if not target.parent.is_dir():
        error = NotADirectoryError if target.parent.exists() else FileNotFoundError
        raise error(f"cannot write {target}: {target.parent} is not an existing folder")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    return target


def _check_suffix(path: Path, kind: str, suffixes: Collection[str]) -> None:
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        hint = nearest(suffix, suffixes) if suffix else ""
        raise ValueError(f"path must end in the suffix of {kind} ({', '.join(sorted(suffixes))}), got {path}.{hint}")
