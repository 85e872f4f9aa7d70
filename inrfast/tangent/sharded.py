"""A tangent kernel whose rows several processes share: each holds the factors of its part of the grid.

Rows of the grid are split in order. ``J^T v`` is added up over processes; a column of the kernel, and with it the
Cholesky factor of a spectrum, is computed by each process for its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise, zip_longest
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from inrfast.errors import NotAvailableError
from inrfast.layers import Factors
from inrfast.linalg.partition import Whole, Window
from inrfast.memory import chunks
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.tangent import products
from inrfast.tangent.agreement import Agreement, collective
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.kernel import TangentKernel
from inrfast.tangent.shared_factorization import SharedFactorization
from inrfast.tangent.sides import Sides
from inrfast.tangent.store import FactorStore

EXCHANGED_ROWS = 1024
"""Rows of a dense kernel that are sent at a time: the copy that is sent stays small beside the matrix."""


class Sharded(Whole):
    """The rows of this process, of ``points`` points with ``fold`` rows each, split as evenly as they go.

    Parameters
    ----------
    points, fold
        Points of the grid; rows of the kernel a point.
    agreement
        The processes.
    """

    def __init__(self, points: int, fold: int, agreement: Agreement) -> None:
        super().__init__(points * fold)
        self.agreement, self.group = agreement, agreement.group
        self.rank, self.processes = agreement.rank, agreement.processes
        ends = [points * rank // self.processes for rank in range(self.processes + 1)]
        self.sizes = [(b - a) * fold for a, b in pairwise(ends)]
        self.points = slice(ends[self.rank], ends[self.rank + 1])
        self.start, self.stop = self.points.start * fold, self.points.stop * fold

    def windows(self, size: int) -> list[Window]:
        """Return windows of at most ``size`` rows: those of each process in order, the processes in turn."""
        starts = [0, *accumulate(self.sizes)]
        turns = zip_longest(*(chunks(rows, size) for rows in self.sizes))
        return [
            Window(rank, rows, slice(starts[rank] + rows.start, starts[rank] + rows.stop))
            for turn in turns
            for rank, rows in enumerate(turn)
            if rows is not None
        ]

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of every process's ``part``."""
        summed = part.clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def sum(self, number: float, device: torch.device) -> float:
        """Return the sum of every process's ``number``."""
        return float(self.total(torch.tensor(number, dtype=torch.float64, device=device)))

    def largest(self, part: Tensor) -> Tensor:
        """Return the largest of every process's ``part``, entry by entry; NaN where one is."""
        return self._stacked(part.unsqueeze(0), [1] * self.processes).amax(0)

    def all_or_none(self) -> AbstractContextManager[None]:
        """Return a block that exchanges nothing, in which an error of one process is raised in all."""
        return self.agreement.all_or_none()

    def smallest(self, number: int, device: torch.device) -> int:
        """Return the smallest of every process's ``number``."""
        found = torch.tensor(number, device=device)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.group)
        return int(found)

    def gather(self, rows: Tensor) -> Tensor:
        """Return all rows of a tensor of which this process holds ``rows``."""
        return self._stacked(rows, self.sizes)

    def _stacked(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the rows of all processes, of which there are ``sizes``."""
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def agree(self, tensor: Tensor) -> Tensor:
        """Return the first process's ``tensor``."""
        return self.from_owner(0, tensor)

    def complete_(self, matrix: Tensor) -> None:
        """Fill in the rows of a symmetric matrix (size, size) that other processes have, and mirror its lower half."""
        start = 0
        for rank, size in enumerate(self.sizes):
            for rows in chunks(size, EXCHANGED_ROWS):
                part = matrix[start + rows.start : start + rows.stop]
                part.copy_(self.from_owner(rank, part))
            start += size
        for above in chunks(self.size, EXCHANGED_ROWS):
            matrix[above, above.stop :] = matrix[above.stop :, above].t()
            part = matrix[above, above]
            part.copy_(part.tril().add_(part.tril(-1).t()))

    def from_owner(self, owner: int, tensor: Tensor) -> Tensor:
        """Return the ``tensor`` of one process, a copy."""
        sent = tensor.clone(memory_format=torch.contiguous_format)
        source = owner if self.group is None else dist.get_global_rank(self.group, owner)
        dist.broadcast(sent, source, group=self.group)
        return sent

    def orthonormal(self, block: Tensor) -> Tensor:
        """Return an orthonormal basis of a block by TSQR: the triangular factors of all processes, factored again."""
        own = torch.linalg.qr(block)
        sizes = [min(size, block.shape[1]) for size in self.sizes]
        joint = torch.linalg.qr(self.agree(self._stacked(own.R, sizes))).Q
        start = sum(sizes[: self.rank])
        return own.Q @ joint[start : start + sizes[self.rank]]


class GatheredStore(FactorStore):
    """Factors of any points: from the processes that keep them or, where one keeps none, computed anew.

    Every process asks for the same points at the same time.
    """

    def __init__(self, own: FactorStore, coords: Tensor, partition: Sharded) -> None:
        super().__init__(own.capture, coords, own.budget, own.backend)
        self.own, self.partition = own, partition
        keeps = torch.tensor(float(own.fits), dtype=torch.float64, device=coords.device)
        self.everywhere = float(partition.total(keeps)) == partition.processes

    @property
    def fits(self) -> bool:
        """Never: the factors of all points are in no process."""
        return False

    @property
    def kept(self) -> bool:
        """Whether every process keeps the factors of its points."""
        return self.everywhere

    def at(self, rows: slice | Tensor) -> list[Factors]:
        """Return the factors of some points."""
        if not self.kept or isinstance(rows, slice):
            return super().at(rows)
        start, stop = self.partition.points.start, self.partition.points.stop
        here = (rows >= start) & (rows < stop)
        self.own.all()
        mine = self.own.at(rows[here] - start)
        return [Factors(*(None if part is None else self._filled(part, here) for part in factors)) for factors in mine]

    def _filled(self, part: Tensor, here: Tensor) -> Tensor:
        """Return the rows of all processes in place of the own ones."""
        whole = part.new_zeros(len(here), *part.shape[1:])
        whole[here] = part
        return self.partition.total(whole)


class SharedSides(Sides):
    """The sides of a kernel between all points, of whose rows this process computes those of its own points.

    Parameters
    ----------
    own
        J at this process's points.
    every
        J at all points, on a :class:`GatheredStore`.
    output
        ``"trace"``, ``"full"`` or the number of one output.
    partition
        Which rows are here.
    """

    def __init__(self, own: LayerwiseJacobian, every: LayerwiseJacobian, output: str | int, partition: Sharded) -> None:
        super().__init__(own, every, output)
        self.summed, self.partition = own, partition

    @property
    def symmetric(self) -> bool:
        """True: rows and columns are at the same points, whoever computes them."""
        return True

    @property
    def shared(self) -> bool:
        """True: other processes hold rows of the kernel."""
        return True

    def for_each_block(self, compute: Callable[[slice, slice, Any, Any], None]) -> None:
        """Call ``compute(i, j, rows, columns)`` on all blocks of the rows here.

        Every process asks for the factors of the same columns at the same time: the outer loop is the same for all.
        """
        size = self.partition.agree(torch.tensor(self.right.gram_rows(self.plan), device=self.device))
        for others in chunks(len(self.right.coords), int(size)):
            columns = self.right.side_of(torch.arange(others.start, others.stop, device=self.device), self.plan)
            for points in self._blocks(self.left):
                rows = self.left.side(points, self.plan)
                compute(self._entries(points), self._entries(others), rows, columns)


@dataclass(frozen=True)
class SharedNetwork:
    """A captured network, the grid, and this process's share of it; a kernel and its layers share the factors.

    Attributes
    ----------
    capture, coords, output, budget, backend
        As :func:`inrfast.distributed.ntk` takes them; the budget in bytes is the same in every process.
    partition
        Which rows of the kernel are here.
    number
        The same in every process, and another one for another kernel.
    stores
        By precision: the factors of the own points, and those of any points.
    """

    capture: Capture
    coords: Tensor
    output: str | int
    budget: int
    backend: str
    partition: Sharded
    number: int
    stores: dict[str, tuple[FactorStore, GatheredStore]] = field(default_factory=dict)

    def sides(self, precision: str, only: str | None) -> SharedSides:
        """Return the sides of the kernel of all layers, or of one, at a precision."""
        if precision not in self.stores:
            capture = self.capture.with_precision(precision)
            own = FactorStore(capture, self.coords[self.partition.points], self.budget // 2, self.backend)
            self.stores[precision] = own, GatheredStore(own, self.coords, self.partition)
        mine, every = (LayerwiseJacobian(store, self.budget, only) for store in self.stores[precision])
        return SharedSides(mine, every, self.output, self.partition)


@methods_in_own_modes
class ShardedNTK(TangentKernel):
    """A tangent kernel between all points, of which each process computes its rows.

    Built by :func:`inrfast.distributed.ntk`. The calls are those of :class:`inrfast.NTK`, and all processes get the
    same results. It cannot be pickled.

    Every call exchanges numbers between all processes of the group, so that each of them must make it, with the same
    arguments and in the same order: methods, ``K @ v``, products by :meth:`to_scipy`, and the properties
    :attr:`matrix_error` and :attr:`jacobian_error`. A call that one process makes alone (to print a trace, say) waits
    for the others. The processes compare the names and arguments of their calls first; where these differ, a
    ValueError that names the argument is raised in all. ``progress=`` may differ; functions are compared by name.
    """

    def __init__(self, network: SharedNetwork, precision: str, only: str | None = None) -> None:
        super().__init__(network.sides(precision, only), network.coords, network.partition)
        self._network, self._only = network, only

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "cannot pickle a kernel that is shared by processes, nor copy it: it belongs to a process group. Call "
            "inrfast.distributed.ntk in every process, or inrfast.ntk for a kernel that can be pickled"
        )

    @cached_property
    def layers(self) -> Mapping[str, ShardedNTK]:
        """Per-layer kernels by qualified module name; their sum is this kernel."""
        return {spec.name: ShardedNTK(self._network, self.capture.precision, spec.name) for spec in self.specs}

    def at_precision(self, precision: str) -> ShardedNTK:
        """Return the same kernel at another precision (the same network snapshot)."""
        if precision == self.capture.precision:
            return self
        return ShardedNTK(self._network, precision, self._only)

    def factor(
        self,
        shift: float,
        precision: str = "highest",
        out: str | PathLike[str] | np.ndarray | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> SharedFactorization:
        """Return a factorisation of ``K - shift I``, of which each process holds the rows of its points.

        The arguments are those of :meth:`inrfast.tangent.kernel.TangentKernel.factor`; ``out`` is refused.
        """
        if out is not None:
            raise NotAvailableError("out= is of a kernel in one process; here each process keeps its rows in memory")
        return SharedFactorization(super().factor(shift, precision, None, seed, progress), self)

    @cached_property
    def _columns_at_once(self) -> int:
        own = torch.tensor(products.columns_at_once(self.sides), device=self.device)
        return int(self.partition.agree(own))

    @cached_property
    def matrix_error(self) -> float:
        """Bound on the spectral norm of the rounding error of the entries; to be read in every process."""
        with self.together("matrix_error", {}):
            return super().matrix_error

    @cached_property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J, ``K = J J^T``; to be read in every process."""
        with self.together("jacobian_error", {}):
            return super().jacobian_error

    @contextmanager
    def together(self, call: str, given: Mapping[str, Any]) -> Iterator[None]:
        """Run a call once every process is seen to make it, of this kernel and with the arguments ``given``."""
        agreement = self._network.partition.agreement
        if call == "to_dense" and not agreement.inside and given.get("out") is not None:  # each has its own array
            given = {**given, "out": self._target_told(given["out"])}
        kernel = f"{self._only or 'all layers'} at precision {self.capture.precision!r}"
        with agreement.call({"the method": call, "the kernel": kernel, "the network": self._network.number, **given}):
            yield

    def _target_told(self, out: Any) -> str:
        """Return what is to be compared of ``out``: whether it is accepted, or the reason why not."""
        try:
            self._as_target(out)
        except Exception as error:  # raised by the method too, if by that of every process
            return f"one refused ({error})"
        return "an accepted one"

    @property
    def _keeps(self) -> bool:
        store = self.right.store
        return store.kept and store.backend == "torch"

    def _solver_budget(self, exact: ShardedNTK) -> int:
        """Return half of every process's budget: the other half is for factors."""
        assert isinstance(self.partition, Sharded)
        return self.memory_budget // 2 * self.partition.processes

    def _shown(self, progress: bool | None) -> bool | None:
        assert isinstance(self.partition, Sharded)
        shown = super()._shown(progress)
        return shown if self.partition.rank == 0 else False

    def __repr__(self) -> str:
        part = self._network.partition
        return f"ShardedNTK(shape={self.shape}, rows {part.start} to {part.stop} here, {part.processes} processes)"


COLLECTIVE = (
    "__matmul__",
    "at_precision",
    "columns",
    "counts",
    "diagonal",
    "factor",
    "frobenius",
    "product",
    "quadratic_form",
    "row_sums",
    "solve",
    "spectrum",
    "submatrix",
    "to_dense",
    "trace",
)
"""Methods that exchange numbers."""

for _name in COLLECTIVE:
    setattr(ShardedNTK, _name, in_own_modes(collective(getattr(ShardedNTK, _name))))
