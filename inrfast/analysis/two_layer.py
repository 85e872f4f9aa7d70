"""The eigenvalue variance that two-layer ReLU networks have on average over their weights, in closed form."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.analysis.variance_moments import ratio
from inrfast.arrays import ArrayLike
from inrfast.errors import RangeError, check_coords, check_flag, check_float, check_int
from inrfast.modes import in_own_modes
from inrfast.ops import gemm
from inrfast.ops.gram import symmetric_tiles
from inrfast.progress import progress_bar
from inrfast.records import Record
from inrfast.threads import share

TILE = 512
"""Points a side of a tile: some six tiles in fp64 stay in the caches."""

SMALLEST, LARGEST = 1e-30, 1e37
"""Lengths and scales whose fourth powers, and products of such, fp64 holds in full."""


@dataclass(frozen=True)
class TwoLayerVariance(Record):
    """Expectations over the weights of a two-layer ReLU network; made by :func:`inrfast.two_layer_variance`.

    Attributes
    ----------
    mean, variance
        ``E[mu]`` and ``E[v]`` of the eigenvalues of the first layer's tangent kernel H.
    normalised
        ``E[v] / E[mu]^2``; NaN where all points are zero.
    off_diagonal, diagonal
        The parts of the variance: ``E[1/n sum_{i != j} H_ij^2]`` and ``E[Var(H_ii)]``.
    input
        Mean of ``cos^2(x_i, x_j)`` over pairs of different points with weights ``|x_i|^2 |x_j|^2``; None without any.
    gate
        ``E[<s_i, s_j>^2]`` over ``E[|s_i|^2 |s_j|^2]``, both summed with these weights.
    width
        Units m; None for infinitely many.
    """

    mean: float
    variance: float
    normalised: float
    off_diagonal: float
    diagonal: float
    input: float | None
    gate: float | None
    width: int | None


@in_own_modes
def two_layer_variance(
    inputs: ArrayLike, width: int | None, scale: float = 1.0, progress: bool | None = None
) -> TwoLayerVariance:
    """Return the expected eigenvalue variance of the first layer's kernel of ``a/sqrt(m) sum_r relu(<w_r, x>)``.

    The weights are ``w_r ~ N(0, kappa^2 I)``, without biases; the slopes ``s`` of the ReLUs do not depend on kappa.
    With ``rho_ij = x_i . x_j``, theta_ij the angle between two points and ``p_ij = (pi - theta_ij) / (2 pi)`` the
    probability that a unit is on at both,

        ``H_ij = a^2/m rho_ij <s_i, s_j>``,
        ``E[H_ij^2] = a^4 rho_ij^2 (p_ij^2 + p_ij (1 - p_ij) / m)``,
        ``E[(H_ii - H_jj)^2] = a^4 ((q_i - q_j)^2 (1 + 1/m) / 4 + q_i q_j theta_ij / (pi m))``, ``q_i = |x_i|^2``,

    of which ``v = 1/n sum_{i != j} H_ij^2 + 1/(2 n^2) sum_ij (H_ii - H_jj)^2`` is made: exact for every width, nothing
    cancels, and nothing n x n is stored.

    Parameters
    ----------
    inputs
        What enters the first layer, (n, d) or (..., d), two points or more: coordinates, or what an encoding makes of
        them. A bias is a column of ones, if its weight is drawn as the others are.
    width
        Units m; None: the limit of infinitely many.
    scale
        a, the size of all head weights times ``sqrt(m)``; their signs do not matter.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.

    Raises
    ------
    RangeError
        Points longer than 1e37, or all of them shorter than 1e-30 and not 0; the same of the scale.
    ValueError, TypeError
        Bad arguments; fewer than two points.

    Notes
    -----
    Cost: n^2 / 2 pairs, some 20 ns each on one thread, 16,384 points in some three seconds.

    Examples
    --------
    >>> import inrfast as inr
    >>> coords = inr.grid((16, 16))
    >>> narrow, wide = (inr.two_layer_variance(coords, width) for width in (16, 1024))
    >>> narrow.mean == wide.mean, narrow.variance > wide.variance > inr.two_layer_variance(coords, None).variance
    (True, True)

    Source: the model of Ou, Zhuang, arXiv 2512.15169, of which this project has a summary only; the moments follow from
    independent units, each on at both points with probability p_ij.
    """
    points = check_coords("inputs", inputs, None, None).detach().to(torch.float64)
    if width is not None:
        width = check_int("width", width, minimum=1)
        if width > 2**53:
            raise ValueError(f"width must be at most 2^53, or None for the limit, got {width:.3g}")
    scale = check_float("scale", scale)
    shown = None if progress is None else check_flag("progress", progress)
    n = len(points)
    if n < 2:
        raise ValueError(f"inputs must hold at least 2 points, whose eigenvalues can vary, got {n}")
    length = torch.linalg.vector_norm(points, dim=1)
    largest = float(length.amax()) or 1.0
    for name, size in (("the largest length of inputs", largest), ("scale", abs(scale))):
        if size != 0 and not SMALLEST <= size <= LARGEST:
            raise RangeError(
                f"fourth powers of sizes are needed, so {name} must be 0 or between {SMALLEST:g} and {LARGEST:g}, "
                f"got {size:.1e}"
            )
    sums = _sums(points / largest, length / largest, math.inf if width is None else width, shown)
    off, apart, input_top, input_below, gate_top, gate_below = sums.tolist()
    power = (scale * largest) ** 4
    off_diagonal, diagonal = power * off / n, power * apart / (2 * n * n)
    mean = scale**2 * float(length.square().mean()) / 2
    return TwoLayerVariance(
        mean=mean,
        variance=off_diagonal + diagonal,
        normalised=ratio(off_diagonal + diagonal, mean),
        off_diagonal=off_diagonal,
        diagonal=diagonal,
        input=input_top / input_below if input_below > 0 else None,
        gate=gate_top / gate_below if gate_below > 0 else None,
        width=width,
    )


def _sums(points: Tensor, length: Tensor, width: float, progress: bool | None) -> Tensor:
    """Return the sums over ordered pairs of different points of what :func:`_terms` gives, (6,)."""
    n = len(points)
    unit = points / torch.where(length > 0, length, 1.0).unsqueeze(1)
    energy = length.square()
    found: dict[tuple[int, int], Tensor] = {}
    lock = threading.Lock()

    with progress_bar(
        total=n * n / 2, desc="variance", unit="pair", unit_scale=True, progress=progress, leave=False
    ) as bar:

        def compute(place: tuple[slice, slice]) -> None:
            i, j = place
            terms = _terms(unit[i], unit[j], energy[i], energy[j], width)
            if i == j:
                for term in terms:
                    term.fill_diagonal_(0)
            found[i.start, j.start] = (1 if i == j else 2) * torch.stack([term.sum() for term in terms])
            with lock:
                bar.update((i.stop - i.start) * (j.stop - j.start) / (2 if i == j else 1))

        jobs: list[Callable[[tuple[slice, slice]], None]] = [compute] * gemm.threads(torch.float64, points.device)
        share(symmetric_tiles(n, TILE), jobs if n > TILE else jobs[:1])
    return torch.stack([found[place] for place in sorted(found)]).sum(0)


def _terms(unit: Tensor, other: Tensor, energy: Tensor, energies: Tensor, width: float) -> tuple[Tensor, ...]:
    """Return of all pairs, for a = 1: ``E[H_ij^2]``, ``E[(H_ii - H_jj)^2]``, and what the similarities are made of.

    The angle comes from the chords ``|u - v|`` and ``|u + v|``: the cosine of near points has no digits of it.
    """
    exact = "donot_use_mm_for_euclid_dist"
    chord, opposite = (torch.cdist(unit, v, compute_mode=exact) for v in (other, -other))
    turn = torch.atan2(chord, opposite) * (2 / math.pi)  # theta / pi
    p = (1 - turn) / 2
    both = torch.outer(energy, energies)
    cosine = (unit @ other.t()).square_()
    inner = p * (p + (1 - p) / width)
    squared = both * cosine
    apart = (energy.unsqueeze(1) - energies).square_() * ((1 + 1 / width) / 4) + both * turn / width
    gates = p / width + (1 - 1 / width) / 4
    return squared * inner, apart, squared, both, both * inner, both * gates
