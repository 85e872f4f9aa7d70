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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast.info import info
from inrfast.kernels import formats
from inrfast.ops import gram as gram_ops
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
        with tensor_float(name == "tf32"):
            found[name] = bench.seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        found[name]["flops_per_second"] = 2 * n**3 / found[name]["seconds"]


@contextmanager
def tensor_float(allowed: bool) -> Any:
    """Let fp32 products run in TF32, or not, inside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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

    with tensor_float(tf32), exact_products(torch.device("cpu")):
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
    in_use = gram_ops._config(name, bench.device)
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
    bench.part("eager fp32", eager, "relu", False, False)
    bench.part("eager TF32, torch.compile", eager, "relu", True, True)
    bench.part("ratios", ratios)
    for name, precision in (("fp16x3", "high"), ("fp16", "medium"), ("fp64", "highest")):
        if not bench.late:
            bench.part(f"candidates {name}", candidates, name, precision)
    print(summary(bench.results))
    return int(any("failed" in part for part in bench.results.values()))


if __name__ == "__main__":
    sys.exit(main())
