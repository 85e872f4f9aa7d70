"""Tangent kernels shared by several processes: each holds the factors of its part of the grid.

Start one process a device (``torchrun --nproc-per-node=2 script.py``), each with the same network and coordinates, and
call :func:`ntk` in all of them. The calls are those of :class:`inrfast.tangent.kernel.NTK` and give every process the
same results. Rows of the grid are split in order; ``J^T v`` is added up over processes; a column of the kernel, and
with it the Cholesky factor, is computed by each process for its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inrfast import backends
from inrfast.errors import NotAvailableError, check_block, check_choice, check_float, check_int
from inrfast.layers import Factors
from inrfast.linalg import eigenvalues, systems
from inrfast.linalg.partition import Whole
from inrfast.linalg.spectrum import Spectrum, kernel_error
from inrfast.memory import budget_bytes
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.kernel import NTK
from inrfast.tangent.network import Select
from inrfast.tangent.store import RANGE, FactorStore, check_range, surely_held


class Sharded(Whole):
    """The rows of this process, of ``points`` points with ``fold`` rows each, split as evenly as they go.

    Parameters
    ----------
    points, fold
        Points of the grid; rows of the kernel a point.
    group
        A process group; None: all processes.
    """

    def __init__(self, points: int, fold: int, group: dist.ProcessGroup | None) -> None:
        super().__init__(points * fold)
        self.group = group
        self.rank, self.processes = dist.get_rank(group), dist.get_world_size(group)
        ends = [points * rank // self.processes for rank in range(self.processes + 1)]
        self.sizes = [(b - a) * fold for a, b in pairwise(ends)]
        self.points = slice(ends[self.rank], ends[self.rank + 1])
        self.start, self.stop = self.points.start * fold, self.points.stop * fold

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of every process's ``part``."""
        summed = part.clone()
        dist.all_reduce(summed, group=self.group)
        return summed

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
        agreed = tensor.contiguous().clone()
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        dist.broadcast(agreed, source, group=self.group)
        return agreed

    def orthonormal(self, block: Tensor) -> Tensor:
        """Return an orthonormal basis of a block by TSQR: the triangular factors of all processes, factored again."""
        own = torch.linalg.qr(block)
        sizes = [min(size, block.shape[1]) for size in self.sizes]
        joint = torch.linalg.qr(self.agree(self._stacked(own.R, sizes))).Q
        start = sum(sizes[: self.rank])
        return own.Q @ joint[start : start + sizes[self.rank]]


class _Gathered(FactorStore):
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


