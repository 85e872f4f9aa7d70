"""Parts of ``bench/gpu.py``: the dense tangent kernel, its norm and products, and what PyTorch can do of the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import Bench, corners, network
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

import inrfast as inr
from inrfast.modes import products
from inrfast.ops import gram as gram_ops

TARGETS = {"medium": (0.025, 2e-4), "high": (0.060, 1e-6), "highest": (0.300, 1e-12)}
"""Seconds for the dense kernel of a 256x256 grid at width 256, and the error relative to sqrt(K_ii K_jj)."""

PLENTY = 1 << 40
"""Bytes: no budget limits what is measured."""


def kernel(bench: Bench, activation: str, **options: Any) -> inr.NTK:
    coords = inr.grid((bench.grid, bench.grid), device=bench.device)
    return inr.ntk(network(bench, activation), coords, memory_budget=PLENTY, **options)


def column_error(out: Tensor, exact: inr.NTK) -> float:
    """Return the largest error of 64 columns, relative to sqrt(K_ii K_jj)."""
    n, diagonal, error = len(out), exact.diagonal(), 0.0
    index = torch.linspace(0, n - 1, 64).long().unique().tolist()
    for columns in (index[k : k + 8] for k in range(0, len(index), 8)):
        size = torch.outer(diagonal.sqrt(), diagonal[columns].sqrt())
        error = max(error, float(((out[:, columns].double() - exact.columns(columns)).abs() / size).max()))
    return error


def dense(bench: Bench, activation: str, precision: str) -> None:
    """From the network to the dense kernel, and its parts; the error on 64 columns against fp64 first."""
    dtype = torch.float64 if precision == "highest" else torch.float32
    n = bench.grid**2
    out = torch.full((n, n), float("nan"), dtype=dtype, device=bench.device)

    def make() -> inr.NTK:
        return kernel(bench, activation, precision=precision, backend="triton")

    make().to_dense(out=out)
    error = column_error(out, kernel(bench, activation, precision="highest", backend="torch"))
    seconds, tolerance = TARGETS[precision]
    found = bench.found
    found["error"] = {"largest": error, "target": tolerance}
    symmetric = all(torch.equal(out[i, j], out[j, i].t()) for i, j in corners(n))
    bench.check(error <= tolerance and symmetric, f"error {error:.2e} above {tolerance:.0e}, symmetric: {symmetric}")
    found["to_dense"] = bench.seconds(lambda K: K.to_dense(out=out), prepare=make) | {"target": seconds}
    found["ntk"] = bench.seconds(make, 3)
    flops = make().cost().dense_flops
    found["flops"] = flops
    bench.attempt("gram", lambda: _gram_alone(bench, make(), out))
    rate, copied = bench.rate("fp64" if precision == "highest" else "fp16"), bench.rate("copy", "bytes_per_second")
    if "seconds" in found["gram"] and rate and copied:
        products_a_number = 3 if precision == "high" else 1
        found["fraction_of_best_product"] = products_a_number * flops / found["gram"]["seconds"] / rate
        found["fraction_of_copy"] = out.numel() * out.itemsize / found["gram"]["seconds"] / (copied / 2)
    if not found["to_dense"]["seconds"] <= seconds:
        bench.profile("profile", lambda: make().to_dense(out=out))


def _gram_alone(bench: Bench, K: inr.NTK, out: Tensor) -> dict[str, Any]:
    """Time the tiles alone, their operands made before."""
    operands = K.left.side_at(K.left.coords, K.sides.plan)
    return bench.seconds(lambda: gram_ops.gram(operands, out=out))


def frobenius(bench: Bench, precision: str) -> None:
    """The Frobenius norm with nothing N x N stored: time, memory beside the operands, error against fp64 tiles."""
    options: dict[str, Any] = {"precision": precision, "backend": "triton", "memory_budget": PLENTY}
    K = kernel(bench, "relu", precision=precision, backend="triton")
    few = K.coords[:: max(len(K.coords) // 4096, 1)].contiguous()
    net = network(bench, "relu")
    exact = inr.ntk(net, few, precision="highest", backend="torch", memory_budget=PLENTY).frobenius()
    error, tolerance = abs(inr.ntk(net, few, **options).frobenius() / exact - 1), TARGETS[precision][1]
    bench.found["error"] = {"largest": error, "target": tolerance, "points": len(few)}
    bench.check(error <= tolerance and K.frobenius() == K.frobenius(), f"error {error:.2e}, or two runs differ")
    bench.found["norm"] = bench.seconds(K.frobenius)
    bench.found["whole"] = bench.seconds(
        lambda K: K.frobenius(), prepare=lambda: kernel(bench, "relu", precision=precision, backend="triton")
    )
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    K.frobenius()
    bench.found["extra_bytes"] = torch.cuda.max_memory_allocated() - before


def product(bench: Bench, precision: str) -> None:
    """``K V`` for 1, 8 and 256 columns, against fp64 and against the dense kernel times V where that is held."""
    K = kernel(bench, "relu", precision=precision, backend="triton")
    exact = kernel(bench, "relu", precision="highest", backend="torch")
    n, tolerance = len(K.coords), 1e-6 if precision == "high" else 1e-12
    few = torch.linspace(0, n - 1, 16).long().unique().tolist()
    diagonal, rows = exact.diagonal().sqrt(), exact.columns(few).t()
    dense = K.to_dense()
    for columns in (1, 8, 256):
        generator = torch.Generator().manual_seed(columns)
        V = torch.randn(n, columns, generator=generator, dtype=K.dtype).to(bench.device)
        size = torch.outer(diagonal[few], diagonal @ V.double().abs())
        error = float((((K @ V)[few].double() - rows @ V.double()).abs() / size).max())
        bench.found[f"error of {columns}"] = error
        bench.check(error <= tolerance, f"{columns} columns: error {error:.2e} above {tolerance:.0e}")
        bench.found[f"K V, {columns}"] = bench.seconds(lambda V=V: K @ V, 5)
        bench.found[f"dense K V, {columns}"] = bench.seconds(lambda V=V: dense @ V, 5)


def rival(bench: Bench, name: str) -> None:
    """The dense kernel by PyTorch, from factors that are made before: tiles, each two products and a multiplication.

    ``"fp32"`` and ``"tf32"`` are eager with products in place (``torch.mm(out=)``, ``mul_``); ``"compiled"`` is TF32 by
    ``torch.compile``; ``"bf16"`` is bf16 autocast, compiled, in one CUDA graph.
    """
    K = kernel(bench, "relu", backend="torch")
    pairs = [(f.features, None if f.sensitivities is None else f.sensitivities[:, 0]) for f in K.left.store.all()]
    sides = [None if f is None else f.contiguous() for pair in pairs for f in pair]
    n = bench.grid**2
    out = torch.empty(n, n, device=bench.device)
    tile = {"fp32": _tile_in_place, "tf32": _tile_in_place}.get(name) or torch.compile(_tile, dynamic=False)

    def run(side: int) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=name == "bf16"):
            for i in range(0, n, side):
                left = [None if f is None else f[i : i + side] for f in sides]
                for j in range(i, n, side):
                    part = tile(left, [None if f is None else f[j : j + side] for f in sides])
                    out[i : i + side, j : j + side] = part
                    if i != j:
                        out[j : j + side, i : i + side] = part.t()

    def whole(once: Callable[[], None]) -> Callable[[], Any]:
        return bench.graph(once) if name == "bf16" else once

    with products("highest" if name == "fp32" else "high"), torch.no_grad():
        for side in (4096, 8192) if n > 8192 else (n // 2,):
            once = functools.partial(run, side)
            bench.attempt(f"tile {side}", lambda once=once: bench.seconds(whole(once), 3))
    best = min((value["seconds"], key) for key, value in bench.found.items() if "seconds" in value)
    exact = kernel(bench, "relu", precision="highest", backend="torch")
    bench.found["error"] = {"largest": column_error(out, exact)}
    bench.found["best"] = {"seconds": best[0], "tile": best[1]}


def _tile(left: list[Tensor | None], right: list[Tensor | None]) -> Tensor:
    total = None
    for k in range(0, len(left), 2):
        z, s, z2, s2 = left[k], left[k + 1], right[k], right[k + 1]
        assert z is not None and z2 is not None
        part = z @ z2.t()
        part = part if s is None or s2 is None else part * (s @ s2.t())
        total = part if total is None else total + part
    assert total is not None
    return total


def _tile_in_place(left: list[Tensor | None], right: list[Tensor | None]) -> Tensor:
    """Two products by cuBLAS, multiplied and summed in place."""
    total = None
    for k in range(0, len(left), 2):
        z, s, z2, s2 = left[k], left[k + 1], right[k], right[k + 1]
        assert z is not None and z2 is not None
        if s is None or s2 is None:
            total = torch.mm(z, z2.t()) if total is None else total.addmm_(z, z2.t())
            continue
        part = torch.mm(z, z2.t()).mul_(torch.mm(s, s2.t()))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def by_torch_func(bench: Bench) -> None:
    """A 32x32 grid's kernel by ``torch.func``: per-point Jacobians, contracted; and ours of the same points."""
    net = network(bench, "relu")
    coords = inr.grid((32, 32) if bench.large else (4, 4), device=bench.device)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def value(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, own, (x.unsqueeze(0),)).squeeze(0)

    def run() -> Tensor:
        rows = vmap(jacrev(value), (None, 0))(parameters, coords)
        flat = torch.cat([j.flatten(2) for j in rows.values()], 2).squeeze(1)
        return flat @ flat.t()

    def ours() -> Any:
        return inr.ntk(net, coords, backend="triton").to_dense()

    with products("highest"):
        difference = float((run() - ours()).abs().max() / run().abs().max())
        bench.found["difference"] = difference
        bench.check(difference <= 1e-4, f"torch.func and ours differ by {difference:.1e}")
        bench.found["torch.func"] = bench.seconds(run, 3)
    bench.found["ours, with ntk()"] = bench.seconds(ours, 3)
