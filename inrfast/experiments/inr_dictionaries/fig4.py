"""Fig. 4: energy of held-out faces on the eigenfunctions of large eigenvalues, and the order of the networks by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from inrfast.experiments.inr_dictionaries.atoms import energy_at, fine_cell
from inrfast.experiments.inr_dictionaries.energy import (
    LEVELS,
    EnergyFigure,
    agreement,
    at_levels,
    energy_drawing,
    energy_table,
    psnr_of,
)
from inrfast.experiments.inr_dictionaries.starts import META, OMEGAS, RELU, SIRENS, Start, sizes
from inrfast.experiments.inr_dictionaries.steps import FIRST_STEPS, told
from inrfast.experiments.paper import Cell, Found, Outcome, Request, Row

BEST = (30, 40, 60)
"""Omegas among which the best lies: the paper's text has the energy recede beyond 40."""

SATURATED = 1e-3
"""Below a threshold at which a random network has all energy but this, an order is one of rounding."""

FINE = tuple(start for start in SIRENS if start.number in (5.0, 30.0, 100.0))
"""Random sine networks that are also seen on the finer grid."""


class Fig4(EnergyFigure):
    """Sine networks of several omegas, a ReLU network and meta-learned weights, on the paper's grid and a finer one."""

    name = "fig4"
    title = "Fig. 4: energy of faces on the eigenfunctions, SIREN of several omegas, ReLU, meta-learned"
    said: ClassVar[Mapping[str, str]] = {
        "siren-5": "least (curve only)", "siren-40": "most of the random ones, with omega 30 and 60 (curve only)",
        "siren-100": "receding (curve only)", "maml": "almost all (curve only)",
    }  # fmt: skip

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`EnergyFigure`."""
        return (RELU, *SIRENS, META)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        ready = [start for start in (*FINE, META) if start.source(request) in ("", *found)]
        return [*super().cells(request, found), *(fine_cell(start, request, found) for start in ready)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        whole = super().outcome(request, found)
        fine = (*FINE, META)
        claims, levels = order(found), telling(found)
        settings = f"thresholds of E(lambda) where no random network has {1 - SATURATED:g} of the energy"
        rows = [Row(claim, "yes", at_levels(held, levels), settings) for claim, held in claims.items()]
        drawings = {**whole.drawings, "fig4-fine": energy_drawing(fine, found, "fine")}
        tables = [*whole.tables, energy_table(fine, request, found, "fine")]
        numbers = {**whole.numbers, "order": {claim: list(held) for claim, held in claims.items()}}
        numbers["fine"] = {
            start.name: [list(energy_at(found[f"fine.{start.name}"], level)) for level in LEVELS] for start in fine
        }
        return Outcome([*rows, *whole.rows], drawings, whole.text, tables, numbers)

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """See :class:`EnergyFigure`."""
        best = {level: _best(found, level) for level in LEVELS}
        ahead = [_left_out(found, best[level], level) for level in LEVELS[:3]]
        psnrs = ", ".join(f"{start.label} {told(psnr_of(start, found, FIRST_STEPS))}" for start in self.starts(request))
        side = sizes(request).fine_side
        return [
            f"Most energy of the random sine networks: {', '.join(f'{s.label} at {x:g}' for x, s in best.items())}.",
            f"Energy that the meta-learned dictionary leaves below the threshold: {'; '.join(ahead)}.",
            _by_number(found),
            agreement(self.starts(request), found),
            f"Held-out PSNR after {FIRST_STEPS} steps: {psnrs}.",
            f"On {side}x{side} points only the largest eigenpairs are computed, by pivoted Cholesky with a "
            "certificate; bands are what eigenvalues within their error of the threshold, and the energy beyond them, "
            "leave open.",
        ]


def telling(found: Mapping[str, Found]) -> list[float]:
    """Return the thresholds above which not all energy lies already; at least the largest."""
    return [level for level in LEVELS
            if level == LEVELS[0] or _middle(found, _best(found, level), level) < 1 - SATURATED]  # fmt: skip


def order(found: Mapping[str, Found]) -> dict[str, list[float]]:
    """Return the paper's claims on the order of the networks, each with the thresholds at which it holds."""
    first, last = SIRENS[0], SIRENS[-1]
    named = [start for start in SIRENS if int(start.number) in BEST]

    def held(claim: str) -> list[float]:
        kept = []
        for level in telling(found):
            values = {start.name: _middle(found, start, level) for start in (*SIRENS, META)}
            best = max(values[start.name] for start in SIRENS)
            holds = {
                "worst": values[first.name] == min(values.values()),
                "best": max(values[start.name] for start in named) == best,
                "receding": values[last.name] < max(values[start.name] for start in named),
                "meta": 1 - values[META.name] < 0.5 * (1 - best),
            }
            if holds[claim]:
                kept.append(level)
        return kept

    return {
        f"omega {OMEGAS[0]} has the least energy of all sine networks": held("worst"),
        f"the best random one has omega {BEST[0]} to {BEST[-1]}": held("best"),
        f"omega {OMEGAS[-1]} recedes: less than the best of omega {BEST[0]} to {BEST[-1]}": held("receding"),
        "meta-learned far ahead: it leaves less than half of what the best random one leaves": held("meta"),
    }


def _middle(found: Mapping[str, Found], start: Start, level: float) -> float:
    return float(np.mean(energy_at(found[f"atoms.{start.name}"], level)))


def _by_number(found: Mapping[str, Found]) -> str:
    """Return in words that E(lambda) favours flat spectra: what the same number of eigenfunctions hold."""
    best = _best(found, LEVELS[0])
    cells = [found[f"atoms.{start.name}"] for start in (META, best)]
    above = [int((cell.arrays["eigenvalues"] >= LEVELS[0]).sum()) for cell in cells]
    first = [cell.numbers["first"] for cell in cells]
    listed = ", ".join(f"{first[0][count]:.3f} and {first[1][count]:.3f} on the first {count}" for count in first[0])
    behind = [count for count in first[0] if first[0][count] < first[1][count]]
    if not behind:
        verdict = "also the more compact one."
    elif len(behind) < len(first[0]):
        verdict = f"the less compact one for {', '.join(behind)}."
    else:
        verdict = (
            "the less compact one throughout; its advantage is a flat spectrum, so that gradient descent learns many "
            "eigenfunctions at nearly one speed."
        )
    return (
        f"E(lambda) sets no price on the number of eigenfunctions: above {LEVELS[0]:g} lie {above[0]:,} of "
        f"{META.label} and {above[1]:,} of {best.label}. By number, {META.label} and {best.label} have energies of "
        f"{listed}: the meta-learned dictionary is {verdict}"
    )


def _best(found: Mapping[str, Found], level: float) -> Start:
    return max(SIRENS, key=lambda start: _middle(found, start, level))


def _left_out(found: Mapping[str, Found], best: Start, level: float) -> str:
    left = [1 - _middle(found, start, level) for start in (META, best)]
    return f"{left[0]:.4f} at {level:g}, where {best.label} leaves {left[1]:.4f}"
