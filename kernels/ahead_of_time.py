"""Compiling kernels for a GPU that is not there, and reading what they would need: registers, stack, shared memory.

Triton compiles for a named target without a device; the resources come from the machine code. Run it in a process
without ``TRITON_INTERPRET``: interpreted kernels have no machine code.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
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
        Registers and bytes of local memory per thread; a stack means spills, or arrays that found no register.
    shared
        Bytes of shared memory per program.
    instructions
        How often the machine code has each kind: ``HGMMA``, ``HMMA``, ``DMMA`` (tensor cores), ``UTMALDG`` (copy
        engine), ``LDL`` and ``STL`` (local memory), ``FFMA``, ``FMUL``, ``FADD``, ``MUFU`` (special functions), loads
        and stores of global (``LDG``, ``STG``, ``LDGSTS``) and shared memory (``LDS``, ``STS``, ``LDSM``), ``SHFL``,
        ``BAR``; ``ALL`` is the number of all instructions.
    narrow_offsets
        Lines of the intermediate code that compute an address with an offset of 32 bits that might overflow.
    chains
        Products that a loop adds within the tensor cores, step after step: in fp32 each step truncates.
    forgotten
        Loops, as their lines, of which Triton before 3.8 forgets what they carry: see :func:`_forgotten`.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]
    narrow_offsets: tuple[str, ...]
    chains: tuple[str, ...]
    forgotten: tuple[str, ...]


COUNTED = (
    "HGMMA", "HMMA", "DMMA", "UTMALDG", "LDL", "STL", "FFMA", "FMUL", "FADD", "MUFU",
    "LDG", "STG", "LDGSTS", "LDS", "STS", "LDSM", "SHFL", "BAR",
)  # fmt: skip


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    warps: int,
    stages: int,
    tables: Collection[str] = (),
    small: Collection[str] = (),
    registers: int | None = None,
) -> Compiled:
    """Compile a kernel for compute capability ``capability`` (90 is 9.0) and return its resources.

    ``types`` gives the argument types as Triton writes them (``"*fp16"``, ``"i32"``, ...), all but the ``constants``;
    pointers, and integers written ``"i32:16"``, are taken as multiples of 16. ``tables`` names the arguments that are
    too small for 32 bits to overflow, ``small`` integers that the host holds to :data:`MOST_SMALL`. ``registers`` are
    the most that a thread may have, None for what the assembler takes.
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
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True, "maxnreg": registers}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    counts = {name: len(re.findall(rf"\b{name}\b", assembly)) for name in COUNTED}
    counts["ALL"] = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", assembly, flags=re.MULTILINE))
    narrow, chains = _narrow_offsets(built.asm["ttir"], tables, small), _chains(built.asm["ttgir"])
    lost = _forgotten(built.asm["ttir"])
    return Compiled(int(found[1]), int(found[2]), built.metadata.shared, counts, narrow, chains, lost)


def _chains(code: str) -> tuple[str, ...]:
    """Return the products whose accumulator is what the loop around them carries from step to step, as their lines."""
    carried: set[str] = set()
    for loop in re.findall(r"scf\.for .*iter_args\((.*?)\) ->", code):
        carried.update(re.findall(r"(%[\w.]+) =", loop))
    product = re.compile(r"= (?:tt\.dot|ttng\.warp_group_dot) %[\w.#]+, %[\w.#]+, (%[\w.#]+)")
    lines = (line.strip() for line in code.splitlines())
    return tuple(line for line in lines if (found := product.search(line)) and found[1] in carried)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout


