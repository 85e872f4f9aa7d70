"""Reproducing a paper: the cells of its figures one after another, each kept as soon as it is done."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from inrfast.errors import check_choice, check_device, check_flag, check_int, check_seed
from inrfast.experiments.paper import PAPERS, POSES, PRESETS, Cell, Figure, Found, Paper, Request, Work, spelled
from inrfast.experiments.results import Results, parent
from inrfast.files import shown
from inrfast.info import info
from inrfast.progress import progress_bar
from inrfast.signals.image import readable_suffixes

ALL = "all"


def reproduce(
    paper: str,
    figures: str | Sequence[str] = ALL,
    out: str | os.PathLike[str] | None = None,
    *,
    preset: str = "quick",
    images: str | os.PathLike[str] | None = None,
    mesh: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    weights: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    scene: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    runs: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Make figures and tables of a paper and return what their JSON files hold, by name.

    A call with the same settings goes on where an earlier one was stopped: results of cells are kept one by one.

    Parameters
    ----------
    paper
        Its name in :data:`inrfast.experiments.paper.PAPERS`, such as ``"inlet_rank_collapse"``.
    figures
        Names of its figures, or ``"all"``.
    out
        Folder of the results; None: ``out/<paper>-<preset>``, hyphens in the paper's name.
    preset
        ``"quick"``: small sizes, minutes on a CPU; ``"paper"``: the sizes of the paper.
    images
        Folder of images; None: photographs, or faces, bundled with scikit-image. The first ones by name are used, or
        those that a figure finds by name, as the help says, such as ``jetplane*``.
    mesh
        Mesh files; none: a surface made by formula.
    weights
        File of a meta-learned network's weights; None: figures that need one train it themselves.
    masks
        Folder of images, white where pixels are observed and black where they are missing: with "combin" in its name a
        combined pattern, else a textural one; None: made by formula.
    scene
        Folders of posed images in the Blender-synthetic layout; none: rendered from the meshes.
    runs
        Random networks per curve where a figure shows mean and deviation; None: the preset's own number.
    seed
        Seed of the first run.
    device
        Where networks are fitted and kernels computed.
    progress
        None: bars on a terminal, elsewhere a line on stderr per figure and every half minute. True: bars. False:
        nothing.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError, OSError
        An argument that is no such thing; an unknown paper, figure or preset; a device that this machine lacks; a
        folder without images, masks or poses, or without those that a figure needs, before anything is written; a
        folder of results of other settings (:class:`inrfast.experiments.results.OtherSettingsError`).
    KeyboardInterrupt
        Ctrl-C; its message says how many cells of which figure are done.
    """
    known = PAPERS.find("paper", paper.replace("-", "_") if isinstance(paper, str) else paper)
    check_choice("preset", preset, PRESETS)
    runs = None if runs is None else check_int("runs", runs, minimum=1)
    seed = check_seed("seed", seed)
    progress = None if progress is None else check_flag("progress", progress)
    chosen = _chosen(known, figures)
    folder = parent(_path("out", f"out/{spelled(known.name)}-{preset}" if out is None else out))
    meshes = tuple(_file("mesh", _path("mesh", name)) for name in _several("mesh", mesh, "a file name"))
    _check_apart("mesh", meshes)
    scenes = tuple(_scene(_path("scene", name)) for name in _several("scene", scene, "a folder"))
    _check_apart("scene", scenes)
    taken = () if images is None else _images("images", _path("images", images))
    patterns = () if masks is None else _images("masks", _path("masks", masks))
    file = None if weights is None else _file("weights", _path("weights", weights))
    request = Request(preset, runs, seed, taken, meshes, file, patterns, scenes, check_device("device", device))
    for figure in chosen:
        figure.check(request)
    results = Results(folder, known, request)
    made: dict[str, dict[str, Any]] = {}
    with results.opened():
        for figure in chosen:
            made[figure.name] = _figure(results, figure, request, progress)
            results.report()
    return made


def _chosen(paper: Paper, figures: str | Sequence[str]) -> list[Figure]:
    names = _several("figures", figures, "a name")
    if not names:
        raise ValueError(f"figures must name at least one of {', '.join(paper.figures)}, or all; got none")
    for name in names:
        check_choice("figures", name, (*paper.figures, ALL))
    return [figure for name, figure in paper.figures.items() if name in names or ALL in names]


def _several(argument: str, got: Any, one: str) -> list[Any]:
    """Return one thing, or all of a sequence, as a list."""
    if isinstance(got, str | os.PathLike):
        return [got]
    if isinstance(got, bytes | Mapping) or not isinstance(got, Iterable):
        raise TypeError(f"{argument} must be {one} or a sequence of them, got {got!r} ({type(got).__name__})")
    return list(got)


def _path(argument: str, got: Any) -> Path:
    if not isinstance(got, str | os.PathLike) or not isinstance(os.fspath(got), str):
        raise TypeError(f"{argument} must be a path, a str or pathlib.Path, got {got!r} ({type(got).__name__})")
    if not os.fspath(got) or "\0" in os.fspath(got):
        raise ValueError(f"{argument} must be a path, got {os.fspath(got)!r}")
    return Path(got)


