"""Fig. 2: singular values of weight products, which are healthy, and of representations, which are starved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.drawing import finish
from inrfast.experiments.inlet_rank_collapse.methods import DEFAULT, WIDTH, Method
from inrfast.experiments.inlet_rank_collapse.spectra import (
    FLOOR,
    RTOLS,
    Ranks,
    band,
    draw_band,
    draw_ranks,
    finish_ranks,
    found_values,
    network,
    rank_rows,
    ranks_over_runs,
    representation,
    resolved,
    tolerance,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import curves_told, runs_told, seeds
from inrfast.linalg.tsqr import SingularValues, singular_values
from inrfast.nn import INR

SIDE, QUICK_RUNS, RUNS = 256, 3, 100
INITS = {"default": "torch's default init", "kaiming": "He init"}
"""Of all layers: the paper does not say which it takes."""

WEIGHTS = ("#000000", "#0072B2", "#56B4E9")
LINE_WIDTHS = (5.5, 2.2, 1.1)
"""Of the curves of one panel, in order: one that lies on an earlier one leaves its edges to be seen."""

REPRESENTATIONS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73")


def weight_matrices(net: INR) -> dict[str, Tensor]:
    """Return the hidden weight matrices and, of several, the headless products behind each (equation 10), fp64.

    For hidden weights ``W_1 ... W_L`` the product behind the gradient of layer k is ``W_(k+1) ... W_L``: without the
    head, whose few outputs would cap its rank.
    """
    hidden = [layer.weight.detach().double() for layer in net.layers[1:-1]]  # type: ignore[operator]
    found = {f"W_{index}": weight for index, weight in enumerate(hidden, 1)}
    product = hidden[-1]
    for index in range(len(hidden) - 1, 0, -1):
        product = product @ hidden[index - 1]
        found[" ".join(f"W_{factor}" for factor in range(index, len(hidden) + 1))] = product
    return found


class Fig2(Figure):
    """Weights and representations of the 3-layer vanilla MLP of width 256 on the 256x256 grid."""

    name = "fig2"
    title = "Fig. 2: weights against representations"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return [_cell(init, seed) for init in INITS for seed in seeds(request, QUICK_RUNS if request.quick else RUNS)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        parts = {init: _parts([c for key, c in found.items() if key.startswith(f"{init}.")]) for init in INITS}
        ranks = {
            init: {name: ranks_over_runs(cells, WIDTH) for name, cells in by.items()} for init, by in parts.items()
        }
        tables = [
            Table(f"rank of {WIDTH}, tolerance relative to sigma_1, {told}", ["", *map(tolerance, RTOLS)],
                  rank_rows({name: name for name in ranks[init]}, ranks[init]))
            for init, told in INITS.items()
        ]  # fmt: skip
        runs = len(next(iter(parts["default"].values())))
        return Outcome(
            _rows(ranks, f"{SIDE}x{SIDE} grid, width {WIDTH}, {runs_told(runs)}"),
            {
                file: _drawing(parts[init], ranks[init], INITS[init])
                for file, init in (("fig2", "default"), ("fig2-he", "kaiming"))
            },
            _text(ranks, runs),
            tables,
            {"rtols": list(RTOLS), "cells": {key: cell.numbers for key, cell in found.items()}},
        )


def _cell(init: str, seed: int) -> Cell:
    method = DEFAULT.but(init=init)
    settings = {"options": dict(method.options), "side": SIDE, "width": WIDTH, "seed": seed, "rtols": list(RTOLS)}

    def run(work: Work) -> Found:
        net, coords = network(method, SIDE, seed, work.device)
        found: dict[str, SingularValues] = {}
        for name, weight in weight_matrices(net).items():
            found[name] = singular_values(lambda weight=weight: [weight], min(RTOLS))  # type: ignore[misc]
        for layer in range(net.hidden_layers):
            found[f"Z_{layer}"] = resolved(representation(net, coords, layer), RTOLS)
        numbers = {name: found_values(values, RTOLS) for name, values in found.items()}
        arrays = {name: (values.values / values.values[0]).numpy() for name, values in found.items()}
        return Found(numbers, arrays)

    return Cell(f"{init}.{seed}", settings, run)


def _parts(cells: Sequence[Found]) -> dict[str, list[Found]]:
    """Return by matrix what each run found of it."""
    return {
        name: [Found(cell.numbers[name], {"values": cell.arrays[name]}) for cell in cells] for name in cells[0].numbers
    }


def _is_weight(name: str) -> bool:
    return name.startswith("W")


def _rows(ranks: Mapping[str, Mapping[str, list[Ranks]]], settings: str) -> list[Row]:
    place = RTOLS.index(1e-3)
    rows = []
    for init, told in INITS.items():
        for name, found in ranks[init].items():
            said = "full-rank and well-conditioned" if _is_weight(name) else "severe rank collapse"
            rows.append(Row(f"rank of {name} at 1e-3, {told}", f"{said} (curve only)", str(found[place]), settings))
    return rows


def _text(ranks: Mapping[str, Mapping[str, list[Ranks]]], runs: int) -> list[str]:
    text = [
        "Left the hidden weights and their products without the head (the weight product factor of equation 10), right "
        f"the representations Z_i after layer i's activation; singular values relative to the largest, "
        f"{curves_told(runs)}. fig2 shows {INITS['default']}, fig2-he {INITS['kaiming']}. Of curves that lie on each "
        "other the earlier is the wider one."
    ]
    for init, told in INITS.items():
        found = ranks[init]
        weights = min((r[RTOLS.index(1e-3)].lower, name) for name, r in found.items() if _is_weight(name))
        inlet, last = found["Z_0"], found[max(name for name in found if not _is_weight(name))]
        collapsed = [rtol for rtol, rank in zip(RTOLS, inlet, strict=True) if rank.upper < WIDTH / 2]
        where = f"less than half of {WIDTH} at {', '.join(map(tolerance, collapsed))}" if collapsed else "never below"
        text.append(
            f"{told}: the lowest rank of a weight or product at 1e-3 is {weights[0]:.4g} of {WIDTH} ({weights[1]}). "
            f"The rank of Z_0 is {where}; from the first to the last representation it goes from {inlet[2]} to "
            f"{last[2]} at {tolerance(RTOLS[2])} and from {inlet[4]} to {last[4]} at {tolerance(RTOLS[4])}."
        )
    return text


def _drawing(parts: Mapping[str, list[Found]], ranks: Mapping[str, list[Ranks]], init: str) -> Drawing:
    drawing = Drawing(figsize=(13, 4.6), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    methods = _styles(list(parts))
    for name, method in methods.items():
        curve = band([cell.arrays["values"] for cell in parts[name]])
        draw_band(left if _is_weight(name) else middle, curve, method, FLOOR)
        draw_ranks(right, ranks[name], method, RTOLS)
    for axes, title in ((left, "(a) hidden weights and products"), (middle, "(b) representations")):
        for line, width in zip(axes.lines, LINE_WIDTHS, strict=False):
            line.set_linewidth(width)
        axes.set_yscale("log")
        axes.set_ylim(FLOOR, 2)
        axes.set_xlim(0, WIDTH)
        finish(axes, title, "index of the singular value", r"$\sigma_i / \sigma_1$")
        _legend(axes)
    finish_ranks(right, r"$\sigma_1$", WIDTH)
    drawing.suptitle(f"{init} of all layers", fontsize=11)
    return drawing


def _styles(names: Sequence[str]) -> dict[str, Method]:
    """Return a curve's name and colour for each matrix; products are dashed."""
    weights, others = [n for n in names if _is_weight(n)], [n for n in names if not _is_weight(n)]
    colours = dict(zip(weights, WEIGHTS, strict=False)) | dict(zip(others, REPRESENTATIONS, strict=False))
    return {
        name: replace(DEFAULT, name=name, label=_symbol(name), colour=colour, dashed=" " in name)
        for name, colour in colours.items()
    }


def _symbol(name: str) -> str:
    return " ".join(f"${part}$" for part in name.split())


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(frameon=False, fontsize=9, loc="lower left", **options)