def _narrow_offsets(code: str, tables: Collection[str], small: Collection[str] = ()) -> tuple[str, ...]:
    """Return the address computations in fewer than 64 bits that might overflow, as their lines.

    Safe are offsets with a bound below 2^31 that follows from ranges, constants, loops and the arguments ``small``,
    which are at most :data:`MOST_SMALL`; and offsets into small tables.
    """
    # Regions beside each other may use a name for different things: what counts is the last definition before a use.
    definitions: dict[str, list[tuple[int, str, str]]] = {}
    pattern = re.compile(r"^\s*(%[\w.]+)(?::\d+)? = ([\w.]+) (.*?)(?: : |$)")
    lines = code.splitlines()
    for number, line in enumerate(lines):
        if found := pattern.match(line):
            definitions.setdefault(found[1], []).append((number, found[2], found[3]))
        if loop := re.search(r"scf\.for (%[\w.]+) = %[\w.]+ to (%[\w.]+) step", line):
            definitions.setdefault(loop[1], []).append((number, "loop", loop[2]))

    def defined(name: str, line: int) -> tuple[int, str, str]:
        before = [entry for entry in definitions.get(name, []) if entry[0] < line]
        return before[-1] if before else (-1, "", "")

    @functools.cache
    def bound(name: str, line: int) -> float:
        """Return the largest absolute value that a number used in a line can have."""
        at, operation, text = defined(name, line)
        if at < 0:
            return MOST_SMALL if name.removeprefix("%") in small else math.inf
        operands = re.findall(r"%[\w.]+", text)
        if operation == "tt.make_range":
            return float(re.findall(r"end = (\d+)", text)[0])
        if operation == "arith.constant":
            numbers = re.findall(r"-?\d+", text)
            return abs(float(numbers[0])) if numbers else math.inf
        of = [bound(operand, at) for operand in operands]
        match operation.removeprefix("arith."):
            case "addi" | "subi":
                return of[0] + of[1]
            case "muli":
                return of[0] * of[1]
            case "divsi" | "divui":
                return of[0] // of[1] if defined(operands[1], at)[1] == "arith.constant" else of[0]
            case "remsi" | "remui" | "minsi" | "minui":
                return min(of)
            case "maxsi" | "maxui":
                return max(of)
            case "select":
                return max(of[1:])
            case "loop" | "extsi" | "extui" | "tt.splat" | "tt.expand_dims" | "tt.broadcast" | "tt.reshape":
                return of[0]
        return math.inf

    def base(name: str, line: int) -> str:
        at, _, text = defined(name, line)
        operands = re.findall(r"%[\w.]+", text)
        return base(operands[0], at) if operands else name.removeprefix("%")

    narrow = []
    for number, line in enumerate(lines):
        if found := re.match(r"^(.*tt\.addptr (%[\w.]+), (%[\w.]+) : (.*?)(?: loc\(.*)?)$", line):
            wide = "i64>" in found[4].rpartition(", ")[2] + ">"
            if not wide and bound(found[3], number) >= 2**31 and base(found[2], number) not in tables:
                narrow.append(found[1].strip())
    return tuple(narrow)


@dataclass
class _Operation:
    """An operation of the intermediate code, those of its regions in ``inner``; every value has a name of its own.

    ``arguments`` are what a loop carries, as its body sees it. A loop's operands are its bounds, then what it carries
    at first.
    """

    name: str
    line: str
    results: list[str]
    operands: list[str]
    arguments: list[str]
    inner: list[_Operation]

    def walk(self) -> Iterator[_Operation]:
        """Yield the operations of the regions, outer ones first."""
        for operation in self.inner:
            yield operation
            yield from operation.walk()

    @property
    def effective(self) -> bool:
        """Whether it writes, waits or ends: what removes dead code leaves it."""
        if self.name in ("scf.for", "scf.if"):
            return any(operation.effective for operation in self.inner)
        words = ("store", "atomic", "barrier", "return", "print", "assert", "scatter")
        return any(word in self.name for word in words) or "isVolatile = true" in self.line

    def yielded(self, region: int) -> list[str]:
        """Return what a region of a loop or a branch hands on."""
        ends = [operation.operands for operation in self.inner if operation.name == "scf.yield"]
        return ends[region] if ends else []


