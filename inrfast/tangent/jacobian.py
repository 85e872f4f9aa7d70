"""The Jacobian of a network over a grid as a linear operator, layer by layer, not formed unless rows are asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.arrays import Array, ArrayLike, as_numpy, like
from inrfast.calling import Select
from inrfast.errors import Hinting, check_tensor
from inrfast.layers import Factors, Layer
from inrfast.memory import budget_bytes, chunks, empty, require
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.ops import rows as row_ops
from inrfast.ops.factors import feature_ranges
from inrfast.ops.operands import CHUNK, Layout, Operands, Output, Plan, Ranges, joint, ranges_of
from inrfast.records import brief, in_a_line
from inrfast.rounding import SAFETY
from inrfast.tangent.capture import Capture
from inrfast.tangent.scipy_operator import as_scipy
from inrfast.tangent.store import PASS_ROWS, PRODUCT_ROWS, RANGE, FactorStore, backend_for, check_range, rows_on

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@methods_in_own_modes
class LayerwiseJacobian(Hinting):
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
    def specs(self) -> list[Layer]:
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

    def _local(self, layer: Layer) -> Layer:
        """Return ``layer`` with columns counted within this Jacobian."""
        return layer if self.only is None else layer.counted(self._columns)

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
        if self.store.released:
            self.store.all()
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
        """Return the dense rows of some points, a tensor (points M, P): ``S[n, m] (x) [Z[n], 1]``.

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
                    columns = self._local(spec).parameters.values()
                    parts = spec.parts(factors[index], ones=self.store.backend != "triton")
                    for own, (features, sensitivities) in zip(columns, parts, strict=True):
                        b = m if sensitivities is None else sensitivities.shape[2]
                        write(spec.shaped(into[:, :, own], b), features, sensitivities)
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

    def _product_rows(self, columns: int) -> int:
        """Return the points a product takes at once: scaled factors take a quarter of the budget."""
        held = zip(self.specs, (self.capture.stored[index] for index in self.indices), strict=True)
        widest = max(max(stored if layer.sparse else layer.block) for layer, stored in held)
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

    def __matmul__(self, p: Array) -> Array:
        """Return ``J p``: (N M,) for p of shape (P,), (N M, k) for (P, k); of a NumPy array one as well."""
        self._need_range("J @ p")
        block, single = self._operand("p", p, self.shape[1])
        k, item = block.shape[1], self.dtype.itemsize
        taken = (self.shape[0] + 2 * self.shape[1]) * k * item
        with self.room_for(taken, f"J @ p of {k} columns", "take fewer columns or points"):
            out = self._product(block)
        result = out.flatten(0, 1)
        return like(p, result[:, 0] if single else result)

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

    def vjp(self, v: Array) -> Array:
        """Return ``J^T v``: (P,) for v of shape (N M,), (P, k) for (N M, k); of a NumPy array one as well."""
        self._need_range("J^T v")
        block, single = self._operand("v", v, self.shape[0])
        taken = (self.shape[0] + 3 * self.shape[1]) * block.shape[1] * self.dtype.itemsize
        with self.room_for(taken, f"J^T v of {block.shape[1]} columns", "take fewer columns or points"):
            flat = self._transposed_product(block)
        return like(v, flat[0] if single else flat.t())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all :meth:`rows` as ``numpy.asarray`` asks for them."""
        return as_numpy(self.rows(), dtype, copy)

    def to_scipy(self) -> LinearOperator:
        """Return J as a ``scipy.sparse.linalg.LinearOperator`` of shape (N M, P), for ``lsqr`` and ``lsmr``.

        Products go through ``J @ p`` and ``J.T @ v``; complex vectors are multiplied part by part.
        """
        return as_scipy(self, self.T)

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
                    total += row_ops.vjp(*layer, cotangents[points], rows=total.shape[1])
        flat = torch.empty(k, self.shape[1], dtype=self.dtype, device=self.device)
        for spec, total in zip(self.specs, totals, strict=True):
            self._local(spec).from_block(total, flat)
        return flat

    def split(self, p: ArrayLike) -> dict[str, Tensor]:
        """Return a parameter vector (P,) as a dict by parameter name, each in its parameter's shape (views)."""
        p = check_tensor("p", p, finite=False, device=self.device)
        if p.shape != (self.shape[1],):
            raise ValueError(f"p must have shape ({self.shape[1]},), got {tuple(p.shape)}")
        shapes = {name: shape for layer in self.specs for name, shape in layer.shapes.items()}
        return {name: p[columns].view(shapes[name]) for name, columns in self._columns.items()}

    def _operand(self, argument: str, given: Any, length: int) -> tuple[Tensor, bool]:
        given = check_tensor(argument, given, device=self.device)
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

    @property
    def nonzero(self) -> bool:
        """Whether an entry of J is not zero, though its square may be too small for fp64."""
        for _, layers in self.chunks():
            for layer in layers:
                sizes = [torch.ones(())] * 2
                for number, factor in enumerate(layer):
                    if factor is not None and factor.is_floating_point():
                        sizes[number] = factor.flatten(1).abs().amax(1)
                if bool(((sizes[0] > 0) & (sizes[1] > 0)).any()):
                    return True
        return False

    def __repr__(self) -> str:
        kept = "kept" if self.store.fits else "streamed"
        names = brief([spec.name for spec in self.specs])
        return in_a_line("LayerwiseJacobian", [f"shape={self.shape}", f"layers={names}", f"factors {kept}"])


class _Transpose:
    """``J.T``, an operator of shape (P, N M)."""

    def __init__(self, jacobian: LayerwiseJacobian) -> None:
        self.T = jacobian
        self.shape = jacobian.shape[::-1]
        self.dtype, self.device = jacobian.dtype, jacobian.device

    def __matmul__(self, v: Array) -> Array:
        return self.T.vjp(v)


@in_own_modes
def jacobian(
    net: nn.Module,
    coords: ArrayLike,
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
        As in :func:`inrfast.ntk`.
    coords
        Shape (N, d) or (..., d) as in :func:`inrfast.ntk`, on the network's device. They and the parameters are copied:
        later changes to them do not matter.
    params
        Names of parameters or modules to differentiate; None: every trainable one.
    select
        As in :func:`inrfast.ntk`.
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
    capture = Capture(net, coords, params, select, precision, memory_budget)
    chosen = backend_for(capture, backend)
    budget = budget_bytes(memory_budget, capture.device)
    return LayerwiseJacobian(FactorStore(capture, capture.points("coords", coords), budget // 2, chosen), budget)
