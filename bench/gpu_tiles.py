"""Parts of ``bench/gpu.py``: the tiles that ``kernels/tiles.py`` holds as candidates, timed beside those in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_bench import Bench, network
from gpu_dense import TARGETS, column_error, kernel
from gpu_fit import ERRORS, Problem
from gpu_layers import OMEGA

import inrfast as inr
from inrfast import backends
from inrfast.kernels import tiles
from inrfast.ops import fused_linear as layers

PRECISIONS = {"fp16": "medium", "fp16x3": "high", "fp64": "highest"}


def kind(bench: Bench) -> str:
    """Return the class of this GPU."""
    _, capability, shared = backends.gpu(bench.device)
    return tiles.kind_of(capability, shared)


def gram(bench: Bench, name: str) -> None:
    """The dense kernel with each tile of one format, the one in use first; each is held to its error before."""
    precision = PRECISIONS[name]
    K, n = kernel(bench, "relu", precision=precision, backend="triton"), bench.grid**2
    exact = kernel(bench, "relu", precision="highest", backend="torch")
    out = torch.empty(n, n, dtype=K.dtype, device=bench.device)

    def error() -> float:
        out.fill_(float("nan"))
        K.to_dense(out=out)
        return column_error(out, exact)

    key = ("gram_aligned", name, kind(bench))
    rows = (tiles.TILES[key], *tiles.CANDIDATES.get(key, ())) if key in tiles.TILES else ()
    compare(bench, key, rows, error, TARGETS[precision][1], lambda: K.to_dense(out=out))


def tangent(bench: Bench) -> None:
    """``K v`` in fp64, of one vector and then of eight, with each tile of its products."""
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, precision="highest", backend="triton")
    V = torch.randn(len(coords), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(bench.device)
    truth = inr.ntk(net, coords, precision="highest", backend="torch") @ V

    def error() -> float:
        return float((K @ V - truth).norm() / truth.norm())

    for key in tiles.TANGENTS:
        compare(bench, key, of_products(tiles.TANGENTS, key), error, 1e-12, lambda: (K @ V[:, :1], K @ V))


def layer(bench: Bench) -> None:
    """The fused layer's forward pass in fp16."""
    n, width = bench.grid**2, bench.width
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, n, width, generator=rng).to(bench.device, torch.float16)
    weight = (torch.randn(1, width, width, generator=rng) / (OMEGA * width**0.5)).to(bench.device, torch.float16)
    truth = torch.sin(OMEGA * (x.double() @ weight.double().mT))

    def run() -> torch.Tensor:
        return layers.fused_linear_forward(x, weight, None, "sine", [OMEGA], "high", "triton", True)[0]

    def error() -> float:
        return float((run() - truth).norm() / truth.norm())

    key = ("fused_linear", "fp16", "any")
    compare(bench, key, of_products(tiles.LAYERS, key), error, 8 * torch.finfo(torch.float16).eps, run)


def step(bench: Bench, name: str, side: int) -> None:
    """A step in "medium" with each tile of some of its launches; half the width where features stay on the chip."""
    side, at_once = (side, 16) if bench.large else (bench.grid, 1)
    width = bench.width // 2 if name == "mlp_on_chip" and bench.rehearsal != "interpret" else bench.width
    key = (name, "fp16", "any" if name == "mlp_weight_gradients" else kind(bench))
    take: Callable[[], Any] = len

    def error() -> float:
        nonlocal take
        problem = Problem.make(bench, side, width, 1, "sine")
        take = problem.fused("medium", at_once)  # what it launches is chosen here
        return problem.error()

    compare(bench, key, of_products(tiles.STEPS, key), error, ERRORS["medium"], lambda: take())


def of_products(table: dict[tiles.Key, tiles.ProductRow], key: tiles.Key) -> tuple[Any, ...]:
    """Return the row in use and its candidates; nothing where there are none."""
    candidates = tiles.PRODUCT_CANDIDATES.get(key, ())
    return (table[key], *candidates) if candidates else ()


def compare(
    bench: Bench,
    key: tiles.Key,
    rows: Sequence[Any],
    error: Callable[[], float],
    limit: float,
    run: Callable[[], Any],
) -> None:
    """Time ``run`` with each row, the one in use first; each is held to its error before. Late ones are named.

    Where the row in use fails, so does the part, after all others.
    """

    def timed() -> dict[str, Any]:
        found = error()
        bench.check(found <= limit, f"error {found:.2e} above {limit:.0e}")
        return bench.seconds(run, 5) | {"key": key, "row": row, "in_use": row is rows[0], "error": found}

    late, titles = [], []
    for row in rows:
        title = f"{key[0]} " + " ".join(str(value) for value in row[:-1] if value is not None)
        if bench.late:
            late.append(title)
            continue
        titles.append(title)
        with tiles.chosen(key, row):
            bench.attempt(title, timed)
    if late:
        bench.found["stopped"] = [*bench.found.get("stopped", []), *late]
    for title in titles[:1]:
        failure = bench.found[title].get("failed")
        bench.check(failure is None, f"what is in use, {title}: {failure}")
