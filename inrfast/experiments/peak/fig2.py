"""Fig. 2: tangent kernels of networks on [-1, 1] before and after they are fitted to a sine, and the optimal kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor, nn

from inrfast.analysis.alignment import alignment
from inrfast.analysis.kernel_regression import kernel_regression
from inrfast.analysis.optimal_kernel import optimal_kernel
from inrfast.encodings import RandomFourier
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work, uninterrupted
from inrfast.experiments.runs import runs_told, seeds, spread
from inrfast.grids import grid
from inrfast.metrics import psnr
from inrfast.nn import INR
from inrfast.tangent.local import ntk
from inrfast.training.fit import fit
from inrfast.training.regularizers.peak import PEAK

CYCLES = 2
"""Periods of ``sin(4 pi x)`` per unit of x."""

POINTS, EVERY = 129, 4
"""Points of [-1, 1] at which kernels are shown, and every how many-th is fitted."""

WIDTH, HIDDEN_LAYERS, STEPS, LR = 256, 2, 1000, 1e-3
FOURIER, SIGMA, OMEGA, LAMBDA, R = 128, 2.0, 10.0, 0.05, 100
RUNS = {True: 3, False: 10}
ATTENTION: dict[str, Any] = {"width": 100, "hidden_layers": 4, "rows": "all", "keys": "all"}
"""The attention network, and which points take part in a step: equation 12 as it stands."""

RTOL = 1e-6
"""Of the kernel regression: eigenvalues below are not inverted."""


@dataclass(frozen=True)
class Method:
    """A network and how it is fitted."""

    label: str
    told: str
    regularized: bool = False


METHODS = {
    "mlp": Method("MLP", "ReLU"),
    "fourier": Method("Fourier features", f"ReLU behind {FOURIER} random frequencies, sigma {SIGMA:g}"),
    "without": Method("PEAK without KAR", f"sine, omega {OMEGA:g}, behind a trained gamma of degree 1"),
    "peak": Method("PEAK", f"the same, KAR with lambda {LAMBDA:g}, r {R}", True),
}

OPTIMAL = {
    "given": "K* = f* f*ᵀ (f* known)",
    "phases": "K* of sines of any phase (eq. 6)",
}


def made(method: str, coords: Tensor, seed: int) -> tuple[nn.Module, list[Any]]:
    """Return a method's network at its start, and its regularisers.

    The paper's lambda multiplies a sum over all points beside a sum of squares over those fitted; a fit has means.
    """
    options: dict[str, Any] = {
        "width": WIDTH, "hidden_layers": HIDDEN_LAYERS, "seed": seed, "device": coords.device,
    }  # fmt: skip
    if method == "fourier":
        options["encoding"] = RandomFourier(FOURIER, SIGMA)
    if method not in ("without", "peak"):
        return INR(1, 1, **options), []
    net = INR(1, 1, activation="sine", omega=OMEGA, init="siren", **options)
    peak = PEAK(net, coords, factor=LAMBDA * POINTS / len(range(0, POINTS, EVERY)), r=R, seed=seed, **ATTENTION)
    return peak.net, peak.regularizers if METHODS[method].regularized else []


def places(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the points of the pictures, (POINTS, 1), and which of them are fitted."""
    return grid(POINTS, device=device), torch.arange(0, POINTS, EVERY, device=device)


def wave(coords: Tensor, phase: float = 0.0) -> Tensor:
    """Return ``sin(4 pi x + phase)`` at points (N, 1), computed in fp64."""
    return (2 * math.pi * CYCLES * coords.double() + phase).sin()


def optimal(name: str) -> np.ndarray:
    """Return an optimal kernel at the points of the pictures."""
    coords, _ = places(torch.device("cpu"))
    if name == "given":
        return optimal_kernel(wave(coords)[:, 0]).to_dense().numpy()
    turns = [wave(coords, 2 * math.pi * k / 8)[:, 0] for k in range(8)]  # whose mean is that over all phases
    return optimal_kernel(torch.stack(turns)).to_dense().numpy()


def measured(matrix: Tensor | np.ndarray) -> dict[str, float]:
    """Return a kernel's alignments with f*, and the error of its regression at the points that are not fitted."""
    coords, fitted = places(torch.device("cpu"))
    target, kernel = wave(coords)[:, 0], torch.as_tensor(matrix).double()
    held_out = torch.ones(POINTS, dtype=torch.bool)
    held_out[fitted] = False
    own, cross = kernel[fitted][:, fitted], kernel[held_out][:, fitted]
    predicted = kernel_regression(own, target[fitted], cross, rtol=RTOL).prediction
    error = (predicted - target[held_out]).square().mean().sqrt() / target[held_out].square().mean().sqrt()
    return {
        "plain": alignment(kernel, target),
        "centered": alignment(kernel, target, centered=True),
        "regression": float(error),
    }


