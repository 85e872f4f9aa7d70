"""Reproducing a paper: the cells of its figures one after another, each kept as soon as it is done."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from inrfast.errors import check_choice, check_int, check_seed
from inrfast.experiments.paper import PAPERS, PRESETS, Cell, Figure, Found, Paper, Request, Work
from inrfast.experiments.results import Results, parent
from inrfast.files import shown
from inrfast.info import info
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
        Folder of the results; None: ``out/<paper>-<preset>``.
    preset
        ``"quick"``: small sizes, minutes on a CPU; ``"paper"``: the sizes of the paper.
    images
        Folder of images; None: photographs bundled with scikit-image.
    mesh
        Mesh files; none: a surface made by formula.
    runs
        Random networks per curve where a figure shows mean and deviation; None: the preset's own number.
    seed
        Seed of the first run.
    device
        Where networks are fitted and kernels computed.
    progress
        None shows bars on a terminal only, False never.

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        An unknown paper, figure or preset; a folder without images; a folder of results of other settings
        (:class:`inrfast.experiments.results.OtherSettingsError`).
    """
    known = PAPERS.find("paper", paper.replace("-", "_") if isinstance(paper, str) else paper)
    check_choice("preset", preset, PRESETS)
    chosen = _chosen(known, figures)
    given = [mesh] if isinstance(mesh, str | os.PathLike) else list(mesh)
    meshes = tuple(_file(Path(name)) for name in given)
    _check_apart(meshes)
    request = Request(
        preset,
        None if runs is None else check_int("runs", runs, minimum=1),
        check_seed("seed", seed),
        () if images is None else _images(Path(images)),
        meshes,
        torch.device(device),
    )
    results = Results(parent(f"out/{known.name}-{preset}" if out is None else out), known, request)
    made: dict[str, dict[str, Any]] = {}
    with results.opened():
        for figure in chosen:
            made[figure.name] = _figure(results, figure, request, progress)
            results.report()
    return made


def _chosen(paper: Paper, figures: str | Sequence[str]) -> list[Figure]:
    names = [figures] if isinstance(figures, str) else list(figures)
    if not names:
        raise ValueError(f"figures must name at least one of {', '.join(paper.figures)}, or all; got none")
    for name in names:
        check_choice("figure", name, (*paper.figures, ALL))
    return [figure for name, figure in paper.figures.items() if name in names or ALL in names]


def _images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"images must be a folder of images, and {shown(folder)} is none")
    suffixes = set(readable_suffixes())
    found = tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")))
    if not found:
        raise FileNotFoundError(f"images must be a folder of images, and {shown(folder)} holds none")
    return found


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"mesh must be a file, and {shown(path)} is none")
    return path


def _check_apart(meshes: Sequence[Path]) -> None:
    """Refuse meshes of one file name: results are kept and shown by it."""
    names = [path.name for path in meshes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"mesh must name files of different names, got {names.count(name)} called {shown(name)}")


def _figure(results: Results, figure: Figure, request: Request, progress: bool | None) -> dict[str, Any]:
    """Do what is left of a figure's cells, and write it."""
    results.prepare(figure)
    found: dict[str, Found] = {}
    hidden = None if progress is None else not progress
    with tqdm(desc=figure.name, unit="", bar_format=BAR, disable=hidden, leave=False, total=0) as bar:
        while True:
            cells = [cell for cell in figure.cells(request, found) if cell.name not in found]
            if not cells:
                break
            assert len({cell.name for cell in cells}) == len(cells)
            left = []
            for cell in cells:
                stored = results.load(figure, cell)
                if stored is None:
                    left.append(cell)
                else:
                    found[cell.name] = stored
            bar.total += sum(cell.cost for cell in left)
            for cell in left:
                bar.set_postfix_str(cell.name)
                found[cell.name] = _run(results, figure, cell, request, progress)
                bar.update(cell.cost)
    how = {"seconds": results.seconds(figure, list(found)), "cells": len(found), "machine": _machine(request.device)}
    return results.finish(figure, figure.outcome(request, found), how | {"versions": info()["versions"]})


BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"


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
    """Give back what the last cell's networks hold in reference cycles, since budgets are shares of free memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = info()["cpu"]
    return f"{cpu['model']}, {cpu['threads']} threads"
