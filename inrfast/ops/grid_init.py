"""Rank-expanding initialisation: the weights and biases that place the units' hinges on a grid, facing outward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.backends import warn_once
from inrfast.errors import NotAvailableError, check_choice, check_float, check_int, check_tensor
from inrfast.extension import load_cuda, load_extension, native_variant
from inrfast.grids import check_bounds
from inrfast.memory import counted, require_free, tells_refusals
from inrfast.ops.grid_units import fill_units

DEFAULT_EPS = 1e-3
"""Shift of the hinges for d >= 2: anything from 1e-6 to 1e-2 gives the same rank, so a round number inside."""

MAX_WIDTH = 2**31 - 1
"""Up to here the grid indices are exact in 64 bits."""

MAX_INPUTS = 2**14
"""Input dimensions at most: the primes of Richtmyer's sequence take longer to find than their number suggests."""


@tells_refusals
def rank_expanding(
    width: int,
    in_features: int,
    eps: float | str | None = None,
    gain: float = 1.0,
    bounds: Any = (-1, 1),
    coords: ArrayLike | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return the weights and biases of a rank-expanding ReLU layer on raw coordinates.

    Unit k is ``gain * (w_k . x_hat + b_k)``, where ``x_hat`` is ``x`` mapped from ``bounds`` to ``[-1, 1]^d``.

    - d >= 2: the hinge passes near a point ``v_k``, facing away from the origin: ``w = v / |v|``, ``b = eps - |v|``.
      The points thin the p^d grid evenly, ``p = ceil(D^(1/d))``: unit k takes the flat row-major index
      ``floor(k p^d / D)``, and indices i = 1..p on an axis sit at ``(2 i - p - 1) / (p + 1)``. The centre ``v = 0``
      takes the first unit vector and ``b = eps``. With fewer units than the 2^d corners of a box (``1 < D < 2^d``) the
      points are those of Richtmyer's sequence instead, ``v_kj = 2 (k + 1) sqrt(prime_j)`` modulo 2 in [-1, 1).
    - d = 1: the triangular form, ``w = 1``, ``b = eps - x_k``: the units on the points ``x_k`` have full rank.

    Parameters
    ----------
    width, in_features
        D >= 1 units and d input dimensions, 1 to 16,384.
    eps
        Shift of the hinges in units of ``x_hat``. For d >= 2 any number >= 0; None is 1e-3, and ``"cover"`` is
        ``sqrt(d) / (p + 1)``, for which no point near the origin is left without an active unit. For d = 1
        ``0 < eps <= h``, the smallest spacing; None is h itself, the best conditioned; ``"cover"`` is refused.
    gain
        Multiplies W and b; above 0. The layer's output is about a third of torch's default at gain 1.
    bounds
        ``(low, high)`` of the coordinates on every axis, or one such pair an axis.
    coords
        For d = 1 only: the D points, sorted and distinct, floating, of shape (D,) or (D, 1). They and ``eps`` are then
        in the caller's own units, so ``bounds`` stays at its default. None is a uniform grid that includes both ends.
    dtype, device
        Of the result: float32 or float64; computed in fp64 and rounded once, the same on CPU and CUDA to the bit, with
        the native extension and without. The default device is that of ``coords``, or the CPU.

    Returns
    -------
    W of shape (width, in_features), b of shape (width,)

    Raises
    ------
    TypeError, ValueError
        A bad argument; the message names it.
    NotAvailableError
        ``device`` is not here.
    MemoryBudgetError
        The layer would take more than half of what is free.

    Source: Zheng, Saratchandran, Lucey, *Inlet Rank Collapse*, arXiv 2602.01526, equations 12-13 (2-D) and the 1-D
    triangular form before them; their p x p rule is extended here to any d and D.
    """
    coords = None if coords is None else as_tensor("coords", coords)
    request = _check(width, in_features, eps, gain, bounds, coords, dtype)
    target = _check_device(coords.device if device is None and coords is not None else device)
    native, memory = _native_for(target)
    weight = torch.empty((request.width, request.in_features), dtype=dtype, device=memory)
    bias = torch.empty(request.width, dtype=dtype, device=memory)
    _fill(weight, bias, request, native)
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError(f"eps={eps}, gain={gain} and bounds={bounds} leave the range of {dtype}")
    return weight.to(target), bias.to(target)


def _native_for(target: torch.device) -> tuple[ModuleType | None, torch.device]:
    """Return the native module that computes, or None for NumPy, and the device whose memory it fills."""
    if target.type == "cuda":
        try:
            return load_cuda(), target
        except NotAvailableError as error:
            if native_variant() != "absent":
                warn_once(f"rank_expanding computes on the CPU and copies: {error}")
    try:
        return load_extension(), torch.device("cpu")
    except NotAvailableError:
        return None, torch.device("cpu")  # NumPy's results are the same, at a similar rate


def _fill(weight: Tensor, bias: Tensor, request: _Request, native: ModuleType | None) -> None:
    """Fill tensors on the CPU, or on a GPU by its own native module."""
    points = None if request.points is None else request.points.to(weight.device)
    if native is None:
        arrays = weight.numpy(), bias.numpy(), None if points is None else points.numpy()
        p = points_per_axis(request.width, request.in_features)
        fill_units(arrays[0], arrays[1], request.eps, request.gain, request.bounds, arrays[2], p)
        return
    queue: dict[str, Any] = {}
    if weight.is_cuda:
        queue = {"device": weight.get_device(), "stream": torch.cuda.current_stream(weight.device).cuda_stream}
    native.rank_expanding(
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        width=request.width,
        eps=request.eps,
        gain=request.gain,
        lows=[low for low, _ in request.bounds],
        highs=[high for _, high in request.bounds],
        coords=0 if points is None else points.data_ptr(),
        itemsize=weight.itemsize,
        **queue,
    )


def rank_expanding_reference(
    width: int,
    in_features: int,
    eps: float | str | None = None,
    gain: float = 1.0,
    bounds: Any = (-1, 1),
    coords: ArrayLike | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`rank_expanding` returns, from plain Python numbers on the CPU: slow, and easy to check."""
    request = _check(width, in_features, eps, gain, bounds, coords, dtype)
    scales = [2.0 / (high - low) for low, high in request.bounds]
    shifts = [(low + high) / (high - low) for low, high in request.bounds]
    weights, biases = [], []
    for k in range(request.width):
        if request.in_features == 1:
            last = request.width - 1
            uniform = (2 * k - last) / last if last else 0.0
            point = uniform if request.points is None else float(request.points[k])
            direction, hinge = [1.0], request.eps - point
        else:
            vector, unit = _point(k, request.width, request.in_features)
            norm = math.sqrt(_sum_from_last([v * v for v in vector]))
            direction = [v / norm for v in vector] if norm else [1.0] + [0.0] * (len(vector) - 1)
            hinge = request.eps - norm / unit
        offset = _sum_from_last([w * shift for w, shift in zip(direction, shifts, strict=True)])
        weights.append([w * scale * request.gain for w, scale in zip(direction, scales, strict=True)])
        biases.append((hinge - offset) * request.gain)
    as_fp64 = torch.tensor(weights, dtype=torch.float64), torch.tensor(biases, dtype=torch.float64)
    return as_fp64[0].to(dtype), as_fp64[1].to(dtype)


def points_per_axis(width: int, in_features: int) -> int:
    """Return ``p = ceil(width^(1/in_features))`` in exact integers."""
    if in_features == 1:
        return width
    p = 1
    while p**in_features < width:
        p += 1
    return p


@dataclass(frozen=True)
class _Request:
    """Checked arguments, in the numbers that the geometry is computed from."""

    width: int
    in_features: int
    eps: float
    gain: float
    bounds: list[tuple[float, float]]
    points: Tensor | None  # (width,) in fp64 on the CPU: the points of the d = 1 form, or None for a uniform grid


def _check(width: Any, in_features: Any, eps: Any, gain: Any, bounds: Any, coords: Any, dtype: torch.dtype) -> _Request:
    width = check_int("width", width, minimum=1)
    in_features = check_int("in_features", in_features, minimum=1)
    item = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    # The weight, the bias, and what a check of their numbers takes beside them.
    require_free(
        width * (in_features + 1) * (2 * item + 1),
        f"a layer of width {counted(width)} with in_features {counted(in_features)}",
        "take fewer units",
    )
    if width > MAX_WIDTH:
        raise ValueError(f"width must be at most {MAX_WIDTH}, got {width}")
    if in_features > MAX_INPUTS:
        raise ValueError(f"in_features must be at most {MAX_INPUTS}, got {in_features}")
    gain = check_float("gain", gain, minimum=0.0, exclusive=True)
    pairs = check_bounds(bounds, in_features)
    if not all(math.isfinite(high - low) for low, high in pairs):
        raise ValueError(f"bounds must span a finite length on every axis, got {bounds!r}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if isinstance(eps, str):
        check_choice("eps", eps, ("cover",))
    if in_features == 1:
        coords = None if coords is None else check_tensor("coords", coords)
        points = None if coords is None else _check_points(coords, width, pairs)
        return _Request(width, in_features, _line_eps(eps, width, coords, points), gain, pairs, points)
    if coords is not None:
        raise ValueError(f"coords are the points of a one-dimensional layer, but in_features is {in_features}")
    if eps is None:
        eps = DEFAULT_EPS
    elif eps == "cover":
        eps = math.sqrt(in_features) / (points_per_axis(width, in_features) + 1)
    return _Request(width, in_features, check_float("eps", eps, minimum=0.0), gain, pairs, None)


def _check_points(coords: Tensor, width: int, pairs: list[tuple[float, float]]) -> Tensor:
    if tuple(coords.shape) not in ((width,), (width, 1)):
        raise ValueError(f"coords must have shape ({width},) or ({width}, 1), got {tuple(coords.shape)}")
    if pairs != [(-1.0, 1.0)]:
        raise ValueError(f"bounds must stay at (-1, 1) where coords are given in their own units, got {pairs[0]}")
    points = coords.detach().reshape(-1).to("cpu", torch.float64).contiguous()
    if bool((points.diff() <= 0).any()):
        raise ValueError("coords must be sorted and distinct: each one above the one before")
    return points


def _line_eps(eps: Any, width: int, coords: Tensor | None, points: Tensor | None) -> float:
    """Return eps of the triangular form, which has full rank for ``0 < eps <= spacing`` only."""
    if eps == "cover":
        raise ValueError("eps='cover' has no meaning for in_features=1; None takes the smallest spacing")
    if width == 1:
        spacing, slack = math.inf, 0.0
    elif coords is None or points is None:
        spacing, slack = 2.0 / (width - 1), 0.0
    else:
        # Neighbours of a uniform grid differ by a rounding of the coordinates: the grid's own step must pass.
        spacing = float(points.diff().min())
        slack = 2 * torch.finfo(coords.dtype).eps * float(points.abs().max())
    if eps is None:
        return 2.0 if width == 1 else spacing
    value = check_float("eps", eps, minimum=0.0, exclusive=True)
    if value > spacing + slack:
        raise ValueError(f"eps must be at most the smallest spacing of the points, {spacing:.6g}, got {value:.6g}")
    return value


def _check_device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError(f"device={str(target)!r} cannot be used: torch finds no CUDA device here")
    return target


def _point(k: int, width: int, in_features: int) -> tuple[list[float], float]:
    """Return the point of unit k as a vector and the length of its unit: v = vector / unit."""
    if 1 < width < 2**in_features:
        # The same 45 or more bits of each root that fp64 holds, so that the sequence is the same to the bit.
        steps = [int(math.modf(math.sqrt(prime))[0] * 2**64) for prime in _primes(in_features)]
        turns = [(k + 1) * step % 2**64 for step in steps]
        return [(turn - 2**64 if turn >= 2**63 else turn) / 2**63 for turn in turns], 1.0
    p = points_per_axis(width, in_features)
    index = k * p**in_features // width
    digits = [index // p**axis % p for axis in reversed(range(in_features))]
    return [float(2 * digit + 1 - p) for digit in digits], p + 1.0


def _primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


def _sum_from_last(terms: list[float]) -> float:
    """Return the sum in the order in which the native code meets the axes, the last one first."""
    total = 0.0
    for term in reversed(terms):
        total += term
    return total