@dataclass(frozen=True)
class _Network:
    """A captured network, the grid, and this process's share of it; a kernel and its layers share the factors."""

    capture: Capture
    coords: Tensor
    output: str | int
    budget: int
    backend: str
    partition: Sharded
    stores: dict[str, tuple[FactorStore, FactorStore]] = field(default_factory=dict)

    def kernels(self, precision: str, only: str | None) -> tuple[NTK, NTK, NTK]:
        """Return the kernels of the own points, of own against all points, and of all points.

        The last two compute columns from the points asked for, and never the factors of all.
        """
        if precision not in self.stores:
            capture = self.capture.with_precision(precision)
            own = FactorStore(capture, self.coords[self.partition.points], self.budget // 2, self.backend)
            self.stores[precision] = own, _Gathered(own, self.coords, self.partition)
        mine, every = (LayerwiseJacobian(store, self.budget, only) for store in self.stores[precision])
        return NTK(mine, None, self.output), NTK(mine, every, self.output), NTK(every, None, self.output)


class _Shard:
    """The rows of a kernel that this process holds, as an operator of :mod:`inrfast.linalg`; fp64."""

    def __init__(self, network: _Network, only: str | None) -> None:
        self.own, self.across, self.whole = network.kernels("highest", only)
        self.partition = network.partition
        self.shape = (self.partition.size, self.partition.size)
        self.device = self.own.device

    @cached_property
    def matrix_error(self) -> float:
        trace = float(self.partition.total(self.own.diagonal().sum()))
        kept = self.whole.rows.store.kept and self.own.rows.store.backend == "torch"
        return self.own.entry_error * trace + (0.0 if kept else 2 * kernel_error(self.jacobian_error, trace))

    @cached_property
    def jacobian_error(self) -> float:
        own = torch.tensor(self.own.rows.squared_pass_error(self.own.output), dtype=torch.float64, device=self.device)
        return math.sqrt(float(self.partition.total(own)))

    def diagonal(self) -> Tensor:
        return self.own.diagonal()

    def columns(self, index: Tensor) -> Tensor:
        return self.across.columns(index)

    def submatrix(self, index: Tensor) -> Tensor:
        return self.whole.submatrix(index)

    def columns_at(self, index: Tensor) -> Tensor:
        return self.across.columns_at(index)

    def submatrix_at(self, index: Tensor) -> Tensor:
        return self.whole.submatrix_at(index)

    def to_dense(self) -> Tensor:
        return self.partition.gather(self.across.columns(slice(None)))

    def __matmul__(self, V: Tensor) -> Tensor:
        return self.own.product_by_factors(V, self.partition.total)


@methods_in_own_modes
class ShardedNTK:
    """A neural tangent kernel between all points, of which each process computes its rows; built by :func:`ntk`.

    Every process of the group must call the same methods with the same arguments; all get the same results.

    Attributes
    ----------
    shape, dtype, device
        As of :class:`inrfast.tangent.kernel.NTK`; the device is this process's.
    partition
        Which rows this process holds.
    layers
        The layers' own kernels by qualified module name.
    """

    def __init__(self, network: _Network, only: str | None = None) -> None:
        self._network = network
        self._only = only
        self._own, self._across, self._whole = network.kernels(network.capture.precision, only)
        self.partition = network.partition
        self.shape = (self.partition.size, self.partition.size)
        self.dtype, self.device = self._own.dtype, self._own.device

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "cannot pickle a kernel that is shared by processes, nor copy it: it belongs to a process group. Call "
            "inrfast.distributed.ntk in every process, or inrfast.ntk for a kernel that can be pickled"
        )

    @cached_property
    def layers(self) -> Mapping[str, ShardedNTK]:
        """Per-layer kernels by qualified module name; their sum is this kernel."""
        return {spec.name: ShardedNTK(self._network, spec.name) for spec in self._own.specs}

    def diagonal(self) -> Tensor:
        """Return the diagonal (rows,)."""
        self._need_range("the diagonal")
        return self.partition.gather(self._own.exact_diagonal()).to(self.dtype)

    def _need_range(self, what: str) -> None:
        """Refuse results that the kernel's dtype cannot hold, in every process or in none."""
        check_range(what, self._largest, *RANGE[self.dtype], self.dtype)

    @cached_property
    def _largest(self) -> float:
        guess = self._own.rows.magnitude
        return (
            guess if surely_held(guess, self.dtype) else float(self.partition.gather(self._own.exact_diagonal()).amax())
        )

    def trace(self) -> float:
        """Return the trace, accumulated in fp64."""
        return float(self.partition.total(torch.tensor(self._own.trace(), dtype=torch.float64, device=self.device)))

    def columns(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Return ``K[:, index]``, shape (rows, number of columns)."""
        self._need_range("columns of the kernel")
        return self.partition.gather(self._across.columns(index))

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return ``K V`` for V (rows,) or (rows, k), the same in every process."""
        block = check_block("V", V, self.shape[1], self.device).to(self.dtype)
        self._need_range("K @ V")
        found = self._own.product_by_factors(self.partition.mine(block), self.partition.total)
        out = self.partition.gather(found)
        return out[:, 0] if V.ndim == 1 else out

    def spectrum(
        self,
        rtol: float = 1e-6,
        k: int | None = None,
        method: str = "auto",
        eigenvectors: bool = False,
        seed: int = 0,
        progress: bool | None = None,
        levels: Sequence[float] = (),
    ) -> Spectrum:
        """Return the eigenvalues with their error; see :meth:`inrfast.tangent.kernel.NTK.spectrum`.

        The Cholesky factor and Krylov bases are split as the grid is. Eigenvectors come back whole.
        """
        found = eigenvalues.spectrum(
            _Shard(self._network, self._only),
            rtol,
            k,
            method,
            eigenvectors,
            min(self.shape[0], self._own.rank_bound),
            self._network.budget // 2 * self.partition.processes,
            seed,
            progress if self.partition.rank == 0 else False,
            levels,
        )
        found = replace(found, outputs=self._own.outputs if self._own.output == "trace" else 1)
        if found.eigenvectors is None or found.method == "dense":
            return found
        return replace(found, eigenvectors=self.partition.gather(found.eigenvectors))

    def solve(
        self, y: Tensor, ridge: float = 0.0, tol: float = 1e-6, seed: int = 0, progress: bool | None = None
    ) -> Tensor:
        """Return x with ``(K + ridge I) x = y`` in fp64; see :meth:`inrfast.tangent.kernel.NTK.solve`."""
        ridge, tol = check_float("ridge", ridge, minimum=0.0), check_float("tol", tol, minimum=0.0, exclusive=True)
        right = check_block("y", y, self.shape[0], self.device).to(torch.float64)
        budget, shown = self._network.budget // 2 * self.partition.processes, progress
        if self.partition.rank > 0:
            shown = False
        return systems.solve(_Shard(self._network, self._only), right, ridge, tol, budget, seed, shown).reshape(y.shape)

    def __repr__(self) -> str:
        part = self.partition
        return f"ShardedNTK(shape={self.shape}, rows {part.start} to {part.stop} here, {part.processes} processes)"


@in_own_modes
def ntk(
    net: nn.Module,
    coords: Tensor,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    memory_budget: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> ShardedNTK:
    """Return the tangent kernel of ``net`` on ``coords``, its rows shared by the processes of ``group``.

    Parameters
    ----------
    net, coords, output, params, select, precision, backend
        As of :func:`inrfast.ntk`, the same in every process: the network on the process's own device, all coordinates.
    memory_budget
        Bytes for this process; None: half of what is free, shared evenly by the processes of this machine.
    group
        A process group; None: all processes.

    Raises
    ------
    NotAvailableError
        ``torch.distributed`` is not initialised.
    ValueError
        The processes hold different networks or coordinates; fewer points than processes.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise NotAvailableError(
            "torch.distributed is not initialised: start with torchrun and call "
            "torch.distributed.init_process_group('gloo') ('nccl' on GPUs) first"
        )
    if isinstance(output, str):
        check_choice("output", output, ("trace", "full"))
    else:
        output = check_int("output", output, minimum=0)
    capture = Capture(net, coords, params, select, precision, memory_budget)
    if isinstance(output, int) and output >= capture.outputs:
        raise ValueError(f"output must be below the network's {capture.outputs} outputs, got {output}")
    partition = Sharded(len(coords), capture.outputs if output == "full" else 1, group)
    if len(coords) < partition.processes:
        raise ValueError(f"coords must hold a point a process at least, got {len(coords)} for {partition.processes}")
    _check_same(net, coords, partition)
    backend = backends.resolve(backend, capture.device)
    if memory_budget is None and capture.device.type == "cpu":
        budget = budget_bytes(None) // partition.processes
    else:
        budget = budget_bytes(memory_budget, capture.device)
    return ShardedNTK(_Network(capture, coords.detach().clone(), output, budget, backend, partition))


def _check_same(net: nn.Module, coords: Tensor, partition: Sharded) -> None:
    """Raise if the processes do not hold the same numbers, by sums in which every place has a weight of its own."""
    state = [t.detach().double().flatten() for t in net.state_dict().values() if t.is_floating_point()]
    sums = []
    for numbers in (torch.cat([s.to(coords.device) for s in state]), coords.detach().double().flatten()):
        places = torch.arange(1, len(numbers) + 1, dtype=torch.float64, device=coords.device)
        sums.append((numbers * torch.sin(places)).sum())
    found = torch.stack(sums)
    differ = (partition.agree(found) != found).to(torch.float64)
    differ = partition.total(differ)
    for what, count in zip(("networks", "coordinates"), differ.tolist(), strict=True):
        if count > 0:
            raise ValueError(f"{what} differ between processes: build them from the same seed in each")
