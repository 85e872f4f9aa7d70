"""Parts of ``bench/gpu.py``: every kernel once on the GPU, each in a process of its own, against fp64 on the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gpu_factor
import torch
from gpu_bench import Bench, relative
from gpu_layers import OMEGA, ROUNDINGS
from torch import Tensor

import inrfast as inr
from inrfast import backends
from inrfast.kernels import tiles
from inrfast.ops import pivots, tangent_product
from inrfast.ops.fused_linear import fused_linear
from inrfast.ops.operands import LayerShape, Layout, Plan, pack

SIDE = 15
"""Points along an axis, mostly: 225, a multiple of no tile."""


def nets(bench: Bench, side: int = SIDE, **options: Any) -> tuple[inr.INR, inr.INR, Tensor]:
    """Return a network on the GPU, its twin in fp64 on the CPU, and the points (fp64, CPU); fewer in a rehearsal."""
    options = {"activation": "relu", "width": bench.width, "hidden_layers": 2, "seed": 1} | options
    side = side if bench.large else 4 + side % 2
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


def stream(bench: Bench, format: str) -> None:
    """The candidates that are one loop over all slabs, at sizes at which they would be launched."""
    precision = {"fp16": "medium", "fp16x3": "high", "fp64": "highest"}[format]
    ours, exact = pair(bench, precision, side=16)
    _, capability, shared = backends.gpu(bench.device)
    key = ("gram_aligned", format, tiles.kind_of(capability, shared))
    rows = [row for row in tiles.CANDIDATES.get(key, ()) if row[5] == "stream"]
    truth, limit = exact.to_dense(), {"medium": 1e-3, "high": 1e-5, "highest": 1e-11}[precision]
    for row in rows:
        with tiles.chosen(key, row):
            judge(bench, ours.to_dense(), truth, limit)
    if not rows:
        bench.found["summary"] = "no stream for this GPU"


def tangent_products(bench: Bench) -> None:
    """``J^T V`` and ``J p`` through factors, in the tiles of narrow, of wide and of wider layers."""
    rng = torch.Generator().manual_seed(0)
    points, shapes = (600 if bench.large else 40), ((2, 40), (40, 20), (70, 45))
    layout = Layout(tuple(LayerShape(a, b, True) for a, b in shapes), "trace", 2, "fp64")
    factors = [
        tuple(torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((points, a), (points, 2, b)))
        for a, b in shapes
    ]
    V = torch.randn(points, 3, generator=rng, dtype=torch.float64)
    for few in (2, 3):  # up to 40 columns of sensitivities, and more than 64
        plan = Plan(dataclasses.replace(layout, shapes=layout.shapes[:few]), (0,) * few)
        ours = pack(plan, [tuple(f.to(bench.device) for f in pair) for pair in factors[:few]])
        found = tangent_product.product(ours, tangent_product.transposed_product(ours, V.to(bench.device)))
        truth = sum((z @ z.t() + 1) * (s.flatten(1) @ s.flatten(1).t()) for z, s in factors[:few]) @ V
        judge(bench, found, truth, 1e-12)


def accepted(bench: Bench) -> None:
    """Which pivots are kept, and their factor; one candidate stands twice."""
    rng = torch.Generator().manual_seed(0)
    count = 150 if bench.large else 40
    A = torch.randn(count, count, generator=rng, dtype=torch.float64)
    names = torch.arange(count)
    names[count // 2] = 3
    A[count // 2] = A[3]
    block, lots = A @ A.t(), torch.rand(count, generator=rng, dtype=torch.float64)
    given = (block, names, block.diagonal().clone(), lots)
    places, factor, kept = pivots.accept_pivots(*(t.to(bench.device) for t in given), 2 * count // 3)
    places_of, factor_of, kept_of = pivots.reference(*(t.numpy() for t in given), 2 * count // 3)
    bench.found["kept"] = int(kept)
    same = int(kept) == int(kept_of) and places.cpu().tolist() == torch.as_tensor(places_of).tolist()
    bench.check(same, f"{int(kept)} pivots kept, not the {int(kept_of)} of the definition")
    judge(bench, factor, torch.as_tensor(factor_of), 1e-10)


def factored(bench: Bench, precision: str) -> None:
    """The inertia of a shifted kernel within what its residual allows, and a solution."""
    gpu_factor.judge(bench, gpu_factor.kernel(bench, SIDE if bench.large else 4), precision)


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
    weight /= 8 * (OMEGA if activation == "sine" else 1)
    near = [t.to(bench.device).requires_grad_() for t in (x, weight, bias)]
    out = fused_linear(*near, activation, OMEGA, backend="triton")
    grads = torch.autograd.grad(out, near, g.to(bench.device))
    expected = layer_bounds(activation, torch.finfo(kind).eps, *(t.double() for t in (x, weight, bias, g)))
    shares = [
        float(((t.detach().double().cpu() - truth).abs() / bound).max())
        for t, (truth, bound) in zip((out, *grads), expected, strict=True)
    ]
    bench.found["error"] = {"shares of the bounds": shares}
    bench.check(max(shares) <= 1, f"error {max(shares):.2f} of its bound")


def layer_bounds(
    activation: str, unit: float, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return y, dL/dx, dL/dW and dL/db in fp64, each with how far every entry may be off.

    A sum of products in fp32 is off by a few units of the sum of their absolute values, and so u = x w + b. The sine of
    omega u is off by omega times as much, its slope by omega^2; ReLU's slope by 1 where u may have either sign. What is
    stored or becomes an operand is rounded to the layer's dtype.
    """
    u32 = ROUNDINGS * torch.finfo(torch.float32).eps / 2
    u = x @ weight.t() + bias
    off = u32 * (x.abs() @ weight.abs().t() + bias.abs())
    if activation == "sine":
        y, slope, steep, off_slope = torch.sin(OMEGA * u), OMEGA * torch.cos(OMEGA * u), OMEGA, OMEGA**2 * off
    else:
        y, slope, steep, off_slope = u.relu(), (u > 0).double(), 1.0, (u.abs() <= off).double()
    e = g * slope
    off_e = g.abs() * (off_slope + unit * (slope.abs() + 2.0**-6)) + unit * e.abs()
    found = [(y, steep * off + unit * (y.abs() + 2.0**-6))]
    for left, right in ((e, weight), (e.t(), x), (e.t(), torch.ones(len(x), 1, dtype=x.dtype))):
        wide = (off_e if left is e else off_e.t()) + u32 * left.abs()
        truth = left @ right
        found.append((truth, wide @ right.abs() + unit * (truth.abs() + 2.0**-6)))
    truth, bound = found[3]
    return [*found[:3], (truth[:, 0], bound[:, 0])]


