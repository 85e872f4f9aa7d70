"""Mistakes told before any library is imported: a file that is not there, a library for its kind."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from inrfast.cli.shell import UsageError
from inrfast.files import opened, shown

READERS: Mapping[str, str] = {
    "fit": "a signal file",
    "choose": "a signal file",
    "render": "a model file",
    "inpaint": "an image file",
    "upscale": "an image file",
}
"""Subcommands whose first argument is a file that they read, and what it is."""

NEEDED: Mapping[str, tuple[str, str, str]] = {
    **dict.fromkeys((".off", ".obj", ".stl", ".glb"), ("trimesh", "trimesh", "mesh")),
    **dict.fromkeys((".mkv", ".mov", ".mp4", ".webm"), ("av", "PyAV", "video")),
    ".flac": ("soundfile", "soundfile", "audio"),
}
"""The module that reads files of a suffix, the name of its library, and the extra that brings it."""


def check_early(words: Sequence[str]) -> None:
    """Refuse a command line whose file, where it stands first, is missing or needs a library that is.

    Raises
    ------
    OSError, ValueError
        The file is not there, or no file has such a name.
    UsageError
        The library is not installed.
    """
    if len(words) < 2 or words[0] not in READERS or words[1].startswith("-") or {"-h", "--help"} & {*words}:
        return
    file = Path(words[1])
    if not os.path.exists(file):
        with opened(file, READERS[words[0]]):
            return
    module, library, extra = NEEDED.get(file.suffix.lower(), ("os", "", ""))
    if file.is_file() and not _installed(module):
        raise UsageError(f"reading {shown(file)} needs {library}: pip install 'inrfast[{extra}]'")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was kept from being imported
        return False
