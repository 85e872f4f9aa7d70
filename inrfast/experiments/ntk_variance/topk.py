"""TopK with spherical projection against plain TopK: how fast the variance falls with the share that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.ntk_variance.ratios import Ratio, ratio, slope
from inrfast.experiments.ntk_variance.settings import RUNS, Setting, cell
from inrfast.experiments.ntk_variance.variants import DEFINITIONS, PLAIN, SPHERE, TOPK, TOPK_SPHERE, Variant
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.runs import seeds
from inrfast.experiments.scores import Interval, interval

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of a layer's units that are kept, beside all of them. Exponents are over these: behind ReLU some half of the units
are 0 anyway, so that from 1/2 to 1 next to nothing changes."""

SAID = "TopK-SP suppresses variance at least about quadratically against plain sparsification"


@dataclass(frozen=True)
class Reading:
    """What the claim may mean, as numbers that are at most 0 where it holds.

    Attributes
    ----------
    name
        In files.
    told
        In words.
    by_share
        Whether it has numbers for each share.
    """

    name: str
    told: str
    by_share: bool = True


READINGS = (
    Reading("exponent-normalised", "v/mu^2 ~ (k/m)^p: p of TopK-SP is at least twice p of TopK", by_share=False),
    Reading("exponent-variance", "v ~ (k/m)^p: p of TopK-SP is at least twice p of TopK", by_share=False),
    Reading("quadratic", "v ~ (k/m)^p: p of TopK-SP is at least 2", by_share=False),
    Reading("squared", "v/mu^2 over the dense ReLU network's: that of TopK-SP is at most TopK's squared"),
    Reading("share-normalised", "v/mu^2 of TopK-SP is at most (k/m)^2 that of TopK"),
    Reading("share-variance", "v of TopK-SP is at most (k/m)^2 that of TopK"),
)


def settings_of(request: Request) -> list[Setting]:
    """Return the settings of a preset."""
    width = 128 if request.quick else 512
    return [
        Setting("deep", f"16x16 grid, 3 hidden layers of {width}, torch's default start", width=width),
        Setting("deep-no-bias", "the same without biases", width=width, options={"bias": False}),
        Setting("deep-he", "the same with He's start and without biases", width=width,
                options={"bias": False, "init": "kaiming"}),
        Setting("shallow", f"16x16 grid, 1 hidden layer of {width}", width=width, hidden_layers=1),
        Setting("theory-2", f"the theory's model, width {width}, Gaussian points in 2 dimensions", width=width,
                points="gaussian", hidden_layers=1, theory=True),
        Setting("theory-16", f"the theory's model, width {width}, Gaussian points in 16 dimensions", width=width,
                points="gaussian", dimension=16, hidden_layers=1, theory=True),
    ]  # fmt: skip


def kept(variant: Variant, share: float, width: int) -> Variant:
    """Return a variant that keeps a share of the units."""
    name = f"{variant.name}-{round(share * width)}"
    return replace(variant.but(norm={"name": variant.name, "k": round(share * width)}), name=name)


class TopKFigure(Figure):
    """v and v/mu^2 against k/m, and every reading of the claim in every setting."""

    name = "topk"
    title = "TopK with spherical projection against plain TopK"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = seeds(request, RUNS)
        return [
            cell(one, [PLAIN, SPHERE, *(kept(kind, share, one.width) for kind in (TOPK, TOPK_SPHERE)
                                        for share in SHARES)], runs)
            for one in settings_of(request)
        ]  # fmt: skip

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        settings = settings_of(request)
        tested = {one.name: readings(found[one.name], one.width) for one in settings}
        count = len(found[settings[0].name].numbers[PLAIN.name])
        rows = [
            Row(reading.told, "claimed",
                "; ".join(f"{one.name}: {tested[one.name][reading.name].verdict}" for one in settings),
                f"{count} seeds")
            for reading in READINGS
        ]  # fmt: skip
        text = [
            DEFINITIONS,
            "mu and v are mean and variance of the eigenvalues of the network's tangent kernel at its start. Here k of "
            f"a layer's m units are kept, k/m from {_fraction(SHARES[0])} to 1 in place of a quarter. The settings: "
            + "; ".join(f"{one.name}, {one.label}" for one in settings)
            + ". Bands of the figure are 95 % intervals of Student's t over the seeds; its dashed curve is the square "
            "of TopK's.",
            f"The claim is: {SAID}. The summary does not say what is squared. {len(READINGS)} readings are tested, "
            "each as a difference of logarithms or exponents that is at most 0 where the reading holds, paired over "
            f"{count} seeds with a 95 % interval. A reading of shares holds in a setting where it holds at every "
            f"share. Exponents are least-squares slopes over k/m from {_fraction(SHARES[0])} to "
            f"{_fraction(SHARES[-1])}.",
        ]
        return Outcome(
            rows,
            {self.name: _drawing(found, settings)},
            text,
            [_tests_table(tested, settings), *(_values_table(found[one.name], one) for one in settings)],
            {
                one.name: {
                    "label": one.label,
                    "readings": {name: test.json for name, test in tested[one.name].items()},
                    "values": {
                        f"{kind.name} {share:g}": {
                            number: _against(found[one.name], kind, share, one.width, number).json
                            for number in ("normalised", "variance")
                        }
                        for kind in (TOPK, TOPK_SPHERE) for share in (*SHARES, 1.0)
                    },
                }
                for one in settings
            },
        )  # fmt: skip


