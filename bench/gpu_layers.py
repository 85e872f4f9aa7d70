"""Parts of ``bench/gpu.py``: the fused layer, eager and in CUDA graphs, against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import Bench
from torch import Tensor

from inrfast.modes import products
from inrfast.ops.fused_linear import fused_linear

OMEGA = 30.0
ROUNDINGS = 4.0
"""Roundings in fp32 of the sum of a layer's products, in units of the sum of their absolute values."""

POINTS = (4096, 65_536, 1 << 20)

TARGETS = {"forward, eager": 2.5, "forward, compiled": 1.5, "both, eager": 2.0, "both, compiled": 1.0}


def layer(bench: Bench, dtype: str, activation: str) -> None:
    """The fused layer of one full grid at one width, forward and with backward."""
    n, width = bench.grid**2, bench.width
    x, weight, bias, g = operands(bench, dtype, activation, n)
    parameters = [x, weight, bias]

    def ours() -> Tensor:
        return fused_linear(x, weight, bias, activation, OMEGA, backend="triton")

    def plain() -> Tensor:
        return formula(activation, x, weight, bias)

    def both(run: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(run(), parameters, g)

    with products("highest"):  # fp32 is fp32 on both sides
        check_forward(bench, activation, ours(), plain(), x, weight, bias)
        check_gradients(bench, activation, both(ours)(), both(plain)(), parameters, g)
        forward = {"ours": ours, "eager": plain, "compiled": torch.compile(plain)}
        with torch.no_grad():
            for name, run in forward.items():
                bench.attempt(f"forward, {name}", lambda run=run: bench.seconds(run))
                bench.attempt(f"forward, {name}, graph", lambda run=run: bench.seconds(bench.graph(run)))
        for name, run in forward.items():
            bench.attempt(f"both, {name}", lambda run=run: bench.seconds(both(run)))
            bench.attempt(f"both, {name}, graph", lambda run=run: bench.seconds(bench.graph(both(run))))
    for name, target in TARGETS.items():
        what, rival = name.split(", ")
        for graph in ("", ", graph"):
            mine, other = bench.found[f"{what}, ours{graph}"], bench.found[f"{what}, {rival}{graph}"]
            if "seconds" in mine and "seconds" in other:
                ratio = other["seconds"] / mine["seconds"]
                bench.found[f"ratio of {what} to {rival}{graph}"] = (ratio, target)
    copied = bench.rate("copy", "bytes_per_second")
    if copied and "seconds" in bench.found["forward, ours, graph"]:
        moved = 2 * n * width * x.itemsize / copied
        bench.found["fraction_of_copy"] = moved / bench.found["forward, ours, graph"]["seconds"]


def operands(bench: Bench, dtype: str, activation: str, n: int) -> tuple[Tensor, ...]:
    """Return x, weight and bias, which want gradients, and ``dL/dy``, of n points."""
    rng, width = torch.Generator().manual_seed(0), bench.width
    sizes = ((n, width), (width, width), (width,), (n, width))
    x, weight, bias, g = (torch.randn(*size, generator=rng).to(bench.device, getattr(torch, dtype)) for size in sizes)
    weight /= width**0.5 * (OMEGA if activation == "sine" else 1.0)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), g


def auto(bench: Bench, dtype: str, activation: str) -> None:
    """What the layer chooses by itself, and its kernels, against eager PyTorch: called one by one, and in CUDA graphs.

    The first is to be as fast as eager PyTorch wherever accuracy leaves a choice: ratios of 1, but for the clock.
    """
    for n in POINTS if bench.large else (16, 32):
        x, weight, bias, g = operands(bench, dtype, activation, n)
        parameters = [x, weight, bias]
        runs: dict[str, Callable[[], Tensor]] = {
            name: lambda x=x, weight=weight, bias=bias, name=name: fused_linear(  # type: ignore[misc]
                x, weight, bias, activation, OMEGA, backend=name
            )
            for name in ("auto", "triton")
        }
        runs["eager"] = lambda x=x, weight=weight, bias=bias: formula(activation, x, weight, bias)  # type: ignore[misc]
        with products("highest"):
            for name in ("auto", "triton"):
                check_forward(bench, activation, runs[name](), runs["eager"](), x, weight, bias, name == "triton")
            for name, run in runs.items():
                both = lambda run=run, g=g, parameters=parameters: torch.autograd.grad(run(), parameters, g)  # noqa: E731
                for what, call in (("forward", run), ("both", both)):
                    with torch.set_grad_enabled(what == "both"):
                        bench.attempt(f"{what} of {n}, {name}", lambda call=call: bench.seconds(call))
                        bench.attempt(
                            f"{what} of {n}, {name}, graph", lambda call=call: bench.seconds(bench.graph(call))
                        )
        for what in ("forward", "both"):
            for name in ("auto", "triton"):
                for graph in ("", ", graph"):
                    mine, other = (bench.found[f"{what} of {n}, {which}{graph}"] for which in (name, "eager"))
                    if "seconds" in mine and "seconds" in other:
                        ratio = other["seconds"] / mine["seconds"]
                        target = (ratio, 1.0) if name == "auto" else ratio
                        bench.found[f"ratio of {what} of {n}, {name}{graph}"] = target


def formula(activation: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    u = torch.nn.functional.linear(x, weight, bias)
    return torch.sin(OMEGA * u) if activation == "sine" else torch.relu(u)


def check_forward(
    bench: Bench,
    activation: str,
    out: Tensor,
    plain: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    strict: bool = True,
) -> None:
    """Hold every entry to what its operands allow: a rounding of the result, and those of u, times the frequency.

    u = x w + b in fp32 is off by a few units of sum |x| |w| + |b|, and sin(omega u) by omega times as much. Plain torch
    in fp32 meets the bound; in 16 bits it rounds u, and does not.
    """
    few = slice(0, min(len(x), 4096))
    wide = [t.detach().double() for t in (x[few], weight, bias)]
    exact = formula(activation, *wide)
    slope = OMEGA if activation == "sine" else 1.0
    size = wide[0].abs() @ wide[1].abs().t() + wide[2].abs()
    u32, unit = torch.finfo(torch.float32).eps / 2, torch.finfo(out.dtype).eps
    bound = unit * (exact.abs() + 2.0**-6) + ROUNDINGS * u32 * slope * size
    share = {
        name: float(((t[few].double() - exact).abs() / bound).max()) for name, t in (("ours", out), ("torch", plain))
    }
    bench.found["error"] = {"share of the bound": share["ours"], "torch's": share["torch"]}
    allowed = 1.0 if strict or activation == "sine" else max(1.0, share["torch"])
    bench.check(share["ours"] <= allowed, f"error {share['ours']:.2f} of the bound (torch's: {share['torch']:.2f})")


def check_gradients(bench: Bench, activation: str, ours: Any, plain: Any, parameters: list[Tensor], g: Tensor) -> None:
    """Hold gradients to 8 units of their norm, or twice what plain torch's are off by."""
    wide = [t.detach().double().requires_grad_() for t in parameters]
    truth = torch.autograd.grad(formula(activation, *wide), wide, g.double())
    unit = torch.finfo(g.dtype).eps
    errors = [[float((a - b).norm() / b.norm()) / unit for a, b in zip(t, truth, strict=True)] for t in (ours, plain)]
    bench.found["gradient_error"] = {"ours": errors[0], "torch's": errors[1]}
    holds = all(mine <= max(8.0, 2 * theirs) for mine, theirs in zip(*errors, strict=True))
    bench.check(holds, f"gradients off by {errors[0]} units (torch's: {errors[1]})")
