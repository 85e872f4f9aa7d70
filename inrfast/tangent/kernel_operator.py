"""The rows of a tangent kernel in this process, as the operator that :mod:`inrfast.linalg` works on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inrfast.linalg.operators import digest
from inrfast.nn import described_network
from inrfast.tangent.cost import dense_flops, product_flops
from inrfast.tangent.rounded import move
from inrfast.tangent.single import SingleProducts
from inrfast.tangent.store import check_range

ENTRIES = (1e-250, 1e300)
"""Largest entries of a kernel that spectra and systems take: squares of rounding errors of J are numbers of fp64."""

SURELY_HELD = 1e-240
"""Entry at a few points above which the largest one is not looked for."""

if TYPE_CHECKING:
    from inrfast.tangent.kernel import TangentKernel


class KernelOperator:
    """The rows of a kernel in this process as an operator of :mod:`inrfast.linalg`, whose vectors need no checks.

    Raises
    ------
    RangeError
        The kernel's largest entry is outside :data:`ENTRIES`, one that fp64 does not tell from zero among them.
    """

    def __init__(self, kernel: TangentKernel) -> None:
        self._kernel = kernel
        self.shape, self.device, self.partition = kernel.shape, kernel.device, kernel.partition
        largest = kernel._largest
        if largest <= SURELY_HELD:
            largest = float(self.partition.gather(kernel._diagonal).amax())
            if largest == 0 and self.partition.sum(float(kernel.left.nonzero), self.device) > 0:
                largest = sys.float_info.min
        check_range("a spectrum or system of the kernel", largest, *ENTRIES, torch.float64)

    @property
    def matrix_error(self) -> float:
        """Bound on the spectral norm of the rounding error of the entries."""
        return self._kernel.matrix_error

    @property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J."""
        return self._kernel.jacobian_error

    @property
    def entry_flops(self) -> float:
        """FLOP of all entries, each pair once, in all processes."""
        return self.partition.sum(float(dense_flops(self._kernel.sides)), self.device)

    @property
    def product_flops(self) -> float:
        """FLOP of a product with one vector, in all processes."""
        return self.partition.sum(float(product_flops(self._kernel.sides)), self.device)

    def diagonal(self) -> Tensor:
        """Return the diagonal of these rows."""
        self._kernel._need_range("the diagonal")
        return self._kernel._diagonal.to(self._kernel.dtype, copy=True)

    def columns(self, index: Tensor) -> Tensor:
        """Return these rows of some columns."""
        self._kernel._need_range("columns of the kernel")
        return self._kernel.sides.columns_as_named(index)

    def submatrix(self, index: Tensor) -> Tensor:
        """Return some rows and columns, the same in every process."""
        self._kernel._need_range("a submatrix of the kernel")
        return self._kernel.sides.submatrix_as_named(index)

    def blocks_(self, targets: Sequence[tuple[Tensor, slice]], index: Tensor, dtype: torch.dtype) -> None:
        """Write some of these rows of some columns into each target, of ``dtype`` and computed in its precision."""
        kernel = self._kernel if dtype == self._kernel.dtype else self._in_single
        kernel._need_range("a block of the kernel")
        kernel.sides.blocks_(targets, index)

    @cached_property
    def single(self) -> SingleProducts | None:
        """Products with single vectors in fp32; None where they save nothing or fp32 does not hold them."""
        sides = self._kernel.sides
        if self.device.type != "cpu" or sides.exact_plan is not None or any(layer.sparse for layer in sides.left.specs):
            return None
        found = SingleProducts(self._kernel, self._in_single)
        return found if found.in_range else None

    def rounded(self, lowest: Callable[[float], float], budget: int) -> RoundedOperator | None:
        """Return the kernel of factors rounded to fp32, in fp64: half of their memory. None where that is no use.

        ``lowest`` is the lowest level of interest as a function of lambda_1, ``budget`` the bytes for all but the
        factors.
        """
        offered = getattr(self._kernel, "rounded", None)  # by kernels in one process
        found = None if offered is None else offered(lowest, budget)
        if found is None:
            return None
        kernel, single = found
        spared = self._kernel.left.store.bytes_held - kernel.left.store.bytes_held - kernel.left.store.bytes_converted
        return RoundedOperator(kernel, single, move(kernel, kernel.trace()), budget + spared)

    @cached_property
    def _in_single(self) -> TangentKernel:
        """The kernel in fp32."""
        return self._kernel.at_precision("high")

    def identity(self) -> dict[str, Any]:
        """Return what tells the kernel from others: of which network, at which points, of which outputs and parameters.

        Attributes of a module's own that are neither parameters nor buffers, nor in its text, are not in it.
        """
        capture = self._kernel.capture
        module, select = capture.network.module, capture.network.select
        state = [part for name, tensor in module.state_dict().items() for part in (name, tensor)]
        return {
            "network": described_network(module) or digest(str(module)),
            "parameters": digest(*state),
            "coords": digest(self._kernel.coords),
            "output": self._kernel.output,
            "params": digest(*(name for layer in self._kernel.specs for name in layer.parameters)),
            "select": digest(repr(select)),
        }

    def to_dense(self) -> Any:
        """Return the whole matrix."""
        return self._kernel.to_dense()

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return these rows of ``K V`` for these rows of V (n, k)."""
        return self._kernel._product(V)


class RoundedOperator(KernelOperator):
    """A kernel whose J was moved by rounding its factors.

    Attributes
    ----------
    single
        Products with single vectors in fp32.
    moved
        Bound on the spectral norm by which J was moved.
    budget
        Bytes for all but these factors.
    """

    def __init__(self, kernel: TangentKernel, single: SingleProducts, moved: float, budget: int) -> None:
        super().__init__(kernel)
        self.single, self.moved, self.budget = single, moved, budget

    @property
    def jacobian_error(self) -> float:
        """Bound on the spectral norm of the error of J, rounding of the factors included."""
        return self._kernel.jacobian_error + self.moved
