"""Fig. 7B: eigenvalues of the tangent kernel for every method, by the certified spectrum, over random networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.inlet_rank_collapse import fig7b_settings
from inrfast.experiments.inlet_rank_collapse.methods import DEFAULT, METHODS, OURS, WIDTH, Method
from inrfast.experiments.inlet_rank_collapse.spectra import (
    Band,
    Ranks,
    band,
    draw_band,
    draw_ranks,
    finish_ranks,
    interval,
    matching,
    network,
    rank_rows,
    ranks_over_runs,
    substantially_higher,
    tolerance,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work
from inrfast.experiments.runs import curves_told, runs_told, seeds, spread
from inrfast.linalg.spectrum import Spectrum
from inrfast.tangent.local import ntk

LARGEST_ERROR = 0.25
"""Eigenvalues are shown whose stated error is at most this share of them."""

INDEX = 64
"""The eigenvalue whose ratio to the largest a table gives."""


@dataclass(frozen=True)
class Sizes:
    """Grids, runs and tolerances of a preset.

    At 256x256 a kernel has 65,536 rows, and every run of every method is a cell of its own. Down to 1e-4 one took, on
    one core, 31 s and 1.7 GB (ReLU, default init), 117 s and 3.1 GB (our init, He hidden) or 84 s and 2.7 GB (SIREN).
    A method whose rank at 1e-4 is thousands (PE; SIREN at the first layer) takes a factorisation of 10 GB, which was
    not done after 15 minutes there: 100 runs of all methods are days of a CPU, and want a GPU.

    Attributes
    ----------
    side, runs, rtols
        Of the curves.
    rgb_side, rgb_rtols
        Of the kernel of all three outputs, ``3 rgb_side^2`` rows.
    dense_side
        Of the comparison with dense eigenvalues.
    """

    side: int
    runs: int
    rtols: tuple[float, ...]
    rgb_side: int
    rgb_rtols: tuple[float, ...]
    dense_side: int


QUICK = Sizes(48, 3, (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 24, (1e-1, 1e-2, 1e-3, 1e-4), 24)
PAPER = Sizes(256, 100, (1e-1, 1e-2, 1e-3, 1e-4), 256, (1e-1, 1e-2, 1e-3), 64)

HE = {
    "default-he": replace(DEFAULT, name="default-he", label="ReLU (default inlet), He hidden", colour="#777777").but(
        init={"first": "default", "hidden": "kaiming"}
    ),
    "ours-he": replace(OURS, name="ours-he", label="ReLU (our init), He hidden", colour="#D55E00").but(
        init={"first": "rank_expanding", "hidden": "kaiming"}
    ),
}
"""Both starts of a ReLU network with He's hidden layers: the paper does not say which it takes."""

ALL: dict[str, Method] = {**METHODS, **HE}
LABELS = {name: method.label for name, method in ALL.items()}


class Fig7B(Figure):
    """Spectra of the tangent kernel on the full grid, mean and deviation over runs."""

    name = "fig7b"
    title = "Fig. 7B: eigenvalues of the tangent kernel"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sizes = QUICK if request.quick else PAPER
        methods = list(ALL.values())
        return [
            *(agreement_cell(method, sizes.dense_side, request.seed) for method in methods),
            *fig7b_settings.cells(request),
            *(kernel_cell("kernel", m, 1, sizes.side, sizes.rtols, s)
              for s in seeds(request, sizes.runs) for m in methods),
            *(kernel_cell("rgb", m, 3, sizes.rgb_side, sizes.rgb_rtols, request.seed) for m in methods),
        ]  # fmt: skip

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        sizes = QUICK if request.quick else PAPER
        points = sizes.side**2
        kernels = {name: _of(found, "kernel", name) for name in ALL}
        ranks = {name: ranks_over_runs(cells, points) for name, cells in kernels.items()}
        bands = {name: band([cell.arrays["values"] for cell in cells]) for name, cells in kernels.items()}
        rgb = {name: ranks_over_runs(_of(found, "rgb", name), 3 * sizes.rgb_side**2) for name in ALL}
        agreement = {name: _of(found, "dense", name)[0] for name in ALL}
        said = f"{sizes.side}x{sizes.side} grid, width {WIDTH}, one output, {runs_told(len(kernels['default']))}"
        drawings = {"fig7b": _drawing(METHODS, bands, ranks, sizes, "Tangent kernel")}
        he = {name: ALL[name] for name in ("default", "ours", *HE)}
        drawings["fig7b-hidden"] = _drawing(he, bands, ranks, sizes, "Tangent kernel, two hidden inits")
        return Outcome(
            _rows(ranks, sizes, said),
            drawings,
            [*_text(ranks, sizes), *fig7b_settings.text(request, found)],
            [
                Table(f"rank of the kernel (of {points:,}), tolerance relative to lambda_1: {said}",
                      ["", *map(tolerance, sizes.rtols)], rank_rows(LABELS, ranks)),
                _sizes_table(kernels),
                Table(f"rank of the kernel of three outputs, {3 * sizes.rgb_side**2:,} rows ({sizes.rgb_side}x"
                      f"{sizes.rgb_side} grid), one run", ["", *map(tolerance, sizes.rgb_rtols)],
                      rank_rows(LABELS, rgb)),
                _agreement_table(agreement, sizes.dense_side),
                fig7b_settings.table(request, found),
            ],
            {"rtols": list(sizes.rtols), "cells": {key: cell.numbers for key, cell in found.items()}},
        )  # fmt: skip


