"""Fig. 7: PSNR on Baboon with half of the pixels missing, against processor time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row
from inrfast.experiments.peak.fitting import fit_cell, last, sizes, speed_cell, steps_of, stopped
from inrfast.experiments.peak.images import called, comparable, image
from inrfast.experiments.peak.masks import mask
from inrfast.experiments.peak.methods import FOURIER, HASH, MLP, PEAK_METHOD, SIREN

METHODS = (MLP, SIREN, FOURIER, HASH, PEAK_METHOD)

SCENE = ("Baboon", "random")
"""Of the paper's figures 7 and 8."""

SCORES = 24
"""Points of a curve."""


class Fig7(Figure):
    """Curves of five methods, and where early stopping on held-out pixels would end them."""

    name = "fig7"
    title = "Fig. 7: PSNR against processor time, Baboon with half of the pixels missing"
    takes = ("images",)
    named = MappingProxyType({"images": f"{SCENE[0].lower()}*"})

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        image(request, SCENE[0], sizes(request).side)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        own = sizes(request)
        speed = speed_cell("speed.curves", METHODS, own.side)
        if speed.name not in found:
            return [speed]
        scene, hidden = image(request, SCENE[0], own.side), mask(request, SCENE[1], own.side)
        return [speed, *(
            fit_cell(f"curve.{method.name}", method, scene, hidden, steps_of(method, found[speed.name], own.seconds),
                     request.seed, scores=SCORES, stopping=True)
            for method in METHODS
        )]  # fmt: skip

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        own, curves = sizes(request), {method.name: found[f"curve.{method.name}"] for method in METHODS}
        ends = {name: last(cell) for name, cell in curves.items()}
        quarter = {name: _at(cell, 0.25) for name, cell in curves.items()}
        labels = {method.name: method.label for method in METHODS}
        rows = [
            Row(f"PSNR (dB) of {method.label} after {own.seconds / 4:g} s / {own.seconds:g} s", "curve only",
                f"{quarter[method.name]:.2f} / {ends[method.name]:.2f}",
                f"{curves[method.name].numbers['steps']} steps")
            for method in METHODS
        ]  # fmt: skip
        first, fastest = (labels[max(own, key=lambda name: own[name])] for own in (ends, quarter))
        rows.append(Row("highest at the end", PEAK_METHOD.label, first, f"{own.seconds:g} s of one core"))
        rows.append(Row("highest after a quarter of the time", PEAK_METHOD.label, fastest))
        early = ", ".join(
            f"{labels[name]} {stopped(cell):.2f} dB (best on its way {max(cell.numbers['whole']):.2f})"
            for name, cell in curves.items()
        )
        text = [
            f"After {own.seconds:g} s of one core {first} is highest, after a quarter of it {fastest}. The paper has "
            f"{PEAK_METHOD.label} highest throughout{', too' if {first, fastest} == {PEAK_METHOD.label} else ''}.",
            f"A tenth of the observed pixels was held out of all fits; stopped where these are best: {early}.",
            f"{own.side}x{own.side} pixels; time is steps times the time of a step, evaluations left out.",
            comparable(request, SCENE[:1]),
        ]  # fmt: skip
        seconds = found["speed.curves"].numbers["seconds"]
        numbers = {
            name: {"seconds": [step * seconds[name] for step in cell.numbers["steps_scored"]],
                   "psnr": cell.numbers["whole"], "stopped": stopped(cell)}
            for name, cell in curves.items()
        }  # fmt: skip
        return Outcome(rows, {self.name: _drawing(request, numbers)}, [one for one in text if one], (), numbers)


def _at(cell: Found, share: float) -> float:
    """Return the PSNR after this share of the steps."""
    steps = np.asarray(cell.numbers["steps_scored"])
    return float(np.interp(share * cell.numbers["steps"], steps, cell.numbers["whole"]))


def _drawing(request: Request, curves: Mapping[str, Mapping[str, Any]]) -> Drawing:
    drawing = Drawing(figsize=(6.5, 4.4), layout="constrained")
    axes = drawing.subplots()
    for method in METHODS:
        axes.plot(curves[method.name]["seconds"], curves[method.name]["psnr"], color=method.colour, label=method.label)
    finish(axes, f"{called(request, SCENE[0])}, half of the pixels missing", "processor time (s)", "PSNR (dB)")
    legend(drawing, axes)
    return drawing
