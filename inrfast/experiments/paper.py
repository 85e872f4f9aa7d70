"""Papers to reproduce: each is a package beside this file that adds its :class:`Paper`, with one file per figure."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.registry import Registry
from inrfast.training.result import FitResult

PRESETS = ("quick", "paper")
"""``quick``: small sizes, minutes on a CPU; ``paper``: the sizes of the paper."""

POSES = "transforms_train.json"
"""The file of a scene's folder by which it is known, and whose content decides whether it is the same."""


@dataclass(frozen=True)
class Request:
    """What a reproduction is asked for; the same for all figures of one folder of results.

    Attributes
    ----------
    preset
        One of :data:`PRESETS`.
    runs
        Random networks per curve where a figure shows mean and deviation; None: the preset's own number.
    seed
        Seed of the first run; the others follow it.
    images
        Image files, sorted by name; empty: the photographs bundled with scikit-image.
    meshes
        Mesh files; empty: a surface made by formula.
    weights
        File of a trained network's weights; None: figures that need one train it themselves.
    masks
        Image files of missing pixels, sorted by name; empty: made by formula.
    scenes
        Folders of posed images in the Blender-synthetic layout; empty: rendered from meshes.
    device
        Where networks are fitted and kernels computed. Not a part of the settings: every cell names its own.
    """

    preset: str = "quick"
    runs: int | None = None
    seed: int = 0
    images: tuple[Path, ...] = ()
    meshes: tuple[Path, ...] = ()
    weights: Path | None = None
    masks: tuple[Path, ...] = ()
    scenes: tuple[Path, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def quick(self) -> bool:
        """Whether sizes are small."""
        return self.preset == "quick"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all results of a folder share: two requests with other settings are not mixed in one folder."""
        given = {"weights": {self.weights.name: _digest(self.weights)}} if self.weights is not None else {}
        if self.masks:
            given["masks"] = {path.name: _digest(path) for path in self.masks}
        if self.scenes:
            given["scenes"] = {path.name: _digest(path / POSES) for path in self.scenes}
        return {
            "preset": self.preset,
            "runs": self.runs,
            "seed": self.seed,
            "images": {path.name: _digest(path) for path in self.images},
            "meshes": {path.name: _digest(path) for path in self.meshes},
            **given,
        }


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Found:
    """What a cell found: plain numbers as JSON holds them, and arrays by name."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What a cell may use while it runs.

    Attributes
    ----------
    device
        Where it runs.
    checkpoint
        A file name of the cell's own, for the checkpoint of a fit; removed once the cell is done.
    progress
        As ``progress`` of a fit: None shows bars on a terminal and in a notebook, False never.
    """

    device: torch.device
    checkpoint: Path
    progress: bool | None = None


def uninterrupted(results: Sequence[FitResult]) -> Sequence[FitResult]:
    """Return the results of a fit if it came to its end: half a fit is no result of a cell, and its checkpoint stays.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C stopped it, which a fit itself answers by returning what it has.
    """
    if any(result.interrupted for result in results):
        raise KeyboardInterrupt
    return results


@dataclass(frozen=True)
class Cell:
    """One piece of work of a figure: its result is kept in a file as soon as it is done, and found again there.

    Attributes
    ----------
    name
        Unique within the figure; letters, digits, ``.``, ``_``, ``=``, ``+`` and ``-`` alone.
    settings
        Everything on which the result depends, as JSON holds it. A stored result of other settings is refused. Names
        of images that are used stand under ``"images"``.
    run
        Does the work.
    cost
        Expected work in arbitrary units, for the time left.
    shared
        Whether other figures of the paper have the same cell: its work is then done once for all of them.
    """

    name: str
    settings: Mapping[str, Any]
    run: Callable[[Work], Found]
    cost: float = 1.0
    shared: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table "paper / ours / settings"; ``paper`` is empty where the paper gives no number."""

    what: str
    paper: str
    ours: str
    settings: str = ""


@dataclass(frozen=True)
class Table:
    """Any other table: the words of its head, and of each row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Outcome:
    """A finished figure.

    Attributes
    ----------
    rows
        The paper's numbers beside ours.
    drawings
        Figures by file name without suffix; the first is in the paper's form.
    text
        Paragraphs that say what is seen, chosen by comparing numbers.
    tables
        Further tables.
    numbers
        All numbers for other programs, as JSON holds them.
    """

    rows: Sequence[Row]
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Figure(ABC):
    """A figure or table of a paper, as work to do and as a drawing of what was found.

    ``takes`` names the files of the user's own that may feed it: ``"images"``, ``"mesh"``, ``"weights"``,
    ``"masks"``, ``"scenes"``. ``named`` says by which names it finds them in a folder, for the help, such as
    ``{"images": "jetplane*"}``; files of kinds without one are taken in the order of their names.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    named: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def check(self, request: Request) -> None:
        """Raise what a request's files are wrong in, before anything is computed or written.

        Figures whose first cells need no file of the user's own say more than this, which asks for the first cells.
        """
        self.cells(request, {})

    @abstractmethod
    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """Return all cells that are known, given what was found so far.

        Asked again once all of them are done, until it names no new one: so later cells may depend on earlier results.
        """

    @abstractmethod
    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """Return the figure, given what every cell found."""


@dataclass(frozen=True)
class Paper:
    """A paper and its figures by name, in the order in which ``all`` makes them."""

    name: str
    title: str
    source: str
    figures: Mapping[str, Figure]


PAPERS: Registry[Paper] = Registry("paper", "inrfast.experiments", Paper, called="name")
"""The papers that ``inrfast reproduce`` knows, by their package's name."""


def spelled(name: str) -> str:
    """Return a paper's name as the command line and folders of results have it, with hyphens."""
    return name.replace("_", "-")