def _of(found: Mapping[str, Found], kind: str, name: str) -> list[Found]:
    """Return the cells of one kind and method."""
    return [cell for key, cell in found.items() if key.rpartition(".")[0] == f"{kind}.{name}"]


# ---- cells -------------------------------------------------------------------------------------------------------


def kernel_cell(kind: str, method: Method, outputs: int, side: int, rtols: tuple[float, ...], seed: int) -> Cell:
    """Return the cell of one kernel: of one output, or of all outputs (N M rows)."""
    settings = {
        "options": dict(method.options), "outputs": outputs, "side": side, "width": WIDTH, "rtols": list(rtols),
        "seed": seed,
    }  # fmt: skip

    def run(work: Work) -> Found:
        net, coords = network(method, side, seed, work.device, outputs)
        kernel = ntk(net, coords, output=0 if outputs == 1 else "full", precision="highest")
        found = kernel.spectrum(rtols, seed=seed, progress=work.progress)
        numbers, values = spectrum_numbers(found, rtols)
        return Found(numbers, {"values": values})

    return Cell(f"{kind}.{method.name}.{seed}", settings, run, cost=(outputs * side * side / 2304) ** 2)


def least_shown(found: Spectrum, rtols: Sequence[float]) -> float:
    """Return down to where a curve shows eigenvalues, relative to the largest: what was asked for, if resolved."""
    return max(min(rtols), found.floor / LARGEST_ERROR)


def spectrum_numbers(found: Spectrum, rtols: Sequence[float]) -> tuple[dict[str, Any], np.ndarray]:
    """Return ranks and sizes as JSON holds them, and the eigenvalues that are resolved, relative to the largest."""
    largest = float(found.eigenvalues[0])
    values = (found.eigenvalues / largest).cpu().numpy()
    kept = values[values >= least_shown(found, rtols)]
    return {
        "ranks": [interval(found.count_above(rtol * largest, rtol)) for rtol in rtols],
        "largest": largest,
        "trace": found.trace,
        "stable_rank": found.stable_rank(),
        "ratio": float(values[INDEX - 1]) if len(kept) >= INDEX else None,
        "floor": found.floor if np.isfinite(found.floor) else None,
        "method": found.method,
        "note": found.note,
    }, kept.astype(np.float32)


def agreement_cell(method: Method, side: int, seed: int) -> Cell:
    """Return the cell that compares the certified spectrum with the eigenvalues of the dense kernel in fp64."""
    rtols = (1e-2, 1e-4, 1e-6)
    settings = {"options": dict(method.options), "side": side, "width": WIDTH, "rtols": list(rtols), "seed": seed}

    def run(work: Work) -> Found:
        net, coords = network(method, side, seed, work.device)
        return Found(agreement(ntk(net, coords, output=0, precision="highest"), rtols, seed, work.progress))

    return Cell(f"dense.{method.name}.{seed}", settings, run, cost=(side * side / 1024) ** 2)


def agreement(kernel: Any, rtols: Sequence[float], seed: int, progress: bool | None) -> dict[str, Any]:
    """Return how far pivots and factorisations are from LAPACK's eigenvalues of the dense kernel, all in fp64.

    Differences are taken over the eigenvalues that a curve would show, counts at every tolerance.
    """
    dense = torch.linalg.eigvalsh(torch.as_tensor(kernel.to_dense())).flip(0).cpu()
    pivots = kernel.spectrum(rtols, method="cholesky", seed=seed, progress=progress)
    counted = kernel.spectrum(rtols, method="inertia", seed=seed, progress=progress)
    largest = float(dense[0])
    values = pivots.eigenvalues.cpu()
    kept = int((values >= least_shown(pivots, rtols) * largest).sum())
    gap = (values[:kept] - dense[:kept]).abs()
    exact = [int((dense > rtol * largest).sum()) for rtol in rtols]
    intervals = [interval(s.count_above(r * largest, r)) for s in (pivots, counted) for r in rtols]
    return {
        "compared": kept,
        "relative": float((gap / dense[:kept]).max()),
        "relative_to_largest": float(gap.max() / largest),
        "stated": max(pivots.lower_error, pivots.upper_error) / largest,
        "dense_ranks": exact,
        "pivot_ranks": intervals[: len(rtols)],
        "proven_ranks": intervals[len(rtols) :],
        "contained": sum(low <= rank <= high for (low, high), rank in zip(intervals, 2 * exact, strict=True)),
        "intervals": len(intervals),
    }


