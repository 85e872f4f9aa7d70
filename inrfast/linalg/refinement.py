"""Solutions of ``A x = b`` from an approximate inverse of A: iterative refinement, and GMRES where that stagnates.

A may be indefinite. Refinement (Higham, Accuracy and Stability, chapter 12) takes off a fixed share of the residual per
step, where the inverse is of a matrix near enough; GMRES with the same inverse (Saad and Schultz, SIAM J. Sci. Stat.
Comput. 7(3), 1986, preconditioned from the right, so that its residuals are true ones) also gets along with some
directions in which it is not, in about as many steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrfast.linalg.partition import Whole
from inrfast.progress import Bar

Product = Callable[[Tensor], Tensor]

SLOW = 0.25
"""Share of the residual that a step of refinement may leave; where it leaves more, GMRES goes on."""

STALLED = 0.7
"""Share of the residual that a cycle of GMRES may leave; where it leaves more, nothing helps."""

CYCLE = 40
"""Steps of GMRES before it starts anew."""

SCRATCH = 6
"""Vectors per right-hand side beside those of the basis."""


def refined(
    product: Product,
    right: Tensor,
    inverse: Product,
    tol: float,
    steps: int,
    bar: Bar,
    partition: Whole,
    cycle: int = CYCLE,
) -> tuple[Tensor, Tensor]:
    """Return X (n, c) with ``A X = right`` and the relative residuals ``|y - A x| / |y|`` of its columns.

    Parameters
    ----------
    product, inverse
        Apply A, and an approximation of its inverse, to a block of vectors; linear, fp64.
    right
        Right-hand sides (n, c).
    tol
        Relative residual at which a column is done.
    steps
        Products with A at most.
    bar
        Moves by one per product.
    partition
        Which rows of the vectors are here.
    cycle
        Steps of GMRES before it starts anew: as many vectors per column are held.
    """
    scale = partition.norm(right).clamp_min(torch.finfo(right.dtype).tiny)
    x, residual, found = torch.zeros_like(right), right, partition.norm(right) / scale
    simple, taken = True, 0
    while not float(found.amax()) <= tol and taken < steps:
        if simple:
            move, count = inverse(residual), 0
        else:
            move, count = _gmres(product, residual, inverse, scale * tol / 2, min(cycle, steps - taken), bar, partition)
        left = right - product(x + move)
        bar.update()
        taken += count + 1
        reached = partition.norm(left) / scale
        better = reached < found  # false for a NaN
        remaining = torch.where(better, reached, found)
        slow = bool(((remaining > (SLOW if simple else STALLED) * found) & (found > tol)).any())
        x = torch.where(better, x + move, x)
        residual, found = torch.where(better, left, residual), remaining
        if slow and not simple:
            break
        simple = simple and not slow
    return x, found


def _gmres(
    product: Product, right: Tensor, inverse: Product, wanted: Tensor, steps: int, bar: Bar, partition: Whole
) -> tuple[Tensor, int]:
    """Return the correction of one cycle, and the products it took; every column has a basis of its own."""
    columns = right.shape[1]
    size = partition.norm(right)
    basis = [_normalised(right, size)]
    turned = torch.zeros(columns, steps + 1, steps, dtype=right.dtype)  # the Hessenberg matrices
    start = torch.zeros(columns, steps + 1, 1, dtype=right.dtype)
    start[:, 0, 0] = size.cpu()
    weights, step = start[:, :0], 0
    for step in range(1, steps + 1):
        image = product(inverse(basis[-1]))
        bar.update()
        before = partition.norm(image)
        for _ in range(2):  # orthogonal to fp64 (Giraud, Langou, Rozloznik and van den Eshof, 2005)
            inner = partition.total(torch.stack([(vector * image).sum(0) for vector in basis]))
            for vector, share in zip(basis, inner, strict=True):
                image = image - share * vector
            turned[:, :step, step - 1] += inner.t().cpu()
        rest = partition.norm(image)
        rest = torch.where(rest > 1e-14 * before, rest, 0.0)
        turned[:, step, step - 1] = rest.cpu()
        basis.append(_normalised(image, rest))
        square, target = turned[:, : step + 1, :step], start[:, : step + 1]
        if not bool(torch.isfinite(square).all()):
            return torch.full_like(right, torch.nan), step
        # One process's solution, as it decides when all of them stop.
        weights = partition.agree(torch.linalg.lstsq(square, target, driver="gelsd").solution.to(right.device)).cpu()
        left = torch.linalg.vector_norm(target - square @ weights, dim=1)[:, 0]
        if float(partition.agree((left / wanted.cpu()).amax().to(right.device))) <= 1:
            break
    combined = torch.zeros_like(right)
    for vector, weight in zip(basis, weights[:, :, 0].t().to(right.device), strict=False):
        combined += weight * vector
    return inverse(combined), step


def _normalised(block: Tensor, norms: Tensor) -> Tensor:
    """Return columns of norm one, those of norm zero as zeros."""
    return torch.where(norms > 0, block / torch.where(norms > 0, norms, 1.0), 0.0)
