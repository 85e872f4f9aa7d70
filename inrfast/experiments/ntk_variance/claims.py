"""The paper's claims on encodings, norms and filters, tested over random networks in several settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.ntk_variance.ratios import Ratio, ratio, slope
from inrfast.experiments.ntk_variance.settings import RUNS, Setting, cell, settings_of
from inrfast.experiments.ntk_variance.variants import DEFINITIONS, PLAIN, SPHERE, VARIANTS, Variant
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import seeds
from inrfast.experiments.scores import Interval, interval

WIDTHS = (16, 32, 64, 128, 256)
"""Of the networks by which the scaling of hidden similarities is measured."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper on a number of one variant over that of ReLU.

    Attributes
    ----------
    said
        What the paper says, in the words of its summary.
    what
        What is compared, in ours.
    variant, number
        Of :data:`VARIANTS`, and of :func:`inrfast.experiments.ntk_variance.measures.measured`.
    wanted
        ``"lower"``, or ``"changed"``: either way.
    """

    said: str
    what: str
    variant: str
    number: str = "normalised"
    wanted: str = "lower"

    def verdict(self, found: Ratio) -> str:
        """Return ``confirmed``, ``refuted``, or ``open`` where the interval holds 1."""
        if found.seen == "open":
            return "open"
        return "confirmed" if self.wanted in ("changed", found.seen) else "refuted"


CLAIMS = (
    Claim("positional encoding reshapes input similarity", "input similarity, PE over ReLU", "pe", "input", "changed"),
    Claim("positional encoding changes the variance", "v/mu^2, PE over ReLU", "pe", wanted="changed"),
    Claim("spherical normalisation reduces variance", "v/mu^2, sphere over ReLU", "sphere"),
    Claim("spherical normalisation lowers energy-weighted overlaps", "overlap, sphere over ReLU", "sphere", "overlap"),
    Claim("Hadamard modulation reduces variance", "v/mu^2, Hadamard over ReLU", "hadamard"),
    Claim("Hadamard modulation reduces variance", "v/mu^2 without the filters' own parameters", "hadamard", "frozen"),
    Claim("Hadamard modulation reduces variance", "v/mu^2 of the first layer alone", "hadamard", "first"),
    Claim("normalisation with Hadamard modulation reduces variance", "v/mu^2, both over ReLU", "both"),
    Claim("TopK-SP reduces variance", "v/mu^2, TopK-SP over ReLU", "topk_sphere"),
)

UNSAID = (
    Claim("—", "v/mu^2, TopK over ReLU", "topk"),
    Claim("—", "v/mu^2, BN over ReLU", "bn"),
)
"""What the summary says nothing of."""


class Claims(Figure):
    """Every variant against ReLU, paired by seed, in every setting."""

    name = "claims"
    title = "The claims on positional encoding, spherical normalisation and Hadamard modulation"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = seeds(request, RUNS)
        return [
            *(cell(setting, list(VARIANTS.values()), runs) for setting in settings_of(request)),
            scaling_cell(runs),
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        settings = settings_of(request)
        ratios = {
            claim: {one.name: compared(found[one.name], claim) for one in settings} for claim in (*CLAIMS, *UNSAID)
        }
        scaling = {name: exponent(found["scaling"].numbers[name]) for name in (PLAIN.name, SPHERE.name)}
        count = len(found["base"].numbers[PLAIN.name])
        return Outcome(
            [*(_row(claim, ratios[claim], settings) for claim in CLAIMS), _scaling_row(scaling)],
            {self.name: _drawing(ratios, settings)},
            [DEFINITIONS, *_told(ratios, settings, count)],
            [*(_table(claim, ratios[claim], settings) for claim in ratios), _medians(found, settings)],
            {
                "ratios": [
                    {"claim": claim.said, "what": claim.what, "verdicts": verdicts(claim, own),
                     "settings": {name: one.json for name, one in own.items()}}
                    for claim, own in ratios.items()
                ],
                "hidden similarity exponents": {name: one.json for name, one in scaling.items()},
                "seeds": count,
                "settings": {one.name: one.settings | {"label": one.label} for one in settings},
            },
        )  # fmt: skip


def compared(found: Found, claim: Claim) -> Ratio:
    """Return a claim's number over that of ReLU, paired by seed."""
    return ratio(*([one[claim.number] for one in found.numbers[name]] for name in (claim.variant, PLAIN.name)))


def verdicts(claim: Claim, ratios: Mapping[str, Ratio]) -> dict[str, list[str]]:
    """Return the settings by verdict."""
    made: dict[str, list[str]] = {"confirmed": [], "refuted": [], "open": []}
    for name, one in ratios.items():
        made[claim.verdict(one)].append(name)
    return made


def summed(claim: Claim, ratios: Mapping[str, Ratio]) -> str:
    """Return how many settings have which verdict, in words."""
    counts = {word: len(names) for word, names in verdicts(claim, ratios).items()}
    return ", ".join(f"{word} in {count} of {len(ratios)}" for word, count in counts.items() if count)


def _row(claim: Claim, ratios: Mapping[str, Ratio], settings: Sequence[Setting]) -> Row:
    first = settings[0]
    told = f"{summed(claim, ratios)} settings; {first.name}: times {ratios[first.name]} seeds below 1"
    return Row(claim.said, "claimed", told, claim.what)


