"""Where Hadamard modulation lowers v/mu^2 and where it does not, and what its own similarity factor does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.ntk_variance.measures import LAYERS, made_up
from inrfast.experiments.ntk_variance.ratios import Ratio, ratio
from inrfast.experiments.ntk_variance.settings import RUNS, Setting, cell
from inrfast.experiments.ntk_variance.settings import settings_of as all_settings
from inrfast.experiments.ntk_variance.variants import BOTH, DEFINITIONS, HADAMARD, PLAIN, SPHERE, Variant, fourier
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import seeds
from inrfast.experiments.scores import interval
from inrfast.plots import PALETTE

FREQUENCIES = (1.0, 4.0, 16.0, 64.0)
"""Of the Fourier filters' frequencies."""

GABOR_FREQUENCIES = (4.0, 16.0)

SETTINGS = ("base", "one-layer", "five-layers", "no-bias", "he", "he-no-bias", "sphere-16", "theory-2", "theory-16")
"""Names of the settings in which filters are compared."""

PLACES = {
    "normalised": "whole kernel",
    "frozen": "without the filters' parameters",
    "first": "first layer alone",
}
"""Numbers that are compared, in words."""

FACTORED = ("theory-2", "theory-16")
"""Settings in which the factor is computed."""


@dataclass(frozen=True)
class Filter:
    """A kind of filter with its frequency."""

    kind: str
    frequency: float

    @property
    def label(self) -> str:
        """As tables spell it."""
        return f"{self.kind.capitalize()}, frequency {self.frequency:g}"

    def on(self, variant: Variant) -> Variant:
        """Return a variant with this filter in place of its own."""
        made = variant.but(filters={**fourier(self.frequency), "name": self.kind})
        return replace(made, name=f"{variant.name}-{self.kind}-{self.frequency:g}")


FILTERS = (
    *(Filter("fourier", frequency) for frequency in FREQUENCIES),
    *(Filter("gabor", frequency) for frequency in GABOR_FREQUENCIES),
)


class HadamardFigure(Figure):
    """Filters against none, with and without the sphere, by setting; and the factor in the theory's model."""

    name = "hadamard"
    title = "Where Hadamard modulation reduces the variance, and its similarity factor"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs, there = seeds(request, RUNS), settings_of(request)
        variants = [PLAIN, SPHERE, *(one.on(kind) for kind in (HADAMARD, BOTH) for one in FILTERS)]
        return [
            *(cell(one, variants, runs) for one in there),
            *(factor_cell(one, runs) for one in there if one.name in FACTORED),
        ]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        there = settings_of(request)
        ratios = {
            one.name: {
                (kind.name, own, number): compared(found[one.name], own.on(kind), number)
                for kind in (HADAMARD, BOTH) for own in FILTERS for number in PLACES
            }
            for one in there
        }  # fmt: skip
        factors = {one.name: found[f"factor-{one.name}"].numbers for one in there if one.name in FACTORED}
        count = len(found["base"].numbers[PLAIN.name])
        return Outcome(
            [_row(ratios, number) for number in PLACES] + [factor_row(factors)],
            {self.name: _drawing(ratios, there)},
            [
                DEFINITIONS,
                f"Factors are geometric means over {count} seeds of v/mu^2 over that of ReLU with the same seed, with "
                "a 95 % interval and the seeds below 1. A filter's frequency f bounds the entries of its W: "
                "f / sqrt(d) radians per unit of a coordinate.",
                *_told(found["base"], ratios),
            ],
            [
                *(_table(kind, number, ratios, there) for kind in (HADAMARD, BOTH) for number in PLACES),
                _parts_table(found, there),
                _layers_table(found["base"]),
                _factor_table(factors),
            ],
            {
                "ratios": {
                    name: [
                        {"variant": kind, "filter": own.kind, "frequency": own.frequency, "number": number, **one.json}
                        for (kind, own, number), one in by.items()
                    ]
                    for name, by in ratios.items()
                },
                "factors": {name: {key: _summary(own) for key, own in by.items()} for name, by in factors.items()},
                "seeds": count,
            },
        )  # fmt: skip


