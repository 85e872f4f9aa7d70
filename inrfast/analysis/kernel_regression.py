"""Kernel regression with the pseudo-inverse: what a kernel predicts at held-out points from values at observed ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike, is_array
from inrfast.errors import check_coords, check_float, check_takes, check_tensor
from inrfast.linalg.operators import NEGLIGIBLE
from inrfast.memory import require_free
from inrfast.modes import in_own_modes
from inrfast.records import Record
from inrfast.tangent.kernel import TangentKernel
from inrfast.tangent.local import ntk

Blocks = Callable[[Tensor, Tensor], ArrayLike]

ASYMMETRIC = 8
"""Roundoffs per row by which entries may differ from their mirror images, relative to the largest."""


@dataclass(frozen=True, eq=False)
class KernelRegression(Record):
    """What kernel regression predicts, and how much of the kernel it used.

    Attributes
    ----------
    prediction
        At the held-out points, (N',) or (N', M), fp64.
    coefficients
        ``K(X, X)^+ y``, (N,) or (N, M), fp64.
    rank
        Number of eigenvalues of K(X, X) that are inverted; the others, below ``cut``, count as zero.
    size
        Number of observed points N.
    cut
        ``max(rtol, floor) lambda_1``.
    rtol, floor
        As asked for, and what rounding allows, both relative to the largest eigenvalue.
    condition
        Largest over smallest eigenvalue that is inverted.
    residual
        ``|K K^+ y - y| / |y|`` of each target, (M,): the part of the observed values that the kernel cannot fit.
    norm
        ``y^T K^+ y`` of each target, (M,): its squared norm in the kernel's space.
    """

    prediction: Tensor
    coefficients: Tensor
    rank: int
    size: int
    cut: float
    rtol: float
    floor: float
    condition: float
    residual: Tensor
    norm: Tensor

    def __repr__(self) -> str:
        return (
            f"KernelRegression({len(self.prediction)} points from {self.size}, rank={self.rank}, cut={self.cut:.2g}, "
            f"condition={self.condition:.2g}, residual={float(self.residual.amax()):.2g})"
        )


@in_own_modes
def kernel_regression(
    kernel: TangentKernel | nn.Module | Blocks | ArrayLike,
    y: ArrayLike,
    cross: TangentKernel | ArrayLike | None = None,
    *,
    coords: ArrayLike | None = None,
    at: ArrayLike | None = None,
    rtol: float = 1e-12,
) -> KernelRegression:
    """Return ``f(x) = K(x, X) K(X, X)^+ y`` at held-out points: the limit of training in the kernel regime (PEAK, 21).

    Parameters
    ----------
    kernel
        ``K(X, X)`` at the N observed points: an array (N, N) or a kernel of :func:`inrfast.ntk`, which is computed in
        fp64 whatever its precision. Or, with ``coords`` and ``at``, what makes the blocks: a network of one output, or
        a function ``kernel(a, b)`` of points (N, d) and (N', d), such as :func:`inrfast.infinite_ntk` returns.
    y
        Observed values, (N,) or (N, M); one target per column, each fitted by itself.
    cross
        ``K(x, X)`` between N' held-out points, the rows, and the observed ones: an array (N', N), or
        ``inrfast.ntk(net, at, coords)``.
    coords, at
        Observed points (N, d) and held-out ones (N', d).
    rtol
        Eigenvalues below ``rtol`` times the largest count as zero. The default leaves all that fp64 tells from
        rounding; larger values smooth. In any case those below ``N eps`` of the largest do, with eps of the narrowest
        dtype that the blocks have (fp32: 1.2e-7): they are rounding, and their inverses would be noise.

    Returns
    -------
    KernelRegression
        With the ``rank`` used, the ``floor`` and the part of y that was not fitted.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, numbers that are not finite, a kernel that is zero, not symmetric or has a negative
        eigenvalue beyond rounding: then ``K^+`` is no regression. A lazy ``cross`` of other points, parameters or
        outputs than a lazy ``kernel``; a network of several outputs.
    MemoryBudgetError
        Three matrices (N, N) and the block (N', N) in fp64 exceed half of the free memory.

    Notes
    -----
    A network starts at ``f_0``, not at zero as (21) has it. Its own limit is ``f_0(x) + K(x, X) K(X, X)^+ (y -
    f_0(X))``: give ``y - net(coords)`` and add ``net(at)``.

    Of M outputs, whose gradients share the hidden layers, that limit is the regression of all N M values at once: with
    kernels of ``output="full"`` and ``y.reshape(-1)`` in place of y; the predictions are those of (N', M), flattened.
    A kernel of ``output="trace"`` fits each column of y by itself with the sum of the outputs' kernels: the limit of
    infinite width, where they do not interact, and no network's own.

    The cost is that of an eigendecomposition, some ``10 N^3`` FLOP.

    Examples
    --------
    >>> import torch, inrfast as inr
    >>> coords, at = inr.grid(24), torch.tensor([[-0.31], [0.12]])
    >>> wide = inr.infinite_ntk(2, bias_variance=1.0)
    >>> found = inr.kernel_regression(wide, torch.sin(3 * coords), coords=coords, at=at)
    >>> found.rank, bool((found.prediction - torch.sin(3 * at)).abs().amax() < 0.01)
    (24, True)

    Source: Jacot, Gabriel, Hongler, Neural tangent kernel, NeurIPS 2018; PEAK (Li et al.), equations 3 and 21.
    """
    rtol = check_float("rtol", rtol, minimum=0.0)
    first, second = blocks(kernel, cross, coords, at)
    matrix, values, across, eps = checked(first, y, second)
    single, n = values.ndim == 1, len(matrix)
    block = values.reshape(n, -1)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    largest, least = float(eigenvalues[-1]), float(eigenvalues[0])
    floor = n * eps
    if largest <= 0 or least < -max(NEGLIGIBLE, 8 * floor) * largest:
        raise ValueError(
            f"kernel must be positive semidefinite, got eigenvalues from {least:.3g} to {largest:.3g}: its "
            "pseudo-inverse is no regression"
        )
    cut = max(rtol, floor) * largest
    kept = eigenvalues >= cut
    basis, inverted = vectors[:, kept], eigenvalues[kept]
    parts = basis.t() @ block
    coefficients = basis @ (parts / inverted.unsqueeze(1))
    lengths = torch.linalg.vector_norm(block, dim=0)
    missed = torch.linalg.vector_norm(block - basis @ parts, dim=0)
    prediction = across @ coefficients
    return KernelRegression(
        prediction[:, 0] if single else prediction,
        coefficients[:, 0] if single else coefficients,
        int(kept.sum()),
        n,
        cut,
        rtol,
        floor,
        largest / float(inverted[0]),
        torch.where(lengths > 0, missed / lengths, 0.0),
        (parts.square() / inverted.unsqueeze(1)).sum(0),
    )


def blocks(kernel: Any, cross: Any, coords: Any, at: Any) -> tuple[Any, Any]:
    """Return ``K(X, X)`` and ``K(x, X)`` as given, or made by a network or a function."""
    made = isinstance(kernel, nn.Module) or not (isinstance(kernel, TangentKernel) or is_array(kernel))
    if not made:
        if cross is None or coords is not None or at is not None:
            raise TypeError(
                "a kernel that is there comes with cross, K(x, X), and without coords and at, which a network or a "
                "function takes"
            )
        return kernel, cross
    if not callable(kernel):
        raise TypeError(f"kernel must be a kernel, a network, a function or an array, got {type(kernel).__name__}")
    if cross is not None or coords is None or at is None:
        raise TypeError("a network or a function comes with coords and at, the observed and held-out points, no cross")
    if isinstance(kernel, nn.Module):
        own = ntk(kernel, coords, precision="highest")
        if own.outputs > 1:
            raise ValueError(
                f"kernel is a network of {own.outputs} outputs, which share its layers: give ntk(net, coords, "
                "output='full') with y.reshape(-1) and cross=ntk(net, at, coords, output='full') for its own limit, or "
                "both without output= for a regression of each column by the sum of its outputs' kernels"
            )
        return own, ntk(kernel, at, coords, precision="highest")
    points, others = check_coords("coords", coords), check_coords("at", at)
    if points.shape[1] != others.shape[1]:
        raise ValueError(f"at must have the {points.shape[1]} coordinates that coords has, got {others.shape[1]}")
    check_takes("kernel", kernel, ("coords", "coords2"))
    return kernel(points, points), kernel(others, points)


def dense(given: Any) -> Any:
    """Return a tangent kernel's entries in fp64, and anything else as it is."""
    return given.at_precision("highest").to_dense() if isinstance(given, TangentKernel) else given


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors are equal, but for a rounding to fp32."""
    if one.shape != other.shape or one.device != other.device:
        return False
    apart = torch.linalg.vector_norm(one.to(torch.float64) - other.to(torch.float64))
    return bool(apart <= torch.finfo(torch.float32).eps * torch.linalg.vector_norm(one.to(torch.float64)))


def _check_cross(kernel: TangentKernel, cross: TangentKernel) -> None:
    """Refuse ``K(x, X)`` of other points X, or of another network, than ``K(X, X)``."""
    if cross.output != kernel.output and kernel.outputs > 1:
        raise ValueError(f"cross must be of output={kernel.output!r} as kernel is, got {cross.output!r}")
    points = cross.coords if cross.symmetric else cross.right.store.coords
    if len(points) == len(kernel.coords) and not _same(kernel.coords, points):
        swapped = "; its rows are: swap them, ntk(net, at, coords)" if _same(kernel.coords, cross.coords) else ""
        raise ValueError(f"cross must have the points of kernel as columns, ntk(net, at, coords); they differ{swapped}")
    mine, other = ({s.name for s in own.specs} for own in (kernel, cross))
    one, two = (dict(own.capture.network.module.named_parameters()) for own in (kernel, cross))
    if mine != other or one.keys() != two.keys() or not all(_same(p.detach(), two[name]) for name, p in one.items()):
        raise ValueError("cross must be of the network and the parameters that kernel is of, as they were then")


def checked(first: Any, y: Any, second: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return both blocks and the values in fp64, and the roundoff of the narrower block."""
    if isinstance(first, TangentKernel) and not first.symmetric:
        raise ValueError("kernel must be between the same points; the one made with coords2 is cross")
    if isinstance(first, TangentKernel) and isinstance(second, TangentKernel):
        _check_cross(first, second)
    shapes = [tuple(one.shape) if hasattr(one, "shape") else () for one in (first, second)]
    if all(len(shape) == 2 for shape in shapes):
        n = shapes[0][0]
        require_free(8 * (3 * n * n + math.prod(shapes[1])), f"regression on {n} points", "give fewer points")
    device = first.device if isinstance(first, Tensor | TangentKernel) else None
    matrix, across = (
        check_tensor(name, dense(one), ndim=2, device=device).detach()
        for name, one in (("kernel", first), ("cross", second))
    )
    n = len(matrix)
    if matrix.shape[1] != n:
        raise ValueError(f"kernel must be K(X, X), (N, N), got shape {tuple(matrix.shape)}")
    if across.shape[1] != n:
        raise ValueError(f"cross must be K(x, X), (N', {n}) with held-out points as rows, got {tuple(across.shape)}")
    values = check_tensor("y", y, device=matrix.device).detach()
    if values.ndim not in (1, 2) or len(values) != n:
        raise ValueError(f"y must have shape ({n},) or ({n}, M), got {tuple(values.shape)}")
    if len({one.device for one in (matrix, across, values)}) > 1:
        raise ValueError(f"y is on {values.device}, kernel on {matrix.device} and cross on {across.device}")
    eps = max(torch.finfo(one.dtype).eps for one in (matrix, across))
    matrix = matrix.to(torch.float64)
    largest = float(matrix.abs().amax())
    if largest == 0:
        raise ValueError("kernel must not be zero everywhere")
    off = float((matrix - matrix.t()).abs().amax())
    if off > ASYMMETRIC * n * eps * largest:
        raise ValueError(f"kernel must be symmetric, got entries that differ by {off:.1e} from their mirror images")
    return (matrix + matrix.t()) / 2, values.to(torch.float64), across.to(torch.float64), eps
