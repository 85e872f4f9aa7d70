"""Regularisers of signed distances: the eikonal equation, normals of a surface, and no surface elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from inrfast.arrays import ArrayLike
from inrfast.errors import check_float, check_int, check_tensor
from inrfast.training.regularizers.drawing import own_copy
from inrfast.training.regularizers.passes import evaluated
from inrfast.training.regularizers.smoothness import PART, _Smoothness

UNIT = 1e-3
"""Largest deviation of a normal's length from 1."""


class _OfDistances(_Smoothness):
    """What all have in common: derivatives by autograd, in place of differences."""

    instead = "take a norm of single points, such as 'sphere', or none"

    def __init__(self, points: ArrayLike | Sequence[int], **options: Any) -> None:
        if "mode" in options:
            raise TypeError(f"{type(self).__name__} takes no mode: its derivatives are exact")
        super().__init__(points, mode="derivatives", **options)

    def extra_repr(self) -> str:
        return f"points={len(self.points)}, rows={self.rows or PART}"


class Eikonal(_OfDistances):
    """Mean over points of how far the norm of a network's gradient is from 1, as the norm of a distance's is 1.

    ``inr.fit(net, x, d, regularizers=[(inr.Eikonal((32, 32, 32)), 0.1)])``: of ``| |grad f| - 1 |``, summed over the
    outputs of the network. Distances are in the units of the coordinates.

    Parameters
    ----------
    points
        The shape of a grid, ``(32, 32, 32)``, in the box [-1, 1]^d, or points (N, d), such as random ones in the box.
    p
        1: of the magnitudes of the deviations (as SIREN does); 2: of their squares (as IGR does).
    rows
        How many of the points take part in a step: a number, or ``"all"``; None: 4,096, or all where there are fewer.
    select
        As in :func:`inrfast.fit`.
    seed
        Of the points that are drawn: they hang on seed and step alone.
    device, dtype
        Of the points; default fp32 on the CPU, or those of the points that are given.

    Raises
    ------
    ValueError, TypeError
        Points that hold NaN; more ``rows`` than points; a network with batch norms in train mode, which couple points.

    Notes
    -----
    A ReLU network's gradient is constant on each of its pieces: its norm can be 1 on all of them. Other networks are
    smooth, and the norm of their gradient falls below 1 where a distance has an edge, as in the middle of a body.

    Source: Gropp, Yariv, Haim, Atzmon, Lipman, Implicit geometric regularization for learning shapes, ICML 2020,
    equation 2; Sitzmann et al., SIREN, NeurIPS 2020, section 4.2.

    Examples
    --------
    >>> import torch
    >>> plane = torch.nn.Linear(2, 1).requires_grad_(False)
    >>> plane.weight[:] = torch.tensor([[3.0, -4.0]])
    >>> [float(Eikonal((8, 8), p)(plane)) for p in (1, 2)]
    [4.0, 16.0]
    """

    def __init__(self, points: ArrayLike | Sequence[int], p: int = 1, **options: Any) -> None:
        super().__init__(points, **options)
        self.p = check_int("p", p, minimum=1)
        if self.p > 2:
            raise ValueError(f"p must be 1 (magnitudes) or 2 (squares), got {p}")

    def _of(self, slopes: Tensor) -> Tensor:
        deviations = torch.linalg.vector_norm(slopes, dim=2) - 1
        return (deviations.abs() if self.p == 1 else deviations.square()).sum(1).mean()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class NormalAlignment(_OfDistances):
    """Mean over points of a surface of ``1 - cos`` of the angle between a network's gradient and the surface's normal.

    Parameters
    ----------
    points
        Points (N, d) of the surface.
    normals
        Vectors (N, d) of length 1 that look outward, where a signed distance grows.
    options
        ``rows``, ``select``, ``seed``, ``device`` and ``dtype`` of :class:`Eikonal`.

    Raises
    ------
    ValueError, TypeError
        Points or normals that hold NaN, other shapes, normals of another length than 1; a network of several outputs.

    Source: Sitzmann et al., SIREN, NeurIPS 2020, equation 6.
    """

    def __init__(self, points: ArrayLike, normals: ArrayLike, **options: Any) -> None:
        super().__init__(points, **options)
        given = check_tensor("normals", normals, ndim=2).detach()
        if given.shape != self.points.shape:
            raise ValueError(f"normals must have the shape of points, {tuple(self.points.shape)}, got {given.shape}")
        lengths = torch.linalg.vector_norm(given.double(), dim=1)
        if bool(((lengths - 1).abs() > UNIT).any()):
            worst = int((lengths - 1).abs().argmax())
            raise ValueError(f"normals must have length 1, got length {float(lengths[worst]):.4g} in row {worst}")
        self.normals = own_copy(given.to(self.points))

    def _value(self, net: nn.Module, step: int | None) -> Tensor:
        some, calling = self._drawn(net, step)
        _, slopes = self._derivatives(net, calling, some)
        if slopes.shape[1] != 1:
            raise ValueError(f"NormalAlignment takes a network of one output, the distance, got {slopes.shape[1]}")
        return (1 - cosine_similarity(slopes[:, 0], self.normals[some], dim=1)).mean()

    def _apply(self, fn: Any, recurse: bool = True) -> NormalAlignment:
        """Move or convert the normals too."""
        super()._apply(fn, recurse)
        self.normals = fn(self.normals)
        return self


class OffSurface(_OfDistances):
    """Mean over points away from a surface of ``exp(-alpha |f|)``: where no points are, no surface should be.

    Parameters
    ----------
    points
        The shape of a grid in the box [-1, 1]^d, or points (N, d).
    alpha
        Per unit of distance: values of more than a few ``1/alpha`` cost nothing.
    options
        ``rows``, ``select``, ``seed``, ``device`` and ``dtype`` of :class:`Eikonal`.

    Raises
    ------
    ValueError, TypeError
        Points that hold NaN, an ``alpha`` that is not above 0.

    Source: Sitzmann et al., SIREN, NeurIPS 2020, equation 6.
    """

    def __init__(self, points: ArrayLike | Sequence[int], alpha: float = 100.0, **options: Any) -> None:
        super().__init__(points, **options)
        self.alpha = check_float("alpha", alpha, minimum=0.0, exclusive=True)

    def _value(self, net: nn.Module, step: int | None) -> Tensor:
        some, calling = self._drawn(net, step)
        values = evaluated(net, calling, self.points[some])
        return torch.exp(-self.alpha * values.abs()).mean()
