"""Compiling kernels for a GPU that is not there, and reading what they would need: registers, stack, shared memory.

Triton compiles for a named target without a device; the resources come from the machine code. Run it in a process
without ``TRITON_INTERPRET``: interpreted kernels have no machine code.
"""

from __future__ import annotations

import functools
import math
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


MOST_SMALL = 2**15
"""Bound of integer arguments that are called small: widths and numbers of layers."""


@dataclass(frozen=True)
class Compiled:
    """What one kernel compiled to.

    Attributes
    ----------
    registers, stack
        Registers and bytes of local memory a thread; a stack means spills, or arrays that found no register.
    shared
        Bytes of shared memory a program.
    instructions
        How often the machine code has each kind: ``HGMMA``, ``HMMA``, ``DMMA`` (tensor cores), ``UTMALDG`` (copy
        engine), ``LDL`` and ``STL`` (local memory).
    narrow_offsets
        Lines of the intermediate code that compute an address with an offset of 32 bits that might overflow.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]
    narrow_offsets: tuple[str, ...]


COUNTED = ("HGMMA", "HMMA", "DMMA", "UTMALDG", "LDL", "STL")


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    warps: int,
    stages: int,
    tables: Collection[str] = (),
    small: Collection[str] = (),
) -> Compiled:
    """Compile a kernel for compute capability ``capability`` (90 is 9.0) and return its resources.

    ``types`` gives the argument types as Triton writes them (``"*fp16"``, ``"i32"``, ...), all but the ``constants``;
    pointers, and integers written ``"i32:16"``, are taken as multiples of 16. ``tables`` names the arguments that are
    too small for 32 bits to overflow, ``small`` integers that the host holds to :data:`MOST_SMALL`.
    """
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else types[name].removesuffix(":16") for name in names}
    aligned = [n for n in names if n in types and (types[n].endswith(":16") or types[n].startswith("*"))]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    counts = {name: len(re.findall(rf"\b{name}\b", assembly)) for name in COUNTED}
    return Compiled(
        int(found[1]), int(found[2]), built.metadata.shared, counts, _narrow_offsets(built.asm["ttir"], tables, small)
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout


def _narrow_offsets(code: str, tables: Collection[str], small: Collection[str] = ()) -> tuple[str, ...]:
    """Return the address computations in fewer than 64 bits that might overflow, as their lines.

    Safe are offsets with a bound below 2^31 that follows from ranges, constants, loops and the arguments ``small``,
    which are at most :data:`MOST_SMALL`; and offsets into small tables.
    """
    defined = {
        name: (operation, operands)
        for name, operation, operands in re.findall(
            r"^\s*(%[\w.]+)(?::\d+)? = ([\w.]+) (.*?)(?: : |$)", code, flags=re.MULTILINE
        )
    }
    last = dict(re.findall(r"scf\.for (%[\w.]+) = %[\w.]+ to (%[\w.]+) step", code))

    @functools.cache
    def bound(name: str) -> float:
        """Return the largest absolute value that a number can have."""
        if name in last:
            return bound(last[name])
        if name not in defined:
            return MOST_SMALL if name.removeprefix("%") in small else math.inf
        operation, operands = defined[name]
        if operation == "tt.make_range":
            return float(re.findall(r"end = (\d+)", operands)[0])
        if operation == "arith.constant":
            number = re.findall(r"-?\d+", operands)
            return abs(float(number[0])) if number else math.inf
        of = [bound(operand) for operand in re.findall(r"%[\w.]+", operands)]
        match operation.removeprefix("arith."):
            case "addi" | "subi":
                return of[0] + of[1]
            case "muli":
                return of[0] * of[1]
            case "divsi" | "divui":
                divisor = re.findall(r"%[\w.]+", operands)[1]
                return of[0] // of[1] if defined.get(divisor, ("",))[0] == "arith.constant" else of[0]
            case "remsi" | "remui":
                return min(of)
            case "minsi" | "minui":
                return min(of)
            case "maxsi" | "maxui":
                return max(of)
            case "select":
                return max(of[1:])
            case "extsi" | "extui" | "tt.splat" | "tt.expand_dims" | "tt.broadcast" | "tt.reshape":
                return of[0]
        return math.inf

    def base(name: str) -> str:
        while name in defined and (operands := re.findall(r"%[\w.]+", defined[name][1])):
            name = operands[0]
        return name.removeprefix("%")

    return tuple(
        line.strip()
        for line, pointer, offset, kinds in re.findall(
            r"^(.*tt\.addptr (%[\w.]+), (%[\w.]+) : (.*?)(?: loc\(.*)?)$", code, flags=re.MULTILINE
        )
        if "i64>" not in kinds.rpartition(", ")[2] + ">" and bound(offset) >= 2**31 and base(pointer) not in tables
    )
