"""Fig. 3: PEAK with polynomial encodings of degree 1 to 128."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.encodings.polynomial import Polynomial
from inrfast.experiments.drawing import finish
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row
from inrfast.experiments.peak.methods import PEAK_METHOD
from inrfast.experiments.peak.sweeps import NAMED, Sweep, ranged, scene_notes

DEGREES = {"quick": (1, 2, 4, 8, 16), "paper": (1, 2, 4, 8, 16, 32, 64, 128)}

MODEST = 0.5
"""dB: a gain below it is called modest."""


def swept(request: Request) -> Sweep:
    """Return PEAK at every degree; a_k starts at 2^-k, which keeps every degree's features below the first's."""
    return Sweep(
        "degree",
        {str(degree): replace(PEAK_METHOD, name=f"peak-{degree}", degree=degree) for degree in DEGREES[request.preset]},
    )


class Fig3(Figure):
    """PSNR against the degree, mean and range over seeds."""

    name = "fig3"
    title = "Fig. 3: PEAK with polynomial encodings of several degrees"
    takes = ("images", "masks")
    named = NAMED

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        swept(request).check(request)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return swept(request).cells(request, found)

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sweep = swept(request)
        scores = sweep.scores(request, found)
        means = {int(value): float(np.mean(own)) for value, own in scores.items()}
        rows = [
            Row(f"PSNR (dB), degree {value}", "curve only", ranged(own), f"{_columns(int(value))} columns")
            for value, own in scores.items()
        ]
        best = max(means, key=lambda degree: means[degree])
        gain = means[best] - means[1]
        claim = "more degrees improve it, by little"
        verdict = f"best degree {best}, {gain:+.2f} dB over degree 1"
        rows.append(Row(claim, "yes", verdict, "at equal processor time"))
        text = [
            f"At equal processor time degree {best} is best, {gain:.2f} dB above degree 1: "
            + ("more degrees do not help." if best == 1 else
               f"a gain of {'modest size' if gain < MODEST else 'more than the paper finds modest'}."),
            "Degree k has (k + 1)(k + 2) / 2 columns in two dimensions: each step of a high degree costs more, so that "
            "it takes fewer. On the grid's coordinates, below 1, monomials of degree 128 are below 1e-3 on "
            f"{_vanished(128):.0%} of the picture: they see its border alone.",
            *scene_notes(request),
        ]  # fmt: skip
        table = sweep.table(request, found, "PEAK by degree", "degree")
        numbers = {"degrees": {value: list(own) for value, own in scores.items()}}
        return Outcome(rows, {self.name: _drawing(scores)}, text, [table], numbers)


def _columns(degree: int) -> int:
    return Polynomial(degree).columns(2)


def _vanished(degree: int) -> float:
    """Return the share of [-1, 1]^2 where x^k and y^k are both below 1e-3: the square |x|, |y| < 1e-3^(1/k)."""
    return float(1e-3 ** (2 / degree))


def _drawing(scores: Mapping[str, Sequence[float]]) -> Drawing:
    drawing = Drawing(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    degrees = [int(value) for value in scores]
    axes.plot(degrees, [np.mean(own) for own in scores.values()], color="#0072B2", marker="o")
    axes.fill_between(degrees, [min(own) for own in scores.values()], [max(own) for own in scores.values()],
                      color="#0072B2", alpha=0.2, linewidth=0)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(degrees, [str(degree) for degree in degrees])
    finish(axes, "PEAK by degree", "degree of the polynomial encoding", "PSNR (dB)")
    return drawing
