"""The NTK of other people's networks against the best way of ``torch.func``, on this processor.

    python bench/any_network.py [--points 4096] [--width 256] [--layers 4] [--entries 16384] [--only NAME ...]
        [--precision high] [--clock cpu] [--repeats 3] [--cap 8] [--slow 120] [--out FILE]

Networks are those of ``tests/others_modules.py``, kernels dense, traces over the outputs; ``high`` is fp32 on both
sides, ``highest`` fp64. Torch has three ways, each as a careful user would write it, at its best chunk size:

- rows of the Jacobian by ``vmap`` of ``grad`` or ``jacrev``, all of them held where ``--cap`` GiB allow it, and
  products of their blocks above the diagonal;
- the same with rows by ``torch.autograd.grad(..., is_grads_batched=True)``;
- products ``J (J^T e_i)`` by ``vmap`` of ``jvp`` at gradients, as PyTorch's tutorial on the NTK has it, above the
  diagonal too.

Each way is first timed on a part of the work; the one that would take least is then measured whole, in turns with
``inrfast.ntk(...).to_dense()``, which includes all checks. A run of torch of more than ``--slow`` seconds is done once.
No time is written unless both kernels agree. On a machine that others use too, ``--clock cpu`` counts the processor's
time in place of the wall's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import inrfast as inr
from inrfast.ops import gemm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from others_modules import OTHERS, Other, Size  # type: ignore[import-not-found]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

clock = time.perf_counter

DTYPES = {"high": torch.float32, "highest": torch.float64}

ALIKE = {"high": 1e-3, "highest": 1e-9}
"""How far the two kernels may lie apart, in units of the largest entry; torch's fp32 rounds on the way."""

PANEL = 512
"""Rows of a block of the kernel: blocks below the diagonal are copied."""

TRIAL = 256
"""Points on which ways and chunk sizes are tried."""

ROW_CHUNKS, PRODUCT_CHUNKS = (16, 64, 256), (1, 4, 16)


def chunks(total: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, total, size):
        yield slice(first, min(first + size, total))


