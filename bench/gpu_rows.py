"""Parts of ``bench/gpu.py``: rows of the Jacobian, and its products with vectors."""

from __future__ import annotations

import torch
from gpu_bench import Bench, network

import inrfast as inr


def jacobian(bench: Bench, precision: str) -> inr.jacobians.LayerwiseJacobian:
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    made = inr.jacobian(net, coords, precision=precision, backend="triton", memory_budget=1 << 40)
    made.store.all()
    return made


def rows(bench: Bench, precision: str) -> None:
    """16 GiB of rows against a fill of the same memory; a few points against fp64 first."""
    J = jacobian(bench, precision)
    tolerance = 1e-6 if precision == "high" else 1e-14
    exact = inr.jacobian(network(bench, "relu"), J.coords, precision="highest", backend="torch", memory_budget=1 << 40)
    for points in (slice(0, 3), slice(len(J.coords) - 3, len(J.coords))):
        truth = exact.rows(points)
        error = float(((J.rows(points) - truth).abs() / truth.norm(dim=1, keepdim=True)).max())
        bench.check(error <= tolerance, f"error {error:.2e} above {tolerance:.0e}")
    wanted = (16 << 30) if bench.large else 1 << 18
    count = max(1, min(len(J.coords), wanted // (J.shape[1] * J.dtype.itemsize)))
    made = J.rows(slice(0, count))
    size = made.numel() * made.itemsize
    bench.found["fill"] = bench.seconds(lambda: made.fill_(1))
    bench.found["rows"] = bench.seconds(lambda: J.rows(slice(0, count)))
    widest = max(J.layers, key=lambda name: J.layers[name].shape[1])
    alone = J.layers[widest]
    bench.found["widest layer"] = bench.seconds(lambda: alone.rows(slice(0, count)))
    bench.found["bytes_per_second"] = size / bench.found["rows"]["seconds"]
    bench.found["fraction_of_fill"] = (bench.found["fill"]["seconds"] / bench.found["rows"]["seconds"], 0.8)


def products(bench: Bench, precision: str) -> None:
    """``J p`` and ``J^T v`` of one and of eight vectors, against torch on the same factors."""
    J = jacobian(bench, precision)
    other = inr.jacobian(network(bench, "relu"), J.coords, precision=precision, backend="torch", memory_budget=1 << 40)
    exact = inr.jacobian(network(bench, "relu"), J.coords, precision="highest", backend="torch", memory_budget=1 << 40)
    tolerance = 1e-5 if precision == "high" else 1e-12
    for k in (1, 8):
        rng = torch.Generator().manual_seed(k)
        p = torch.randn(J.shape[1], k, generator=rng, dtype=torch.float64).to(bench.device)
        v = torch.randn(J.shape[0], k, generator=rng, dtype=torch.float64).to(bench.device)
        for name, ours, theirs, truth in (
            (f"J p, {k}", lambda p=p: J @ p, lambda p=p: other @ p, exact @ p),  # type: ignore[misc]
            (f"J^T v, {k}", lambda v=v: J.T @ v, lambda v=v: other.T @ v, exact.T @ v),  # type: ignore[misc]
        ):
            error = float((ours() - truth).norm() / truth.norm())
            bench.check(error <= tolerance, f"{name}: error {error:.2e} above {tolerance:.0e}")
            bench.found[name] = bench.seconds(ours)
            bench.found[f"{name}, torch"] = bench.seconds(theirs)