def settings_of(request: Request) -> list[Setting]:
    """Return the settings in which filters are compared."""
    return [one for one in all_settings(request) if one.name in SETTINGS]


def compared(found: Found, variant: Variant, number: str) -> Ratio:
    """Return a variant's number over that of ReLU, paired by seed."""
    return ratio(*([one[number] for one in found.numbers[name]] for name in (variant.name, PLAIN.name)))


# ---- the factor --------------------------------------------------------------------------------------------------


def factor_cell(setting: Setting, runs: Sequence[int]) -> Cell:
    """Return the cell of the factors of Fourier filters in the theory's model: by frequency a list over seeds."""

    def run(work: Work) -> Found:
        return Found(
            {f"{frequency:g}": [factors(setting, frequency, seed) for seed in runs] for frequency in FREQUENCIES}
        )

    settings = {**setting.settings, "frequencies": list(FREQUENCIES), "seeds": list(runs)}
    return Cell(f"factor-{setting.name}", settings, run, cost=1e-2 * len(runs))


@torch.no_grad()
def factors(setting: Setting, frequency: float, seed: int) -> dict[str, float]:
    """Return how v/mu^2 of the theory's model, with its filter, is made up, from its weights and the definitions alone.

    The kernel of the first layer is ``K_ij = 1/m <x_i, x_j> <g_i, g_j>`` with ``g = s h``, gates times filter. Its
    overlap is a mean of squared cosines ``tau_x tau_s tau_h`` with weights ``K_ii K_jj``, where ``tau_s`` is that of
    the gates alone and ``tau_h`` the filter's factor, ``cos^2(g_i, g_j) / cos^2(s_i, s_j)``.

    Returns
    -------
    dict
        ``mean`` of tau_h with the weights ``K_ii K_jj tau_x tau_s``; ``largest``; ``above``, the share of pairs in
        which it is not below 1; ``overlap`` and ``diagonal``, those with the filter over those without; ``normalised``,
        the whole.
    """
    coords = setting.coords(seed)
    net = setting.network(HADAMARD.but(filters=fourier(frequency)), seed)
    gates = (net.layers[0](coords) > 0).double()
    filtered = gates * filter_values(net, coords)
    inputs = coords @ coords.T
    parts = {}
    for name, own in (("plain", gates), ("filtered", filtered)):
        kernel = inputs * (own @ own.T) / own.shape[1]
        energy = kernel.diagonal()
        overlap = _off(kernel.square()) / _off(torch.outer(energy, energy))
        diagonal = float(energy.var(correction=0) / energy.mean() ** 2)
        parts[name] = (overlap, diagonal, made_up(overlap, diagonal, len(coords)))
    factor = _cosines(filtered) / _cosines(gates)
    pairs = ~torch.eye(len(coords), dtype=torch.bool) & factor.isfinite()
    energy = inputs.diagonal() * filtered.square().sum(1)
    weights = torch.outer(energy, energy) * _cosines(coords) * _cosines(gates)
    (before, apart, whole), (after, spread, filtered_whole) = parts["plain"], parts["filtered"]
    return {
        "mean": float((weights * factor)[pairs].sum() / weights[pairs].sum()),
        "largest": float(factor[pairs].max()),
        "above": float((factor[pairs] >= 1).double().mean()),
        "overlap": after / before,
        "diagonal": spread / apart,
        "normalised": filtered_whole / whole,
    }


def filter_values(net: Any, coords: Tensor) -> Tensor:
    """Return the values (n, m) of the filter of a network's first hidden layer."""
    found = net.modulations[0](coords)
    assert isinstance(found, Tensor)
    return found


def _cosines(rows: Tensor) -> Tensor:
    """Return the squared cosines of all pairs of rows; NaN with a row of zeros."""
    inner = rows @ rows.T
    return inner.square() / torch.outer(inner.diagonal(), inner.diagonal())


