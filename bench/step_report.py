"""What a fused training step asks of a GPU, without one: ``python bench/step_report.py [--out report.md]``.

For some problems, kernel by kernel: programs, registers, shared memory, the mix of instructions in the machine code,
the bytes that programs ask for, and the bytes that must come from memory or go there, against the step's floor. The
bytes asked for are counted, not computed: Triton interprets one tile's program, and every load and store is added up.
Times are those of the rates that the report names, not measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "results" / "step-report.md"

PRODUCTS, MEMORY, CACHE = 800e12, 3.35e12, 5.5e12
"""FLOP/s of 16-bit products, bytes/s of the memory and of the second-level cache of an H100, as floors count them."""

MULTIPROCESSORS, REGISTERS, SHARED, THREADS = 132, 65536, 227 * 1024, 2048

KERNELS = ("mlp_forward", "mlp_backward", "mlp_weight_gradients", "mlp_update")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Networks 2-width-width-width-3 on a square grid, a full batch a step."""

    side: int
    width: int
    models: int = 1
    activation: str = "relu"
    precision: str = "medium"
    hidden: int = 3

    @property
    def title(self) -> str:
        """The problem for a reader."""
        count = f"{self.models} networks, " if self.models > 1 else ""
        return f"{count}{self.side}x{self.side}, width {self.width}, {self.activation}, {self.precision}"

    @property
    def points(self) -> int:
        """Points of a step."""
        return self.side * self.side

    @property
    def kind(self) -> str:
        """How products are made."""
        return "fp16" if self.precision == "medium" else "tf32x3"


PROBLEMS = (
    Problem(256, 256),
    Problem(256, 256, activation="sine"),
    Problem(512, 256),
    Problem(64, 256),
    Problem(64, 64, activation="sine"),
    Problem(64, 128, models=100),
    Problem(256, 512, activation="sine"),
    Problem(256, 256, precision="high"),
)


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the bytes that interpreted kernels load and store."""
    from triton.runtime.interpreter import InterpreterBuilder

    bytes_of = {"loaded": 0, "stored": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def size(pointers: Any, mask: Any) -> int:
        return int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        bytes_of["loaded"] += size(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        bytes_of["stored"] += size(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load = counting_load
    InterpreterBuilder.create_masked_store = counting_store
    try:
        yield bytes_of
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


def engine(problem: Problem, points: int) -> Any:
    """Return the fused step of one of the problem's networks on so many points."""
    import torch

    import inrfast as inr
    from inrfast.ops.fused_mlp import FusedMLP, Points, Shape
    from inrfast.training.stack import Stack

    options = {"activation": problem.activation, "hidden_layers": problem.hidden}
    net = inr.INR(
        2, 3, width=problem.width, init="siren" if problem.activation == "sine" else "default", seed=0, **options
    )
    stack = Stack([net], flat=True)
    assert stack.flat is not None
    names = [(f"layers.{k}.weight", f"layers.{k}.bias") for k in range(problem.hidden + 1)]
    places = tuple((stack.places[weight], stack.places[bias]) for weight, bias in names)
    kind, numbers = net.bound_activations[0].kind, tuple(own.numbers for own in net.bound_activations)
    shape = Shape(2, problem.width, problem.hidden, 3, kind, numbers, places)
    data = Points(torch.rand(1, points, 2), torch.rand(1, points, 3), None)
    trained = torch.ones(stack.flat.shape[1], dtype=torch.uint8)
    made = FusedMLP(shape, stack.flat, trained, data, points, problem.kind)
    made.stack = stack  # type: ignore[attr-defined]
    return made