def fit(bench: Bench, precision: str, **options: Any) -> None:
    """Steps of a fit, the first launched, the next ones in a CUDA graph, against the same fit in fp64 on the CPU."""
    net, twin, coords = nets(bench, width=64, **options)
    target = torch.sin(3 * coords)
    kwargs: dict[str, Any] = {
        "steps": 12 if bench.large else 6,
        "eval_every": 4 if bench.large else 2,
        "progress": False,
    }
    near = coords.float().to(bench.device)
    ours = inr.fit(
        net, near, target.float().to(bench.device), precision=precision, backend="triton", **{"seed": 0, **kwargs}
    )
    exact = inr.fit(twin, coords, target, backend="torch", **{"seed": 0, **kwargs})
    tolerance = 2e-2 if precision == "medium" else 1e-3
    judge(bench, torch.tensor(ours.losses), torch.tensor(exact.losses), tolerance)


def initialisation(bench: Bench) -> None:
    """The extension's kernel, or the CPU's and a copy where it was built without CUDA."""
    from inrfast.info import info
    from inrfast.ops.grid_init import rank_expanding_reference

    bench.found["cuda"] = info()["extension"]["CUDA half"].get("build", {}).get("cuda")
    ours, exact = inr.rank_expanding(64, 2, device=bench.device), rank_expanding_reference(64, 2)
    worst = max(relative(a, b) for a, b in zip(ours, exact, strict=True))
    bench.found["error"] = {"largest": worst, "target": 1e-6}
    bench.check(worst <= 1e-6, f"error {worst:.2e} above 1e-06")


SMOKES: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    **{f"dense {a} {p}": (dense, (p, a)) for p in ("medium", "high", "highest") for a in ("relu", "sine")},
    "norm": (norm, ()),
    "columns": (columns, ()),
    **{f"stream {f}": (stream, (f,)) for f in ("fp16", "fp16x3", "fp64")},
    "tangent products": (tangent_products, ()),
    "pivots": (accepted, ()),
    **{f"factor {p}": (factored, (p,)) for p in ("high", "highest")},
    **{f"product {p} of {k}": (kernel_product, (p, k)) for p in ("high", "highest") for k in (1, 40)},
    **{f"jacobian {p}": (jacobian, (p,)) for p in ("high", "highest")},
    **{f"layer {d} {a}": (layer, (d, a)) for d, a in (("float16", "relu"), ("bfloat16", "sine"), ("float32", "sine"))},
    **{f"fit {p}": (fit, (p,)) for p in ("medium", "high")},
    "fit encoded medium": (functools.partial(fit, encoding=inr.RandomFourier(16)), ("medium",)),
    **{f"fit normed {p}": (functools.partial(fit, norm="batch"), (p,)) for p in ("medium", "high")},
    "initialisation": (initialisation, ()),
}
"""What is run once, by name."""


def run(bench: Bench, name: str) -> None:
    """Run one of :data:`SMOKES`."""
    function, arguments = SMOKES[name]
    function(bench, *arguments)
