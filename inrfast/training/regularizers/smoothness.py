"""Regularisers of smoothness: total variation and Dirichlet energy of a network, by differences or by derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.calling import Calling, Select
from inrfast.errors import check_choice, check_coords, check_int, check_seed, check_tensor
from inrfast.grids import grid
from inrfast.nn import INR, declared_sizes
from inrfast.training.data import is_grid
from inrfast.training.derivatives import gradient
from inrfast.training.regularizers.drawing import Part, check_part, drawn, generator_of, own_copy
from inrfast.training.regularizers.passes import buffers_kept, evaluated, points_taken

MODES = ("differences", "derivatives")
"""How a gradient is taken; first the default."""

PART = 4096
"""Points of a step by default."""

UNEVEN = 1e-3
"""Share of a spacing by which those of one axis of a regular grid may differ: they are rounded."""


class _Smoothness(nn.Module):
    """What both have in common: the gradient of a network at points, all or a random part of them per step.

    Parameters
    ----------
    points
        The shape of a grid, ``(256, 256)``, in :func:`inrfast.grid`'s box [-1, 1]^d; or points: (*grid, d), (N, d) in
        row-major order, and with ``mode="derivatives"`` any.
    mode
        ``"differences"``: of the values at a point and at the next one along each axis, over their distance; 0 where
        there is no next one. ``"derivatives"``: exactly, by autograd.
    rows
        How many of the points take part in a step: a number, or ``"all"``; None: 4,096, or all where there are fewer.
    select
        As in :func:`inrfast.fit`.
    seed
        Of the points that are drawn: they hang on seed and step alone.
    """

    instead = "use mode='differences'"
    """What to do where points are coupled, for the message."""

    def __init__(
        self,
        points: ArrayLike | Sequence[int],
        *,
        mode: str = MODES[0],
        rows: Part | None = None,
        select: Select = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = check_choice("mode", mode, MODES)
        self.seed = check_seed("seed", seed)
        shaped = _points_of(points, device, dtype)
        self.points = own_copy(check_coords("points", shaped))
        self.select, self.axes = select, 2 if shaped.ndim == self.points.shape[1] + 1 else shaped.ndim
        self.rows = check_part("rows", rows, len(self.points), "points")
        self.shape = _grid_of(shaped, self.points) if self.mode == MODES[0] else ()

    def forward(self, net: nn.Module, step: int | None = None) -> Tensor:
        """Return the regulariser of a network, a tensor of one element, over the points that ``step`` draws.

        Without a step they are drawn from PyTorch's generator.

        Raises
        ------
        ValueError, TypeError
            The network is of another dtype or device than the points, or does not take their coordinates; with
            ``mode="derivatives"`` it has batch norms in train mode, or was made in inference mode.
        """
        own = next((p for p in net.parameters() if p.is_floating_point()), None)
        if own is not None and (own.dtype != self.points.dtype or own.device != self.points.device):
            raise TypeError(
                f"{type(self).__name__} has points of {self.points.dtype} on {self.points.device}, and the network is "
                f"{own.dtype} on {own.device}; make it with dtype= and device=, or move it (.to)"
            )
        taken, d = declared_sizes(net)[0], self.points.shape[1]
        if taken not in (None, d):
            raise ValueError(
                f"{type(self).__name__} has points of {d} coordinates, and net takes {taken}: give points=, the shape "
                f"of a grid of {taken} axes or points (N, {taken})"
            )
        with points_taken(f"net ({type(net).__name__}) does not take the points (N, {d}) of {type(self).__name__}"):
            return self._value(net, step)

    def _value(self, net: nn.Module, step: int | None) -> Tensor:
        """Return the regulariser over the points that a step draws."""
        some, calling = self._drawn(net, step)
        if self.mode == MODES[0]:
            return self._of(self._differences(net, calling, some))
        return self._of(self._derivatives(net, calling, some)[1])

    def _drawn(self, net: nn.Module, step: int | None) -> tuple[Tensor, Calling]:
        """Return the numbers of the points of a step, and how the network is called."""
        numbers = torch.arange(len(self.points), device=self.points.device)
        some = drawn("rows", numbers, self.rows, PART, generator_of(self.seed, step))
        return some, Calling(self.select, 2 if isinstance(net, INR) else self.axes)

    def _derivatives(self, net: nn.Module, calling: Calling, some: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (n, M) and gradients (n, M, d) at some of the points, by autograd."""
        _stands_alone(net, self.instead)
        if any(own.is_inference() for own in net.parameters()):
            raise ValueError("net was made in inference mode, where nothing has derivatives; make it outside")
        with torch.inference_mode(False), torch.enable_grad():  # which the caller may have switched off
            coords = self.points[some.clone()].requires_grad_()
            with buffers_kept(net):
                values = calling.predicted(net, coords)
            return values, gradient(values, coords)

    def _of(self, slopes: Tensor) -> Tensor:
        """Return the regulariser of gradients (n, M, d)."""
        raise NotImplementedError

    def _differences(self, net: nn.Module, calling: Calling, some: Tensor) -> Tensor:
        """Return difference quotients (n, M, d) at some of the points; 0 at the end of an axis."""
        strides = [1]
        for size in self.shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        nexts, there = [], []
        for stride, size in zip(strides, self.shape, strict=True):
            inside = (some // stride) % size < size - 1
            nexts.append(torch.where(inside, some + stride, some))
            there.append(inside)
        needed, place = torch.unique(torch.cat([some, *nexts]), return_inverse=True)  # no point twice
        values = evaluated(net, calling, self.points[needed])[place].unflatten(0, (1 + len(nexts), len(some)))
        slopes = []
        for axis, (following, inside) in enumerate(zip(nexts, there, strict=True)):
            apart = self.points[following, axis] - self.points[some, axis]
            apart = torch.where(inside, apart, torch.ones_like(apart)).unsqueeze(1)
            slopes.append((values[1 + axis] - values[0]) / apart)
        return torch.stack(slopes, dim=2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Smoothness:
        """Move or convert the points too: they are settings, not state."""
        super()._apply(fn, recurse)
        self.points = fn(self.points)
        return self

    def extra_repr(self) -> str:
        return f"points={len(self.points)}, mode={self.mode!r}, rows={self.rows or PART}"


class TotalVariation(_Smoothness):
    """Mean over points of the norm of a network's gradient, summed over its outputs.

    ``inr.fit(net, x, y, regularizers=[(inr.TotalVariation((256, 256)), 1e-3)])``. The gradient is one of the
    coordinates, whatever the grid: the sum of the differences of a picture's n x n pixels is this value times n^2 and
    the distance of two pixels.

    Parameters
    ----------
    points, mode, rows, select, seed
        The shape of a grid, ``(256, 256)`` in the box [-1, 1]^d, or points (*grid, d) or (N, d) of a regular grid; with
        ``mode="derivatives"`` (exact, by autograd, in place of ``"differences"`` of the values at a point and at the
        next one along each axis, 0 where there is none) any points. ``rows`` of them, a number or ``"all"``, are drawn
        in each step from ``seed``; None: 4,096, or all where there are fewer.
    p
        2: the Euclidean norm of the gradient, isotropic; 1: the sum of the magnitudes along the axes, anisotropic.
    device, dtype
        Of the points; default fp32 on the CPU, or those of the points that are given.

    Raises
    ------
    ValueError, TypeError
        Points that are no regular grid (of differences), or hold NaN; more ``rows`` than points.

    Notes
    -----
    Batch norms in train mode take the statistics of the points of the pass, and their running statistics, which an
    evaluation takes, stay those of the points of the fit. With ``mode="derivatives"`` they are refused.

    Source: Rudin, Osher, Fatemi, Nonlinear total variation based noise removal algorithms, Physica D 60 (1992).

    Examples
    --------
    >>> import torch
    >>> plane = torch.nn.Linear(2, 1).requires_grad_(False)
    >>> plane.weight[:] = torch.tensor([[3.0, -4.0]])
    >>> [float(TotalVariation((8, 8), p, mode="derivatives")(plane)) for p in (1, 2)]
    [7.0, 5.0]
    """

    def __init__(self, points: ArrayLike | Sequence[int], p: int = 2, **options: Any) -> None:
        super().__init__(points, **options)
        self.p = check_int("p", p, minimum=1)
        if self.p > 2:
            raise ValueError(f"p must be 1 (anisotropic) or 2 (isotropic), got {p}")

    def _of(self, slopes: Tensor) -> Tensor:
        norms = slopes.abs().sum(2) if self.p == 1 else torch.linalg.vector_norm(slopes, dim=2)
        return norms.sum(1).mean()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class DirichletEnergy(_Smoothness):
    """Half the mean over points of the squared norm of a network's gradient, summed over its outputs.

    ``inr.fit(net, x, y, regularizers=[(inr.DirichletEnergy(grid), 1e-3)])``: ``1/2 mean |grad f|^2``, which is the
    Dirichlet energy ``1/2 integral |grad f|^2`` over the volume of the box.

    Parameters
    ----------
    points, mode, rows, select, seed, device, dtype
        See :class:`TotalVariation`.

    Raises
    ------
    ValueError, TypeError
        See :class:`TotalVariation`.

    Examples
    --------
    >>> import torch
    >>> energy = DirichletEnergy((16, 16), mode="derivatives")
    >>> plane = torch.nn.Linear(2, 1).requires_grad_(False)
    >>> plane.weight[:] = torch.tensor([[3.0, 4.0]])
    >>> float(energy(plane))
    12.5
    """

    def _of(self, slopes: Tensor) -> Tensor:
        return slopes.square().sum((1, 2)).mean() / 2


def _stands_alone(net: nn.Module, instead: str) -> None:
    """Refuse derivatives where a move of one point moves the values of others, which cancels them."""
    for name, own in net.named_modules():
        if isinstance(own, nn.modules.batchnorm._BatchNorm) and (own.training or own.running_mean is None):
            raise ValueError(
                f"derivatives need values of single points, and {name or 'net'} ({type(own).__name__}) takes the "
                f"statistics of all in train mode: {instead}"
            )


def _points_of(given: Any, device: Any, dtype: torch.dtype | None) -> Tensor:
    """Return the points (..., d) of a shape, or as they are given."""
    numbers = isinstance(given, int) or (isinstance(given, Sequence) and all(isinstance(n, int) for n in given))
    if numbers and not isinstance(given, bool | str):
        return grid(given, dtype=dtype or torch.float32, device=device)
    return check_tensor("points", given, finite=False, device=device).to(device=device, dtype=dtype)


def _grid_of(shaped: Tensor, points: Tensor) -> tuple[int, ...]:
    """Return the number of points along each axis of a regular grid.

    Raises
    ------
    ValueError
        The points are none.
    """
    if points.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"points must be in fp32 or fp64 for mode='differences', got {points.dtype}, whose distances are uneven; "
            "mode='derivatives' takes any"
        )
    counts = tuple(len(torch.unique(axis)) for axis in points.unbind(1))
    shape = tuple(shaped.shape[:-1]) if shaped.ndim == points.shape[1] + 1 else counts
    if not is_grid(points, shape) or min(shape) < 1 or not _is_even(points.reshape(*shape, len(shape))):
        raise ValueError(
            f"points must be a regular grid in row-major order for mode='differences', as inrfast.grid makes them, got "
            f"{len(points)} points with {', '.join(map(str, counts))} different coordinates along the axes; "
            "mode='derivatives' takes any"
        )
    return shape


def _is_even(points: Tensor) -> bool:
    """Return whether the points of a grid (*grid, d) have one distance along each axis."""
    for axis in range(points.ndim - 1):
        line = points[..., axis].movedim(axis, -1).reshape(-1, points.shape[axis])[0].double()
        steps = line.diff()
        if len(steps) and not bool(((steps - steps.mean()).abs() <= UNEVEN * steps.mean().abs()).all()):
            return False
    return True
