"""Derivatives of predictions with respect to coordinates, for losses of differential equations and distances.

A loss of three arguments (predictions, targets, coordinates) gets coordinates that require gradients; what these
functions return can itself be differentiated with respect to the weights.

    def eikonal(pred, target, coords):
        return mse_loss(pred, target) + 0.1 * (gradient(pred, coords).norm(dim=-1) - 1).square().mean()
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrfast.errors import check_tensor


def gradient(pred: Tensor, coords: Tensor) -> Tensor:
    """Return ``d f_m / d x_j`` at every point, shape (N, M, d), from predictions (N, M) at coordinates (N, d).

    Each prediction must depend on its own point alone: a network with batch norm in train mode couples them.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not belong together; predictions that do not depend on the coordinates.
    """
    pred, coords = _checked(pred, coords)
    columns = [_derivative(pred[:, m], coords) for m in range(pred.shape[1])]
    return torch.stack(columns, dim=1)


def laplacian(pred: Tensor, coords: Tensor) -> Tensor:
    """Return ``sum_j d^2 f_m / d x_j^2`` at every point, shape (N, M), from predictions (N, M) at coordinates (N, d).

    Conditions and errors as for :func:`gradient`. Where a gradient is constant, as a ReLU network's nearly everywhere,
    the result is 0.
    """
    first = gradient(pred, coords)
    columns = []
    for m in range(pred.shape[1]):
        second = [_derivative(first[:, m, j], coords)[:, j] for j in range(coords.shape[1])]
        columns.append(torch.stack(second).sum(0))
    return torch.stack(columns, dim=1)


def _derivative(values: Tensor, coords: Tensor) -> Tensor:
    """Return the gradients (N, d) of values (N,); 0 where they are constant."""
    if not values.requires_grad:
        return torch.zeros_like(coords)
    (found,) = torch.autograd.grad(values.sum(), coords, create_graph=True, allow_unused=True)
    return torch.zeros_like(coords) if found is None else found


def _checked(pred: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    pred = check_tensor("pred", pred, ndim=2, finite=False)
    coords = check_tensor("coords", coords, ndim=2, finite=False)
    if len(pred) != len(coords):
        raise ValueError(f"pred and coords must have one length, got {tuple(pred.shape)} and {tuple(coords.shape)}")
    if not coords.requires_grad or not pred.requires_grad:
        raise ValueError("pred must be computed from coords that require gradients, got tensors without")
    return pred, coords