# ---- tables and text ---------------------------------------------------------------------------------------------


def _rows(ranks: Mapping[str, list[Ranks]], sizes: Sizes, settings: str) -> list[Row]:
    said = {
        "default": "poorly conditioned (curve only)", "ours": "significantly better conditioned (curve only)",
        "pe": "curve only", "bn": "curve only", "siren": "curve only", "bn-first": "dashed curve only",
        "siren-first": "dashed curve only", "default-he": "not given", "ours-he": "not given",
    }  # fmt: skip
    rtol = 1e-3
    place = sizes.rtols.index(rtol)
    return [Row(f"rank of the NTK at {tolerance(rtol)}, {LABELS[name]}", told, str(ranks[name][place]), settings)
            for name, told in said.items()]  # fmt: skip


def _sizes_table(kernels: Mapping[str, list[Found]]) -> Table:
    rows = []
    for name, cells in kernels.items():
        ratios = [cell.numbers["ratio"] for cell in cells if cell.numbers["ratio"] is not None]
        rows.append([
            LABELS[name],
            spread([cell.numbers["stable_rank"] for cell in cells], ".2f"),
            f"{np.mean(ratios):.1e}" if ratios else "not resolved",
            f"{np.mean([cell.numbers['largest'] for cell in cells]):.2e}",
            f"{np.mean([cell.numbers['trace'] for cell in cells]):.2e}",
            ", ".join(sorted({cell.numbers["method"] for cell in cells})),
        ])  # fmt: skip
    head = ["", "stable rank: trace / lambda_1", f"lambda_{INDEX} / lambda_1", "lambda_1", "trace", "method"]
    return Table(f"Sizes of the kernels, {runs_told(len(next(iter(kernels.values()))))}", head, rows)


def _agreement_table(found: Mapping[str, Found], side: int) -> Table:
    rows = []
    for name, cell in found.items():
        n = cell.numbers
        rows.append([
            LABELS[name], f"{n['compared']:,}", f"{n['relative_to_largest']:.1e}", f"{n['stated']:.1e}",
            f"{n['relative']:.1e}", f"{n['contained']} of {n['intervals']}",
        ])  # fmt: skip
    head = ["", "eigenvalues", "largest difference / lambda_1", "stated error / lambda_1 (a bound of it)",
            "largest difference / the eigenvalue's own size (no bound is stated)",
            "intervals that hold the dense rank"]  # fmt: skip
    return Table(f"Certified spectrum against LAPACK's eigenvalues of the dense kernel in fp64, {side}x{side} grid",
                 head, rows)  # fmt: skip


def _text(ranks: Mapping[str, list[Ranks]], sizes: Sizes) -> list[str]:
    def pair(first: str, second: str) -> tuple[tuple[str, str], tuple[list[Ranks], list[Ranks]]]:
        return (LABELS[first], LABELS[second]), (ranks[first], ranks[second])

    text = [
        f"Eigenvalues relative to the largest, {curves_told(ranks['default'][0].runs)}; a curve ends "
        f"at the smallest tolerance, or where the stated error exceeds {LARGEST_ERROR:.0%} of the eigenvalue. Dashed: "
        "the method acts on the first layer only. Ranks are intervals that contain the number; bars hold interval and "
        "deviation. A tolerance t on eigenvalues is sqrt(t) on the singular values of the Jacobian.",
    ]
    for first, second in (("ours", "default"), ("ours-he", "default-he"), ("ours-he", "default")):
        names, both = pair(first, second)
        text.append(substantially_higher(names, "Rank of the tangent kernel", both, sizes.rtols))
    for first, second in (("ours", "pe"), ("ours", "siren"), ("ours-he", "siren"), ("siren-first", "siren"),
                          ("bn-first", "bn")):  # fmt: skip
        names, both = pair(first, second)
        text.append(matching(names, "Rank of the tangent kernel", both, sizes.rtols))
    return text


def _drawing(
    methods: Mapping[str, Method], bands: Mapping[str, Band], ranks: Mapping[str, list[Ranks]], sizes: Sizes, title: str
) -> Drawing:
    drawing = Drawing(figsize=(10, 4.8), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for name, method in methods.items():
        draw_band(left, bands[name], method, min(sizes.rtols) / 10)
        draw_ranks(right, ranks[name], method, sizes.rtols)
    left.set_yscale("log")
    left.set_xscale("log")
    left.set_ylim(min(sizes.rtols), 2)
    grid = f"{sizes.side}x{sizes.side} points"
    finish(left, f"{title}, {grid}", "index of the eigenvalue", r"$\lambda_i / \lambda_1$")
    finish_ranks(right, r"$\lambda_1$", sizes.side**2)
    legend(drawing, left)
    return drawing
