"""The Jacobian of a network over a grid as a linear operator, layer by layer, not formed unless rows are asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from inrfast import backends
from inrfast.errors import RangeError, check_tensor
from inrfast.memory import budget_bytes, chunks, empty, require
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.ops import gemm
from inrfast.ops import rows as row_ops
from inrfast.ops.factors import Room, feature_ranges, mlp_operands
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.operands import CHUNK, Layout, Operands, Output, Plan, Ranges, joint, make_plan, pack, ranges_of
from inrfast.ops.tangent_product import diagonal
from inrfast.rounding import SAFETY, PassErrors
from inrfast.supported import LayerSpec
from inrfast.tangent.capture import PASS_DTYPE, Capture, Factors, Select
from inrfast.threads import share

PASS_ROWS = 512
"""Points a factor pass takes at once: its fp64 temporaries (1 MiB at width 256) then stay in cache. Measured: 512 is
several times faster a point than 4,096, where every temporary is fresh memory."""

PRODUCT_ROWS = 1024
"""Points a product with cached factors takes at once, so that a scaled factor stays in the second-level cache."""

STREAMED_ROWS = 4096
"""Points whose factors are held at once where a pass over the grid computes them anew."""

ROWS_GPU = 1 << 14
"""The three of them on a GPU, where a chunk must fill the chip, and every operation of one is a launch."""

LEAST_STREAMED = 128
"""Points that a budget must allow to be streamed at once: with fewer a pass over the grid would take forever."""

UNCOUNTED = 2**22
"""Bytes of scratch, of the smallest stream among it, that are taken as nothing beside those of the process itself."""

PASS_BUFFERS, HOOKED_BUFFERS = 3, 6
"""Numbers in fp64 that a factor pass holds for each number of a factor: in closed form, and with norms or by hooks."""


def rows_on(device: torch.device, cpu: int) -> int:
    """Return the points taken at once on a device: ``cpu`` on a CPU."""
    return cpu if device.type == "cpu" else ROWS_GPU


RANGE = {torch.float32: (1e-30, 1e37), torch.float64: (0.0, 1e300)}
"""Largest entry of a result, from and to which a dtype holds it, and what is a millionth of it, with all digits. Below
1e-300 fp64 loses them too, but such numbers only stand beside others."""


def surely_held(guess: float, dtype: torch.dtype) -> bool:
    """Return whether the largest entry of a kernel is in range, from that at a few points: others differ by 1e10."""
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
    """

    def __init__(self, capture: Capture, coords: Tensor, budget: int, backend: str = "torch") -> None:
        self.capture = capture
        self.coords = coords
        self.budget = budget
        self.backend = backend
        self._kept: list[Factors] | None = None
        self._operands: dict[tuple[Plan, tuple[int, ...]], Operands] = {}  # of all points, by the layers in them
        self._others: dict[str, ReferenceType[FactorStore]] = {}
        # Memory of recomputed factors by the number of points: fresh pages would cost more than the factors.
        self._spare: dict[int, list[list[Factors]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes the factors anew.
        return {**self.__dict__, "_kept": None, "_spare": {}, "_operands": {}, "_others": {}}

    def at_precision(self, precision: str) -> FactorStore:
        """Return the store of the same points at another precision, the same one as long as somebody holds it."""
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
        return self.capture.dtype.itemsize * sum(a + self.capture.outputs * b for a, b in self.capture.widths)

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
        """Bytes that a pass in fp64 holds a point, its results among them."""
        numbers = sum(a + self.capture.outputs * b for a, b in self.capture.widths)
        return PASS_DTYPE.itemsize * numbers * (PASS_BUFFERS if self.capture.plain else HOOKED_BUFFERS)

    @property
    def _pass_rows(self) -> int:
        """Points that a pass takes at once: it and its threads may take half of the store's budget."""
        return max(1, min(self._full_pass, self.budget // (2 * self._pass_bytes * self._workers)))

    @contextmanager
    def limited(self, budget: int) -> Iterator[None]:
        """Hold the store to so many bytes in this block; factors that were kept and do not fit are let go."""
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

        Recomputed factors are gone when the next ones are asked for: they share their memory.
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
            memory = self._room(size)
        try:
            for part in chunks(stop - start, size):
                rows = slice(start + part.start, start + part.stop)
                count = part.stop - part.start
                yield rows, self.compute(self.coords[rows], [_slice(layer, slice(0, count)) for layer in memory])
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
            return [_slice(factors, rows) for factors in self._kept]
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
            self._kept = kept = self.compute(self.coords)
        return kept

    def _room(self, n: int) -> list[Factors]:
        """Return memory for the factors of n points."""
        outputs = self.capture.outputs
        room_for = functools.partial(empty, dtype=self.capture.dtype, device=self.capture.device)
        return [
            Factors(room_for((n, a)) if a > 0 else None, room_for((n, outputs, b)) if b > 0 else None)
            for a, b in self.capture.widths
        ]

    def compute(self, coords: Tensor, whole: list[Factors] | None = None) -> list[Factors]:
        """Compute the factors of any points (n, d), chunks of them shared by threads; into ``whole`` if given."""
        n = len(coords)
        if whole is None:
            whole = self._room(n)

        def worker() -> Callable[[slice], None]:
            room = Room()

            def compute(part: slice) -> None:
                found = self.capture.roundable(coords[part], room, keep_ones=self.backend == "triton")
                for target, source in zip(whole, found, strict=True):
                    for into, values in zip(target, source, strict=True):
                        if into is not None and values is not None:
                            into[part] = values  # rounded here, once

            return compute

        size = self._pass_rows
        share(chunks(n, size), [worker() for _ in range(max(1, min(self._workers, n // size)))])
        return whole


def _slice(factors: Factors, rows: slice | Tensor) -> Factors:
    return Factors(*(None if part is None else part[rows] for part in factors))


@methods_in_own_modes
class LayerwiseJacobian:
    """The Jacobian ``J`` of shape (N M, P) as a linear operator made of per-layer factors.

    Rows are ``n * M + m``; columns follow ``torch.nn.utils.parameters_to_vector`` over the differentiated
    parameters. Built by :func:`jacobian`.

    Attributes
    ----------
    shape
        ``(N M, P)``.
    layers
        Mapping from layer name to that layer's own Jacobian, of shape (N M, P_layer).
    T
        The transpose, for ``J.T @ v``.
    """

    def __init__(self, store: FactorStore, budget: int, only: str | None = None) -> None:
        self.store = store
        self.memory_budget = budget
        self.only = only
        self.capture = store.capture
        self.coords = store.coords
        self.dtype = self.capture.dtype
        self.device = self.capture.device
        names = [spec.name for spec in self.capture.layers]
        self.indices = store.layers if only is None else (names.index(only),)
        self.shape = (len(self.coords) * self.capture.outputs, sum(spec.columns for spec in self.specs))

    @property
    def specs(self) -> list[LayerSpec]:
        """The layers of this Jacobian."""
        return [self.capture.layers[index] for index in self.indices]

    @functools.cached_property
    def layers(self) -> Mapping[str, LayerwiseJacobian]:
        """Per-layer Jacobians by qualified module name, sharing the factors of this one."""
        return {spec.name: LayerwiseJacobian(self.store, self.memory_budget, spec.name) for spec in self.specs}

    @functools.cached_property
    def _columns(self) -> dict[str, slice]:
        """Columns of each parameter in this Jacobian, in parameter order."""
        ordered = sorted((c.start, c.stop - c.start, n) for spec in self.specs for n, c in spec.parameters.items())
        columns, start = {}, 0
        for _, count, name in ordered:
            columns[name] = slice(start, start + count)
            start += count
        return columns

    def _gather(self, flat: Tensor) -> list[Tensor]:
        """Return each layer's block (k, b, a) of parameter vectors (k, P)."""
        return [self._local(spec).to_block(flat) for spec in self.specs]

    def _local(self, spec: LayerSpec) -> LayerSpec:
        """Return ``spec`` with columns counted within this Jacobian."""
        if self.only is None:
            return spec
        parameters = {name: self._columns[name] for name in spec.parameters}
        return LayerSpec(spec.name, spec.kind, spec.in_features, spec.out_features, spec.has_bias, parameters)

    @property
    def product_rows(self) -> int:
        """Points that a product with the factors takes at once."""
        return rows_on(self.device, PRODUCT_ROWS)

    def chunks(self, size: int | None = None, within: slice | None = None) -> Iterator[tuple[slice, list[Factors]]]:
        """Yield ``(points, factors of this Jacobian's layers)`` over the grid, or over a range of its points.

        At most ``size`` points at a time; None: as a product takes them.
        """
        for points, factors in self.store.chunks(self.product_rows if size is None else size, within):
            yield points, [factors[index] for index in self.indices]

    # ---- sides of a Gram product -------------------------------------------------------------------------------

    def layout(self, output: Output) -> Layout:
        """Return where these layers would lie in the operands of a fused kernel; its format is yet to be chosen."""
        return self.store.layout(output, self.indices)

    def ranges(self, output: Output) -> Ranges:
        """Return the ranges of the layers' features over all points."""
        mlp = self.capture.fused_mlp(self.indices, output)
        found = []
        if mlp is not None:
            for points in chunks(len(self.coords), CHUNK):
                found.append(feature_ranges(mlp, self.capture.inputs(self.coords[points])))
        else:
            for _, factors in self.chunks(CHUNK):
                found.append(ranges_of([f.features for f in self._without_ones(factors)]))
        return joint(found)

    def gram_rows(self, plan: Plan | None) -> int:
        """Return how many points one side of a Gram product may hold: all of them where they fit the budget."""
        if plan is None:  # both sides are there at once
            return self.store.streaming_rows if self.store.fits else max(1, self.store.streaming_rows // 2)
        return self.store.operand_rows(plan, self.indices)

    def keeps(self, plan: Plan | None) -> bool:
        """Whether all that is made of the factors comes from the same numbers, computed once."""
        return self.store.fits and (plan is None or self.gram_rows(plan) == len(self.coords))

    def side(self, points: slice, plan: Plan | None) -> list[Factors] | Operands:
        """Return some points as a side of a Gram product, those of all points kept: operands if there is a plan."""
        if plan is not None:
            return self.store.operands(points, plan, self.indices)
        if self.store.fits:
            self.store.all()
        factors = self.store.at(points)
        return [factors[index] for index in self.indices]

    def side_of(self, index: Tensor, plan: Plan | None) -> list[Factors] | Operands:
        """Return the points of ``index`` as a side of a Gram product, from what is kept.

        Computed anew, beside other points, they would round otherwise.
        """
        if plan is not None and self.keeps(plan):
            fold = plan.layout.fold
            rows = (index.unsqueeze(1) * fold + torch.arange(fold, device=index.device)).flatten()
            return self.store.operands(slice(0, len(self.coords)), plan, self.indices).at(rows)
        if plan is not None or not self.store.kept:
            return self.side_at(self.coords[index], plan)
        factors = self.store.at(index)
        return [factors[layer] for layer in self.indices]

    def side_at(self, coords: Tensor, plan: Plan | None) -> list[Factors] | Operands:
        """Return any points (n, d) as a side of a Gram product."""
        if plan is not None:
            return self.store.operands_at(coords, plan, self.indices)
        factors = self.store.at(slice(0, len(coords))) if coords is self.coords else self.store.compute(coords)
        return [factors[index] for index in self.indices]

    def _without_ones(self, factors: Sequence[Factors]) -> list[Factors]:
        pairs = zip(self.indices, factors, strict=True)
        return [self.capture.without_ones(index, layer) for index, layer in pairs]

    def squared_pass_error(self, output: Output) -> float:
        """Return a bound on ``|dJ|_F^2``, what rounding in the factor pass does to the rows of these outputs.

        Measured on a sample of points, times :data:`inrfast.rounding.SAFETY` squared.
        """
        squares = self.store.pass_errors.jacobian[list(self.indices)].sum(0)
        return SAFETY**2 * float(squares[output] if isinstance(output, int) else squares.sum())

    # ---- entries -----------------------------------------------------------------------------------------------

    def rows(self, points: slice | int | None = None) -> Tensor:
        """Return the dense rows of some points, shape (points M, P): ``S[n, m] (x) [Z[n], 1]``.

        Parameters
        ----------
        points
            A slice of points with step 1, one point, or None for all.

        Raises
        ------
        MemoryBudgetError
            The rows exceed the budget; ask for fewer points.
        """
        n, m = len(self.coords), self.capture.outputs
        if points is None:
            points = slice(0, n)
        elif isinstance(points, int):
            if not -n <= points < n:
                raise IndexError(f"point {points} is out of range for {n} points")
            points = slice(points % n, points % n + 1)
        elif not isinstance(points, slice):
            raise TypeError(f"points must be a slice, an int or None, got {type(points).__name__}")
        start, stop, step = points.indices(n)
        if step != 1:
            raise ValueError(f"points must be a slice with step 1, got step {step}")
        count = max(stop - start, 0)
        with self.room_for(count * m * self.shape[1] * self.dtype.itemsize, f"{count} points' Jacobian rows"):
            self._need_range("J.rows")
            out = empty((count, m, self.shape[1]), self.dtype, self.device)
            write = row_ops.jacobian_rows_ if self.store.backend == "triton" else row_ops.rows_
            size = min(rows_on(self.device, PASS_ROWS), self.store.streaming_rows)
            for part in chunks(count, size):
                factors = self.store.at(slice(start + part.start, start + part.stop))
                into = out[part]
                for index, spec in zip(self.indices, self.specs, strict=True):
                    for columns, features, sensitivities in self._parts(spec, factors[index]):
                        b = m if sensitivities is None else sensitivities.shape[2]
                        write(into[:, :, columns].unflatten(2, (b, -1)), features, sensitivities)
        return out.flatten(0, 1)

    @contextmanager
    def room_for(
        self, taken: int, what: str, instead: str = "ask for fewer", other: LayerwiseJacobian | None = None
    ) -> Iterator[None]:
        """Leave room in this block for ``taken`` bytes of the budget beside the factors of this side, and another.

        Factors that do not fit beside them are computed chunk by chunk.

        Raises
        ------
        MemoryBudgetError
            The budget holds no more than those bytes, or not even them.
        """
        stores = list({id(side.store): side.store for side in (self, other) if side is not None}.values())
        least = sum(store.least_bytes for store in stores)
        require(taken + least, self.memory_budget, what, instead)
        with ExitStack() as stack:
            for store in stores:
                stack.enter_context(store.limited((self.memory_budget - taken) // len(stores)))
            yield

    def _parts(self, spec: LayerSpec, layer: Factors) -> Iterator[tuple[slice, Tensor | None, Tensor | None]]:
        """Yield the columns of each of a layer's parameters here, and the two factors of that parameter alone."""
        features, sensitivities = layer
        local = self._local(spec).parameters
        if spec.kind == "affine":
            assert sensitivities is not None
            for columns, own in zip(local.values(), sensitivities.split(spec.out_features, 2), strict=True):
                yield columns, None, own
        elif spec.with_weight and spec.with_bias:
            assert features is not None
            weight, bias = local.values()
            yield weight, features[:, :-1], sensitivities
            yield bias, None if self.store.backend == "triton" else features[:, -1:], sensitivities
        else:
            (columns,) = local.values()
            yield columns, features, sensitivities

    def _product_rows(self, columns: int) -> int:
        """Return the points a product takes at once: scaled factors take a quarter of the budget."""
        widest = max(max(spec.block) for spec in self.specs)
        each = 2 * columns * widest * self.dtype.itemsize
        return max(1, min(self.product_rows, self.memory_budget // (4 * each)))

    def _models(self, index: int, layer: Factors) -> tuple[Tensor | None, Tensor | None, bool]:
        """Return a layer's factors as those of one model, and whether a column of ones goes after its features."""
        features, sensitivities = self.capture.without_ones(index, layer)
        return (
            None if features is None else features.unsqueeze(0),
            None if sensitivities is None else sensitivities.unsqueeze(0),
            self.capture.shape(index).bias,
        )

    def __matmul__(self, p: Tensor) -> Tensor:
        """Return ``J p``: (N M,) for p of shape (P,), (N M, k) for (P, k)."""
        self._need_range("J @ p")
        p, single = self._operand("p", p, self.shape[1])
        k, item = p.shape[1], self.dtype.itemsize
        taken = (self.shape[0] + 2 * self.shape[1]) * k * item
        with self.room_for(taken, f"J @ p of {k} columns", "take fewer columns or points"):
            out = self._product(p)
        result = out.flatten(0, 1)
        return result[:, 0] if single else result

    def _product(self, p: Tensor) -> Tensor:
        """Return ``J p`` of shape (N, M, k)."""
        blocks = self._gather(p.t())
        out = torch.zeros(len(self.coords), self.capture.outputs, p.shape[1], dtype=self.dtype, device=self.device)
        for points, factors in self.chunks(self._product_rows(p.shape[1])):
            for index, layer, block in zip(self.indices, factors, blocks, strict=True):
                if self.store.backend == "triton":
                    z, s, bias = self._models(index, layer)
                    out[points] += row_ops.product_of_models(z, s, block.unsqueeze(0), bias)[0]
                else:
                    out[points] += row_ops.jvp(*layer, block)
        return out

    @property
    def T(self) -> _Transpose:
        """The transpose: ``J.T @ v``."""
        return _Transpose(self)

    def vjp(self, v: Tensor) -> Tensor:
        """Return ``J^T v``: (P,) for v of shape (N M,), (P, k) for (N M, k)."""
        self._need_range("J^T v")
        v, single = self._operand("v", v, self.shape[0])
        taken = (self.shape[0] + 3 * self.shape[1]) * v.shape[1] * self.dtype.itemsize
        with self.room_for(taken, f"J^T v of {v.shape[1]} columns", "take fewer columns or points"):
            flat = self._transposed_product(v)
        return flat[0] if single else flat.t()

    def _transposed_product(self, v: Tensor) -> Tensor:
        """Return ``J^T v`` as rows (k, P)."""
        k = v.shape[1]
        cotangents = v.view(len(self.coords), self.capture.outputs, k)
        totals = [torch.zeros(k, *spec.block, dtype=self.dtype, device=self.device) for spec in self.specs]
        for points, factors in self.chunks(self._product_rows(k)):
            for index, total, layer in zip(self.indices, totals, factors, strict=True):
                if self.store.backend == "triton":
                    z, s, bias = self._models(index, layer)
                    total += row_ops.transposed_product_of_models(z, s, cotangents[None, points], bias)[0]
                else:
                    total += row_ops.vjp(*layer, cotangents[points])
        flat = torch.empty(k, self.shape[1], dtype=self.dtype, device=self.device)
        for spec, total in zip(self.specs, totals, strict=True):
            self._local(spec).from_block(total, flat)
        return flat

    def split(self, p: Tensor) -> dict[str, Tensor]:
        """Return a parameter vector (P,) as a dict by parameter name, each in its parameter's shape (views)."""
        check_tensor("p", p, finite=False)
        if p.shape != (self.shape[1],):
            raise ValueError(f"p must have shape ({self.shape[1]},), got {tuple(p.shape)}")
        shapes = {
            name: (spec.out_features, spec.in_features)
            if spec.kind == "linear" and name.endswith("weight")
            else (spec.out_features,)
            for spec in self.specs
            for name in spec.parameters
        }
        return {name: p[columns].view(shapes[name]) for name, columns in self._columns.items()}

    def _operand(self, argument: str, given: Any, length: int) -> tuple[Tensor, bool]:
        check_tensor(argument, given)
        if given.ndim not in (1, 2) or given.shape[0] != length:
            raise ValueError(f"{argument} must have shape ({length},) or ({length}, k), got {tuple(given.shape)}")
        if given.device != self.device:
            raise ValueError(f"{argument} is on {given.device} but the network is on {self.device}")
        return given.detach().reshape(length, -1).to(self.dtype), given.ndim == 1

    def _need_range(self, what: str) -> None:
        """Refuse results that fp32 cannot hold; rows of J have the size of the root of the kernel's diagonal."""
        low, high = RANGE[self.dtype]
        check_range(what, math.sqrt(self.magnitude), low, high, self.dtype)

    @property
    def magnitude(self) -> float:
        """About the largest entry of the kernel ``J J^T`` of these layers: that at the points of the probes."""
        return sum(self.capture.magnitudes[index] for index in self.indices)

    def __repr__(self) -> str:
        kept = "kept" if self.store.fits else "streamed"
        return f"LayerwiseJacobian(shape={self.shape}, layers={[s.name for s in self.specs]}, factors {kept})"


class _Transpose:
    """``J.T``, an operator of shape (P, N M)."""

    def __init__(self, jacobian: LayerwiseJacobian) -> None:
        self.T = jacobian
        self.shape = jacobian.shape[::-1]

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.T.vjp(v)


@in_own_modes
def jacobian(
    net: nn.Module,
    coords: Tensor,
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    memory_budget: int | None = None,
) -> LayerwiseJacobian:
    """Return the Jacobian of a network's outputs at ``coords`` with respect to its parameters, as an operator.

    Parameters
    ----------
    net
        :class:`inrfast.INR` (closed form) or any module of supported layers (see :mod:`inrfast.tangent.capture`).
    coords
        Shape (N, d), on the network's device. They and the parameters are copied: later changes to them do not matter.
    params
        Names of parameters or modules to differentiate; None: every trainable one.
    select
        A key, an index or a function that takes the output tensor from what ``net`` returns.
    precision
        ``"highest"``: fp64; ``"high"`` and ``"medium"``: factors exact to fp32 rounding, fp32 products. Coordinates
        and parameters are taken as the exact numbers they hold.
    backend
        Of rows and products: ``"torch"``, ``"triton"`` (a GPU), or ``"auto"``, which picks (see
        :func:`inrfast.backends.resolve`). Factors are computed by torch in either.
    memory_budget
        Bytes; None: half of what is free. Factors that do not fit are recomputed chunk by chunk.

    Raises
    ------
    UnsupportedModuleError, NotAvailableError, ValueError, TypeError
        See :class:`inrfast.tangent.capture.Capture` and :mod:`inrfast.backends`.
    """
    capture = Capture(net, coords, params, select, precision)
    chosen = backends.resolve(backend, capture.device)
    budget = budget_bytes(memory_budget, capture.device)
    return LayerwiseJacobian(FactorStore(capture, coords.detach().clone(), budget // 2, chosen), budget)
