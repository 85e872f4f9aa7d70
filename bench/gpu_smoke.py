"""Parts of ``bench/gpu.py``: every kernel once on the GPU, each in a process of its own, against fp64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import Bench, relative
from torch import Tensor

import inrfast as inr
from inrfast.ops.fused_linear import fused_linear

SIDE = 15
"""Points along an axis: 225, a multiple of no tile."""


def nets(bench: Bench, **options: Any) -> tuple[inr.INR, inr.INR, Tensor]:
    """Return a network on the GPU, its twin in fp64 on the CPU, and the points (fp64, CPU)."""
    options = {"activation": "relu", "width": bench.width, "hidden_layers": 2, "seed": 1} | options
    side = SIDE if bench.large else 5
    return (
        inr.INR(2, 2, **options).to(bench.device),
        inr.INR(2, 2, **options).double(),
        inr.grid((side, side)).float().double(),
    )


def pair(bench: Bench, precision: str, **options: Any) -> tuple[inr.NTK, inr.NTK]:
    """Return the kernel by Triton and the exact one."""
    net, twin, coords = nets(bench, **options)
    ours = inr.ntk(net, coords.float().to(bench.device), precision=precision, backend="triton")
    return ours, inr.ntk(twin, coords, precision="highest", backend="torch")


def judge(bench: Bench, result: Tensor, truth: Tensor, tolerance: float) -> None:
    """Hold a result to its tolerance, relative to the truth's largest entry."""
    error = relative(result, truth)
    bench.found["error"] = {"largest": error, "target": tolerance}
    bench.check(error <= tolerance, f"error {error:.2e} above {tolerance:.0e}")


def dense(bench: Bench, precision: str, activation: str) -> None:
    """Factors and tiles."""
    ours, exact = pair(bench, precision, activation=activation)
    judge(bench, ours.to_dense(), exact.to_dense(), {"medium": 1e-3, "high": 1e-5, "highest": 1e-11}[precision])


def norm(bench: Bench) -> None:
    ours, exact = pair(bench, "high")
    judge(bench, torch.tensor(ours.frobenius()), torch.tensor(exact.frobenius()), 1e-5)


def columns(bench: Bench) -> None:
    """A rectangle of tiles."""
    ours, exact = pair(bench, "high")
    judge(bench, ours.columns([0, 3, 20]), exact.columns([0, 3, 20]), 1e-5)


def kernel_product(bench: Bench, precision: str, count: int) -> None:
    ours, exact = pair(bench, precision)
    V = torch.randn(len(ours.coords), count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    judge(bench, ours @ V.to(bench.device, ours.dtype), exact @ V, 1e-5)


def jacobian(bench: Bench, precision: str) -> None:
    """Rows, ``J p`` and ``J^T v``."""
    net, twin, coords = nets(bench)
    ours = inr.jacobian(net, coords.float().to(bench.device), precision=precision, backend="triton")
    exact = inr.jacobian(twin, coords, precision="highest", backend="torch")
    p, v = (
        torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in exact.shape[::-1]
    )
    p, v = (t.to(ours.dtype) for t in (p, v))
    results = (ours.rows(slice(0, 5)), ours @ p.to(bench.device), ours.T @ v.to(bench.device))
    truths = (exact.rows(slice(0, 5)), exact @ p.double(), exact.T @ v.double())
    worst = max(relative(a, b) for a, b in zip(results, truths, strict=True))
    bench.found["error"] = {"largest": worst, "target": 1e-5}
    bench.check(worst <= 1e-5, f"error {worst:.2e} above 1e-05")


def layer(bench: Bench, dtype: str, activation: str) -> None:
    """The fused layer, forward and backward."""
    kind = getattr(torch, dtype)
    rng = torch.Generator().manual_seed(0)
    x, weight, bias, g = (torch.randn(*size, generator=rng).to(kind) for size in ((70, 64), (64, 64), (64,), (70, 64)))
    weight /= 8 * (30 if activation == "sine" else 1)
    near = [t.to(bench.device).requires_grad_() for t in (x, weight, bias)]
    out = fused_linear(*near, activation, 30.0, backend="triton")
    grads = torch.autograd.grad(out, near, g.to(bench.device))
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = fused_linear(*wide, activation, 30.0, backend="torch")
    truths = torch.autograd.grad(exact, wide, g.double())
    worst = max(relative(a, b) for a, b in zip((out, *grads), (exact, *truths), strict=True))
    bound = (128 if activation == "sine" else 32) * torch.finfo(kind).eps
    bench.found["error"] = {"largest": worst, "target": bound}
    bench.check(worst <= bound, f"error {worst:.2e} above {bound:.0e}")


def fit(bench: Bench, precision: str, encoded: bool = False) -> None:
    """Steps of a fit, the first launched, the next ones in a CUDA graph, against the same fit in fp64 on the CPU."""
    options = {"encoding": inr.RandomFourier(16)} if encoded else {}
    net, twin, coords = nets(bench, width=64, **options)
    target = torch.sin(3 * coords)
    kwargs: dict[str, Any] = {
        "steps": 12 if bench.large else 6,
        "eval_every": 4 if bench.large else 2,
        "progress": False,
    }
    near = coords.float().to(bench.device)
    ours = inr.fit(net, near, target.float().to(bench.device), precision=precision, backend="triton", **kwargs)
    exact = inr.fit(twin, coords, target, backend="torch", **kwargs)
    tolerance = 2e-2 if precision == "medium" else 1e-3
    judge(bench, torch.tensor(ours.losses), torch.tensor(exact.losses), tolerance)


def initialisation(bench: Bench) -> None:
    """The extension's kernel, or the CPU's and a copy where it was built without CUDA."""
    from inrfast.extension import load_extension
    from inrfast.ops.grid_init import rank_expanding_reference

    bench.found["cuda"] = load_extension().build_info()["cuda"]
    ours, exact = inr.rank_expanding(64, 2, device=bench.device), rank_expanding_reference(64, 2)
    worst = max(relative(a, b) for a, b in zip(ours, exact, strict=True))
    bench.found["error"] = {"largest": worst, "target": 1e-6}
    bench.check(worst <= 1e-6, f"error {worst:.2e} above 1e-06")


SMOKES: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    **{f"dense {a} {p}": (dense, (p, a)) for p in ("medium", "high", "highest") for a in ("relu", "sine")},
    "norm": (norm, ()),
    "columns": (columns, ()),
    **{f"product {p} of {k}": (kernel_product, (p, k)) for p in ("high", "highest") for k in (1, 40)},
    **{f"jacobian {p}": (jacobian, (p,)) for p in ("high", "highest")},
    **{f"layer {d} {a}": (layer, (d, a)) for d, a in (("float16", "relu"), ("bfloat16", "sine"), ("float32", "sine"))},
    **{f"fit {p}": (fit, (p,)) for p in ("medium", "high")},
    "fit encoded medium": (fit, ("medium", True)),
    "initialisation": (initialisation, ()),
}
"""What is run once, by name."""


def run(bench: Bench, name: str) -> None:
    """Run one of :data:`SMOKES`."""
    function, arguments = SMOKES[name]
    function(bench, *arguments)
