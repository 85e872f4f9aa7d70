"""Figures 10 and 14: PSNR of faces over the first steps of a fit on half of their pixels, from several starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.inr_dictionaries.starts import (
    ADAM_LR,
    INNER_LR,
    META,
    RELU,
    SIREN,
    SIRENS,
    Start,
    images,
    shape,
    singles,
    sizes,
    weights_cells,
)
from inrfast.experiments.inr_dictionaries.steps import FIRST_STEPS, steps_cell, told
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row


class StepsFigure(Figure):
    """PSNRs on the pixels trained on and on the others, means over the held-out faces."""

    takes = ("images", "weights")

    def starts(self, request: Request) -> Sequence[Start]:
        """Return the starts that are compared."""
        raise NotImplementedError

    def steps(self, request: Request) -> int:
        """Return the number of steps."""
        return FIRST_STEPS

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts, steps = self.starts(request), self.steps(request)
        ready = [start for start in starts if start.source(request) in ("", *found)]
        return [*weights_cells(starts, request), *(steps_cell(start, request, found, steps) for start in ready)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts, steps, there = self.starts(request), self.steps(request), images(request)
        paths = {start.label: found[f"steps.{start.name}.{steps}"].numbers for start in starts}
        settings = f"{there.side}x{there.side}, {len(there.held_out)} faces, {steps} steps"
        rows = [Row(f"held-out PSNR, {label}", "curve only", told(path["test"][-1]), settings)
                for label, path in paths.items()]  # fmt: skip
        width, layers = shape(request)
        about = (
            f"Means over {len(there.held_out)} held-out faces ({there.source}) of the PSNR on a random half of the "
            f"pixels, which is trained on, and on the other half; {layers} hidden layers of width {width}, all pixels "
            f"in every step, gradient descent at {INNER_LR:g} from meta-learned weights, Adam at {ADAM_LR:g} from all "
            "others."
        )
        return Outcome(rows, {self.name: drawing(starts, paths)}, [about, *self.text(request, paths)], (),
                       {label: dict(path) for label, path in paths.items()})  # fmt: skip

    def text(self, request: Request, paths: Mapping[str, Mapping[str, list[float | None]]]) -> list[str]:
        """Return what is seen."""
        raise NotImplementedError


class Fig10(StepsFigure):
    """Random networks and meta-learned weights, the first ten steps."""

    name = "fig10"
    title = "Fig. 10: PSNR over the first ten steps"

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`StepsFigure`."""
        return (RELU, *SIRENS, META)

    def text(self, request: Request, paths: Mapping[str, Mapping[str, list[float | None]]]) -> list[str]:
        """See :class:`StepsFigure`."""
        best = max(SIRENS, key=lambda start: number(paths[start.label]["test"][-1])).label
        worst = min(SIRENS, key=lambda start: number(paths[start.label]["test"][-1])).label
        meta, other = paths[META.label]["test"], number(paths[best]["test"][-1])
        sooner = [step for step, value in enumerate(meta) if number(value) > other]
        when = f"is ahead of it after {sooner[0]} steps" if sooner else "is nowhere ahead of it"
        return [
            f"Of the random sine networks {best} comes out first and {worst} last on the pixels not trained on. From "
            f"meta-learned weights the fit {when} (its {FIRST_STEPS} steps: {told(meta[-1])} against "
            f"{told(paths[best]['test'][-1])})."
        ]


class Fig14(StepsFigure):
    """Weights trained on a single image before, against random and meta-learned ones."""

    name = "fig14"
    title = "Fig. 14: PSNR of fits that start from weights trained on another face"

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`StepsFigure`."""
        return (SIREN, *singles(request), META)

    def steps(self, request: Request) -> int:
        """See :class:`StepsFigure`."""
        return sizes(request).long_steps

    def text(self, request: Request, paths: Mapping[str, Mapping[str, list[float | None]]]) -> list[str]:
        """See :class:`StepsFigure`."""
        starts = singles(request)
        ends = {
            steps: float(np.mean([number(paths[s.label]["test"][-1]) for s in starts if s.steps == steps]))
            for steps in sorted({start.steps for start in starts})
        }
        own = number(paths[SIREN.label]["test"][-1])
        listed = ", ".join(f"{value:.2f} dB after {steps} steps on one face" for steps, value in ends.items())
        worse = [steps for steps, value in ends.items() if value < own]
        verdict = (
            "every one of them is worse than random weights, as the paper finds" if len(worse) == len(ends)
            else f"worse than random weights are those of {', '.join(map(str, worse))} steps" if worse
            else "none of them is worse than random weights, other than the paper finds"
        )  # fmt: skip
        return [f"Held-out PSNR from random weights {own:.2f} dB; {listed}: {verdict}."]


def number(value: float | None) -> float:
    """Return a PSNR, that of a fit that diverged below all others."""
    return -np.inf if value is None else value


def drawing(starts: Sequence[Start], paths: Mapping[str, Mapping[str, list[float | None]]]) -> Drawing:
    """Return the paths on either half of the pixels side by side."""
    figure = Drawing(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part, title in zip(panels, ("train", "test"), ("pixels trained on", "other pixels"), strict=True):
        for start in starts:
            values = [np.nan if value is None else value for value in paths[start.label][part]]
            axes.plot(values, label=start.label, linestyle="--" if start.meta or start.kind == "relu" else "-")
        finish(axes, title, "step", "PSNR (dB)")
    legend(figure, panels[0])
    return figure
