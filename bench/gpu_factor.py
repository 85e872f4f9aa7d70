"""Parts of ``bench/gpu.py``: the factorisation of a shifted kernel, against eigenvalues by ``torch.linalg``."""

from __future__ import annotations

from typing import Any

import torch
from gpu_bench import Bench, network
from torch import Tensor

import inrfast as inr
from inrfast.linalg import block_ldl

FACTOR_SECONDS = 3.0
"""One factorisation of the kernel of a 256x256 grid, network and grid given."""

RTOL = 1e-4
"""The shift, relative to the largest eigenvalue."""


def kernel(bench: Bench, side: int) -> inr.NTK:
    """Return the kernel of a network whose rank no pivots reach."""
    return inr.ntk(network(bench, "gaussian"), inr.grid((side, side), device=bench.device))


def level_of(K: inr.NTK) -> float:
    """Return about ``RTOL`` of the largest eigenvalue; 1 for the zeros of kernels that are compiled and not run."""
    V = torch.ones(K.shape[0], 1, dtype=torch.float64, device=K.device)
    exact = K.at_precision("highest")
    for _ in range(8):
        V = exact @ (V / V.norm().clamp_min(1e-300))
    return RTOL * float(V.norm()) or 1.0


def judge(bench: Bench, K: inr.NTK, precision: str) -> None:
    """Hold a factorisation to the eigenvalues of the dense kernel: its inertia, its residual, a solution."""
    exact = inr.ntk(network(bench, "gaussian"), K.coords, precision="highest", backend="torch").to_dense()
    values, level = torch.linalg.eigvalsh(exact), level_of(K)
    F = K.factor(level, precision=precision, progress=False)
    right = torch.randn(len(exact), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(K.device)
    x = F.solve(right)
    left = float((exact @ x - level * x - right).norm() / right.norm())
    least, most = (int((values > level + sign * F.residual).sum()) for sign in (1, -1))
    bench.found["error"] = {"residual / level": F.residual / level, "solution": left}
    bench.found["inertia"] = {"positive": F.positive, "torch": [least, most]}
    bench.check(least <= F.positive <= most, f"{F.positive} positive eigenvalues, torch finds {least} to {most}")
    bench.check(left <= 1e-5, f"a solution's residual is {left:.1e}")


def factor(bench: Bench, precision: str) -> None:
    """A factor, checked on a small grid, then timed on two large ones; how far it is off, and the certified count."""
    judge(bench, kernel(bench, 64 if bench.large else 4), precision)
    for side in (max(bench.grid // 2, 3), bench.grid):
        K = kernel(bench, side)
        level, name = level_of(K), f"{side}x{side}"

        def run(K: inr.NTK = K, level: float = level) -> inr.Factorization:
            return K.factor(level, precision=precision, progress=False)

        torch.cuda.reset_peak_memory_stats()
        found = bench.seconds(run, 2, untimed=1)
        order = K.shape[0]
        found |= {"flops_per_second": order**3 / 3 / found["seconds"], "peak_bytes": torch.cuda.max_memory_allocated()}
        if side == bench.grid:
            found |= {"target": FACTOR_SECONDS}
        bench.found[f"factor {name}"] = found
        bench.attempt(f"its distance {name}", lambda run=run: bench.seconds(lambda F: F.residual, 1, run, untimed=0))
    if not found["seconds"] <= FACTOR_SECONDS and not bench.late:
        bench.profile("profile", run)


def certified(bench: Bench) -> None:
    """The certified rank from the network on, at the level of the shift."""
    if bench.rehearsal == "compile":
        return  # kernels that are not run leave nothing to count; those it launches are a factor's

    def rank() -> Any:
        return kernel(bench, bench.grid).spectrum(rtol=RTOL, method="inertia", progress=False).rank(RTOL)

    bench.found["rank"] = str(rank())
    bench.found["certified rank"] = bench.seconds(rank, 1, untimed=0)
    if not bench.late:
        bench.profile("profile", rank)


def candidates(bench: Bench, precision: str) -> None:
    """The factor of the large grid by other windows and blocks of rows."""
    K = kernel(bench, bench.grid)
    level, used = level_of(K), (block_ldl.WINDOW, block_ldl.PANEL_GPU, block_ldl.HEIGHT_GPU)
    for window, height in ((128, 4096), (128, 8192), (128, 16384), (256, 4096), (256, 8192)):
        block_ldl.WINDOW, block_ldl.PANEL_GPU, block_ldl.HEIGHT_GPU = window, window, height
        try:
            bench.attempt(
                f"windows of {window}, blocks of {height}",
                lambda: bench.seconds(lambda: K.factor(level, precision=precision, progress=False), 1, untimed=1),
            )
        finally:
            block_ldl.WINDOW, block_ldl.PANEL_GPU, block_ldl.HEIGHT_GPU = used
        if bench.late:
            break


def rival(bench: Bench) -> None:
    """All eigenvalues of a 128x128 grid's dense kernel by ``torch.linalg.eigvalsh``, the kernel given."""
    side = max(bench.grid // 2, 3)
    dense: Tensor = kernel(bench, side).at_precision("highest").to_dense()
    bench.found[f"eigvalsh {side}x{side}"] = bench.seconds(lambda: torch.linalg.eigvalsh(dense), 1, untimed=1)