class Functional:
    """A network's outputs as a function of its trainable parameters, as ``torch.func`` takes it."""

    def __init__(self, other: Other, net: nn.Module, dtype: torch.dtype) -> None:
        net = copy.deepcopy(net).to(dtype)
        self.net = net if other.inner is None else other.inner(net)
        self.output = other.output if other.inner is None else Other(other.make).output
        self.parameters = {name: p.detach() for name, p in self.net.named_parameters() if p.requires_grad}
        self.columns = sum(p.numel() for p in self.parameters.values())

    def outputs(self, parameters: dict[str, Tensor], coords: Tensor) -> Tensor:
        """Return the outputs (n, M)."""
        found: Tensor = self.output(functional_call(self.net, parameters, (coords,)))
        return found

    def rows_by_vmap(self, coords: Tensor, outputs: int) -> dict[str, Tensor]:
        """Return the Jacobian's rows of every parameter, (n, M, *shape)."""

        def at(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
            return self.outputs(parameters, point.unsqueeze(0))[0]

        if outputs > 1:
            found: dict[str, Tensor] = vmap(jacrev(at), (None, 0))(self.parameters, coords)
            return found
        one = vmap(grad(lambda parameters, point: at(parameters, point)[0]), (None, 0))(self.parameters, coords)
        return {name: own.unsqueeze(1) for name, own in one.items()}

    def rows_by_batched_gradients(self, coords: Tensor, outputs: int) -> dict[str, Tensor]:
        """Return the same by one batch of backward passes."""
        tensors = {name: p.requires_grad_() for name, p in self.parameters.items()}
        try:
            values = self.outputs(tensors, coords)
            directions = torch.eye(values.numel(), dtype=values.dtype).view(-1, *values.shape)
            wanted = list(tensors.values())
            found = torch.autograd.grad(values, wanted, directions, is_grads_batched=True, allow_unused=True)
        finally:
            for tensor in tensors.values():
                tensor.requires_grad_(False)
        rows = {}
        for (name, tensor), own in zip(tensors.items(), found, strict=True):
            own = tensor.new_zeros(len(directions), *tensor.shape) if own is None else own
            rows[name] = own.unflatten(0, values.shape)
        return rows


Rows = Callable[[Tensor, int], dict[str, Tensor]]


def by_rows(net: Functional, rows: Rows, coords: Tensor, outputs: int, chunk: int, cap: int) -> Tensor:
    """Return the kernel from rows of the Jacobian; of as many points as ``cap`` bytes hold, at a time."""
    n, item = len(coords), coords.dtype.itemsize
    width = outputs * net.columns
    whole = n * width * item <= cap
    panel = n if whole else max(1, cap // (2 * width * item))

    def computed(points: slice) -> Tensor:
        found = torch.empty(points.stop - points.start, width, dtype=coords.dtype)
        for part in chunks(points.stop, chunk, points.start):
            into, first = found[part.start - points.start : part.stop - points.start], 0
            for block in rows(coords[part], outputs).values():
                last = first + block[0].numel()
                into[:, first:last] = block.flatten(1)
                first = last
        return found

    kernel = torch.empty(n, n, dtype=coords.dtype)
    for left in chunks(n, panel):
        J = computed(left)
        for right in chunks(n, panel, left.start):
            other = J if right.start == left.start else computed(right)
            multiply(kernel, J, other, left.start, right.start)
    return kernel


def multiply(kernel: Tensor, J: Tensor, other: Tensor, top: int, left: int) -> None:
    """Write ``J other^T`` into the kernel, and into the block below the diagonal."""
    for rows in chunks(len(J), PANEL):
        first = rows.start if J is other else 0
        block = J[rows] @ other[first:].t()
        here, there = slice(top + rows.start, top + rows.stop), slice(left + first, left + len(other))
        kernel[here, there] = block
        kernel[there, here] = block.t()


def by_products(net: Functional, coords: Tensor, outputs: int, chunk: int, most: int | None = None) -> Tensor:
    """Return the kernel by products with gradients; of the first ``most`` rows alone if that is given."""
    n = len(coords)
    kernel = torch.empty(n, n, dtype=coords.dtype)
    for part in chunks(n if most is None else most, chunk):
        gradients, later = net.rows_by_vmap(coords[part], outputs), coords[part.start :]

        def product(tangents: dict[str, Tensor], points: Tensor = later) -> Tensor:
            found: Tensor = jvp(lambda parameters: net.outputs(parameters, points), (net.parameters,), (tangents,))[1]
            return found

        block = sum(
            vmap(product)({name: own[:, m] for name, own in gradients.items()})[:, :, m] for m in range(outputs)
        )
        kernel[part, part.start :] = block
        kernel[part.start :, part] = block.t()
    return kernel


@dataclass(frozen=True)
class Way:
    """One way of torch at its best chunk size, with the seconds that it would take."""

    name: str
    chunk: int
    estimate: float
    run: Callable[[], Tensor]


def seconds_of(run: Callable[[], object]) -> float:
    """Return the seconds of a run, the faster of two if it is short."""
    found = []
    for _ in range(2):
        start = clock()
        run()
        found.append(clock() - start)
        if found[0] > 1:
            break
    return min(found)


def ways(net: Functional, coords: Tensor, outputs: int, cap: int) -> list[Way]:
    """Return the ways of torch that can run the network, the fastest first."""
    n, few = len(coords), coords[:TRIAL]
    width = outputs * net.columns
    sample = torch.randn(len(few), width, dtype=coords.dtype)
    contraction = seconds_of(lambda: sample @ sample.t()) * (n / len(few)) ** 2 / 2
    panels = max(1, n * width * coords.dtype.itemsize // cap + 1)  # rows are computed once more for every other panel
    found = []
    for name, rows in (("jacrev", net.rows_by_vmap), ("is_grads_batched", net.rows_by_batched_gradients)):
        for chunk in ROW_CHUNKS:
            if chunk > len(few) or 3 * chunk * width * coords.dtype.itemsize > cap:
                continue
            try:
                taken = seconds_of(lambda rows=rows, chunk=chunk: rows(few[:chunk], outputs))  # type: ignore[misc]
            except Exception as error:  # whatever a network raises that torch.func cannot run
                print(f"  {name} cannot run it: {type(error).__name__}", file=sys.stderr)
                break
            total = contraction + taken * n / chunk * (1 if panels == 1 else panels)
            found.append(Way(name, chunk, total, _by_rows(net, rows, coords, outputs, chunk, cap)))
    for chunk in PRODUCT_CHUNKS:
        try:
            taken = seconds_of(lambda chunk=chunk: by_products(net, coords, outputs, chunk, chunk))  # type: ignore[misc]
        except Exception as error:
            print(f"  jvp cannot run it: {type(error).__name__}", file=sys.stderr)
            break
        found.append(Way("jvp", chunk, taken * n / chunk / 2, _by_products(net, coords, outputs, chunk)))
    return sorted(found, key=lambda way: way.estimate)


def _by_rows(net: Functional, rows: Rows, coords: Tensor, outputs: int, chunk: int, cap: int) -> Callable[[], Tensor]:
    return lambda: by_rows(net, rows, coords, outputs, chunk, cap)


def _by_products(net: Functional, coords: Tensor, outputs: int, chunk: int) -> Callable[[], Tensor]:
    return lambda: by_products(net, coords, outputs, chunk)


def measure(name: str, arguments: argparse.Namespace, precision: str) -> dict[str, object]:
    """Return the times of both for one network."""
    other, dtype = OTHERS[name], DTYPES[precision]
    torch.manual_seed(0)
    net = other.make(Size(arguments.width, arguments.layers, arguments.entries)).to(dtype)
    coords = (2 * torch.rand(arguments.points, other.dimensions) - 1).to(dtype)
    cap = int(arguments.cap * 2**30)

    def ours() -> Tensor:
        found: Tensor = inr.ntk(net, coords, select=other.select, precision=precision).to_dense()
        return found

    first = inr.ntk(
        net, coords[:64], select=other.select, precision=precision
    )  # warms up, and says what goes which way
    first.to_dense()
    kinds: dict[str, int] = {}
    for layer in first.specs:
        kinds[layer.kind] = kinds.get(layer.kind, 0) + layer.columns
    tried = ways(Functional(other, net, dtype), coords, first.outputs, cap)
    best = tried[0]
    seconds: dict[str, list[float]] = {"inrfast": [], "torch": []}
    apart = 0.0
    for _ in range(arguments.repeats):
        start = clock()
        K = ours()
        seconds["inrfast"].append(clock() - start)
        if not seconds["torch"] or seconds["torch"][0] < arguments.slow:
            start = clock()
            truth = best.run()
            seconds["torch"].append(clock() - start)
            apart = float((K - truth).abs().max() / truth.abs().max())
    if apart > ALIKE[precision]:
        raise SystemExit(f"{name}: the kernels are {apart:.2g} of the largest entry apart; no time is written")
    own, theirs = statistics.median(seconds["inrfast"]), statistics.median(seconds["torch"])
    shown: dict[str, Way] = {}
    for way in reversed(tried):
        shown[way.name] = way
    return {
        "network": name,
        "precision": precision,
        "parameters": first.left.shape[1],
        "outputs": first.outputs,
        "kinds": kinds,
        "all have handlers": "autodiff" not in kinds,
        "inrfast s": round(own, 3),
        "torch s": round(theirs, 3),
        "torch / inrfast": round(theirs / own, 2),
        "best way": f"{best.name}, chunks of {best.chunk}",
        "estimates s": {way.name: round(way.estimate, 2) for way in shown.values()},
        "runs": {key: [round(value, 3) for value in values] for key, values in seconds.items()},
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--entries", type=int, default=2**14, help="rows of every table")
    parser.add_argument("--only", nargs="*", default=[], help="names of networks; none: all")
    parser.add_argument("--precision", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cap", type=float, default=8.0, help="GiB that torch's Jacobians may take")
    parser.add_argument("--slow", type=float, default=120.0, help="seconds from which torch's way runs once")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    global clock
    clock = CLOCKS[arguments.clock]
    if arguments.clock == "cpu" and torch.get_num_threads() > 1:
        parser.error("--clock cpu counts the time of all threads: set OMP_NUM_THREADS=1")
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    regime = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": gemm.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "inrfast": inr.__version__,
        **{
            key: getattr(arguments, key)
            for key in ("points", "width", "layers", "entries", "repeats", "cap", "slow", "clock")
        },
    }
    rows = []
    for precision in DTYPES if arguments.precision == "both" else [arguments.precision]:
        for name in OTHERS:
            if not arguments.only or name in arguments.only:
                rows.append(measure(name, arguments, precision))
                print(json.dumps(rows[-1]), flush=True)
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps({"regime": regime, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
