"""TopK: the largest units of each point alone; and the same with the rest projected onto a sphere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import check_int
from inrfast.norms import NORMS, Norm, NormSlope
from inrfast.norms.sphere import Projected, Sphere, on_sphere, project, project_back, project_directions

SHARE = 4
"""One unit in so many is kept by default."""


def usual(width: int) -> int:
    """Return how many of ``width`` units are kept by default."""
    return max(1, width // SHARE)


def dropped(features: Tensor, k: int) -> Tensor | None:
    """Return which entries of ``features`` (..., m) are smaller in magnitude than the k-th largest; None: none can be.

    Of several entries as large as the k-th none is dropped, so that nothing hangs on their order. NaN counts as larger
    than all numbers, and is not dropped.
    """
    if k >= features.shape[-1]:
        return None
    sizes = features.detach().abs()
    return sizes < sizes.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


class TopK(nn.Module):
    """The ``k`` entries of each sample that are largest in magnitude, and 0 for the others.

    This project's own definition. Shape ``(..., m)`` to ``(..., m)``. Entries as large as the k-th are all kept, so
    that there may be more than k; at the others the derivative is 0.

    Parameters
    ----------
    k
        From 1; samples of k entries or fewer stay as they are.

    Raises
    ------
    ValueError, TypeError
        ``k`` is no whole number of at least 1.

    Examples
    --------
    >>> TopK(2)(torch.tensor([3.0, -1.0, -4.0, 0.5]))
    tensor([ 3.,  0., -4.,  0.])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = check_int("k", k, minimum=1)

    def forward(self, features: Tensor) -> Tensor:
        out = dropped(features, self.k)
        return features if out is None else features.masked_fill(out, 0.0)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class TopKSphere(TopK):
    """:class:`TopK`, then the projection onto the sphere of radius ``sqrt(m)``, m the entries of a sample.

    This project's own definition. Where all that is kept is 0, the value and the derivative are 0.

    Parameters
    ----------
    k
        As in :class:`TopK`.

    Examples
    --------
    >>> TopKSphere(2)(torch.tensor([3.0, -1.0, -4.0, 0.5]))
    tensor([ 1.2000,  0.0000, -1.6000,  0.0000])
    """

    def forward(self, features: Tensor) -> Tensor:
        return on_sphere(super().forward(features))


@dataclass(frozen=True)
class Selecting(Norm):
    """What norms that keep the k largest units have in common: which these are, rounding may decide.

    ``chosen`` (n, m) names the units to keep at n points, in place of the largest ones; None: the largest ones.
    """

    k: int
    chosen: Tensor | None = None

    @classmethod
    def numbers(cls, width: int) -> Mapping[str, int | float]:
        """See :class:`inrfast.norms.Norm`: a quarter of the units, and at least one."""
        return {"k": usual(width)}

    @classmethod
    def check_numbers(cls, width: int, **numbers: Any) -> dict[str, Any]:
        """See :class:`inrfast.norms.Norm`."""
        if not 1 <= numbers["k"] <= width:
            raise ValueError(f"k of the norm must be from 1 to the width, {width}, got {numbers['k']}")
        return numbers

    def kept(self, u: Tensor) -> Tensor:
        """Return what is kept of ``u`` (n, m) as ones, zeros elsewhere."""
        if self.chosen is not None:
            return self.chosen.to(u.dtype)
        out = dropped(u, self.k)
        return torch.ones_like(u) if out is None else (~out).to(u.dtype)

    def doubtful(self, u: Tensor, errors: Tensor) -> Tensor:
        """Return which units (n, m) may be among those that are kept, or not, where each ``u`` is off by its error."""
        if self.k >= u.shape[1]:
            return torch.zeros_like(u, dtype=torch.bool)
        low, high = (u.abs() - errors).clamp_min(0), u.abs() + errors
        next_largest = high.topk(self.k + 1, dim=1, sorted=False).values.amin(1, keepdim=True)
        least = low.topk(self.k, dim=1, sorted=False).values.amin(1, keepdim=True)
        return ~((low >= next_largest) | (high < least))


@dataclass(frozen=True)
class TopKNorm(Selecting):
    """The largest units, with the derivative ``diag(mask)``."""

    module = TopK
    native = "topk"

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype, k: int | None = None) -> TopK:
        """See :class:`inrfast.norms.Norm`."""
        return TopK(usual(width) if k is None else k)

    @classmethod
    def of(cls, module: TopK) -> TopKNorm:
        """See :class:`inrfast.norms.Norm`."""
        return cls(module.k)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`inrfast.norms.Norm`."""
        mask = self.kept(u)
        return u * mask, mask

    def backward(self, gradient: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """See :class:`inrfast.norms.Norm`."""
        return gradient * state.unsqueeze(1), None

    def slope(self, state: Tensor) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        return NormSlope(state)


@dataclass(frozen=True)
class TopKSphereNorm(Selecting):
    """The largest units on the sphere: with the mask of what is kept, ``diag(factor mask) (I - y y^T / m)``."""

    module = TopKSphere
    native = "topk_sphere"

    @classmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype, k: int | None = None) -> TopKSphere:
        """See :class:`inrfast.norms.Norm`."""
        return TopKSphere(usual(width) if k is None else k)

    @classmethod
    def of(cls, module: TopKSphere) -> TopKSphereNorm:
        """See :class:`inrfast.norms.Norm`."""
        return cls(module.k)

    def forward(self, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """See :class:`inrfast.norms.Norm`."""
        mask = self.kept(u)
        y, factor = project(u * mask)
        return y, (y, factor, mask)

    def backward(self, gradient: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, None]:
        """See :class:`inrfast.norms.Norm`."""
        y, factor, mask = state
        return project_back(gradient, (y, factor)) * mask.unsqueeze(1), None

    def slope(self, state: tuple[Tensor, Tensor, Tensor]) -> NormSlope:
        """See :class:`inrfast.norms.Norm`."""
        y, factor, mask = state
        projected: Projected = (y, factor)
        return NormSlope(factor * mask, project_directions(projected))


NORMS.add("topk", TopKNorm)
NORMS.add("topk_sphere", TopKSphereNorm)

ROWWISE = (Sphere, TopKNorm, TopKSphereNorm)
"""Norms that treat points one by one and have no weights, which training steps with written-out gradients take."""
