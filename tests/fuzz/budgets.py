"""Memory budgets: public calls on random networks and grids, each under a random budget."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import inrfast as inr
from fuzz.laws import Case
from inrfast.errors import MemoryBudgetError, ResolutionError
from inrfast.signals.render import render

ALLOWANCE = 48 * 2**20
"""Bytes beside the budget: code that is loaded at first use, buffers of libraries."""

Use = Callable[[Any, int], Any]
"""What is done with a kernel of a number of points."""

KERNEL_USES: dict[str, Use] = {
    "diagonal": lambda K, n: K.diagonal(),
    "trace": lambda K, n: K.trace(),
    "frobenius": lambda K, n: K.frobenius(),
    "row sums": lambda K, n: K.row_sums(),
    "product": lambda K, n: K @ torch.ones(K.shape[0], 7),
    "quadratic form": lambda K, n: K.quadratic_form(torch.ones(K.shape[0], 5)),
    "columns": lambda K, n: K.columns(slice(0, min(n, 200))),
    "submatrix": lambda K, n: K.submatrix(slice(0, min(n, 1000))),
    "dense": lambda K, n: K.to_dense(),
    "spectrum": lambda K, n: K.spectrum(1e-3, progress=False),
    "cholesky": lambda K, n: K.spectrum(1e-4, method="cholesky", progress=False),
    "lanczos": lambda K, n: K.spectrum(1e-3, 5, "lanczos", eigenvectors=True, progress=False),
    "quadrature": lambda K, n: K.spectrum(method="quadrature", progress=False),
    "dense spectrum": lambda K, n: K.spectrum(method="dense", progress=False),
    "solve": lambda K, n: K.solve(torch.ones(K.shape[0]), ridge=10.0, tol=1e-3, progress=False),
}

SLOW = ("dense", "spectrum", "cholesky", "lanczos", "quadrature", "dense spectrum", "solve", "diagnose")
"""What grows with more than the square of the points."""

OTHER_USES = ("fit", "fit by any loss", "fit many", "render", "diagnose", "jacobian", "gradient")


def make_budget(rng: random.Random, folder: Path) -> Case:
    """Return a call under a budget of 1 to 256 MiB, small enough to end soon."""
    use = rng.choice((*KERNEL_USES, *OTHER_USES))
    budget = int(2**20 * 2 ** rng.uniform(0, 8))
    side, width = rng.choice((16, 32, 48, 64)), rng.choice((16, 64, 128))
    outputs, activation = rng.choice((1, 1, 2)), rng.choice(("relu", "sine", "tanh", "softplus"))
    if use in SLOW:
        side, outputs = min(side, 32), 1
    net = inr.INR(2, outputs, width=width, hidden_layers=rng.choice((1, 2)), activation=activation)
    words = f"{use}, budget {budget}, grid {side}x{side}, width {width}, outputs {outputs}, {activation}"
    call = _call(use, net, side, budget, rng)
    _call(
        use, inr.INR(2, outputs, width=8, hidden_layers=2, activation=activation), 6, 2**30, rng
    )()  # what is loaded once
    refusals = (MemoryBudgetError, ResolutionError, ValueError)
    return Case(call, refusals=refusals, growth=budget + ALLOWANCE, words=words)


def _call(use: str, net: inr.INR, side: int, budget: int, rng: random.Random) -> Callable[[], Any]:
    coords = inr.grid((side, side))
    if use in KERNEL_USES:
        precision = rng.choice(("high", "highest"))
        return lambda: KERNEL_USES[use](inr.ntk(net, coords, precision=precision, memory_budget=budget), len(coords))
    settings: dict[str, Any] = {"steps": 2, "progress": False, "memory_budget": budget}
    settings["batch_size"] = rng.choice((None, len(coords) // 4))
    target = torch.sin(3 * coords[:, :1]).repeat(1, net.out_features)
    if use == "fit":
        return lambda: inr.fit(net, coords, target, **settings)
    if use == "fit by any loss":
        return lambda: inr.fit(net, coords, target, loss=lambda a, b: (a - b).abs().mean(), **settings)
    if use == "fit many":
        return lambda: inr.fit_many([net], coords, target, **settings)
    if use == "render":
        return lambda: render(net, (8 * side, 8 * side), memory_budget=budget, progress=False)
    if use == "diagnose":
        return lambda: inr.diagnose(net, coords, rtols=(1e-2,), ntk_points=64, memory_budget=budget, progress=False)
    if use == "jacobian":
        return lambda: inr.jacobian(net, coords, memory_budget=budget).rows(slice(0, 50))
    return lambda: inr.jacobian(net, coords, memory_budget=budget).T @ torch.ones(len(coords) * net.out_features)
