"""A number of PEAK varied on Jetplane with the combined mask: what figures 3 and 9 have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inrfast.experiments.paper import Cell, Found, Request, Table
from inrfast.experiments.peak.fitting import fit_cell, last, sizes, speed_cell, steps_of
from inrfast.experiments.peak.images import called, comparable, image
from inrfast.experiments.peak.masks import COMBINED, mask
from inrfast.experiments.peak.methods import Method
from inrfast.experiments.runs import seeds

IMAGE, KIND = "Jetplane", "combined"
"""The scene of the paper's figures 3 and 9."""

NAMED = {"images": f"{IMAGE.lower()}*", "masks": f"*{COMBINED}*"}
"""How files of these figures are found."""


@dataclass(frozen=True)
class Sweep:
    """A method at several settings.

    Attributes
    ----------
    name
        As files spell it.
    methods
        By the value that is varied, as it is shown.
    """

    name: str
    methods: Mapping[str, Method]

    @staticmethod
    def check(request: Request) -> None:
        """Read the image and the mask."""
        side = sizes(request).side
        image(request, IMAGE, side)
        mask(request, KIND, side)

    def speed(self, request: Request) -> Cell:
        """Return the cell of the times of a step."""
        return speed_cell(f"speed.{self.name}", list(self.methods.values()), sizes(request).side)

    def cells(self, request: Request, found: Mapping[str, Found]) -> list[Cell]:
        """Return the fits of all settings and seeds at equal time, once the times of a step are known."""
        speed, own = self.speed(request), sizes(request)
        if speed.name not in found:
            return [speed]
        scene, hidden = image(request, IMAGE, own.side), mask(request, KIND, own.side)
        return [speed, *(
            fit_cell(self.cell_name(value, seed), method, scene, hidden,
                     steps_of(method, found[speed.name], own.seconds), seed)
            for seed in seeds(request, own.runs) for value, method in self.methods.items()
        )]  # fmt: skip

    def cell_name(self, value: str, seed: int) -> str:
        """Return the name of a fit."""
        return f"fit.{self.name}.{value}.{seed}"

    def scores(self, request: Request, found: Mapping[str, Found], over: str = "whole") -> dict[str, list[float]]:
        """Return the PSNRs by value, one per seed."""
        runs = seeds(request, sizes(request).runs)
        return {value: [last(found[self.cell_name(value, seed)], over) for seed in runs] for value in self.methods}

    def table(self, request: Request, found: Mapping[str, Found], title: str, head: str) -> Table:
        """Return the PSNRs and the number of steps of every setting."""
        whole, missing = (self.scores(request, found, over) for over in ("whole", "missing"))
        seed = seeds(request, sizes(request).runs)[0]
        rows = [
            [value, ranged(whole[value]), ranged(missing[value]),
             str(found[self.cell_name(value, seed)].numbers["steps"])]
            for value in self.methods
        ]  # fmt: skip
        return Table(title, [head, "whole picture (dB)", "missing pixels (dB)", "steps"], rows)


def ranged(values: Sequence[float]) -> str:
    """Return the mean of numbers and, of several, their range."""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def scene_notes(request: Request) -> list[str]:
    """Return what the numbers of a sweep are of."""
    own = sizes(request)
    hidden = mask(request, KIND, own.side)
    said = [
        f"{called(request, IMAGE)}, {own.side}x{own.side}, {hidden.share:.0%} of the pixels observed "
        f"({hidden.source}); each fit has {own.seconds:g} s of one core, scored at its last step.",
        comparable(request, [IMAGE]),
    ]
    return [one for one in said if one]
