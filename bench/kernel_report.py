"""What every kernel needs of a GPU, from compiling it without one: registers, stack, shared memory, instructions.

``python bench/kernel_report.py`` compiles all that is launched on sm_80 and sm_90 and writes
``bench/results/kernel-report.md``; ``--gates`` compiles the smaller table of continuous integration. It ends with
status 1 if a kernel spills, takes more shared memory than its configuration says, multiplies without tensor cores, or
computes an address in 32 bits that could overflow.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "results" / "kernel-report.md"
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a program may have, by compute capability."""

ACTIVATIONS = ("identity", "relu", "sine", "gaussian", "finer", "tanh", "gelu", "softplus")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kernel as one launch compiles it: ``options`` are its compile-time choices."""

    kernel: str
    format: str
    capability: int
    options: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        """The entry for a reader."""
        chosen = ", ".join(name if value is True else f"{value}" for name, value in self.options if value is not False)
        return f"{self.kernel} {self.format} sm_{self.capability} {chosen}".strip()


def gram(name: str, capability: int, symmetric: bool, mirror: bool, aligned: bool = True) -> Entry:
    """``aligned``: sizes and strides are multiples of 16, for which there is machine code of its own."""
    chosen = (("symmetric", symmetric), ("mirror", mirror), ("unaligned", not aligned))
    return Entry("gram_tile", name, capability, chosen)


def factors(name: str, capability: int, activation: str, full: bool) -> Entry:
    return Entry("mlp_slabs", name, capability, (("activation", activation), ("full", full)))


def entries(gates: bool) -> list[Entry]:
    """Return the entries of the gates, or all that is launched."""
    formats = ("fp16", "fp16x3", "tf32x3", "fp64")
    table = [gram(f, c, s, s) for c in (90, 80) for f in formats for s in (True, False)]
    table += [gram(f, 90, True, True, aligned=False) for f in formats]
    if gates:
        table += [factors("fp16x3", 90, activation, False) for activation in ACTIVATIONS]
        table += [factors("fp16", 90, a, False) for a in ("relu", "sine", "gelu")]
        table += [factors("fp16", 80, a, False) for a in ("relu", "sine", "gelu")]
        table += [factors("fp16x3", 80, "sine", True), factors("tf32x3", 90, "sine", True)]
        table += [factors("fp64", 90, "finer", False), factors("fp64", 80, "gelu", True)]
        return table
    table += [gram(f, c, s, False, aligned=False) for c in (90, 80) for f in formats for s in (True, False)]
    table += [gram(f, c, True, False) for c in (90, 80) for f in formats]
    table += [gram(f, 80, True, True, aligned=False) for f in formats]
    return table + [
        factors(f, c, a, full) for c in (90, 80) for f in formats for a in ACTIVATIONS for full in (False, True)
    ]


def measure(entry: Entry) -> dict[str, Any]:
    """Compile one entry; return its title, resources and what is wrong with it."""
    from inrfast.kernels import ahead_of_time

    options = dict(entry.options)
    build = _gram if entry.kernel == "gram_tile" else _factors
    kernel, types, constants, warps, stages, tables, limit = build(entry, options)
    found = ahead_of_time.compile_kernel(kernel, types, constants, entry.capability, warps, stages, tables)
    tensor = sum(found.instructions[name] for name in ("HGMMA", "HMMA", "DMMA"))
    wanted = "HGMMA" if entry.kernel == "gram_tile" and entry.capability >= 90 and entry.format != "fp64" else None
    faults = [
        fault
        for fault, there in {
            f"{found.stack} bytes of stack": found.stack > 0,
            f"{found.shared} bytes of shared memory, not {limit}": found.shared > limit,
            "no tensor-core instruction": tensor == 0,
            f"no {wanted}": wanted is not None and found.instructions[wanted] == 0,
            f"32-bit offsets: {found.narrow_offsets}": bool(found.narrow_offsets),
        }.items()
        if there
    ]
    return {
        "title": entry.title,
        "registers": found.registers,
        "warps": warps,
        "stack": found.stack,
        "shared": found.shared,
        "instructions": found.instructions,
        "faults": faults,
    }


def _gram(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    import triton.language as tl

    from inrfast.kernels import formats
    from inrfast.kernels.gram import gram_tile

    layout = formats.FORMATS[entry.format]
    config = formats.config_for(entry.format, divmod(entry.capability, 10), SHARED[entry.capability])
    wide = "*" + layout.accumulator
    slabs = f"tensordesc<{layout.dtype}[{config.block},{layout.slab}]>" if config.copy_engine else "*" + layout.dtype
    types = {"rows": slabs, "columns": slabs, "out": wide, "order": "*i32", "segments": "*i32", "values": wide}
    types |= {f"{name}_{side}": wide for name in ("narrow", "scale") for side in ("rows", "columns")}
    sixteen = "" if options["unaligned"] else ":16"
    types |= dict.fromkeys(("stride", "model_stride"), "i64" + sixteen) | dict.fromkeys(("n", "m"), "i32" + sixteen)
    types |= {"rows_padded": "i32:16", "columns_padded": "i32:16"}
    types |= dict.fromkeys(("slabs", "narrow", "narrow_layers", "layers"), "i32")
    constants = {
        "BLOCK": config.block,
        "SLAB": layout.slab,
        "PLANES": layout.planes,
        "PRECISION": layout.precision,
        "ACCUMULATOR": tl.float64 if layout.accumulator == "fp64" else tl.float32,
        "STAGES": config.stages,
        "COPY_ENGINE": config.copy_engine,
        "SYMMETRIC": options["symmetric"],
        "MIRROR": options["mirror"],
    }
    tables = ("order", "segments", "values")
    return gram_tile, types, constants, config.warps, config.stages, tables, config.shared


def _factors(entry: Entry, options: dict[str, Any]) -> tuple[Any, ...]:
    from inrfast.kernels import factors, formats

    layout = formats.FORMATS[entry.format]
    activation = ACTIVATIONS.index(options["activation"])
    types = {"table": "*i64", "slabs": "*" + layout.dtype, "scale": "*" + layout.accumulator}
    types |= dict.fromkeys(("inputs", "parameters", "constants", "scratch"), "*fp64")
    types |= dict.fromkeys(("n", "slab_count", "depth", "hidden", "head", "outputs", "first_output"), "i32")
    types |= {"rows": "i32:16", "width": "i32:16", "floor": "fp32", "input_scale": "fp32"}
    types |= {"input_model": "i64", "parameter_model": "i64"}
    constants = {
        "ACTIVATION": activation,
        "SLAB": layout.slab,
        "PLANES": layout.planes,
        "SCALED": layout.dtype == "fp16",
        "CORRECTED": layout.corrected,
        "FULL": options["full"],
        "POINTS": factors.POINTS,
        "BLOCK": factors.block_for(entry.format, activation),
        "DEPTH": factors.DEPTH,
    }
    return factors.mlp_slabs, types, constants, factors.WARPS, factors.STAGES, ("table", "constants"), 48 * 1024


def measure_all(table: Sequence[Entry], processes: int | None = None) -> list[dict[str, Any]]:
    """Compile entries side by side, each process its own share; interpreted kernels would have no machine code."""
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(measure, table))


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    import triton

    lines = [
        "# What the kernels need of a GPU",
        "",
        f"Compiled ahead of time by Triton {triton.__version__}; `make kernel-report` writes this page. No width",
        "appears: the kernels take the layers' widths at run time, one machine code serves all of them. Stack is local",
        "memory a thread (spills); HGMMA, HMMA and DMMA are tensor-core instructions, UTMALDG a copy engine's load.",
        "",
        "| kernel | registers | warps | stack | shared KiB | HGMMA | HMMA | DMMA | UTMALDG | faults |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        counts = row["instructions"]
        numbers = [row["registers"], row["warps"], row["stack"], f"{row['shared'] / 1024:.1f}"]
        numbers += [counts[name] for name in ("HGMMA", "HMMA", "DMMA", "UTMALDG")]
        lines.append(f"| {row['title']} | {' | '.join(map(str, numbers))} | {'; '.join(row['faults']) or 'none'} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, write the report or print JSON, and return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gates", action="store_true", help="compile the gates' table alone; print JSON, write nothing"
    )
    chosen = parser.parse_args(arguments)
    rows = measure_all(entries(chosen.gates))
    if chosen.gates:
        print(json.dumps(rows))
    else:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(render(rows))
        print(f"wrote {REPORT}, {len(rows)} kernels, {sum(bool(row['faults']) for row in rows)} with faults")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