def asked_for(problem: Problem) -> dict[str, dict[str, float]]:
    """Return the bytes that each kernel's programs load and store in a step of all networks, and their number."""
    import torch

    from inrfast.activations import ACTIVATIONS
    from inrfast.ops import fused_mlp
    from inrfast.training.optimizers.adam import Adam

    activation = ACTIVATIONS[problem.activation].device_name
    rows = fused_mlp._kernels().passes_configs(problem.kind, problem.width, activation, True)[0].rows
    tiles = -(-problem.points // rows)
    found: dict[str, dict[str, float]] = {}
    one = engine(problem, rows)  # one tile of points stands for all
    whole = slice(0, rows)
    for name, launch in (
        ("mlp_forward", lambda: one.forward(whole, None, True, None, 0)),
        ("mlp_backward", lambda: one.backward(whole, None, 0)),
    ):
        with counted() as bytes_of:
            launch()
        found[name] = {key: value * tiles * problem.models for key, value in bytes_of.items()}
        found[name]["programs"] = tiles * problem.models
    shape = one.shape
    tile = one.weight_tile
    weight_tiles = (shape.hidden - 1) * -(-shape.width // tile.rows) * -(-shape.width // tile.columns)
    wanted = -(-2 * MULTIPROCESSORS // (weight_tiles * problem.models))
    splits = max(1, min(wanted, problem.points // (4 * tile.terms)))
    with counted() as bytes_of:
        one.weight_gradients(whole, None, 0)
    found["mlp_weight_gradients"] = {
        "loaded": bytes_of["loaded"] * problem.points / rows * problem.models,
        "stored": bytes_of["stored"] / one.splits * splits * problem.models,
        "programs": weight_tiles * splits * problem.models,
    }
    # The update reads the sums of every tile and range: each part of them is as large as one.
    moments = [torch.zeros_like(one.parameters) for _ in range(2)]
    with counted() as bytes_of:
        one.update(one.parameters.clone(), *moments, Adam.kernel, True, 0)
    itemsize = one.parameters.element_size()
    parts = itemsize * (one.dense * (splits - one.splits) + one.thin * (tiles - one.tiles))
    found["mlp_update"] = {
        "loaded": (bytes_of["loaded"] + parts) * problem.models,
        "stored": float(bytes_of["stored"] * problem.models),
        "programs": len(one.table) * problem.models,
    }
    return found


def unavoidable(problem: Problem) -> dict[str, float]:
    """Return the bytes of each kernel that must pass between memory and chip if nothing stays in the cache."""
    size = 2 if problem.kind == "fp16" else 4
    plane = problem.points * problem.width * size * problem.models
    relu = problem.activation == "relu"
    slopes = plane / (8 * size) if relu else plane
    hidden = problem.hidden
    return {
        "mlp_forward": hidden * (plane + slopes),
        "mlp_backward": plane + hidden * slopes + (hidden - 1) * plane,
        "mlp_weight_gradients": 2 * (hidden - 1) * plane,
        "mlp_update": 0.0,
    }


def flops(problem: Problem) -> dict[str, float]:
    """Return the multiplications and additions of each kernel's products."""
    points, width = problem.points * problem.models, problem.width
    square = 2.0 * points * width * width * (problem.hidden - 1)
    return {
        "mlp_forward": square + 2.0 * points * width * 5,
        "mlp_backward": square + 2.0 * points * width * 8,
        "mlp_weight_gradients": square,
        "mlp_update": 0.0,
    }


def compiled(problem: Problem) -> dict[str, dict[str, Any]]:
    """Return registers, shared memory and instructions of each kernel on sm_90."""
    import kernel_report

    entries = [
        kernel_report.step(name, problem.kind, 90, problem.width, problem.activation) for name in KERNELS
    ]  # fmt: skip
    return dict(zip(KERNELS, (kernel_report.measure(entry) for entry in entries), strict=True))


def resident(row: dict[str, Any]) -> int:
    """Return how many programs of a kernel a multiprocessor holds at once."""
    threads = 32 * row["warps"]
    registers = REGISTERS // (-(-row["registers"] // 8) * 8 * threads)
    return max(1, min(registers, SHARED // (row["shared"] + 1024), THREADS // threads))


MIX = ("HGMMA", "HMMA", "FFMA", "FMUL", "FADD", "MUFU", "LDG", "STG", "LDGSTS", "LDS", "STS", "LDSM", "SHFL", "BAR")


def render(rows: Sequence[tuple[Problem, dict[str, Any], dict[str, Any]]]) -> str:
    """Return the report as Markdown."""
    lines = [
        "# What a fused training step asks of a GPU",
        "",
        "Made without a GPU by `python bench/step_report.py`; no figure here is a measured time. Bytes asked for are",
        "counted while Triton interprets the kernels; most of them come from the second-level cache. Bytes of memory",
        f"are those of features, slopes and errors, each once. At {PRODUCTS / 1e12:.0f} TFLOP/s of products,",
        f"{MEMORY / 1e12:.2f} TB/s of memory and {CACHE / 1e12:.1f} TB/s of cache (an H100, by its data sheet and by",
        "estimate) they take the microseconds in brackets. The floor of a step is its products in 16 bits and its",
        "memory, one after the other. Programs: how many, and how many a multiprocessor holds at once.",
        "",
    ]
    for problem, asked, built in rows:
        work, least = flops(problem), unavoidable(problem)
        lines += [f"## {problem.title}", ""]
        lines += ["| kernel | programs | registers | shared KiB | GFLOP (us) | MB asked for (us) | MB of memory (us) |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        total = [0.0, 0.0, 0.0]
        for name in KERNELS:
            row, all_bytes = built[name], asked[name]["loaded"] + asked[name]["stored"]
            for k, value in enumerate((work[name] / PRODUCTS, all_bytes / CACHE, least[name] / MEMORY)):
                total[k] += value
            lines.append(
                f"| {name} | {asked[name]['programs']:.0f} ({resident(row)}) | {row['registers']} | "
                f"{row['shared'] / 1024:.1f} | {work[name] / 1e9:.2f} ({1e6 * work[name] / PRODUCTS:.1f}) | "
                f"{all_bytes / 1e6:.1f} ({1e6 * all_bytes / CACHE:.1f}) | "
                f"{least[name] / 1e6:.1f} ({1e6 * least[name] / MEMORY:.1f}) |"
            )
        floor = total[0] + total[2]
        lines += [
            "",
            f"Floor {1e6 * floor:.0f} us (products {1e6 * total[0]:.0f}, memory {1e6 * total[2]:.0f}); the bytes asked "
            f"for take {1e6 * total[1]:.0f} us of the cache, {total[1] / floor:.2f} of the floor.",
            "",
        ]
    lines += ["## Instructions in the machine code (sm_90)", ""]
    lines += [f"| kernel | problem | all | {' | '.join(MIX)} |", f"|---|---|{'--:|' * (len(MIX) + 1)}"]
    for problem, _, built in rows:
        for name in KERNELS:
            counts = built[name]["instructions"]
            numbers = " | ".join(str(counts[key]) for key in ("ALL", *MIX))
            lines.append(f"| {name} | {problem.title} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Count by interpretation, compile in a process of its own (interpreted kernels have no machine code), write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--compiled", action="store_true", help="print the kernels' resources as JSON, nothing else")
    chosen = parser.parse_args()
    if chosen.compiled:
        import json

        print(json.dumps([compiled(problem) for problem in PROBLEMS]))
        return 0
    import json

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", __file__, "--compiled"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    os.environ["TRITON_INTERPRET"] = "1"
    rows = [(p, asked_for(p), built) for p, built in zip(PROBLEMS, json.loads(done.stdout), strict=True)]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(render(rows))
    print(f"wrote {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