class Fig2(Figure):
    """Kernels of an MLP, Fourier features and PEAK, and what they are to become."""

    name = "fig2"
    title = "Fig. 2: tangent kernels of networks on [-1, 1], and the optimal kernel of sin(4 pi x)"

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = seeds(request, RUNS[request.quick])
        return [_cell(method, seed, seed == runs[0]) for method in METHODS for seed in runs]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        runs = {name: [cell for key, cell in found.items() if key.startswith(f"{name}.")] for name in METHODS}
        count = len(runs["mlp"])
        settings = (
            f"{HIDDEN_LAYERS} hidden layers of width {WIDTH}, {STEPS} steps of Adam with full batches, lr {LR:g}, "
            f"{len(range(0, POINTS, EVERY))} of {POINTS} points fitted, {runs_told(count)}"
        )
        rows = [
            Row(f"alignment of the kernel with f* before / after the fit, {METHODS[name].label}", "picture only",
                f"{_of(own, 'before', 'plain')} / {_of(own, 'after', 'plain')}; centred "
                f"{_of(own, 'before', 'centered')} / {_of(own, 'after', 'centered')}",
                f"{METHODS[name].told}; {settings}")
            for name, own in runs.items()
        ]  # fmt: skip
        known = {name: measured(optimal(name)) for name in OPTIMAL}
        rows += [
            Row(f"alignment with f*, {label}", "picture only",
                f"{known[name]['plain']:.3f}; centred {known[name]['centered']:.3f}", f"{POINTS} points")
            for name, label in OPTIMAL.items()
        ]  # fmt: skip
        numbers = {name: [cell.numbers for cell in own] for name, own in runs.items()}
        return Outcome(
            rows,
            {self.name: drawing(found, {name: own[0] for name, own in runs.items()})},
            said(runs),
            [table(runs, known)],
            {"runs": numbers, "optimal": known},
        )


def _cell(method: str, seed: int, shown: bool) -> Cell:
    own = METHODS[method]
    settings = {
        "method": method, "network": own.told, "seed": seed, "steps": STEPS, "lr": LR, "width": WIDTH,
        "hidden_layers": HIDDEN_LAYERS, "points": [POINTS, EVERY], "cycles": CYCLES, "kernels": shown,
        "lambda": LAMBDA if own.regularized else 0.0, "r": R, "rtol": RTOL,
        "attention": ATTENTION,
    }  # fmt: skip

    def run(work: Work) -> Found:
        coords, fitted = places(work.device)
        (net, regularizers), target = made(method, coords, seed), wave(coords).float()
        before = ntk(net, coords, precision="highest").to_dense()
        result = fit(net, coords[fitted], target[fitted], STEPS, LR, "constant", regularizers=regularizers,
                     data_range=2.0, checkpoint=work.checkpoint, resume=True, progress=work.progress,
                     seed=0)  # fmt: skip
        uninterrupted([result])
        after = ntk(net, coords, precision="highest").to_dense()
        with torch.no_grad():
            quality = psnr(net(coords), target, data_range=2.0)
        numbers = {"before": measured(before.cpu()), "after": measured(after.cpu()), "psnr": quality, "seed": seed}
        arrays = {"before": before.cpu().numpy(), "after": after.cpu().numpy()} if shown else {}
        return Found(numbers, {name: own.astype(np.float32) for name, own in arrays.items()})

    return Cell(f"{method}.{seed}", settings, run)


def _of(cells: Sequence[Found], when: str, what: str) -> str:
    return spread([cell.numbers[when][what] for cell in cells], ".3f")


def _mean(cells: Sequence[Found], when: str, what: str) -> float:
    return float(np.mean([cell.numbers[when][what] for cell in cells]))


