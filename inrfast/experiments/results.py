"""The folder of a reproduction: cells that are done, finished figures, and a report; nothing is half-written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inrfast import plots
from inrfast.experiments import page
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Paper, Request
from inrfast.files import check_writable, shown, sole_writer, write_whole

SCHEMA = "inrfast.reproduction/1"
SETTINGS, REPORT, CHECKSUM, SHARED = "settings.json", "report.html", "checksum", "shared"


class OtherSettingsError(ValueError):
    """A folder, or a cell in it, holds results of other settings."""


class Results:
    """Results of one paper in a folder of its own.

    ``settings.json`` says what was asked for; ``<figure>/cells/<cell>.json`` and ``.npz`` hold what each cell found,
    ``shared/cells`` those that several figures have;
    ``<figure>/`` the finished figure as JSON, Markdown and pictures; ``report.html`` all finished figures.
    """

    def __init__(self, folder: Path, paper: Paper, request: Request) -> None:
        self.folder, self.paper, self.request = folder, paper, request

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the only right to write the folder, after a check that it is new or of the same settings.

        One with settings and no result, as a call leaves that failed at its inputs, is as good as new.

        Raises
        ------
        OtherSettingsError
            The folder holds results of other settings, or of unknown ones, or other files.
        ValueError
            Its file of settings is damaged.
        BlockingIOError, OSError
            Another process writes it; it cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"out must be a folder, and {shown(self.folder)} is a file")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write the folder {shown(self.folder)}: {error.strerror or error}") from error
        check_writable(self.folder / SETTINGS)
        with sole_writer(self.folder / SETTINGS, "reproduction"):
            self._check_settings()
            yield

    def _check_settings(self) -> None:
        asked = {"schema": SCHEMA, "paper": self.paper.name, **self.request.settings}
        file = self.folder / SETTINGS
        if not file.exists():
            others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if others:
                raise OtherSettingsError(
                    f"out must be a new folder, an empty one or one of earlier results with their {SETTINGS}, and "
                    f"{shown(self.folder)} holds {', '.join(map(shown, others[:5]))} without it: with which settings "
                    "they were made is unknown; choose another folder"
                )
            write_whole(file, _json(_sealed(asked)))
            return
        there = _read(file, remedy=f"with which settings {shown(self.folder)} was made is unknown; choose another one")
        different = [key for key in {**asked, **there} if asked.get(key) != there.get(key)]
        if different and not self._holds_results():  # an earlier call ended before its first cell
            write_whole(file, _json(_sealed(asked)))
        elif different:
            said = "; ".join(f"{key} {_short(there.get(key))}, not {_short(asked.get(key))}" for key in different)
            raise OtherSettingsError(
                f"out must be a new folder or one of the same settings, and {shown(self.folder)} holds results with "
                f"{said}: results are not mixed, choose another folder"
            )

    def _holds_results(self) -> bool:
        """Return whether there is any file beside the settings, hidden ones aside."""
        files = (path for path in self.folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
        return any(path != self.folder / SETTINGS for path in files)

    # ---- cells -------------------------------------------------------------------------------------------------------

    def file(self, figure: Figure, cell: Cell, suffix: str) -> Path:
        """Return the name of a cell's file."""
        assert re.fullmatch(r"[\w.=+-]+", cell.name), cell.name
        return self.folder / (SHARED if cell.shared else figure.name) / "cells" / f"{cell.name}{suffix}"

    def load(self, figure: Figure, cell: Cell) -> Found | None:
        """Return what a cell found in an earlier call, or None.

        Raises
        ------
        OtherSettingsError
            It was made with other settings.
        ValueError
            A file of it is damaged or missing.
        """
        file = self.file(figure, cell, ".json")
        if not file.exists():
            return None
        stored = _read(file, ("settings", "seconds", "found", "arrays"))
        settings, before = json.loads(json.dumps(cell.settings)), stored["settings"]
        if before != settings:
            keys = [key for key in {**settings, **before} if settings.get(key) != before.get(key)]
            raise OtherSettingsError(
                f"{shown(file)} was made with {', '.join(f'{k} {_short(before.get(k))}' for k in keys)}, not "
                f"{', '.join(_short(settings.get(k)) for k in keys)}: results are not mixed; choose another folder, or "
                "remove it to compute it again"
            )
        arrays = _read_arrays(self.file(figure, cell, ".npz"), stored["arrays"], file) if stored["arrays"] else {}
        return Found(stored["found"], arrays)

    def save(self, figure: Figure, cell: Cell, found: Found, how: Mapping[str, Any]) -> None:
        """Keep what a cell found, arrays first, so that a file of numbers means a whole result."""
        file = self.file(figure, cell, ".json")
        if found.arrays:
            content = io.BytesIO()
            np.savez_compressed(content, **found.arrays)  # type: ignore[arg-type]
            write_whole(self.file(figure, cell, ".npz"), content.getvalue())
        stored = {"settings": cell.settings, **how, "found": found.numbers, "arrays": sorted(found.arrays)}
        write_whole(file, _json(_sealed(stored)))

    def cost(self, figure: Figure, cells: Sequence[Cell]) -> dict[str, Any]:
        """Return the seconds that cells took, in whichever call, and the machines that they ran on."""
        stored = [_read(self.file(figure, cell, ".json")) for cell in cells]
        machines = dict.fromkeys(one["device"] for one in stored)
        return {"seconds": float(sum(one["seconds"] for one in stored)), "machine": "; ".join(machines)}

    def prepare(self, figure: Figure, cells: Sequence[Cell] = ()) -> None:
        """Make the folders of a figure and of its cells."""
        for folder in {self.folder / figure.name / "cells", *(self.file(figure, cell, "").parent for cell in cells)}:
            folder.mkdir(parents=True, exist_ok=True)

    # ---- figures -----------------------------------------------------------------------------------------------------

    def finish(self, figure: Figure, outcome: Outcome, how: Mapping[str, Any]) -> dict[str, Any]:
        """Write a finished figure and return what its JSON holds."""
        folder = self.folder / figure.name
        for name, drawing in outcome.drawings.items():
            plots.save(drawing, folder / f"{name}.png")
        found = page.description(self.paper, figure, outcome) | dict(how)
        write_whole(folder / f"{figure.name}.md", page.markdown(found).encode())
        write_whole(folder / f"{figure.name}.json", _json(_sealed(found)))
        return found

    def report(self) -> Path:
        """Write the report of all figures that are finished, and return its name."""
        done = []
        for figure in self.paper.figures.values():
            file = self.folder / figure.name / f"{figure.name}.json"
            if file.exists():
                found = _read(file)
                pictures = {name: _picture(file.parent / f"{name}.png", file) for name in found["drawings"]}
                done.append((found, pictures))
        target = self.folder / REPORT
        write_whole(target, page.html(self.paper, self.request.settings, done).encode())
        return target


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the checksum of its content, by which :func:`_read` knows what was changed later."""
    return {**data, CHECKSUM: _checksum(data)}


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.blake2b(
        json.dumps(json.loads(json.dumps(data)), sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def _read(file: Path, keys: Sequence[str] = (), remedy: str = "remove it to compute it again") -> dict[str, Any]:
    """Return an object with these keys, without its checksum; files of before there were checksums have none."""
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict) or not set(keys) <= set(found):
            raise ValueError(f"it holds no object with {', '.join(keys)}" if keys else "it holds no object")
        checksum = found.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(found):
            raise ValueError("its content does not match its checksum")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} is damaged ({error}); {remedy}") from error
    return found


def _picture(file: Path, beside: Path) -> bytes:
    """Return the picture of a finished figure, whose numbers ``beside`` holds."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{shown(file)} is missing; remove {shown(beside)} to make the figure again") from None


def _read_arrays(file: Path, names: Sequence[str], beside: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a cell, which has these; ``beside`` holds its numbers."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if sorted(kept.files) != sorted(names):
                raise ValueError(f"it holds {', '.join(sorted(kept.files)) or 'nothing'}, not {', '.join(names)}")
            return {name: kept[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise ValueError(
            f"{shown(file)} is damaged ({reason}); remove it and {shown(beside)} to compute them again"
        ) from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parent(path: str | os.PathLike[str]) -> Path:
    """Return the folder that ``out`` names, links followed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        raise ValueError(f"out must be the name of a folder, got {shown(path)}") from None
