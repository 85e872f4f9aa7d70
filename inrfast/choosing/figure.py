"""The figure of a choice: predicted PSNRs over the frequency of each family, all others as points."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from inrfast import plots
from inrfast.activations import bind
from inrfast.choosing.choice import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.choosing.choice import Candidate, Choice

AXES = {
    "omega": r"$\omega$ of the activation",
    "sigma": r"$\sigma$ of the Fourier features (cycles per unit)",
    "n": "octaves of the positional encoding",
}
"""The numbers over which candidates are drawn, and what their axes say."""

OF_ENCODINGS = {"RandomFourier": "sigma", "PositionalEncoding": "n"}

MOST_OTHERS = 16
"""Candidates beside the families that are drawn: more of them could not be read."""

SPAN = 60.0
"""Decibels below the best that are drawn at most: those far below would leave no room for what matters."""

MOST_TICKS = 7
"""Numbers on a logarithmic axis."""

TITLE = 12
"""Letters of the title on an inch."""

STAR: dict[str, Any] = {"marker": "*", "markersize": 16, "markerfacecolor": "#F0E442", "markeredgecolor": "black"}


@dataclass(frozen=True)
class Place:
    """Where a candidate is drawn: the number that its family varies (a key of :data:`AXES`), its value, the family."""

    number: str
    value: float
    family: str


def place_of(arguments: Mapping[str, Any]) -> Place | None:
    """Return where a candidate is drawn, or None where it varies no number of :data:`AXES`."""
    activation, encoding = arguments["activation"], arguments.get("encoding")
    network, on, encoded = name_of(arguments).partition(" on ")
    if encoding is not None:
        number = OF_ENCODINGS.get(encoding["name"])
        if number is None or number not in encoding:
            return None
        return Place(number, float(encoding[number]), network + on + _without(encoded, number))
    if isinstance(activation, list) or isinstance(arguments.get("omega"), list):
        return None
    own = bind(activation, arguments.get("omega")).named
    # Those with other numbers too vary them with omega: they are one family.
    return Place("omega", own["omega"], _without(network, *own)) if "omega" in own else None


def _without(name: str, *numbers: str) -> str:
    """Return a name without the entries of numbers."""
    for number in numbers:
        name = re.sub(rf"(, )?\b{number}=[^,()]*", "", name).replace("(, ", "(").replace("()", "")
    return name


def draw(choice: Choice, path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`Choice.plot` describes; with ``path``, also write it there."""
    places = [place_of(candidate.arguments) for candidate in choice.candidates]
    families: dict[str, dict[str, list[tuple[float, Candidate]]]] = {}
    for candidate, place in zip(choice.candidates, places, strict=True):
        if place is not None:
            sizes = candidate.name.removeprefix(name_of(candidate.arguments))  # where candidates differ in them
            members = families.setdefault(place.number, {}).setdefault(place.family + sizes, [])
            members.append((place.value, candidate))
    # A family of one is a point like the others.
    panels = {number: {f: c for f, c in families.get(number, {}).items() if len(c) > 1} for number in AXES}
    panels = {number: curves for number, curves in panels.items() if curves}
    drawn = {id(c) for curves in panels.values() for members in curves.values() for _, c in members}
    others = [c for c in choice.candidates if id(c) not in drawn][:MOST_OTHERS]
    widths = [3.6] * len(panels) + ([0.9 + 0.42 * len(others)] if others else [])
    figure = plots.new_figure(max(sum(widths) + 0.6, 5.5), 5.2)
    every: Sequence[Axes] = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    numbers = count()
    for axes, (number, curves) in zip(every, panels.items(), strict=False):
        _panel(axes, number, curves, choice.best, numbers)
    if others:
        _others(every[-1], others, choice.best)
    _frame(figure, every, choice)
    if path is not None:
        plots.save(figure, path)
    return figure


def _panel(axes: Axes, number: str, curves: Mapping[str, Any], best: Candidate, numbers: Any) -> None:
    """Draw the curves of the families that vary one number."""
    for family, members in curves.items():
        color = plots.PALETTE[next(numbers) % len(plots.PALETTE)]
        ordered = sorted(members, key=lambda member: member[0])
        _points(axes, [value for value, _ in ordered], [c for _, c in ordered], best, color, "-", family)
    if number == "n":
        from matplotlib.ticker import MaxNLocator  # slow to import

        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        axes.set_xscale("log")
        _ticks(axes, sorted({value for members in curves.values() for value, _ in members}))
    axes.set_xlabel(AXES[number])
    axes.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize=8)


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """Write 1, 2, 5, 10, ... on a logarithmic axis, as far as its values reach, or fewer where there is no room."""
    low, high = values[0] / 1.2, values[-1] * 1.2
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        steps = [m * 10.0**e for e in range(-9, 10) for m in multiples if low <= m * 10.0**e <= high]
        if len(steps) <= MOST_TICKS:
            break
    axes.set_xlim(low, high)
    axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _others(axes: Axes, others: Sequence[Candidate], best: Candidate) -> None:
    """Draw those that vary none of the numbers, by their names."""
    _points(axes, range(len(others)), others, best, "0.35", "none", None)
    names = [candidate.name for candidate in others]
    axes.set_xticks(range(len(others)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlim(-0.6, len(others) - 0.4)


def _points(
    axes: Axes, x: Any, members: Sequence[Candidate], best: Candidate, color: str, line: str, label: str | None
) -> None:
    """Draw predictions with their standard errors, what was fitted, and the best with a star."""
    y, errors = [c.psnr for c in members], [_error(c) for c in members]
    style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4.5, "linewidth": 1.4, "capsize": 2.5}
    axes.errorbar(x, y, yerr=errors, linestyle=line, label=label, **style)
    for place, candidate in zip(x, members, strict=True):
        if candidate.fitted is not None and math.isfinite(candidate.fitted):
            axes.plot(place, candidate.fitted, "D", color=color, markerfacecolor="white", markersize=6, zorder=4)
        if candidate is best:
            axes.plot(place, candidate.psnr, linestyle="none", zorder=5, **STAR)


def _error(candidate: Candidate) -> float:
    """Return the standard error that is drawn: none where it is not known."""
    return candidate.error if math.isfinite(candidate.error) else 0.0


def _frame(figure: Figure, every: Sequence[Axes], choice: Choice) -> None:
    """Say what is drawn, and draw as far down as matters."""
    best = choice.best
    fitted = [own.fitted for own in choice.candidates if own.fitted is not None and math.isfinite(own.fitted)]
    known = [own for own in choice.candidates if math.isfinite(own.psnr)]
    tops = [own.psnr + _error(own) for own in known] + fitted or [0.0]
    floor = max(min([own.psnr - _error(own) for own in known] + fitted or [0.0]), max(tops) - SPAN)
    room = 0.06 * (max(tops) - floor) + 0.1
    for axes in every:
        axes.grid(True, color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(best.psnr, color="0.6", linewidth=0.9, linestyle=":", zorder=1)
    every[0].set_ylim(floor - room, max(tops) + room)
    every[0].set_ylabel("PSNR between the samples (dB)")
    said = f"Best: {best.name}, learning rate {best.lr:.2g}: {best.psnr:.1f} dB predicted"
    said += f", {best.fitted:.1f} dB after a short fit" if best.fitted in fitted else ""
    figure.suptitle(textwrap.fill(said, round(TITLE * figure.get_figwidth())), fontsize=11)
    marks = "dots: predicted, with one standard error; star: the best"
    figure.supxlabel(marks + ("; diamonds: after a short fit" if fitted else ""), fontsize=8, color="0.35")