def said(runs: Mapping[str, Sequence[Found]]) -> list[str]:
    """Return what is seen, by the numbers."""
    after = {name: _mean(own, "after", "centered") for name, own in runs.items()}
    best = max(after, key=lambda name: after[name])
    grown = [METHODS[name].label for name, own in runs.items() if after[name] > _mean(own, "before", "centered")]
    gains = [
        one.numbers["after"]["centered"] - other.numbers["after"]["centered"]
        for one, other in zip(runs["peak"], runs["without"], strict=True)
    ]
    errors = {
        key: _mean(runs[name], when, "regression")
        for key, name, when in (
            ("start", "peak", "before"), ("without", "without", "after"), ("with", "peak", "after"),
        )
    }  # fmt: skip
    quality = {name: [cell.numbers["psnr"] for cell in runs[name]] for name in ("without", "peak")}
    fitted, without = (spread(quality[name], ".1f") for name in ("peak", "without"))
    larger = errors["with"] > errors["start"]
    higher = sum(one > other for one, other in zip(quality["peak"], quality["without"], strict=True))
    return [
        "Colours run from minus to plus the largest entry of each kernel. The rank-one kernel is equation 6 for one "
        "function that is known; a network cannot be given it. The other one is equation 6 where only the frequency is "
        "known: sines of any phase, a kernel of the difference x - x' alone, as that of Fourier features nearly is.",
        f"Centred alignment with f* grows in the fit for {', '.join(grown) or 'no network'}; after it, it is "
        f"largest for {METHODS[best].label} ({after[best]:.3f}). What KAR does is the difference between PEAK and the "
        f"same network, start and encoding without it: {spread(gains, '.3f')}, above 0 in "
        f"{sum(gain > 0 for gain in gains)} of {len(gains)} runs. A kernel moves towards its target in any fit, so a "
        "network at its start is no measure of KAR.",
        f"{'A larger alignment is no smaller error by itself: r' if larger else 'R'}egression with PEAK's kernel is "
        f"off by {errors['start']:.2g} before the fit and {errors['with']:.2g} after it, at the points not fitted "
        f"({errors['without']:.2g} without KAR). Over all points the fitted function has {fitted} dB with KAR and "
        f"{without} dB without, higher with it in {higher} of {len(gains)} runs.",
    ]


def table(runs: Mapping[str, Sequence[Found]], known: Mapping[str, Mapping[str, float]]) -> Table:
    """Return all numbers of all kernels."""
    head = ["kernel", "alignment", "centred", "error of its regression at points not fitted", "PSNR of the fit (dB)"]
    rows = []
    for name, own in runs.items():
        for when in ("before", "after"):
            fitted = spread([cell.numbers["psnr"] for cell in own], ".1f") if when == "after" else ""
            rows.append([f"{METHODS[name].label}, {when} the fit", _of(own, when, "plain"), _of(own, when, "centered"),
                         spread([cell.numbers[when]["regression"] for cell in own], ".2g"), fitted])  # fmt: skip
    for name, label in OPTIMAL.items():
        one = known[name]
        rows.append([label, f"{one['plain']:.3f}", f"{one['centered']:.3f}", f"{one['regression']:.2g}", ""])
    return Table("Alignment with f*, and relative error of regression with each kernel", head, rows)


def drawing(found: Mapping[str, Found], shown: Mapping[str, Found]) -> Drawing:
    """Return all kernels as heat maps: methods as columns, before and after the fit as rows, the optimal ones last."""
    figure = Drawing(figsize=(2.65 * (len(METHODS) + 1) + 0.9, 6.3), layout="constrained")
    panels = figure.subplots(2, len(METHODS) + 1, sharex=True, sharey=True)
    for column, (name, cell) in enumerate(shown.items()):
        for axes, when in zip(panels[:, column], ("before", "after"), strict=True):
            heat_map(axes, cell.arrays[when], f"{METHODS[name].label}, {when} the fit", cell.numbers[when])
    for axes, (name, label) in zip(panels[:, -1], OPTIMAL.items(), strict=True):
        image = heat_map(axes, optimal(name), label, measured(optimal(name)))
    for axes in panels[-1]:
        axes.set_xlabel("$x'$")
    for axes in panels[:, 0]:
        axes.set_ylabel("$x$")
    bar = figure.colorbar(image, ax=panels, ticks=[-1, 0, 1], shrink=0.7, pad=0.01)
    bar.ax.set_yticklabels(["−max", "0", "max"])
    return figure


def heat_map(axes: Axes, kernel: np.ndarray, title: str, numbers: Mapping[str, float]) -> Any:
    """Draw one kernel, its largest entry 1, with its alignments."""
    image = axes.imshow(kernel / np.abs(kernel).max(), cmap="RdBu_r", vmin=-1, vmax=1, extent=(-1, 1, 1, -1))
    axes.set_title(f"{title}\nalignment {numbers['plain']:.2f}, centred {numbers['centered']:.2f}", fontsize=9)
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
    return image