def _told(ratios: Mapping[Claim, Mapping[str, Ratio]], settings: Sequence[Setting], count: int) -> list[str]:
    text = [
        f"Each number is a geometric mean over {count} seeds of a variant's value over that of ReLU with the same "
        "seed, with a 95 % interval (Student's t on the logarithms) and the seeds in which it is below 1. A claim is "
        "confirmed in a setting where the interval lies on its side of 1, refuted where it lies on the other, open "
        "where it holds 1. Intervals are of one comparison each: of the many here some are off by chance. The paper's "
        "own numbers are not at hand.",
    ]
    for claim, own in ratios.items():
        against = [one.label for one in settings if claim.verdict(own[one.name]) == "refuted"]
        if claim.said != "—" and against:
            text.append(f"Refuted: {claim.said} ({claim.what}), for {'; '.join(against)}.")
    return text


def _table(claim: Claim, ratios: Mapping[str, Ratio], settings: Sequence[Setting]) -> Table:
    rows = [
        [one.label, str(ratios[one.name]), claim.verdict(ratios[one.name]) if claim.said != "—" else
         ratios[one.name].seen]
        for one in settings
    ]  # fmt: skip
    return Table(f"{claim.what}: times ReLU's", ["setting", "factor, interval, seeds below 1", "verdict"], rows)


def _medians(found: Mapping[str, Found], settings: Sequence[Setting]) -> Table:
    rows = [
        [one.label, *(f"{np.median([run['normalised'] for run in found[one.name].numbers[name]]):.3g}"
                      for name in VARIANTS)]
        for one in settings
    ]  # fmt: skip
    return Table("v/mu^2, median over seeds", ["setting", *(one.label for one in VARIANTS.values())], rows)


def _drawing(ratios: Mapping[Claim, Mapping[str, Ratio]], settings: Sequence[Setting]) -> Drawing:
    drawing = Drawing(figsize=(9.5, 6.4), layout="constrained")
    axes = drawing.subplots()
    shown = [claim for claim in ratios if claim.number == "normalised"]
    for place, claim in enumerate(shown):
        variant = VARIANTS[claim.variant]
        up = [-row + 0.09 * (len(shown) / 2 - place) for row in range(len(settings))]
        draw_ratios(axes, [ratios[claim][one.name] for one in settings], up, variant)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks([-row for row in range(len(settings))], [one.label for one in settings])
    finish(axes, "v/mu² over that of ReLU, paired by seed", "factor with its 95 % interval", "")
    legend(drawing, axes)
    return drawing


def draw_ratios(axes: Any, ratios: Sequence[Ratio], up: Sequence[float], variant: Variant) -> None:
    """Draw factors with their intervals at some heights."""
    factors = np.array([one.factor for one in ratios])
    halves = np.array([one.log.half or 0.0 for one in ratios])
    spread = [factors * (1 - np.exp(-halves)), factors * (np.exp(halves) - 1)]
    axes.errorbar(factors, up, xerr=spread, fmt="o", markersize=4, linewidth=1.2, color=variant.colour,
                  label=variant.label)  # fmt: skip


# ---- hidden similarities -----------------------------------------------------------------------------------------


def scaling_cell(runs: Sequence[int]) -> Cell:
    """Return the cell of how far hidden similarities of two seeds are apart, by width, without and with the sphere.

    Numbers by variant: a list per width of one mean square per pair of seeds.
    """
    pairs = list(zip(runs[::2], runs[1::2], strict=False))

    def run(work: Work) -> Found:
        return Found({
            variant.name: [
                [float((hidden(variant, width, a) - hidden(variant, width, b)).square().mean()) for a, b in pairs]
                for width in WIDTHS
            ]
            for variant in (PLAIN, SPHERE)
        })  # fmt: skip

    settings = {"widths": list(WIDTHS), "pairs": [list(one) for one in pairs], "side": 16}
    return Cell("scaling", settings, run, cost=1e-2 * len(runs))


@torch.no_grad()
def hidden(variant: Variant, width: int, seed: int) -> Tensor:
    """Return the similarities ``<z_i, z_j> / m`` of the first hidden layer, over their mean diagonal."""
    setting = Setting("", "", width=width, hidden_layers=1)
    net = setting.network(variant, seed)
    features = net.norms[0](net.layers[0](setting.coords(seed)).relu())
    inner = features @ features.T / width
    return inner / inner.diagonal().mean()


def exponent(squares: Sequence[Sequence[float]]) -> Interval:
    """Return the exponent of the mean square difference in the width, over pairs of seeds."""
    return interval([slope(WIDTHS, own) for own in zip(*squares, strict=True)])


def _scaling_row(scaling: Mapping[str, Interval]) -> Row:
    plain, sphere = scaling[PLAIN.name], scaling[SPHERE.name]
    kept = sphere.low <= -1 <= sphere.high
    told = (
        f"{'confirmed' if kept else 'refuted'}: exponent in m {sphere.signed} with the sphere, {plain.signed} without"
    )
    return Row("the sphere preserves the 1/m scaling of hidden similarities", "claimed", told,
               "read as: the variance over seeds of <z_i, z_j>/m, first hidden layer, m = 16 to 256")  # fmt: skip
