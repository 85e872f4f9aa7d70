"""Power series of ``h = K^-1 o K*`` of two dot-product kernels: h on the real axis, and its coefficients by Cauchy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DotProduct = Callable[[Tensor], Tensor]

BISECTIONS = 62
"""Halvings of [-1, 1] down to rounding."""

OUTWARD, FOLLOWING, NEWTON = 24, 2, 8
"""Steps from the centre to the circle, Newton's steps at each, and at most at a circle itself."""

STEP = 1e-5
"""Of the difference that gives K's slope to Newton's method, whose limit does not depend on it."""

SETTLED = 1e-15
"""Newton's last step."""

DIGITS = 3.0
"""Decimal digits that the highest coefficient may lose to the radius of the circle."""

AGREES = 1e-7
"""Largest difference of series and h on the real axis, inside the circle, that counts as agreement."""

SURE = 8
"""How many times its estimated error a coefficient lies below zero to be called negative."""


@dataclass(frozen=True, eq=False)
class Series:
    """Coefficients of h with their errors, degrees with negative ones and the sum of their sizes.

    Not ``analytic``: the series does not give h, which then has a singularity inside the circle.
    """

    coefficients: Tensor
    errors: Tensor
    analytic: bool

    @property
    def negative(self) -> tuple[int, ...]:
        """Degrees whose coefficients are surely negative."""
        return tuple(int(k) for k in (self.coefficients < -SURE * self.errors).nonzero()[:, 0])

    @property
    def refused(self) -> float:
        """The sum of the sizes of the coefficients that are surely negative."""
        return float(-sum(self.coefficients[k] for k in self.negative)) if self.negative else 0.0


def increasing_from(kernel: DotProduct, c: Tensor, values: Tensor) -> float:
    """Return the first of the ascending points c from which on the kernel increases to 1.

    Raises
    ------
    ValueError
        It does not increase at 1.
    """
    falling = (values.diff() <= 0).nonzero()[:, 0]
    first = int(falling[-1]) + 1 if len(falling) else 0
    if first >= len(c) - 2:
        raise ValueError("kernel must increase towards c = 1, or it has no inverse there")
    return float(c[first])


def inverse_on(kernel: DotProduct, wanted: Tensor, start: float) -> Tensor:
    """Return ``K^-1`` of values, between ``start`` and 1, where K increases.

    Raises
    ------
    ValueError
        K does not take all of the values there.
    """
    ends = torch.tensor([start, 1.0], dtype=torch.float64)
    least, most = (float(value) for value in kernel(ends))
    slack = 1e-12 * max(abs(least), abs(most))
    if float(wanted.amin()) < least - slack or float(wanted.amax()) > most + slack:
        raise ValueError(
            f"target must have values that kernel takes where it increases (from c = {start:.4g} to 1): {least:.6g} to "
            f"{most:.6g}, got {float(wanted.amin()):.6g} to {float(wanted.amax()):.6g}"
        )
    low, high = torch.full_like(wanted, start), torch.ones_like(wanted)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = kernel(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(wanted >= most - 1e-15 * abs(most), 1.0, (low + high) / 2)


def power_series(kernel: DotProduct, target: DotProduct, centre: float, degree: int, c: Tensor, h: Tensor) -> Series:
    """Return the coefficients of h up to a degree, from its values on two circles; ``h(0)`` is ``centre``.

    On a circle of radius r, h is found by Newton's method, from the centre outward, and ``a_k r^k`` by a Fourier
    transform. The radius leaves the highest coefficient all but :data:`DIGITS` of fp64's digits.
    """
    outer = 10 ** (-DIGITS / max(degree, 8))
    count = max(512, 1 << (8 * degree - 1).bit_length())
    found = []
    radii = (outer**1.3, outer)
    for radius, (values, off) in zip(radii, on_circles(kernel, target, centre, radii, count), strict=True):
        scaled = torch.fft.fft(values)[: degree + 1] / count
        found.append((scaled.real / radius ** torch.arange(degree + 1, dtype=torch.float64), off))
    (second, _), (first, off) = found
    errors = (first - second).abs() + 1e-15 / outer ** torch.arange(degree + 1, dtype=torch.float64)
    inside = c.abs() <= 0.5  # where what is left out has vanished for degrees of 8 and more
    powers = c[inside].unsqueeze(1) ** torch.arange(degree + 1, dtype=torch.float64)
    left_out = 2 * 0.5 ** (degree + 1)
    agrees = float((powers @ first - h[inside]).abs().amax()) <= AGREES + left_out
    analytic = bool(torch.isfinite(first).all()) and off <= AGREES and agrees
    empty = first[:0]
    return Series(first if analytic else empty, errors if analytic else empty, analytic)


def on_circles(
    kernel: DotProduct, target: DotProduct, centre: float, radii: tuple[float, ...], count: int
) -> list[tuple[Tensor, float]]:
    """Return h at points of circles, ascending in radius, each with the largest relative residual of ``K(h) = K*``."""
    angles = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / count
    circle = torch.polar(torch.ones_like(angles), angles)
    h, found = torch.full_like(circle, centre), []
    before, last, width = h, 0.0, 1.0
    way = [float(t) for t in torch.linspace(0, radii[0], OUTWARD + 1, dtype=torch.float64)[1:]]
    for t in [*way, *radii[1:]]:
        wanted = target(t * circle)
        if last > 0:  # straight on, which keeps to a branch where K has no slope
            h, before = h + (h - before) * ((t - last) / width), h
        else:
            before = h
        width, last = t - last, t
        for _ in range(NEWTON if t in radii else FOLLOWING):
            here = kernel(h)
            move = (here - wanted) * STEP / (kernel(h + STEP) - here)
            h = h - move
            if not float(move.abs().amax()) > SETTLED:
                break
        if t in radii:
            rest = (kernel(h) - wanted).abs().amax() / wanted.abs().amax().clamp_min(1e-300)
            found.append((h, float(rest)))
    return found
