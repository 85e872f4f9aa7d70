"""Fig. 7A: singular values of Z_0, the representation at the inlet, for every method over random networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.inlet_rank_collapse.methods import BN, DEFAULT, OURS, PE, SIREN, WIDTH, Method
from inrfast.experiments.inlet_rank_collapse.spectra import (
    FLOOR,
    RTOLS,
    Band,
    Ranks,
    band,
    draw_band,
    draw_ranks,
    finish_ranks,
    found_values,
    matching,
    network,
    rank_rows,
    ranks_over_runs,
    representation,
    resolved,
    substantially_higher,
    tolerance,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import curves_told, runs_told, seeds, spread

SIDE, QUICK_RUNS, RUNS = 256, 5, 100

DRAWN_BY_RULE = f"{SIDE}x{SIDE} grid, width {WIDTH}, no random numbers"


@dataclass(frozen=True)
class Curve:
    """A method and the layer whose output is shown; -1 is the encoding."""

    method: Method
    layer: int = 0
    random: bool = True


CURVES = {
    curve.method.name: curve
    for curve in (
        Curve(DEFAULT),
        Curve(OURS, random=False),
        Curve(PE, -1),
        Curve(BN),
        Curve(SIREN),
        Curve(replace(PE, name="pe-layer", label="PE, after the first layer", dashed=True)),
        Curve(replace(BN, name="bn-pre", label="BN before the activation", dashed=True).but(norm_position="pre")),
    )
}
"""The paper's five and two more: PE has its Z_0 before any trained layer, and a norm may stand before ReLU."""

LABELS = {name: curve.method.label for name, curve in CURVES.items()}


class Fig7A(Figure):
    """Spectra of Z_0 on the 256x256 grid at width 256, mean and deviation over runs."""

    name = "fig7a"
    title = "Fig. 7A: singular values of Z_0"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = seeds(request, QUICK_RUNS if request.quick else RUNS)
        return [_cell(curve, seed) for curve in CURVES.values() for seed in (runs if curve.random else runs[:1])]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        by_name = {name: [cell for key, cell in found.items() if key.rpartition(".")[0] == name] for name in CURVES}
        ranks = {name: ranks_over_runs(cells, WIDTH) for name, cells in by_name.items()}
        bands = {name: band([cell.arrays["values"] for cell in cells]) for name, cells in by_name.items()}
        settings = f"{SIDE}x{SIDE} grid, width {WIDTH}, {runs_told(len(by_name['default']))}"
        return Outcome(
            _rows(ranks, settings),
            {"fig7a": _drawing(bands, ranks)},
            _text(by_name, ranks),
            [
                Table(f"rank of Z_0 (of {WIDTH}), tolerance relative to sigma_1", ["", *map(tolerance, RTOLS)],
                      rank_rows(LABELS, ranks)),
                Table("of Z_0", ["", "stable rank", "units that are constant on the grid", "root mean square"],
                      _others(by_name)),
            ],
            {"rtols": list(RTOLS), "cells": {key: cell.numbers for key, cell in found.items()}},
        )  # fmt: skip


def _cell(curve: Curve, seed: int) -> Cell:
    settings = {
        "options": dict(curve.method.options), "layer": curve.layer, "side": SIDE, "width": WIDTH, "seed": seed,
        "rtols": list(RTOLS),
    }  # fmt: skip

    def run(work: Work) -> Found:
        net, coords = network(curve.method, SIDE, seed, work.device)
        source = representation(net, coords, curve.layer)
        values = resolved(source, RTOLS)
        low = high = next(iter(source()))[0]
        square = torch.zeros((), dtype=torch.float64, device=work.device)
        for rows in source():
            low, high = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
            square += rows.square().sum()
        numbers = found_values(values, RTOLS) | {
            "constant_units": int((low == high).sum()),
            "rms": float((square / (SIDE * SIDE * len(low))).sqrt()),
        }
        return Found(numbers, {"values": (values.values / values.values[0]).numpy()})

    return Cell(f"{curve.method.name}.{seed}", settings, run)


def _rows(ranks: Mapping[str, list[Ranks]], settings: str) -> list[Row]:
    said = {
        "default": "low rank (curve only)", "ours": "substantially lifted, matches PE and SIREN (curve only)",
        "pe": "high (curve only)", "bn": "high (curve only)", "siren": "high (curve only)",
    }  # fmt: skip
    place = RTOLS.index(1e-3)
    return [Row(f"rank of Z_0 at 1e-3, {LABELS[name]}", told, str(ranks[name][place]),
                settings if CURVES[name].random else DRAWN_BY_RULE) for name, told in said.items()]  # fmt: skip


def _others(by_name: Mapping[str, list[Found]]) -> list[list[str]]:
    return [
        [LABELS[name]] + [spread([cell.numbers[key] for cell in cells], digits)
                          for key, digits in (("stable_rank", ".2f"), ("constant_units", ".1f"), ("rms", ".3f"))]
        for name, cells in by_name.items()
    ]  # fmt: skip


def _text(by_name: Mapping[str, list[Found]], ranks: Mapping[str, list[Ranks]]) -> list[str]:
    names = LABELS
    text = [
        "Singular values relative to the largest, of Z_0 = the first layer's output after its activation (and norm), "
        f"for PE of the encoding itself (section 4.1 of the paper); {curves_told(len(by_name['default']))}. The "
        "paper's initialisation draws nothing at random at the inlet: its curve has no deviation. Batch norms have the "
        "statistics of the grid. Dashed: two curves that the paper does not show.",
        substantially_higher(
            (names["ours"], names["default"]), "Rank of Z_0", (ranks["ours"], ranks["default"]), RTOLS
        ),
    ]
    text += [
        matching((names["ours"], names[other]), "Rank of Z_0", (ranks["ours"], ranks[other]), RTOLS)
        for other in ("pe", "siren", "bn")
    ]
    stable = {name: float(np.mean([cell.numbers["stable_rank"] for cell in cells])) for name, cells in by_name.items()}
    others = ", ".join(f"{names[name]} {stable[name]:.1f}" for name in ("default", "bn", "pe", "siren"))
    reached = [names[name] for name in ("pe", "siren", "bn") if stable["ours"] >= 0.9 * stable[name]]
    word = f"that reaches {', '.join(reached)}" if reached else "that reaches none of BN, PE and SIREN"
    text.append(f"The stable rank |Z_0|_F^2 / sigma_1^2 of {names['ours']} is {stable['ours']:.1f} ({others}): {word}.")
    return text


def _drawing(bands: Mapping[str, Band], ranks: Mapping[str, list[Ranks]]) -> Drawing:
    drawing = Drawing(figsize=(10, 4.8), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for name, curve in CURVES.items():
        draw_band(left, bands[name], curve.method, FLOOR)
        draw_ranks(right, ranks[name], curve.method, RTOLS)
    left.set_yscale("log")
    left.set_ylim(FLOOR, 2)
    left.set_xlim(0, WIDTH)
    finish(left, f"Z_0 on {SIDE}x{SIDE} points", "index of the singular value", r"$\sigma_i / \sigma_1$")
    finish_ranks(right, r"$\sigma_1$", WIDTH)
    legend(drawing, left)
    return drawing
