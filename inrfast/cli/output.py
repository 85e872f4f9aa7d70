"""What subcommands share on the way out: text or JSON, and files that can be written before the work begins."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from inrfast.cli.shell import print_out


def print_result(arguments: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    """Print what was found, as JSON or as text."""
    print_out(json.dumps(found, indent=2, allow_nan=False) if arguments.json else text)


def progress(arguments: argparse.Namespace) -> bool | None:
    """Return whether to show progress bars: None leaves it to the terminal."""
    return False if arguments.quiet else None


def finite(value: float) -> float | None:
    """Return the number, or None for the infinite PSNR of an exact fit, which JSON lacks."""
    return value if math.isfinite(value) else None


def check_folder(folder: Path) -> None:
    """Make the folder and write a nameless file into it: what would fail after the work fails before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        raise OSError(f"--out: cannot write into the folder {folder}: {error.strerror or error}") from error


def check_file(path: Path, suffixes: Collection[str], named: str) -> None:
    """Check that a file can be written there; ``named`` lists the suffixes for the message."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out must name a {named} file, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"--out: {path} is a folder")
    check_folder(path.parent)
