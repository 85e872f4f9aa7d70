"""Table 1: seven networks on 16 images, under the one common setting whose numbers come nearest to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from inrfast.experiments.inlet_rank_collapse import comparison
from inrfast.experiments.inlet_rank_collapse.comparison import PAPER, Scored
from inrfast.experiments.inlet_rank_collapse.methods import METHODS
from inrfast.experiments.inlet_rank_collapse.protocol import (
    MARKS,
    SIZES,
    Setup,
    all_fits,
    at_step,
    fits_cell,
    shorter,
    tuning,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Table
from inrfast.experiments.pictures import Pictures, pictures
from inrfast.experiments.scores import distance

SEARCH = ((3, "constant", (5e-3, 1e-3)), (2, "constant", (5e-3,)))
"""Common settings that are tried: hidden layers, schedule, learning rates. A constant rate's fit also tells what it
would have been after fewer steps."""

SHOWN = 10
"""Common settings that are listed."""


@dataclass(frozen=True)
class Candidate:
    """A common setting: its numbers on the tuning images by method, and their distance from the paper's."""

    setups: Mapping[str, Setup]
    psnrs: Mapping[str, float]
    distance: float

    @property
    def told(self) -> str:
        """The setting in words."""
        one = self.setups["default"]
        return f"{one.hidden_layers} hidden layers, lr {one.lr:g} {one.schedule}, {one.steps} steps"


class Table1(Figure):
    """A search on the first quarter of the images, then a fit of all images with what it found."""

    name = "table1"
    title = "Table 1: PSNR of image fits, one setting for all methods"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given = images_of(request)
        search = [
            fits_cell(f"search-{method}-{depth}x-{schedule}", setups, given, tuning(given), request)
            for depth, schedule, rates in SEARCH
            for method in PAPER
            for setups in [_tried(method, depth, schedule, rates, request)]
        ]
        if any(cell.name not in found for cell in search):
            return search
        best = candidates(request, found)[0]
        return [*search, *scores_cells(best.setups, given, request)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, tried = images_of(request), candidates(request, found)
        best = tried[0]
        fits = all_fits(cell for name, cell in found.items() if name.startswith("score-"))
        scored = Scored(
            best.setups,
            {method: [fits[best.setups[method], name] for name in given.names] for method in PAPER},
            given,
        )
        means = {method: float(np.mean(values)) for method, values in scored.psnrs.items()}
        text = [
            f"Of {len(tried)} common settings, each tried on {', '.join(given.names[i] for i in tuning(given))}, "
            f"{best.told} comes nearest to the paper's seven numbers: root mean square distance {best.distance:.2f} dB "
            f"there, {distance(PAPER, means):.2f} dB on the scored images. For all: Adam on full batches, weight decay "
            f"1e-8, MSE, width {SIZES[request.preset].width}, targets minus 0.5, coordinates in [-1, 1]^2. The paper "
            "gives none of these."
        ]
        return comparison.outcome(scored, self.name, text, [_search_table(tried)], {"search": _json(tried)}, request)


@lru_cache(maxsize=8)
def _images(request: Request, preset: str) -> Pictures:
    return pictures(request, SIZES[preset].images, SIZES[preset].side)


def images_of(request: Request) -> Pictures:
    """Return the images of the table, read once."""
    return _images(request, request.preset)


def _tried(method: str, depth: int, schedule: str, rates: Sequence[float], request: Request) -> list[Setup]:
    return [Setup(method, lr, schedule, SIZES[request.preset].steps, depth) for lr in rates]


def scores_cells(setups: Mapping[str, Setup], given: Pictures, request: Request) -> list[Cell]:
    """Return one cell per method that fits all images."""
    every = range(len(given))
    return [fits_cell(f"score-{setup.key}", [setup], given, every, request) for setup in setups.values()]


def candidates(request: Request, found: Mapping[str, Found]) -> list[Candidate]:
    """Return the common settings that were tried, the nearest to the paper first."""
    fits = all_fits(cell for name, cell in found.items() if name.startswith("search-"))
    steps = SIZES[request.preset].steps
    tried = []
    for depth, schedule, rates in SEARCH:
        marks = [steps * mark // MARKS for mark in range(1, MARKS + 1)] if schedule == "constant" else [steps]
        for lr in rates:
            full = {method: Setup(method, lr, schedule, steps, depth) for method in PAPER}
            for mark in marks:
                psnrs = {
                    method: float(np.mean([at_step(one, fit, mark) for (had, _), fit in fits.items() if had == one]))
                    for method, one in full.items()
                }
                setups = {method: shorter(one, mark) for method, one in full.items()}
                tried.append(Candidate(setups, psnrs, distance(PAPER, psnrs)))
    return sorted(tried, key=lambda one: one.distance)


def _search_table(tried: Sequence[Candidate]) -> Table:
    head = ["common setting", "distance", *(METHODS[method].label for method in PAPER)]
    lines = [["paper", "", *(f"{value:.2f}" for value in PAPER.values())]]
    lines += [
        [one.told, f"{one.distance:.2f}", *(f"{one.psnrs[method]:.2f}" for method in PAPER)] for one in tried[:SHOWN]
    ]
    return Table(f"The nearest {min(SHOWN, len(tried))} of {len(tried)} settings, on the tuning images", head, lines)


def _json(tried: Sequence[Candidate]) -> list[dict[str, object]]:
    return [{"setting": one.told, "distance": one.distance, "psnrs": dict(one.psnrs)} for one in tried]