def _off(values: Tensor) -> float:
    return float(values.sum() - values.diagonal().sum())


def factor_row(factors: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Row:
    """Return what is to be said of "factors strictly below one"."""
    means = [_mean(runs, "mean") for by in factors.values() for runs in by.values()]
    below = sum(one.high < 1 for one in means)
    pairwise = max(max(run["above"] for run in runs) for by in factors.values() for runs in by.values())
    told = f"its energy-weighted mean is below 1 in {below} of {len(means)} places ({_ends(means)})"
    told += (
        "; in every single pair of points too" if pairwise == 0 else
        f"; not in every pair of points: in up to {pairwise:.1%} of them it is 1 or more"
    )  # fmt: skip
    return Row("Hadamard modulation introduces similarity factors strictly below one", "claimed", told,
               "the theory's model, Fourier filters")  # fmt: skip


def _mean(runs: Sequence[Mapping[str, float]], name: str) -> Any:
    return interval([run[name] for run in runs])


def _ends(means: Sequence[Any]) -> str:
    return f"{min(one.mean for one in means):.3f} to {max(one.mean for one in means):.3f}"


def _summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: _mean(runs, name).json for name in runs[0]}


def _factor_table(factors: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Table:
    rows = []
    for name, by in factors.items():
        for frequency, runs in by.items():
            values = [_mean(runs, key) for key in ("mean", "above", "overlap", "diagonal", "normalised")]
            rows.append([name, frequency, *(_told_mean(one) for one in values)])
    head = ["setting", "frequency", "the filter's factor, energy-weighted mean",
            "share of pairs in which it is 1 or more", "overlap, times ReLU's", "Var(K_ii)/mu^2, times ReLU's",
            "v/mu^2, times ReLU's"]  # fmt: skip
    return Table("The factor in the theory's model, mean over seeds", head, rows)


def _told_mean(one: Any) -> str:
    return f"{one.mean:.3g}" if one.half is None else f"{one.mean:.3g} ± {one.half:.2g}"


# ---- what is shown -----------------------------------------------------------------------------------------------

Ratios = Mapping[str, Mapping[tuple[str, Filter, str], Ratio]]


def _row(ratios: Ratios, number: str) -> Row:
    seen = [one.seen for by in ratios.values() for (kind, _, own), one in by.items()
            if kind == HADAMARD.name and own == number]  # fmt: skip
    counts = ", ".join(f"{seen.count(word)} {word}" for word in ("lower", "open", "higher") if word in seen)
    return Row("Hadamard modulation yields multiplicative variance reduction", "claimed",
               f"{counts}, of {len(seen)} pairs of a setting and a filter", PLACES[number])  # fmt: skip


def _table(kind: Variant, number: str, ratios: Ratios, there: Sequence[Setting]) -> Table:
    rows = [
        [one.label, *(f"{own} ({own.seen})" for own in (ratios[one.name][kind.name, f, number] for f in FILTERS))]
        for one in there
    ]
    title = f"{kind.label}, v/mu^2, {PLACES[number]}: times ReLU's; interval; seeds below 1"
    return Table(title, ["setting", *(one.label for one in FILTERS)], rows)


def _parts_table(found: Mapping[str, Found], there: Sequence[Setting]) -> Table:
    rows = []
    for one in there:
        row = [one.label]
        for name in (PLAIN.name, *(own.on(HADAMARD).name for own in FILTERS)):
            runs = found[one.name].numbers[name]
            row.append(" / ".join(f"{np.median([run[key] for run in runs]):.3g}" for key in ("overlap", "diagonal")))
        rows.append(row)
    head = ["setting", PLAIN.label, *(one.label for one in FILTERS)]
    return Table("Hadamard: the two parts of v/mu^2, overlap t / d = Var(K_ii)/mu^2, medians", head, rows)


SHOWN = (PLAIN, FILTERS[0].on(HADAMARD), FILTERS[2].on(HADAMARD), FILTERS[2].on(BOTH))
"""Networks whose kernels are split by layer."""


def shares(found: Found, variant: Variant) -> dict[str, tuple[float, float]]:
    """Return each linear layer's share of the trace (mean over seeds) and own v/mu^2 (median); filters as one."""
    runs = [one["layers"] for one in found.numbers[variant.name]]
    made = {
        name: (float(np.mean([run[name]["energy"] for run in runs])),
               float(np.median([run[name]["normalised"] for run in runs])))
        for name in runs[0] if name.startswith(LAYERS)
    }  # fmt: skip
    rest = 1 - sum(energy for energy, _ in made.values())
    return made | ({"filters": (rest, math.nan)} if len(made) < len(runs[0]) else {})


def _layers_table(found: Found) -> Table:
    rows = []
    for variant in SHOWN:
        for name, (energy, own) in shares(found, variant).items():
            rows.append([variant.name, name, f"{energy:.3f}", "" if math.isnan(own) else f"{own:.3g}"])
    head = ["network", "layer", "share of the trace, mean", "v/mu^2 of its own kernel, median"]
    return Table("Kernels by layer in the first setting", head, rows)


def _told(base: Found, ratios: Ratios) -> list[str]:
    """Return why the variance grows where it does: the layer that is left with the trace."""
    plain, low = (shares(base, one) for one in SHOWN[:2])
    head = [name for name in plain if name.startswith(LAYERS)][-1]
    seen = ratios["base"][HADAMARD.name, FILTERS[0], "normalised"]
    raised = {
        own.label: [name for name, by in ratios.items() if by[HADAMARD.name, own, "normalised"].seen == "higher"]
        for own in FILTERS
    }
    named = "; ".join(f"{label}: {', '.join(names)}" for label, names in raised.items() if names)
    return [
        "v/mu^2 is (n - 1 - d) t + d with d = Var(K_ii)/mu^2, so that with d small it grows exactly where the overlap "
        "t does, the energy-weighted squared cosine of the Jacobian's rows, in which layers count by their share of "
        f"the trace. In the first setting the head ({head}) has {plain[head][0]:.0%} of the trace of ReLU and "
        f"{low[head][0]:.0%} with filters of frequency {FILTERS[0].frequency:g}, which multiply every hidden layer by "
        "at most 1 in size and so shrink all other parts; the head's bias alone is the constant kernel, whose v/mu^2 "
        f"is n - 1. The head's own kernel has v/mu^2 {low[head][1]:.3g}, and the whole is times {seen} seeds below 1.",
        f"Where Hadamard without the sphere raises v/mu^2 of the whole kernel, by filter: {named or 'nowhere'}.",
    ]


def _drawing(ratios: Ratios, there: Sequence[Setting]) -> Drawing:
    drawing = Drawing(figsize=(10, 4.6), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    colours = (*PALETTE, "#000000", "#999999", "#8c6d31")
    for axes, kind in zip(panels, (HADAMARD, BOTH), strict=True):
        for one, colour in zip(there, colours, strict=False):
            own = [ratios[one.name][kind.name, f, "normalised"] for f in FILTERS if f.kind == "fourier"]
            factors, halves = np.array([r.factor for r in own]), np.array([r.log.half or 0.0 for r in own])
            axes.plot(FREQUENCIES, factors, color=colour, marker="o", markersize=4, label=one.name)
            low, high = factors * np.exp(-halves), factors * np.exp(halves)
            axes.fill_between(FREQUENCIES, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1, color="0.3", linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks(FREQUENCIES, [f"{frequency:g}" for frequency in FREQUENCIES])
        axes.minorticks_off()
        axes.set_yscale("log")
        finish(axes, kind.label, "frequency of the Fourier filters", "v/mu² over ReLU's")
    panels[1].set_ylabel("")
    legend(drawing, panels[0])
    return drawing
