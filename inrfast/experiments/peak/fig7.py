"""Fig. 7: PSNR on Baboon with half of the pixels missing, against processor time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row
from inrfast.experiments.peak.fitting import fit_cell, last, sizes, speed_cell, steps_of, stopped
from inrfast.experiments.peak.images import comparable, image
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
        own, curves = sizes(request), {method: found[f"curve.{method.name}"] for method in METHODS}
        ends = {method: last(cell) for method, cell in curves.items()}
        halves = {method: _at(cell, 0.25) for method, cell in curves.items()}
        rows = [
            Row(f"PSNR (dB) of {method.label} after {own.seconds / 4:g} s / {own.seconds:g} s", "curve only",
                f"{halves[method]:.2f} / {ends[method]:.2f}", f"{curves[method].numbers['steps']} steps")
            for method in METHODS
        ]  # fmt: skip
        first, fastest = (max(own, key=lambda method: own[method]) for own in (ends, halves))
        rows.append(Row("highest at the end", PEAK_METHOD.label, first.label, f"{own.seconds:g} s of one core"))
        rows.append(Row("highest after a quarter of the time", PEAK_METHOD.label, fastest.label, ""))
        early = ", ".join(
            f"{method.label} {stopped(cell):.2f} dB (best on its way {max(cell.numbers['whole']):.2f})"
            for method, cell in curves.items()
        )
        text = [
            f"After {own.seconds:g} s of one core {first.label} is highest, after a quarter of it {fastest.label}. "
            + ("The paper has PEAK highest throughout." if {first, fastest} != {PEAK_METHOD} else
               "The paper has PEAK highest throughout, too."),
            f"A tenth of the observed pixels was held out of all fits; stopped where these are best: {early}.",
            f"{own.side}x{own.side} pixels; time is steps times the time of a step, evaluations left out.",
            comparable(request),
        ]  # fmt: skip
        seconds = found["speed.curves"].numbers["seconds"]
        numbers = {
            method.name: {"seconds": [step * seconds[method.name] for step in cell.numbers["steps_scored"]],
                          "psnr": cell.numbers["whole"], "stopped": stopped(cell)}
            for method, cell in curves.items()
        }  # fmt: skip
        drawing = _drawing({method: numbers[method.name] for method in METHODS})
        return Outcome(rows, {self.name: drawing}, [one for one in text if one], (), numbers)


def _at(cell: Found, share: float) -> float:
    """Return the PSNR after this share of the steps."""
    steps = np.asarray(cell.numbers["steps_scored"])
    return float(np.interp(share * cell.numbers["steps"], steps, cell.numbers["whole"]))


def _drawing(curves: Mapping[object, Mapping[str, Sequence[float]]]) -> Drawing:
    drawing = Drawing(figsize=(6.5, 4.4), layout="constrained")
    axes = drawing.subplots()
    for method in METHODS:
        axes.plot(curves[method]["seconds"], curves[method]["psnr"], color=method.colour, label=method.label)
    finish(axes, f"{SCENE[0]}, half of the pixels missing", "processor time (s)", "PSNR (dB)")
    legend(drawing, axes)
    return drawing
