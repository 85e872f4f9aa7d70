"""The kernels on a GPU: times, errors against fp64, and how near they come to what the GPU can do, as one JSON file.

``bash bench/gpu.sh`` builds, tests, then runs this. Every time is a median over repeats, with its quartiles; every
ratio is of times taken in this run. No time is reported for a result that is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_fit
import torch
from torch import Tensor

import inrfast as inr
from inrfast.info import info
from inrfast.kernels import formats
from inrfast.kernels import fused_linear as layer_kernels
from inrfast.ops import fused_linear as fused_layer
from inrfast.ops import gram as gram_ops
from inrfast.ops import reductions
from inrfast.ops.fused_linear import fused_linear
from inrfast.ops.gemm import exact_products

TARGETS = {"medium": (0.025, 2e-4), "high": (0.060, 1e-6), "highest": (0.300, 1e-12)}
"""Seconds for the dense kernel of a 256x256 grid at width 256, and the error relative to sqrt(K_ii K_jj)."""

CANDIDATES = {
    "fp16": [(128, 8, s, c) for s in (2, 3, 4) for c in (True, False)] + [(64, 4, 3, True), (128, 16, 3, True)],
    "fp16x3": [(128, 8, s, c) for s in (2, 3) for c in (True, False)] + [(64, 4, 3, True), (64, 8, 3, True)],
    "fp64": [(64, w, s, c) for w in (4, 8) for s in (2, 3, 4) for c in (True, False)],
}
"""Tiles to choose from: block, warps, stages, copy engine; the configuration in use is measured first."""


@dataclasses.dataclass
class Bench:
    """Where to run, how large, how often, and what was found."""

    device: torch.device
    grid: int
    width: int
    repeats: int
    deadline: float
    only: str
    out: Path
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    def seconds(self, function: Callable[[], Any], repeats: int | None = None) -> dict[str, Any]:
        """Return the median, quartiles and number of timed calls, on a GPU after two untimed ones."""
        for _ in range(2 if self.device.type == "cuda" else 0):
            function()
        times = []
        for _ in range(repeats or self.repeats):
            if self.device.type == "cuda":
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                function()
                stop.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(stop) / 1e3)
            else:
                begin = time.perf_counter()
                function()
                times.append(time.perf_counter() - begin)
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        return {"seconds": statistics.median(times), "quartiles": [quartiles[0], quartiles[2]], "repeats": len(times)}

    @property
    def late(self) -> bool:
        """Whether the time for optional parts is over."""
        return time.monotonic() > self.deadline

    def part(self, name: str, measure: Callable[..., None], *arguments: Any) -> None:
        """Run one part, if it is wanted, and write all results; its failure is recorded and stops no other."""
        if not re.search(self.only, name):
            return
        begin = time.monotonic()
        found = self.results.setdefault(name, {})
        try:
            measure(self, *arguments, found)
        except Exception as error:
            found["failed"] = f"{type(error).__name__}: {error}"[:2000]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")
        print(f"{name}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)


def environment(device: torch.device) -> dict[str, Any]:
    """Return the GPU, its clocks now, versions and the date."""
    found: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    found["versions"] = info()["versions"]
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,driver_version"
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        found["clocks"] = dict(zip(query.split(","), done.stdout.strip().split(", "), strict=False))
    return found


def copy(bench: Bench, count: int) -> dict[str, Any]:
    """One copy of so many fp32 numbers; the rate counts bytes read and bytes written."""
    both = torch.randn(2, count, device=bench.device)
    found = bench.seconds(lambda: both[0].copy_(both[1]))
    return {**found, "bytes_per_second": both.numel() * both.itemsize / found["seconds"]}


def ceilings(bench: Bench, found: dict[str, Any]) -> None:
    """One large copy, and one large matrix product in each kind of number, through the libraries that are there."""
    large = bench.device.type == "cuda"
    found["copy"] = copy(bench, (1 << 29) if large else 1 << 16)
    for name, dtype, n in (
        ("fp16", torch.float16, 8192),
        ("bf16", torch.bfloat16, 8192),
        ("tf32", torch.float32, 8192),
        ("fp32", torch.float32, 8192),
        ("fp64", torch.float64, 8192),
    ):
        n = n if large else 64
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        with gpu_fit.tf32(name == "tf32"):
            found[name] = bench.seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        found[name]["flops_per_second"] = 2 * n**3 / found[name]["seconds"]


def network(bench: Bench, activation: str) -> inr.INR:
    kwargs: dict[str, Any] = {"init": "siren"} if activation == "sine" else {}
    return inr.INR(2, 1, width=bench.width, hidden_layers=3, activation=activation, **kwargs).to(bench.device)


def dense(bench: Bench, activation: str, precision: str, found: dict[str, Any]) -> None:
    """From the network to the dense kernel, and its two parts; the error on 64 columns against fp64."""
    net, coords = network(bench, activation), inr.grid((bench.grid, bench.grid), device=bench.device)
    n = len(coords)
    dtype = torch.float64 if precision == "highest" else torch.float32
    out = torch.full((n, n), float("nan"), dtype=dtype, device=bench.device)
    kwargs: dict[str, Any] = {"precision": precision, "backend": "triton", "memory_budget": 1 << 40}

    K = inr.ntk(net, coords, **kwargs)
    K.to_dense(out=out)
    index = torch.linspace(0, n - 1, 64).long().unique().tolist()
    exact = inr.ntk(net, coords, precision="highest", backend="torch", memory_budget=1 << 40)
    diagonal = exact.diagonal()
    error = 0.0
    for columns in (index[k : k + 8] for k in range(0, len(index), 8)):
        size = torch.outer(diagonal.sqrt(), diagonal[columns].sqrt())
        error = max(error, float(((out[:, columns].double() - exact.columns(columns)).abs() / size).max()))
    seconds, tolerance = TARGETS[precision]
    found["format"] = K._plan.layout.format
    found["error"] = {"largest": error, "target": tolerance}
    symmetric = all(torch.equal(out[i, j], out[j, i].t()) for i, j in corners(n))
    if not error <= tolerance or not symmetric:
        raise AssertionError(
            f"error {error:.2e} above {tolerance:.0e}, or not symmetric ({symmetric}): no time is reported"
        )

    plan, rows = K._plan, K.rows
    found["plan"] = bench.seconds(lambda: rows.ranges("trace"))
    found["factors"] = bench.seconds(lambda: rows.side_at(rows.coords, plan))
    operands = rows.side_at(rows.coords, plan)
    found["gram"] = bench.seconds(lambda: gram_ops.gram(operands, out=out))

    def to_dense() -> None:
        """As a first call finds it: neither plan nor operands kept."""
        K.__dict__.pop("_plan", None)
        rows._operands = None
        K.to_dense(out=out)

    found["to_dense"] = bench.seconds(to_dense) | {"target": seconds}
    found["ntk_and_to_dense"] = bench.seconds(lambda: inr.ntk(net, coords, **kwargs).to_dense(out=out))
    flops = K.cost().dense_flops
    ceiling = bench.results["ceilings"]["fp64" if precision == "highest" else "fp16"]["flops_per_second"]
    products = 3 if plan.layout.numbers.planes == 2 else 1
    found["flops"] = flops
    found["fraction_of_best_product"] = products * flops / found["gram"]["seconds"] / ceiling
    copied = bench.results["ceilings"]["copy"]["bytes_per_second"]
    found["fraction_of_copy"] = out.numel() * out.itemsize / found["gram"]["seconds"] / (copied / 2)


def frobenius(bench: Bench, precision: str, found: dict[str, Any]) -> None:
    """The Frobenius norm with nothing N x N stored: time, memory beside the operands, error against fp64 tiles."""
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, precision=precision, backend="triton", memory_budget=1 << 40)
    few = coords[:: max(len(coords) // 4096, 1)].contiguous()
    exact = inr.ntk(net, few, precision="highest", backend="torch", memory_budget=1 << 40).frobenius()
    subset = inr.ntk(net, few, precision=precision, backend="triton", memory_budget=1 << 40).frobenius()
    tolerance = TARGETS[precision][1]
    found["error"] = {"largest": abs(subset / exact - 1), "target": tolerance, "points": len(few)}
    if not found["error"]["largest"] <= tolerance or K.frobenius() != K.frobenius():
        raise AssertionError(f"error {found['error']}, or two runs differ: no time is reported")
    found["norm"] = bench.seconds(K.frobenius)

    def whole() -> None:
        """As a first call finds it: neither plan nor operands kept."""
        K.__dict__.pop("_plan", None)
        K.rows._operands = None
        K.frobenius()

    found["whole"] = bench.seconds(whole)
    if bench.device.type == "cuda":
        K.frobenius()  # the operands are kept: what is allocated from here on is the norm's own
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        K.frobenius()
        found["extra_bytes"] = torch.cuda.max_memory_allocated() - before
    dense_part = bench.results.get("dense relu medium", {})
    if "to_dense" in dense_part:
        found["of_dense_medium"] = found["whole"]["seconds"] / dense_part["to_dense"]["seconds"]


def wide_product(bench: Bench, columns: int, found: dict[str, Any]) -> None:
    """K V for many columns, against tiles that are written and multiplied by the library."""
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, backend="triton", memory_budget=1 << 40)
    n = len(coords)
    V = torch.randn(n, columns, generator=torch.Generator().manual_seed(0)).to(bench.device)
    operands = K.rows.side_at(coords, K._plan)
    side = min(8192, n)
    tile = torch.empty(side, side, device=bench.device)

    def by_written_tiles() -> Tensor:
        out = torch.zeros_like(V)
        for i in range(0, n, side):
            for j in range(i, n, side):
                rows = operands.part(i, i + side)
                others = None if i == j else operands.part(j, j + side)
                part = tile[: rows.rows, : (others or rows).rows]
                gram_ops.gram(rows, others, out=part)
                out[i : i + side].addmm_(part, V[j : j + side])
                if others is not None:
                    out[j : j + side].addmm_(part.t(), V[i : i + side])
        return out

    exact = inr.ntk(net, coords, precision="highest", backend="torch", memory_budget=1 << 40)
    few = torch.linspace(0, n - 1, 16).long().unique().tolist()
    diagonal = exact.diagonal().sqrt()
    size = torch.outer(diagonal[few], diagonal @ V.double().abs())
    expected = exact.columns(few).t() @ V.double()
    with exact_products(bench.device):
        for name, product in (
            ("product", lambda: reductions.gram_product(operands, None, V)),
            ("written tiles", by_written_tiles),
        ):
            error = float(((product()[few].double() - expected[:, :columns]).abs() / size).max())
            if not error <= 1e-6:
                raise AssertionError(f"{name}: error {error:.2e} above 1e-06: no time is reported")
            found[name] = bench.seconds(product, 3) | {"error": error}
    found["ratio"] = found["written tiles"]["seconds"] / found["product"]["seconds"]


def corners(n: int) -> list[tuple[slice, slice]]:
    """Return a few blocks of an n x n matrix off and on its diagonal."""
    size = max(n // 8, 1)
    starts = (0, max(n // 2 - 3, 0), n - size)
    return [(slice(a, a + size), slice(b, b + size)) for a in starts for b in starts]


def eager(bench: Bench, activation: str, tf32: bool, compiled: bool, found: dict[str, Any]) -> None:
    """The same kernel by PyTorch: tiles of the upper triangle, two products, one multiplication, a mirrored copy."""
    net, coords = network(bench, activation), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, backend="torch", memory_budget=1 << 40)
    pairs = [(f.features, None if f.sensitivities is None else f.sensitivities[:, 0]) for f in K.rows.store.all()]
    n = len(coords)
    out = torch.empty(n, n, device=bench.device)

    def tile(left: list[Tensor | None], right: list[Tensor | None]) -> Tensor:
        total = None
        for k in range(0, len(left), 2):
            z, s, z2, s2 = left[k], left[k + 1], right[k], right[k + 1]
            assert z is not None and z2 is not None
            part = z @ z2.t()
            part = part if s is None or s2 is None else part * (s @ s2.t())
            total = part if total is None else total + part
        assert total is not None
        return total

    chosen = torch.compile(tile, dynamic=False) if compiled else tile

    def run(side: int) -> None:
        for i in range(0, n, side):
            left = [None if f is None else f[i : i + side] for pair in pairs for f in pair]
            for j in range(i, n, side):
                right = [None if f is None else f[j : j + side] for pair in pairs for f in pair]
                part = chosen(left, right)
                out[i : i + side, j : j + side] = part
                if i != j:
                    out[j : j + side, i : i + side] = part.t()

    with gpu_fit.tf32(tf32), exact_products(torch.device("cpu")):
        for side in (2048, 4096, 8192) if n > 8192 else (n // 2,):
            found[f"tile {side}"] = bench.seconds(lambda side=side: run(side), 3)  # type: ignore[misc]
    best = min((value["seconds"], name) for name, value in found.items())
    found["best"] = {"seconds": best[0], "tile": best[1]}


def ratios(bench: Bench, found: dict[str, Any]) -> None:
    """How many times faster the kernels are than the best tiling by PyTorch, as ``(ratio, target)``."""
    for precision, title, target in (("high", "eager fp32", 2.5), ("medium", "eager TF32, torch.compile", 3.0)):
        ours = bench.results[f"dense relu {precision}"]["to_dense"]["seconds"]
        found[f"{precision} against {title}"] = (bench.results[title]["best"]["seconds"] / ours, target)


def candidates(bench: Bench, name: str, precision: str, found: dict[str, Any]) -> None:
    """Time other tiles of the Gram kernel, the one in use first: the figures from which to choose."""
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, precision=precision, backend="triton", memory_budget=1 << 40)
    side = K.rows.side_at(K.coords, K._plan)
    out = torch.empty(K.shape, dtype=K.dtype, device=bench.device)
    in_use = gram_ops.config_on(name, bench.device)
    table = formats.LARGE if in_use == formats.LARGE[name] else formats.SMALL
    first = (in_use.block, in_use.warps, in_use.stages, in_use.copy_engine)
    try:
        for block, warps, stages, copy_engine in [first, *(c for c in CANDIDATES[name] if c != first)]:
            if bench.late:
                found["stopped"] = "out of time"
                break
            title = f"{block}, {warps} warps, {stages} stages" + ", copy engine" * copy_engine
            table[name] = formats.Config(block, warps, stages, copy_engine, in_use.shared)
            try:
                found[title] = bench.seconds(lambda: gram_ops.gram(side, out=out), 3)  # type: ignore[arg-type]
            except Exception as error:
                found[title] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    finally:
        table[name] = in_use


def jacobian(bench: Bench, precision: str) -> inr.jacobians.LayerwiseJacobian:
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    made = inr.jacobian(net, coords, precision=precision, backend="triton", memory_budget=1 << 40)
    made.store.all()
    return made


def rows(bench: Bench, precision: str, found: dict[str, Any]) -> None:
    """16 GiB of rows against a fill of the same memory; a few points against fp64 first."""
    J = jacobian(bench, precision)
    tolerance = 1e-6 if precision == "high" else 1e-14
    exact = inr.jacobian(network(bench, "relu"), J.coords, precision="highest", backend="torch", memory_budget=1 << 40)
    for points in (slice(0, 3), slice(len(J.coords) - 3, len(J.coords))):
        truth = exact.rows(points)
        error = float(((J.rows(points) - truth).abs() / truth.norm(dim=1, keepdim=True)).max())
        if not error <= tolerance:
            raise AssertionError(f"error {error:.2e} above {tolerance:.0e}: no time is reported")
    wanted = (16 << 30) if bench.device.type == "cuda" else 1 << 22
    count = max(1, min(len(J.coords), wanted // (J.shape[1] * J.dtype.itemsize)))
    made = J.rows(slice(0, count))
    size = made.numel() * made.itemsize
    found["fill"] = bench.seconds(lambda: made.fill_(1))
    found["rows"] = bench.seconds(lambda: J.rows(slice(0, count)))
    widest = max(J.layers, key=lambda name: J.layers[name].shape[1])
    alone = J.layers[widest]
    found["widest layer"] = bench.seconds(lambda: alone.rows(slice(0, count)))
    found["bytes_per_second"] = size / found["rows"]["seconds"]
    found["fraction_of_fill"] = (found["fill"]["seconds"] / found["rows"]["seconds"], 0.8)


def products(bench: Bench, precision: str, found: dict[str, Any]) -> None:
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
            if not error <= tolerance:
                raise AssertionError(f"{name}: error {error:.2e} above {tolerance:.0e}: no time is reported")
            found[name] = bench.seconds(ours)
            found[f"{name}, torch"] = bench.seconds(theirs)


LAYER_CANDIDATES = [
    (
        "FORWARD",
        [(128, 128, 64, 8, s) for s in (2, 4)] + [(128, 256, 64, 8, 3), (64, 256, 64, 8, 3), (64, 128, 64, 4, 4)],
    ),
    ("INPUT_GRADIENT", [(128, 128, 64, 8, 2), (128, 128, 32, 8, 4), (64, 128, 32, 4, 4), (128, 256, 32, 8, 3)]),
    ("WEIGHT_GRADIENT", [(128, 128, 64, 8, 2), (128, 128, 32, 8, 4), (64, 128, 64, 4, 3), (128, 256, 32, 8, 3)]),
]
"""Tiles of the fused layer to choose from: rows, columns, terms, warps, stages."""


def layer(bench: Bench, dtype: str, activation: str, found: dict[str, Any]) -> None:
    """The fused layer of one full grid at one width, forward and backward, against eager and compiled PyTorch."""
    kind, n, width, omega = getattr(torch, dtype), bench.grid**2, bench.width, 30.0
    rng = torch.Generator().manual_seed(0)
    sizes = ((n, width), (width, width), (width,), (n, width))
    x, weight, bias, g = (torch.randn(*size, generator=rng).to(bench.device, kind) for size in sizes)
    weight /= width**0.5 * (omega if activation == "sine" else 1.0)
    parameters = [t.requires_grad_() for t in (x, weight, bias)]

    def ours() -> Tensor:
        return fused_linear(x, weight, bias, activation, omega, backend="triton")

    def eager() -> Tensor:
        u = torch.nn.functional.linear(x, weight, bias)
        return torch.sin(omega * u) if activation == "sine" else torch.relu(u)

    def both(run: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(run(), parameters, g)

    unit = torch.finfo(kind).eps
    few = slice(0, min(n, 4096))
    u = x[few].double() @ weight.double().t() + bias.double()
    exact = torch.sin(omega * u) if activation == "sine" else torch.relu(u)
    found["error"] = {"units": float((ours()[few].double() - exact).abs().max()) / unit, "target": 8.0}
    wide = [t.detach().double().requires_grad_() for t in parameters]
    u = torch.nn.functional.linear(*wide)
    truth = torch.sin(omega * u) if activation == "sine" else torch.relu(u)
    pairs = zip(both(ours)(), torch.autograd.grad(truth, wide, g.double()), strict=True)
    found["gradient_error"] = [float((a - b).norm() / b.norm()) / unit for a, b in pairs]
    del wide, u, truth, exact
    if not (found["error"]["units"] <= 8 and max(found["gradient_error"]) <= 8):
        raise AssertionError(f"errors {found['error']}, {found['gradient_error']}: no time is reported")

    with torch.no_grad():
        found["forward"] = bench.seconds(ours)
        found["forward, eager"] = bench.seconds(eager)
        found["forward, compiled"] = bench.seconds(torch.compile(eager))
    found["both"] = bench.seconds(both(ours))
    found["both, eager"] = bench.seconds(both(eager))
    found["both, compiled"] = bench.seconds(both(torch.compile(eager)))
    for name, other, target in (
        ("forward", "eager", 2.5), ("forward", "compiled", 1.5), ("both", "eager", 2.0), ("both", "compiled", 1.0)
    ):  # fmt: skip
        found[f"ratio of {name} to {other}"] = (found[f"{name}, {other}"]["seconds"] / found[name]["seconds"], target)
    if bench.device.type == "cuda":
        moved = 2 * n * width * x.itemsize / bench.results["ceilings"]["copy"]["bytes_per_second"]
        found["fraction_of_copy"] = moved / found["forward"]["seconds"]


def layer_candidates(bench: Bench, found: dict[str, Any]) -> None:
    """Time other tiles of the fused layer in 16 bits, each pass by itself, the one in use first."""
    n, width = bench.grid**2, bench.width
    x, g = (torch.randn(1, n, width, device=bench.device, dtype=torch.float16) for _ in range(2))
    weight = torch.randn(1, width, width, device=bench.device, dtype=torch.float16) / (30 * width**0.5)
    settings: tuple[Any, ...] = ("sine", 30.0, "high", "triton")
    _, slope = fused_layer.fused_linear_forward(x, weight, None, *settings, True)
    passes: dict[str, Callable[[], Any]] = {
        "FORWARD": lambda: fused_layer.fused_linear_forward(x, weight, None, *settings, True),
        "INPUT_GRADIENT": lambda: fused_layer.fused_linear_backward(
            g, x, weight, slope, *settings, [True, False, False]
        ),
        "WEIGHT_GRADIENT": lambda: fused_layer.fused_linear_backward(
            g, x, weight, slope, *settings, [False, True, True]
        ),
    }
    for name, tiles in LAYER_CANDIDATES:
        table = getattr(layer_kernels, name)
        in_use = table["fp16"]
        try:
            for config in [in_use, *(layer_kernels.Config(*tile) for tile in tiles)]:
                if bench.late:
                    found["stopped"] = "out of time"
                    break
                table["fp16"] = config
                title = f"{name}, {config}"
                try:
                    found[title] = bench.seconds(passes[name], 3)
                except Exception as error:
                    found[title] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        finally:
            table["fp16"] = in_use


def summary(results: dict[str, Any]) -> str:
    """Return the short table."""
    lines = [f"{results['environment'].get('gpu', 'no GPU')}, {results['environment']['date']}"]

    def milliseconds(entry: dict[str, Any], name: str) -> str:
        return f"{1e3 * entry[name]['seconds']:9.2f}" if name in entry else "        -"

    for name, entry in results.items():
        if "failed" in entry:
            lines.append(f"{name:32} FAILED {entry['failed'][:90]}")
        elif name.startswith("dense"):
            target = 1e3 * entry["to_dense"]["target"]
            lines.append(
                f"{name:32} {milliseconds(entry, 'to_dense')} ms (target {target:.0f}), gram "
                f"{milliseconds(entry, 'gram')}, factors {milliseconds(entry, 'factors')}, error "
                f"{entry['error']['largest']:.1e}, {100 * entry['fraction_of_best_product']:.0f}% of the best product"
            )
        elif name.startswith("frobenius"):
            extra = f"{entry['extra_bytes'] / 1e6:.1f} MB" if "extra_bytes" in entry else "-"
            ratio = f"{entry['of_dense_medium']:.2f}" if "of_dense_medium" in entry else "-"
            lines.append(
                f"{name:32} {milliseconds(entry, 'whole')} ms, {ratio} of dense medium (target 1), {extra} beside the "
                f"operands (target 100), error {entry['error']['largest']:.1e}"
            )
        elif name.startswith("wide product"):
            lines.append(
                f"{name:32} {milliseconds(entry, 'product')} ms, written tiles {milliseconds(entry, 'written tiles')}, "
                f"ratio {entry['ratio']:.2f}"
            )
        elif name.startswith("step"):
            lines += gpu_fit.summary(name, entry)
        elif name.startswith("layer"):
            lines.append(
                f"{name:32} forward {milliseconds(entry, 'forward')} ms, both {milliseconds(entry, 'both')}, error "
                f"{entry['error']['units']:.1f} units, gradients {max(entry['gradient_error']):.1f}"
            )
            ratios = [(k, v) for k, v in entry.items() if k.startswith("ratio")]
            lines += [f"{'':32} {title}: {ratio:.2f} (target {target})" for title, (ratio, target) in ratios]
        elif name.startswith("rows"):
            fraction, target = entry["fraction_of_fill"]
            lines.append(f"{name:32} {milliseconds(entry, 'rows')} ms, {fraction:.2f} of a fill (target {target})")
        elif name.startswith("products"):
            lines += [f"{name:32} {milliseconds(entry, part)} ms  {part}" for part in entry]
        elif name.startswith("eager"):
            lines.append(f"{name:32} {milliseconds(entry, 'best')} ms, {entry['best']['tile']}")
        elif name.startswith("candidates"):
            timed = sorted((v["seconds"], k) for k, v in entry.items() if isinstance(v, dict) and "seconds" in v)
            lines += [f"{name:32} {1e3 * seconds:9.2f} ms  {title}" for seconds, title in timed[:4]]
        elif name == "ratios":
            lines += [f"{title:48} {ratio:.2f} (target {target})" for title, (ratio, target) in entry.items()]
        elif name == "ceilings":
            copied = entry["copy"]["bytes_per_second"] / 1e12
            rates = ", ".join(f"{k} {v['flops_per_second'] / 1e12:.0f}" for k, v in entry.items() if k != "copy")
            lines.append(f"ceilings: copy {copied:.2f} TB/s; TFLOP/s: {rates}")
    return "\n".join(lines)


def main() -> int:
    """Run all parts; the results are written as they come, so that a time limit loses nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--seconds", type=float, default=240.0, help="after so long no optional part begins")
    parser.add_argument("--grid", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="a regular expression: run the parts whose names it is found in")
    chosen = parser.parse_args()
    deadline = time.monotonic() + chosen.seconds
    bench = Bench(
        torch.device(chosen.device), chosen.grid, chosen.width, chosen.repeats, deadline, chosen.only, chosen.out
    )
    bench.results["environment"] = environment(bench.device)
    bench.part("ceilings", ceilings)
    for activation in ("relu", "sine"):
        for precision in TARGETS:
            bench.part(f"dense {activation} {precision}", dense, activation, precision)
    for precision in ("medium", "high"):
        bench.part(f"frobenius {precision}", frobenius, precision)
    bench.part("wide product, 256 columns", wide_product, 256)
    for precision in ("high", "highest"):
        bench.part(f"rows {precision}", rows, precision)
        bench.part(f"products {precision}", products, precision)
    for dtype, activation in (("float16", "relu"), ("float16", "sine"), ("bfloat16", "sine"), ("float32", "sine")):
        if dtype != "bfloat16" or bench.device.type == "cuda":  # Triton's interpreter multiplies the bits of bf16
            bench.part(f"layer {dtype} {activation}", layer, dtype, activation)
    large, small, count = (512, 64, 100) if bench.device.type == "cuda" else (bench.grid, bench.grid, 2)
    for precision in ("medium", "high"):
        for activation in ("relu", "sine"):
            part = gpu_fit.step_of_one, large, bench.width, activation, precision, precision == "medium"
            bench.part(f"step 512x512 {activation} {precision}", *part)
        bench.part(f"step 64x64 relu {precision}", gpu_fit.step_of_one, small, bench.width, "relu", precision, False)
        width = bench.width // 2
        bench.part(f"steps of 100, 64x64 {precision}", gpu_fit.step_of_many, count, small, width, precision)
    bench.part("eager fp32", eager, "relu", False, False)
    bench.part("eager TF32, torch.compile", eager, "relu", True, True)
    bench.part("ratios", ratios)
    for name, precision in (("fp16x3", "high"), ("fp16", "medium"), ("fp64", "highest")):
        if not bench.late:
            bench.part(f"candidates {name}", candidates, name, precision)
    if not bench.late:
        bench.part("candidates of the step, 256", gpu_fit.step_candidates, large, bench.width)
    if not bench.late:
        bench.part("candidates of the step, 128", gpu_fit.step_candidates, small, bench.width // 2)
    if not bench.late:
        bench.part("candidates of the layer", layer_candidates)
    print(summary(bench.results))
    return int(any("failed" in part for part in bench.results.values()))


if __name__ == "__main__":
    sys.exit(main())