def _images(argument: str, folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder of images, and {shown(folder)} is none")
    suffixes = set(readable_suffixes())
    found = tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")))
    if not found:
        raise FileNotFoundError(f"{argument} must be a folder of images, and {shown(folder)} holds none")
    return found


def _file(argument: str, path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{argument} must be a file, and {shown(path)} is none")
    return path


def _scene(folder: Path) -> Path:
    if not (folder / POSES).is_file():
        raise FileNotFoundError(f"scene must be a folder with {POSES}, and {shown(folder)} is none")
    return folder.resolve()  # whose name is that of the scene


def _check_apart(argument: str, paths: Sequence[Path]) -> None:
    """Refuse files, or folders, of one name: results are kept and shown by it."""
    names = [path.name for path in paths]
    kind = "folders" if argument == "scene" else "files"
    for name in names:
        if names.count(name) > 1:
            told = f"{kind} of different names, got {names.count(name)} called {shown(name)}"
            raise ValueError(f"{argument} must name {told}")


def _figure(results: Results, figure: Figure, request: Request, progress: bool | None) -> dict[str, Any]:
    """Do what is left of a figure's cells, and write it."""
    results.prepare(figure)
    found: dict[str, Found] = {}
    done: list[Cell] = []
    images: dict[str, None] = {}
    with _Way(figure.name, progress) as way:
        while True:
            cells = [cell for cell in figure.cells(request, found) if cell.name not in found]
            if not cells:
                break
            assert len({cell.name for cell in cells}) == len(cells)
            results.prepare(figure, cells)
            done += cells
            for cell in cells:
                images |= dict.fromkeys(cell.settings.get("images", ()))
                stored = results.load(figure, cell)
                if stored is not None:
                    found[cell.name] = stored
            left = [cell for cell in cells if cell.name not in found]
            way.plan(left, [cell for cell in cells if cell.name in found])
            for cell in left:
                way.begin(cell)
                found[cell.name] = _run(results, figure, cell, request, progress)
                way.end(cell)
        how = {**results.cost(figure, done), "cells": len(found), "images": list(images)}
        how["versions"] = info()["versions"]
        made = results.finish(figure, figure.outcome(request, found), how)
    way.say(way.last)
    return made


class _Way:
    """How far a figure is: a bar on a terminal, elsewhere a line every :data:`EVERY` seconds.

    An interrupt leaves it with a message that says what is done.
    """

    def __init__(self, figure: str, progress: bool | None) -> None:
        self.figure, self.quiet, self.cell, self.shared = figure, progress is False, "", False
        self.earlier = self.done = self.left = 0
        self.cost = self.whole = 0.0
        self.begun = time.perf_counter()
        self.bar = progress_bar(desc=figure, unit="", bar_format=BAR, progress=progress, leave=False, total=0)
        self._over = threading.Event()

    def __enter__(self) -> _Way:
        if self.bar.disable and not self.quiet:
            threading.Thread(target=self._now_and_then, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._over.set()
        self.bar.close()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{self.figure} has {self.cells}, and the same call goes on from there") from error

    def plan(self, cells: Sequence[Cell], earlier: Sequence[Cell]) -> None:
        """Take in cells to do, and others that were done in earlier calls or, shared ones, for other figures."""
        self.earlier, self.left = self.earlier + len(earlier), self.left + len(cells)
        self.shared = self.shared or any(cell.shared for cell in earlier)
        self.whole += sum(cell.cost for cell in cells)
        if not self.bar.disable:
            self.bar.total = self.whole

    def begin(self, cell: Cell) -> None:
        """Take in that a cell is at work."""
        self.cell = cell.name
        self.bar.set_postfix_str(cell.name)

    def end(self, cell: Cell) -> None:
        """Take in that a cell is done."""
        self.done, self.left, self.cost = self.done + 1, self.left - 1, self.cost + cell.cost
        self.bar.update(cell.cost)

    @property
    def cells(self) -> str:
        """How many of the cells known so far are done, in whichever call."""
        done = self.earlier + self.done
        return f"{done} of {done + self.left} cells done"

    @property
    def now(self) -> str:
        """The cell at work, the share that is done, and the time left."""
        share = self.cost / self.whole if self.whole else 0.0
        passed = time.perf_counter() - self.begun
        left = f"about {passed * (1 / share - 1):,.0f} s left" if share else f"{passed:,.0f} s so far"
        return f"{self.figure}: {100 * share:.0f} %, {self.cells}, {left}, at work on {self.cell or 'its cells'}"

    @property
    def last(self) -> str:
        """That the figure is finished."""
        where = "in earlier calls or for other figures" if self.shared else "in earlier calls"
        earlier = f", {self.earlier} of them {where}" if self.earlier else ""
        return f"{self.figure}: finished, {self.cells}{earlier}, {time.perf_counter() - self.begun:,.0f} s"

    def _now_and_then(self) -> None:
        while not self._over.wait(EVERY):
            self.say(self.now)

    def say(self, line: str) -> None:
        """Print a line on stderr; a closed one does not end the work."""
        if not self.quiet and sys.stderr is not None:
            with suppress(OSError, ValueError):
                print(f"inrfast: {line}", file=sys.stderr, flush=True)


BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


def _run(results: Results, figure: Figure, cell: Cell, request: Request, progress: bool | None) -> Found:
    checkpoint = results.file(figure, cell, ".fit")
    _release(request.device)
    begin = time.perf_counter()
    found = cell.run(Work(request.device, checkpoint, progress))
    how = {"seconds": time.perf_counter() - begin, "device": _machine(request.device)}
    results.save(figure, cell, found, how)
    checkpoint.unlink(missing_ok=True)
    return found


def _release(device: torch.device) -> None:
    """Give back what the last cell's captured steps hold on a GPU: budgets are shares of the memory that is free."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = info()["cpu"]
    return f"{cpu['model']}, {cpu['threads']} threads"
