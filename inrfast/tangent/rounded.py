"""A tangent kernel of factors in fp32, computed with in fp64: for counts of eigenvalues in half of the factors' memory.

Rounding every factor to fp32 moves an entry of J, a product of two, by at most ``2 u + u^2`` of itself, ``u = 2^-24``,
and so J by ``2 u |J|_F``. The rounded kernel ``K' = J' J'^T`` is positive semidefinite as the other is, and all of its
entries, products and columns are computed in fp64 from the same J'. A singular value of J moves by no more than J does
(Weyl): an eigenvalue near a level t by about ``4 u sqrt(trace(K) t)``, which at 1e-6 of lambda_1 is a thousandth of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.layers import Factors
from inrfast.linalg.operators import SINGLE_UNIT
from inrfast.ops import gemm
from inrfast.ops.gram import TILE
from inrfast.rounding import PassErrors
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.single import LARGEST, RELEASED, SingleProducts
from inrfast.tangent.store import FactorStore

if TYPE_CHECKING:
    from inrfast.tangent.kernel import TangentKernel
    from inrfast.tangent.local import NTK

ROWS = 2048
"""Points of a side of a product, whose factors are there in fp64 at a time."""

SHARE = 2e-3
"""Largest move of J, relative to the root of the level: twice that is what the level is moved by, relative to it."""

SAMPLE = 256
"""Rows of the kernel from which lambda_1 is estimated. That decides whether to round, and nothing else."""

SMALLEST = 2.0**-126
"""Smallest number that fp32 has with all digits: what is smaller may become zero."""


class RoundedStore(FactorStore):
    """Factors of all points rounded to fp32, kept; what is read of them is in fp64.

    Parameters
    ----------
    exact
        The store in fp64 at the same points.
    """

    in_single = True

    def __init__(self, exact: FactorStore) -> None:
        super().__init__(exact.capture, exact.coords, exact.budget, exact.backend)
        self.exact = exact
        self._kept = exact.compute(exact.coords, exact.room(len(exact.coords), torch.float32))

    @property
    def bytes_per_point(self) -> int:
        """Bytes of one point's factors, as kept."""
        return torch.float32.itemsize * self.capture.numbers_per_point

    @property
    def fits(self) -> bool:
        """Always: the factors of all points are kept."""
        return True

    @property
    def least_bytes(self) -> int:
        """Bytes of the kept factors, which stay."""
        return self.bytes_per_point * len(self.coords)

    @property
    def streaming_rows(self) -> int:
        """Points of a side of a product: in fp64 they take memory of their own."""
        return min(ROWS, len(self.coords))

    @property
    def bytes_converted(self) -> int:
        """Bytes of the factors in fp64 that products of tiles hold at a time, in all threads."""
        threads = gemm.threads(torch.float64, self.capture.device)
        return torch.float64.itemsize * self.capture.numbers_per_point * TILE * threads

    @contextmanager
    def limited(self, budget: int) -> Iterator[None]:
        """Do nothing: computed anew, factors would be others."""
        yield

    def all(self) -> list[Factors]:
        """Return the factors of all points, in fp32."""
        assert self._kept is not None
        return self._kept

    def at(self, rows: slice | Tensor) -> list[Factors]:
        """Return the factors of some points in fp64."""
        return [layer.at(rows).to(torch.float64) for layer in self.all()]

    def rounded(self, layers: Sequence[int], release: bool = False) -> list[Factors]:
        """Return some layers' factors of all points in fp32: those that are kept."""
        return [self.all()[index] for index in layers]

    @property
    def pass_errors(self) -> PassErrors:
        """What rounding in the factor pass does, as of the store in fp64."""
        known = self.exact.__dict__.get("pass_errors")
        if known is None:
            known = self.capture.pass_errors(self.coords, self._diagonal())
            self.exact.__dict__["pass_errors"] = known
        return known


class RoundedJacobian(LayerwiseJacobian):
    """J of rounded factors, as a side of Gram products."""

    store: RoundedStore

    def side(self, points: slice, plan: object = None) -> list[Factors]:
        """Return some points as a side of a Gram product, in fp32: they are converted tile by tile."""
        return [layer.at(points) for layer in self.store.rounded(self.indices)]


def rounded(kernel: NTK, lowest: Callable[[float], float], budget: int) -> tuple[NTK, SingleProducts] | None:
    """Return the kernel of factors rounded to fp32, where that saves memory and a level is still told apart; or None.

    Beside it are its products in fp32.

    Parameters
    ----------
    kernel
        In fp64, symmetric, all of its rows in this process.
    lowest
        The lowest level of interest, as a function of lambda_1.
    budget
        Bytes for all beside the kernel's factors.
    """
    left = kernel.left
    store, capture = left.store, left.capture
    if not capture.plain or capture.device.type != "cpu" or any(layer.sparse for layer in capture.layers):
        return None
    if store.backend != "torch" or left.indices != store.layers or store.kept:
        return None
    size = store.bytes_rounded(store.layers)
    if not RELEASED <= size <= store.budget or size - store.bytes_held > budget // 2:
        return None
    trace, largest = _estimates(kernel)
    if not move(kernel, trace) <= SHARE * math.sqrt(max(lowest(largest), 0.0)):
        return None
    made = type(kernel)(RoundedJacobian(RoundedStore(store), left.memory_budget), None, kernel.output)
    products = SingleProducts(made, made)
    return (made, products) if products.in_range else None


def move(kernel: TangentKernel, trace: float) -> float:
    """Return a bound on ``|dJ|_F``, what rounding the factors of a kernel of such a trace to fp32 does to J.

    Numbers that fp32 does not hold with all digits are off by less than :data:`SMALLEST`, times the other factor.
    """
    numbers = float(kernel.left.shape[0]) * kernel.left.shape[1]
    return 2.001 * SINGLE_UNIT * math.sqrt(trace) + 4 * LARGEST[1] * SMALLEST * math.sqrt(numbers)


def _estimates(kernel: NTK) -> tuple[float, float]:
    """Return estimates of the trace and of lambda_1 from the rows of some points."""
    left, n = kernel.left, len(kernel.coords)
    points = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: max(1, SAMPLE // kernel.sides.fold)]
    store = FactorStore(left.capture, kernel.coords[points], left.store.budget)
    sample = type(kernel)(LayerwiseJacobian(store, left.memory_budget), None, kernel.output)
    matrix = torch.empty(sample.shape, dtype=torch.float64)
    sample.sides.fill_(matrix)
    scale = n / len(points)
    return scale * float(matrix.trace()), scale * float(torch.linalg.matrix_norm(matrix, 2))
