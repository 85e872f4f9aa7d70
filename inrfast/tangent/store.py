"""The factors of all points: kept where they fit the budget, else recomputed chunk by chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from inrfast import backends
from inrfast.errors import NotAvailableError, RangeError
from inrfast.layers import Factors
from inrfast.memory import chunks, empty
from inrfast.ops import gemm
from inrfast.ops.factors import Room, mlp_operands
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.operands import CHUNK, Layout, Operands, Output, Plan, make_plan, pack
from inrfast.ops.tangent_product import diagonal
from inrfast.rounding import PassErrors
from inrfast.tangent.capture import UNCOUNTED, Capture
from inrfast.tangent.network import PASS_DTYPE
from inrfast.threads import share

PASS_ROWS = 512
"""Points per factor pass: its fp64 temporaries (1 MiB at width 256) then stay in cache. Measured per point, 512 is
several times faster than 4,096, where every temporary is newly allocated."""

LEAST_SHARED = 1 << 17
"""Numbers of a factor pass below which another thread costs more than it saves."""

PRODUCT_ROWS = 1024
"""Points per step of a product with kept factors, so that a scaled factor stays in the second-level cache."""

STREAMED_ROWS = 4096
"""Points whose factors are held at once where every pass over the grid recomputes them."""

ROWS_GPU = 1 << 14
"""All three on a GPU: a chunk must fill the chip, and every operation costs a launch."""

LEAST_STREAMED = 128
"""Fewest points per recomputed chunk that a budget must hold: with less, a pass over the grid would be far too slow."""

PASS_BUFFERS, HOOKED_BUFFERS = 3, 6
"""fp64 numbers that a factor pass allocates per number of its factors: in closed form; with norms or by hooks."""


def rows_on(device: torch.device, cpu: int) -> int:
    """Return the points per chunk on a device: ``cpu`` on a CPU, :data:`ROWS_GPU` elsewhere."""
    return cpu if device.type == "cpu" else ROWS_GPU


RANGE = {torch.float32: (1e-30, 1e37), torch.float64: (0.0, 1e300)}
"""Range of a result's largest entry in which its dtype holds it, and entries a millionth as large, with all digits."""


def surely_held(guess: float, dtype: torch.dtype) -> bool:
    """Return whether a kernel's largest entry is in range for sure, ``guess`` being that of a few points.

    Entries at other points may be 1e10 times larger or smaller.
    """
    low, high = RANGE[dtype]
    return low * 1e10 <= guess <= high * 1e-10


def check_range(what: str, largest: float, low: float, high: float, dtype: torch.dtype) -> None:
    """Raise :class:`RangeError` if a result whose largest entry is about this cannot be held by ``dtype``."""
    if largest == 0 or low <= largest <= high:
        return
    name = "fp32" if dtype == torch.float32 else "fp64"
    instead = "use precision='highest'" if dtype == torch.float32 else "scale the network's weights"
    raise RangeError(
        f"{what} would hold {name} numbers near {largest:.1e}, outside the range from {low:g} to {high:g} in which "
        f"{name} has all its digits; {instead}"
    )


def backend_for(capture: Capture, backend: str) -> str:
    """Return the backend of products with a network's factors: see :func:`inrfast.backends.resolve`.

    Raises
    ------
    NotAvailableError
        ``"triton"`` was named and cannot run, or the factors of a layer are sparse rows.
    """
    chosen = backends.resolve(backend, capture.device)
    sparse = [layer.name for layer in capture.layers if layer.sparse]
    if chosen == "torch" or not sparse:
        return chosen
    reason = f"the rows of layer {sparse[0]!r} are sparse, and its kernels take dense factors"
    if backend == "triton":
        raise NotAvailableError(f"backend='triton' cannot run: {reason}; use backend='torch' or 'auto'")
    backends.warn_once(f"backend='auto' takes 'torch': {reason}")
    return "torch"


