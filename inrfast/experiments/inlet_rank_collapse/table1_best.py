"""Table 1 again, each method at its own best: as many settings tried for each, on images that are not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from inrfast.experiments.inlet_rank_collapse import comparison
from inrfast.experiments.inlet_rank_collapse.comparison import PAPER, Scored
from inrfast.experiments.inlet_rank_collapse.methods import METHODS
from inrfast.experiments.inlet_rank_collapse.protocol import (
    SIZES,
    VARIANTS,
    Setup,
    all_fits,
    fits_cell,
    shorter,
    tuning,
)
from inrfast.experiments.inlet_rank_collapse.table1 import images_of, scores_cells
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Table

RATES = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
"""Learning rates that every method tries."""

SCHEDULE = "exponential"


class Table1Best(Figure):
    """Each method's best learning rate, then its best variant at that rate, then a fit of all images."""

    name = "table1_best"
    title = "Table 1, each method at its own best setting"
    takes = ("images",)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given = images_of(request)
        rates = [fits_cell(f"rates-{m}", _rates(m, request), given, tuning(given), request) for m in PAPER]
        if any(cell.name not in found for cell in rates):
            return rates
        variants = [
            fits_cell(f"variant-{method}-{one.variant}", [one], given, tuning(given), request)
            for method in PAPER
            for one in _variants(best_of(found, method))
        ]
        if any(cell.name not in found for cell in variants):
            return [*rates, *variants]
        return [*rates, *variants, *scores_cells(chosen(request, found), given, request)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, setups, sizes = images_of(request), chosen(request, found), SIZES[request.preset]
        fits = all_fits(cell for name, cell in found.items() if name.startswith("score-"))
        scored = Scored(
            setups, {method: [fits[setups[method], name] for name in given.names] for method in PAPER}, given
        )
        tried = len(RATES) + len(next(iter(VARIANTS.values())))
        names = ", ".join(given.names[i] for i in tuning(given))
        text = [
            f"For every method {tried} settings were tried on {names} with {sizes.short} steps each, {len(RATES)} "
            f"learning rates and then {tried - len(RATES)} variants at the best of them; the best by mean PSNR is "
            f"scored with {sizes.steps} steps. For all: 3 hidden layers, width {sizes.width}, Adam on full batches, "
            "learning rate times 0.1^(t/T), weight decay 1e-8, MSE, targets minus 0.5.",
            *_at_the_edge(setups),
        ]
        numbers = {"search": _means(found), "chosen": {method: one.told for method, one in setups.items()}}
        return comparison.outcome(scored, self.name, text, [_search_table(found)], numbers, request)


def _rates(method: str, request: Request) -> list[Setup]:
    return [Setup(method, lr, SCHEDULE, SIZES[request.preset].short) for lr in RATES]


def _variants(best: Setup) -> list[Setup]:
    return [replace(best, variant=variant) for variant in VARIANTS[best.method]]


def means(found: Mapping[str, Found]) -> dict[Setup, float]:
    """Return the mean PSNR over the tuning images of every setting that was tried."""
    psnrs: dict[Setup, list[float]] = {}
    searched = all_fits(cell for name, cell in found.items() if not name.startswith("score-"))
    for (setup, _), fit in searched.items():
        psnrs.setdefault(setup, []).append(fit["psnr"])
    return {setup: float(np.mean(values)) for setup, values in psnrs.items()}


def best_of(found: Mapping[str, Found], method: str, variants: bool = False) -> Setup:
    """Return a method's best setting, without its variants or with them."""
    tried = {s: mean for s, mean in means(found).items() if s.method == method and (variants or not s.variant)}
    return max(tried, key=lambda setup: tried[setup])


def chosen(request: Request, found: Mapping[str, Found]) -> dict[str, Setup]:
    """Return what is scored, by method."""
    steps = SIZES[request.preset].steps
    return {method: shorter(best_of(found, method, variants=True), steps) for method in PAPER}


def _at_the_edge(setups: Mapping[str, Setup]) -> list[str]:
    edge = [METHODS[method].label for method, one in setups.items() if one.lr in (RATES[0], RATES[-1])]
    return (
        [f"At an end of the learning rates that were tried, so perhaps not the best: {'; '.join(edge)}."]
        if edge
        else []
    )


def _means(found: Mapping[str, Found]) -> list[dict[str, object]]:
    return [{"method": s.method, "lr": s.lr, "variant": s.variant, "psnr": mean} for s, mean in means(found).items()]


def _search_table(found: Mapping[str, Found]) -> Table:
    tried = means(found)
    lines = []
    for method in PAPER:
        own = {setup: mean for setup, mean in tried.items() if setup.method == method}
        rates = [f"{mean:.2f}" for setup, mean in own.items() if not setup.variant]
        others = [f"{setup.variant}: {mean:.2f}" for setup, mean in own.items() if setup.variant]
        lines.append([METHODS[method].label, *rates, "; ".join(others)])
    head = ["method", *(f"lr {lr:g}" for lr in RATES), "variants at the best"]
    return Table("PSNR (dB) on the tuning images of every setting that was tried", head, lines)
