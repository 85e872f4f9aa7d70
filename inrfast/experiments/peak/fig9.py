"""Fig. 9: PEAK with other factors of KAR, other numbers of attention features, other functions in place of softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row
from inrfast.experiments.peak.methods import GAMMA, PEAK_METHOD, Method
from inrfast.experiments.peak.sweeps import NAMED, Sweep, scene_notes
from inrfast.experiments.peak.weights import FUNCTIONS

FACTORS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FEATURES = (10, 50, 100, 200, 300, 400, 500)

BEST_FACTORS, BEST_FEATURES = (1e-2, 1e-1), 100
"""Of the paper."""

LEVEL = 0.2
"""dB: values whose best is less above the worst are called level."""


def _varied(name: str, **kar: object) -> Method:
    return replace(PEAK_METHOD, name=name, kar={**PEAK_METHOD.kar, **kar})


FACTOR = Sweep(
    "factor", {"0": replace(GAMMA, name="none"), **{f"{x:g}": _varied(f"f{x:g}", factor=x) for x in FACTORS}}
)
FEATURE = Sweep("features", {str(r): _varied(f"r{r}", r=r) for r in FEATURES})
FUNCTION = Sweep("function", {name: _varied(f"by-{name}", function=name) for name in FUNCTIONS})


class Fig9(Figure):
    """Three sweeps on Jetplane with the combined mask."""

    name = "fig9"
    title = "Fig. 9: PEAK by the factor of KAR, the attention's features r and the function in place of softmax"
    takes = ("images", "masks")
    named = NAMED

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        FACTOR.check(request)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return [cell for sweep in (FACTOR, FEATURE, FUNCTION) for cell in sweep.cells(request, found)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        scores = {sweep.name: sweep.scores(request, found) for sweep in (FACTOR, FEATURE, FUNCTION)}
        means = {name: {value: float(np.mean(own)) for value, own in group.items()} for name, group in scores.items()}
        best = {name: max(group, key=lambda value: group[value]) for name, group in means.items()}
        none = means["factor"]["0"]
        spans = {name: max(group.values()) - min(group.values()) for name, group in means.items()}
        rows = [
            Row("best factor of KAR", "1e-2 to 1e-1, about 23.5 dB",
                f"{best['factor']}, {means['factor'][best['factor']]:.2f} dB (without KAR {none:.2f})"),
            Row("factor 100", "about 14 dB", f"{means['factor']['100']:.2f} dB"),
            Row("best number of features r", "100, 23.8 dB",
                f"{best['features']}, {means['features'][best['features']]:.2f} dB"),
            Row("r = 10 / r = 500", "19.5 / about 22 dB",
                f"{means['features']['10']:.2f} / {means['features']['500']:.2f} dB"),
            Row("best function", "softmax, by little; most 23 to 24 dB",
                f"{best['function']}, {means['function'][best['function']]:.2f} dB; softmax "
                f"{means['function']['softmax']:.2f} dB"),
        ]  # fmt: skip
        text = [
            _factor_told(means["factor"], best["factor"]),
            f"Over r the PSNR moves by {spans['features']:.2f} dB"
            + (", next to nothing." if spans["features"] < LEVEL else f", best at {best['features']}."),
            "The factor multiplies the mean of KAR over its points beside the mean squared error, that of the paper a "
            "sum beside a sum; of the paper's activations we take the function in place of softmax: it is applied to "
            "g(x)^T g(X), and each row divided by the sum of its magnitudes.",
            *scene_notes(request),
        ]
        tables = [
            FACTOR.table(request, found, "By the factor of KAR", "factor"),
            FEATURE.table(request, found, "By the attention's features", "r"),
            FUNCTION.table(request, found, "By the function in place of softmax", "function"),
        ]
        return Outcome(rows, {self.name: _drawing(scores)}, text, tables, {"psnr": scores})


def _factor_told(means: Mapping[str, float], best: str) -> str:
    inside = BEST_FACTORS[0] <= float(best) <= BEST_FACTORS[1]
    gain = means[best] - means["0"]
    if best == "0":
        return "No factor of KAR improves on the same network and encoding without it, at equal processor time."
    where = "inside" if inside else "outside"
    return (
        f"The best factor is {best}, {where} the paper's range, {gain:+.2f} dB over no KAR at equal processor time; "
        f"at 100 the PSNR is {means['100']:.2f} dB."
    )


def _drawing(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    drawing = Drawing(figsize=(13, 3.9), layout="constrained")
    for axes, name, title, across in zip(
        drawing.subplots(1, 3),
        scores,
        ("(a) factor of KAR", "(b) features of the attention", "(c) function in place of softmax"),
        ("factor", "r", ""),
        strict=True,
    ):
        own = {value: values for value, values in scores[name].items() if value != "0"}
        _curve(axes, own, numbers=name != "function")
        if name == "factor":
            axes.set_xscale("log")
            axes.axhline(float(np.mean(scores[name]["0"])), color="0.5", linestyle="--", label="without KAR")
            axes.legend(frameon=False, fontsize=9)
        finish(axes, title, across, "PSNR (dB)")
    return drawing


def _curve(axes: Axes, scores: Mapping[str, Sequence[float]], *, numbers: bool) -> None:
    places = [float(value) for value in scores] if numbers else list(range(len(scores)))
    means = np.array([np.mean(own) for own in scores.values()])
    low, high = np.array([min(own) for own in scores.values()]), np.array([max(own) for own in scores.values()])
    if numbers:
        axes.plot(places, means, color="#D55E00", marker="o")
        axes.fill_between(places, low, high, color="#D55E00", alpha=0.2, linewidth=0)
        return
    axes.errorbar(places, means, [means - low, high - means], color="#D55E00", fmt="o")
    axes.set_xticks(places, list(scores), rotation=45, ha="right")