def _operations(code: str) -> list[_Operation]:
    """Return the operations of intermediate code, every value named anew: regions beside each other share names."""
    top: list[_Operation] = []
    blocks, scopes, own = [top], [dict[str, str]()], itertools.count()

    def new(name: str) -> str:
        scopes[-1][name] = f"{name}.{next(own)}"
        return scopes[-1][name]

    def used(text: str) -> list[str]:
        names = re.findall(r"%[\w.]+(?:#\d+)?", text)
        found = [next((scope[n] for scope in reversed(scopes) if n in scope), n) for n in names]
        return found

    for line in code.splitlines():
        text = re.sub(r" loc\(.*?\)+", "", line.strip())
        if text.startswith("}"):
            blocks.pop()
            scopes.pop()
            if text.endswith("{"):  # else
                blocks.append(blocks[-1][-1].inner)
                scopes.append({})
            continue
        found = re.match(r"^(?:(%[\w.]+)(?::(\d+))? = )?\"?([a-z_]+\.[\w.]+)\"?(.*)$", text)
        if found is None:
            continue
        result, count, name, rest = found.groups()
        opens = text.endswith("{")
        operation = _Operation(name, line.strip(), [], [], [], [])
        carried: list[str] = []
        if name == "scf.for":
            head, _, tail = rest.partition("iter_args(")
            index, _, bounds = head.partition(" = ")
            pairs = re.findall(r"(%[\w.]+) = (%[\w.#]+)", tail.partition(") ->")[0])
            operation.operands = used(bounds) + used(" ".join(value for _, value in pairs))
            carried = [index.strip(), *(argument for argument, _ in pairs)]
        else:
            operation.operands = used(rest)
        blocks[-1].append(operation)
        if result is not None:
            names = [result] if count is None else [f"{result}#{k}" for k in range(int(count))]
            operation.results = [new(n) for n in names]
        if opens:
            blocks.append(operation.inner)
            scopes.append({})
            operation.arguments = [new(argument) for argument in carried][1:]
    return top


def _forgotten(code: str) -> tuple[str, ...]:
    """Return the loops, as their lines, that carry a number which only bounds a loop within them.

    Triton 3.6 and 3.7 take it for dead and put what it was at first in its place, silently (``ForOpDeadArgElimination``
    does not count the bounds of inner loops as uses; https://github.com/triton-lang/triton/pull/9036). Whichever Triton
    is here, this is what those would do.
    """
    everything = [each for operation in _operations(code) for each in (operation, *operation.walk())]
    used = {operand for operation in everything for operand in operation.operands}
    found = []
    for loop in everything:
        if loop.name == "scf.for" and loop.arguments:
            needed, seen = _needed(loop, used, bounds=True), _needed(loop, used, bounds=False)
            lost = {value for each in loop.inner for value in each.results}.union(loop.arguments) - seen
            pairs = zip(loop.arguments, loop.yielded(0), strict=True)
            if any(argument in needed and value in lost - {argument} for argument, value in pairs):
                found.append(loop.line)
    return tuple(found)


def _needed(loop: _Operation, used: set[str], bounds: bool) -> set[str]:
    """Return the values within a loop that something needs; ``bounds``: also as bounds of a loop within it."""
    inner = list(loop.walk())
    made = {result: operation for operation in inner for result in operation.results}
    owner = {argument: (each, k) for each in (loop, *inner) for k, argument in enumerate(each.arguments)}
    waiting = [value for result, value in zip(loop.results, loop.yielded(0), strict=True) if result in used]
    for operation in inner:
        if operation.name == "scf.for":
            waiting += operation.operands[:3] if bounds else []
        elif operation.effective:
            waiting += operation.operands
    known: set[str] = set()
    while waiting:
        value = waiting.pop()
        if value in known:
            continue
        known.add(value)
        if value in owner:
            each, place = owner[value]
            waiting += [each.operands[3 + place], each.yielded(0)[place]]
        elif value in made:
            operation = made[value]
            place = operation.results.index(value)
            if operation.name == "scf.for":
                waiting += [operation.operands[3 + place], operation.yielded(0)[place]]
            elif operation.name == "scf.if":
                waiting += [*operation.operands, operation.yielded(0)[place], operation.yielded(1)[place]]
            else:
                waiting += operation.operands
    return known