class FactorStore:
    """Factors of all layers on all points: computed once and kept if they fit the budget, else recomputed by chunks.

    Parameters
    ----------
    capture, coords
        The network's capture and the points (N, d).
    budget
        Bytes the kept factors may take (half of the caller's memory budget).
    backend
        The resolved backend of products with these factors, ``"torch"`` or ``"triton"``.

    Attributes
    ----------
    released
        Whether the factors were kept and given back: all of them computed anew are the same to the bit, some of them
        beside other points are not.
    in_single
        Whether fp32 holds the factors as they are.
    """

    in_single = False

    def __init__(self, capture: Capture, coords: Tensor, budget: int, backend: str = "torch") -> None:
        self.capture = capture
        self.coords = coords
        self.budget = budget
        self.backend = backend
        self._kept: list[Factors] | None = None
        self.released = False
        self._operands: dict[tuple[Plan, tuple[int, ...]], Operands] = {}  # of all points, by the layers in them
        self._others: dict[str, ReferenceType[FactorStore]] = {}
        # Memory of recomputed factors by the number of points: fresh pages would cost more than the factors.
        self._spare: dict[int, list[list[Factors]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes the factors anew.
        return {**self.__dict__, "_kept": None, "released": False, "_spare": {}, "_operands": {}, "_others": {}}

    def at_precision(self, precision: str) -> FactorStore:
        """Return the store of the same points at another precision, one object while a reference to it exists."""
        held = self._others.get(precision)
        found = None if held is None else held()
        if found is None or found.budget != self.budget:
            capture = self.capture.with_precision(precision)
            found = FactorStore(capture, self.coords, self.budget, self.backend)
            self._others[precision] = ref(found)
        return found

    @property
    def bytes_per_point(self) -> int:
        """Bytes of one point's factors, as kept."""
        return self.capture.dtype.itemsize * self.capture.numbers_per_point

    @property
    def fits(self) -> bool:
        """Whether the factors of all points are kept."""
        return self.bytes_per_point * len(self.coords) <= self.budget

    @property
    def bytes_held(self) -> int:
        """Bytes that a pass over the grid takes: the kept factors, or one chunk of recomputed ones."""
        return self.held_under(self.budget)

    def held_under(self, budget: int, output: Output | None = None) -> int:
        """Return :attr:`bytes_held` for another budget of this store; with the operands of an ``output``, if given."""
        kept = max(self.bytes_per_point * len(self.coords), self._bytes_of_operands)
        if output is not None and self.backend == "triton":
            kept = max(kept, self.exact_plan(output).layout.bytes_per_point() * len(self.coords))
        if kept <= budget:
            return kept
        return min(budget, self._bytes_of(rows_on(self.capture.device, STREAMED_ROWS)))

    @property
    def least_bytes(self) -> int:
        """Bytes that the smallest stream takes, beyond :data:`UNCOUNTED` ones."""
        return max(0, self._bytes_of(LEAST_STREAMED) - UNCOUNTED)

    def _bytes_of(self, rows: int) -> int:
        """Return the bytes of a chunk of so many recomputed points, and of the pass that makes it."""
        rows = min(rows, len(self.coords))
        return self.bytes_per_point * rows + self._pass_bytes * min(rows, self._full_pass) * self._workers

    @property
    def _bytes_of_operands(self) -> int:
        return sum(made.nbytes for made in self._operands.values())

    @property
    def _full_pass(self) -> int:
        return rows_on(self.capture.device, PASS_ROWS)

    @property
    def _workers(self) -> int:
        # Hooks sit on one module and cannot run twice at a time.
        return gemm.threads(PASS_DTYPE, self.capture.device) if self.capture.concurrent else 1

    @property
    def _pass_bytes(self) -> int:
        """Bytes per point that a pass in fp64 allocates, its results included."""
        return (
            PASS_DTYPE.itemsize
            * self.capture.numbers_per_point
            * (PASS_BUFFERS if self.capture.plain else HOOKED_BUFFERS)
        )

    @property
    def _pass_rows(self) -> int:
        """Points that a pass takes at once: it and its threads may take half of the store's budget."""
        return max(1, min(self._full_pass, self.budget // (2 * self._pass_bytes * self._workers)))

    @contextmanager
    def limited(self, budget: int) -> Iterator[None]:
        """Limit the store to so many bytes in this block; kept factors that do not fit are freed."""
        before = self.budget
        budget = max(budget, min(self._bytes_of(LEAST_STREAMED), UNCOUNTED))
        if budget < before:
            self.budget = budget
            self._spare = {}
            if not self.fits:
                self._kept = None
            if self._bytes_of_operands > budget:
                self._operands = {}
        try:
            yield
        finally:
            if self.budget != before:
                self.budget, self._spare = before, {}

    @property
    def kept(self) -> bool:
        """Whether the factors were computed and are held, as they are or as operands."""
        return self._kept is not None or bool(self._operands)

    @property
    def streaming_rows(self) -> int:
        """Points whose factors fit the budget together (all of them if :attr:`fits`)."""
        if self.fits:
            return len(self.coords)
        left = self.budget - self._pass_bytes * self._pass_rows * self._workers
        return max(1, min(len(self.coords), left // self.bytes_per_point))

    def chunks(self, size: int, within: slice | None = None) -> Iterator[tuple[slice, list[Factors]]]:
        """Yield ``(rows, factors)`` over the points (``within`` a range of them), at most ``size`` at a time.

        Recomputed factors are overwritten by the next ones.
        """
        start, stop, _ = (within or slice(None)).indices(len(self.coords))
        if self.fits:
            self.all()
            for part in chunks(stop - start, size):
                rows = slice(start + part.start, start + part.stop)
                yield rows, self.at(rows)
            return
        size = min(size, self.streaming_rows)
        spare = self._spare.setdefault(size, [])
        try:
            memory = spare.pop()
        except IndexError:  # not asked before: another thread may take the last one between question and answer
            memory = self.room(size)
        try:
            for part in chunks(stop - start, size):
                rows = slice(start + part.start, start + part.stop)
                count = part.stop - part.start
                yield rows, self.compute(self.coords[rows], [layer.at(slice(0, count)) for layer in memory])
        finally:
            spare.append(memory)

    def shares(self, size: int) -> list[slice]:
        """Return one range of points a worker, in multiples of ``size``; one alone if hooks recompute the factors."""
        n, threads = len(self.coords), 1
        if self.fits:
            self.all()
        if self.fits or self.capture.concurrent:
            threads = gemm.threads(self.capture.dtype, self.capture.device)
        return list(chunks(n, size * max(1, -(-n // (size * threads)))))

    def at(self, rows: slice | Tensor) -> list[Factors]:
        """Return the factors of some points: a slice of them, or an index."""
        if self._kept is not None:
            whole = isinstance(rows, slice) and rows == slice(0, len(self.coords))
            return self._kept if whole else [factors.at(rows) for factors in self._kept]
        return self.compute(self.coords[rows])

    @functools.cached_property
    def pass_errors(self) -> PassErrors:
        """What rounding in the factor pass does to the factors and to the Jacobian of these points."""
        return self.capture.pass_errors(self.coords, self._diagonal())

    def _diagonal(self) -> Tensor:
        """Return the diagonal of all outputs' and all layers' kernel, (N,) fp64; nothing is kept for it alone."""
        n, outputs, layers = len(self.coords), self.capture.outputs, self.layers
        found = torch.empty(n, dtype=torch.float64, device=self.capture.device)
        if self.backend != "triton":
            for points, factors in self.chunks(rows_on(found.device, PRODUCT_ROWS)):
                found[points] = gram_diagonal(factors, "trace", outputs)
            return found
        for output in ("trace", "full"):
            held = self._operands.get((self.exact_plan(output), layers))
            if held is not None:
                return diagonal(held).view(n, -1).sum(1)
        plan = self.exact_plan("trace")
        for points in chunks(n, min(CHUNK, self.operand_rows(plan, layers))):
            found[points] = diagonal(self.operands_at(self.coords[points], plan, layers))
        return found

    # ---- operands of fused kernels -----------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[int, ...]:
        """The indices of all layers."""
        return tuple(range(len(self.capture.layers)))

    def layout(self, output: Output, layers: Sequence[int]) -> Layout:
        """Return where some layers would lie in the operands of a fused kernel; its format is yet to be chosen."""
        outputs = self.capture.outputs
        shapes = tuple(self.capture.shape(index) for index in layers)
        return Layout(shapes, output if outputs > 1 else "trace", outputs, "fp64")

    def exact_plan(self, output: Output) -> Plan:
        """Return the plan of all layers' operands in fp64, of which every layer's are a part."""
        return make_plan("highest", self.layout(output, self.layers), [])

    def _stored(self, plan: Plan, layers: tuple[int, ...]) -> tuple[Plan, tuple[int, ...]]:
        """Return the plan and the layers of the operands that those of ``layers`` are a part of."""
        if plan.layout.format != "fp64":
            return plan, layers
        return self.exact_plan(plan.layout.output), self.layers

    def operand_rows(self, plan: Plan, layers: tuple[int, ...]) -> int:
        """Return how many points' operands fit the budget together: all of them where they do."""
        stored, _ = self._stored(plan, layers)
        return max(1, min(len(self.coords), self.budget // stored.layout.bytes_per_point()))

    def operands(self, points: slice, plan: Plan, layers: tuple[int, ...]) -> Operands:
        """Return the operands of some layers at some points, those of all points kept as long as the budget allows."""
        stored = self._stored(plan, layers)
        if points == slice(0, len(self.coords)):
            if stored not in self._operands:
                needed = stored[0].layout.bytes_per_point() * len(self.coords)
                if self._bytes_of_operands + needed > self.budget:
                    self._operands = {}
                self._operands[stored] = self._made(self.coords, *stored)
            made = self._operands[stored]
        else:
            made = self._made(self.coords[points], *stored)
        return made if stored[1] == layers else made.of_layer(layers[0])

    def operands_at(self, coords: Tensor, plan: Plan, layers: tuple[int, ...]) -> Operands:
        """Return the operands of some layers at any points (n, d), computed anew."""
        stored = self._stored(plan, layers)
        made = self._made(coords, *stored)
        return made if stored[1] == layers else made.of_layer(layers[0])

    def _made(self, coords: Tensor, plan: Plan, layers: tuple[int, ...]) -> Operands:
        mlp = self.capture.fused_mlp(layers, plan.layout.output)
        if mlp is not None:
            return mlp_operands([mlp], self.capture.inputs(coords), plan)
        factors = self.at(slice(0, len(coords))) if coords is self.coords else self.compute(coords)
        return pack(plan, [self.capture.without_ones(index, factors[index]) for index in layers])

    def all(self) -> list[Factors]:
        """Return the factors of all points, computing them at first use (only if :attr:`fits`)."""
        kept = self._kept
        if kept is None:
            self._kept, self.released = (kept := self.compute(self.coords)), False
        return kept

    def bytes_rounded(self, layers: Sequence[int]) -> int:
        """Return the bytes of some layers' factors of all points in fp32."""
        stored = (self.capture.stored[index] for index in layers)
        return torch.float32.itemsize * len(self.coords) * sum(a + self.capture.outputs * b for a, b in stored)

    def rounded(self, layers: Sequence[int], release: bool = False) -> list[Factors]:
        """Return some layers' factors of all points in fp32.

        With ``release`` those in fp64 are freed, layer after layer, and computed anew when they are asked for. Where
        they are not kept, those of all layers are made first.
        """
        if not self.fits:
            found = self.at_precision("high").compute(self.coords)
            return [found[index] for index in layers]
        whole = [self.all()[index] for index in layers]
        if release:
            self._kept, self.released = None, True
        return [_rounded(whole.pop(0)) for _ in layers]

    def room(self, n: int, dtype: torch.dtype | None = None) -> list[Factors]:
        """Return memory for the factors of n points, of the capture's dtype or another."""
        outputs, dtype = self.capture.outputs, dtype or self.capture.dtype
        room_for = functools.partial(empty, device=self.capture.device)
        return [
            Factors(
                room_for((n, a), dtype=torch.int64 if layer.sparse else dtype) if a > 0 else None,
                room_for((n, outputs, b), dtype=dtype) if b > 0 else None,
            )
            for layer, (a, b) in zip(self.capture.layers, self.capture.stored, strict=True)
        ]

    def compute(self, coords: Tensor, whole: list[Factors] | None = None) -> list[Factors]:
        """Compute the factors of any points (n, d), chunks of them shared by threads; into ``whole`` if given."""
        n = len(coords)
        if whole is None:
            whole = self.room(n)

        def worker() -> Callable[[slice], None]:
            return functools.partial(self._pass_into, whole, coords, Room())

        size = min(self._pass_rows, max(-(-n // self._workers), LEAST_SHARED // self.capture.numbers_per_point))
        share(chunks(n, size), [worker() for _ in range(max(1, min(self._workers, -(-n // size))))])
        return whole

    def recompute(self, coords: Tensor, whole: list[Factors], room: Room) -> list[Factors]:
        """Compute the factors of any points (n, d) in this thread, into ``whole``, with a room kept between calls."""
        for part in chunks(len(coords), self._pass_rows):
            self._pass_into(whole, coords, room, part)
        return whole

    def _pass_into(self, whole: list[Factors], coords: Tensor, room: Room, part: slice) -> None:
        """Compute the factors of some points into theirs of ``whole``."""
        native = self.capture.native if self.backend == "torch" else None
        if native is not None and native.into(whole, part, self.capture.inputs(coords[part])):
            return
        found = self.capture.roundable(coords[part], room, keep_ones=self.backend == "triton")
        for target, source in zip(whole, found, strict=True):
            for into, values in zip(target, source, strict=True):
                if into is not None and values is not None:
                    into[part] = values  # rounded here, once


def _rounded(layer: Factors) -> Factors:
    """Return factors in fp32."""
    return Factors(*(None if f is None else empty(f.shape, torch.float32, f.device).copy_(f) for f in layer))
