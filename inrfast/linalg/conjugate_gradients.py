"""Preconditioned conjugate gradients for several right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrfast.linalg.partition import Whole
from inrfast.progress import Bar

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Product, right: Tensor, preconditioner: Product, tol: float, steps: int, bar: Bar, partition: Whole
) -> tuple[Tensor, Tensor]:
    """Return X (n, c) with ``A X = right`` and the relative residuals ``|y - A x| / |y|`` of its columns.

    Every column has a recurrence of its own; products take all of them as one block. The residuals returned are true
    ones: once the updated ones are small, the iteration starts anew from the true residual, until that is below
    ``tol``, ``steps`` products are taken, or rounding lets it fall no further.
    """
    scale = partition.norm(right).clamp_min(torch.finfo(right.dtype).tiny)
    x, residual = torch.zeros_like(right), right
    found = partition.norm(right) / scale
    taken = 0
    while float(found.amax()) > tol and taken < steps:
        move, count = _cycle(product, residual, preconditioner, scale * tol / 2, steps - taken, bar, partition)
        residual = right - product(x + move)
        taken += count + 1
        reached = partition.norm(residual) / scale
        if not float(reached.amax()) < float(found.amax()):
            break
        stalled = float(reached.amax()) > float(found.amax()) / 2
        x, found = x + move, reached
        if stalled:
            break
    return x, found


def _cycle(
    product: Product,
    residual: Tensor,
    preconditioner: Product,
    wanted: Tensor,
    steps: int,
    bar: Bar,
    partition: Whole,
) -> tuple[Tensor, int]:
    """Return the correction of one run of the recurrence, and the products it took."""
    move = torch.zeros_like(residual)
    direction = z = preconditioner(residual)
    rho = partition.total((residual * z).sum(0))
    for step in range(1, steps + 1):
        image = product(direction)
        curvature = partition.total((direction * image).sum(0))
        length = torch.where(curvature > 0, rho / curvature, 0)
        move = move + length * direction
        residual = residual - length * image
        bar.update()
        if bool((partition.norm(residual) <= wanted).all()):
            return move, step
        z = preconditioner(residual)
        rho, before = partition.total((residual * z).sum(0)), rho
        direction = z + torch.where(before > 0, rho / before, 0) * direction
    return move, steps
