"""Output of subcommands: text or JSON, and checks before the work that files can be written."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from inrfast.cli.shell import at_work, print_out, say
from inrfast.errors import needs
from inrfast.files import check_writable, shown, target_of
from inrfast.progress import parts_told
from inrfast.system import longest_name

PROBE = ".inrfast-probe"
"""A file name to test whether a folder can be written."""

PART_SECONDS = 5.0
"""Between two lines that say which part of long work begins."""


NEEDED = {
    ".flac": ("audio", ("soundfile",)),
    **dict.fromkeys((".glb", ".obj", ".off", ".ply", ".stl"), ("mesh", ("skimage.measure", "trimesh"))),
}
"""The extra and the libraries of it that write files of a suffix: they are asked for before the work."""


def print_result(arguments: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    """Print what was found, as JSON or as text."""
    # JSON escapes bytes of file names that are not UTF-8; text is escaped as errors are.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    print_out(json.dumps(found, indent=2, allow_nan=False) if arguments.json else text)


def progress(arguments: argparse.Namespace) -> bool | None:
    """Return whether to show progress bars; None shows them on a terminal and in a notebook."""
    return False if arguments.quiet else None


def bar(arguments: argparse.Namespace, what: str, advice: str = "") -> AbstractContextManager[None]:
    """Say what takes long where no progress bar is shown, which is everywhere but on a terminal."""
    return at_work(what, arguments.quiet or (sys.stderr is not None and sys.stderr.isatty()), advice)


def parts(arguments: argparse.Namespace, what: str) -> AbstractContextManager[None]:
    """Say which part of long work begins where no progress bar is shown, at most every :data:`PART_SECONDS`."""
    begun = said = time.monotonic()

    def tell(part: str, number: int, count: int) -> None:
        nonlocal said
        now = time.monotonic()
        if not arguments.quiet and now - said >= PART_SECONDS:
            said = now
            say(f"inrfast: {what}: {part}, part {number} of {count}, after {now - begun:.0f} s")

    return parts_told(tell)


def tell_missing_figures(arguments: argparse.Namespace) -> None:
    """Say before the work that a page will have no figures, where matplotlib is not installed."""
    try:
        found = importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # it was kept from being imported
        found = False
    if not found and not arguments.quiet:
        say("inrfast: matplotlib is not installed: the page will have no figures; pip install 'inrfast[plots]'")


@contextmanager
def reading(arguments: argparse.Namespace, file: Path) -> Iterator[None]:
    """Say that a file is being read, if that takes long, and name the file in errors of the system."""
    try:
        with at_work(f"reading {file}", arguments.quiet):
            yield
    except OSError as error:
        if error.filename is not None or str(file) in str(error) or shown(file) in str(error):
            raise
        raise OSError(f"cannot read {shown(file)}: {error.strerror or error}") from error


def finite(value: float) -> float | None:
    """Return the number, or None for the infinite PSNR of an exact fit, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def check_folder(option: str, folder: Path) -> None:
    """Check before the work that files can be written into a folder, which may not exist yet.

    Raises
    ------
    OSError, ValueError
        It is a file, it cannot be written or made, or no folder can have such a name; the message names the option.
    """
    try:
        check_target(option, folder / PROBE)
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace(f"{os.sep}{PROBE}", "")) from error


def check_target(option: str, path: Path) -> None:
    """Check that a file can be written, in a folder that may not exist yet; errors as :func:`check_folder`."""
    with _told(option):
        target = target_of(path)
        if target.parent.is_dir():
            check_writable(path)
            return
        try:
            there = existing_folder(path)
            check_writable(there / PROBE)
            longest = max(len(os.fsencode(name)) for name in target.relative_to(there).parts)
            if longest > longest_name(there):
                raise OSError(os.strerror(errno.ENAMETOOLONG))
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise OSError(f"cannot write {shown(path)}: {cause.strerror or cause}") from error


def check_file(path: Path, suffixes: Collection[str], named: str, option: str = "--out") -> None:
    """Check that the result can be written there; ``named`` lists the suffixes for the message."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must name a {named} file, got {shown(path)}")
    extra, libraries = NEEDED.get(path.suffix.lower(), ("", ()))
    with needs(extra, f"writing {shown(path)}"):
        for library in libraries:
            importlib.import_module(library)
    check_target(option, path)


def check_apart(written: Iterable[Path], read: Mapping[str, Path], option: str = "--out") -> None:
    """Refuse to write over a file that is read; ``read`` has what each is called."""
    for file in written:
        for what, other in read.items():
            if os.path.realpath(file) == os.path.realpath(other):
                raise ValueError(f"{option} must be another file than {what}, got {file} for both")


def make_folder(*files: Path | None) -> None:
    """Create the folders of files that are about to be written."""
    for file in files:
        if file is not None:
            target_of(file).parent.mkdir(parents=True, exist_ok=True)


def existing_folder(file: Path) -> Path:
    """Return the nearest existing folder above a file."""
    folder = target_of(file).parent
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def _told(option: str) -> Iterator[None]:
    """Name the option in errors about its path."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{option}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