# ---- tests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A reading in a setting: an interval, or one for each share, at most 0 where the reading holds."""

    intervals: Mapping[str, Interval]
    exponents: Mapping[str, Interval]

    @property
    def verdict(self) -> str:
        """``holds`` where all intervals are below 0, ``refuted`` where one is above, else ``open``."""
        own = list(self.intervals.values())
        if any(one.low > 0 for one in own):
            holding = sum(one.high <= 0 for one in own)
            return "refuted" if not holding else f"refuted, holds at {holding} of {len(own)} shares"
        return "holds" if all(one.high <= 0 for one in own) else "open"

    @property
    def json(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "verdict": self.verdict,
            "differences": {name: one.json for name, one in self.intervals.items()},
            "exponents": {name: one.json for name, one in self.exponents.items()},
        }


def runs_of(found: Found, kind: Variant, share: float, width: int, number: str) -> list[float]:
    """Return a number of every seed; at share 1 the network without TopK."""
    dense = PLAIN if kind is TOPK else SPHERE
    name = dense.name if share == 1 else kept(kind, share, width).name
    return [float(one[number]) for one in found.numbers[name]]


def readings(found: Found, width: int) -> dict[str, Test]:
    """Return every reading's test in one setting."""
    made = {}
    for reading, number in zip(READINGS[:2], ("normalised", "variance"), strict=True):
        powers = {kind.name: exponents(found, kind, width, number) for kind in (TOPK, TOPK_SPHERE)}
        twice = [2 * a - b for a, b in zip(powers[TOPK.name], powers[TOPK_SPHERE.name], strict=True)]
        made[reading.name] = Test({"all": interval(twice)}, {name: interval(own) for name, own in powers.items()})
    missing = [2 - power for power in exponents(found, TOPK_SPHERE, width, "variance")]
    made["quadratic"] = Test({"all": interval(missing)}, {})
    for reading in READINGS[3:]:
        made[reading.name] = Test({f"{share:g}": _share_test(found, width, share, reading) for share in SHARES}, {})
    return made


def exponents(found: Found, kind: Variant, width: int, number: str) -> list[float]:
    """Return for every seed the exponent of a number in k/m."""
    curves = zip(*(runs_of(found, kind, share, width, number) for share in SHARES), strict=True)
    return [slope(SHARES, own) for own in curves]


def _share_test(found: Found, width: int, share: float, reading: Reading) -> Interval:
    number = "variance" if reading.name == "share-variance" else "normalised"
    sparse, projected = (np.log(runs_of(found, kind, share, width, number)) for kind in (TOPK, TOPK_SPHERE))
    if reading.name == "squared":
        dense = np.log(runs_of(found, TOPK, 1.0, width, number))
        return interval(list((projected - dense) - 2 * (sparse - dense)))
    return interval(list(projected - sparse - 2 * np.log(share)))


def _against(found: Found, kind: Variant, share: float, width: int, number: str) -> Ratio:
    """Return a number over that of the dense ReLU network."""
    return ratio(runs_of(found, kind, share, width, number), runs_of(found, TOPK, 1.0, width, number))


# ---- what is shown -----------------------------------------------------------------------------------------------


def _fraction(share: float) -> str:
    """Return a share 1/n in these words."""
    return "1" if share == 1 else f"1/{round(1 / share)}"


def _tests_table(tested: Mapping[str, Mapping[str, Test]], settings: Sequence[Setting]) -> Table:
    rows = []
    for one in settings:
        for reading in READINGS:
            test = tested[one.name][reading.name]
            powers = "; ".join(f"p {name} {own.signed}" for name, own in test.exponents.items())
            differences = ", ".join(
                (f"{_fraction(float(share))}: " if reading.by_share else "") + own.signed
                for share, own in test.intervals.items()
            )
            rows.append([one.label, reading.told, differences, powers, test.verdict])
    head = ["setting", "reading", "difference, at most 0 where it holds (by k/m)", "exponents", "verdict"]
    return Table("Every reading in every setting", head, rows)


def _values_table(found: Found, setting: Setting) -> Table:
    rows = [
        [_fraction(share), *(str(_against(found, kind, share, setting.width, number))
                           for number in ("normalised", "variance") for kind in (TOPK, TOPK_SPHERE))]
        for share in (*SHARES, 1.0)
    ]  # fmt: skip
    head = ["k/m", "v/mu^2, TopK", "v/mu^2, TopK-SP", "v, TopK", "v, TopK-SP"]
    title = f"{setting.label}: times the dense ReLU network's, geometric mean (95 % interval), seeds below 1"
    return Table(title, head, rows)


def _drawing(found: Mapping[str, Found], settings: Sequence[Setting]) -> Drawing:
    drawing = Drawing(figsize=(11, 6), layout="constrained")
    panels = drawing.subplots(2, -(-len(settings) // 2), squeeze=False)
    shares = (*SHARES, 1.0)
    for axes, one in zip(panels.flat, settings, strict=False):
        for kind in (TOPK, TOPK_SPHERE):
            own = [_against(found[one.name], kind, share, one.width, "normalised") for share in shares]
            factors, halves = np.array([r.factor for r in own]), np.array([r.log.half or 0.0 for r in own])
            axes.plot(shares, factors, color=kind.colour, marker="o", markersize=4, label=kind.label)
            axes.fill_between(shares, factors * np.exp(-halves), factors * np.exp(halves), color=kind.colour,
                              alpha=0.2, linewidth=0)  # fmt: skip
            if kind is TOPK:
                axes.plot(shares, factors**2, color="0.4", linestyle="--", linewidth=1, label="TopK's squared")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        finish(axes, one.name, "share of units kept, k/m", "v/mu² over ReLU's")
    legend(drawing, panels[0, 0])
    return drawing
