"""An estimate of a tangent kernel's eigenvalue variance from the pairs within random disjoint blocks of points.

The variance is a mean over pairs of points (:mod:`inrfast.analysis.variance_moments`), so that its mean over the pairs
within blocks drawn without replacement has no bias. In the finite-population form of Hoeffding's decomposition a pair's
term is ``theta + g_i + g_j + g_ij`` with ``sum_i g_i = 0`` and ``sum_j g_ij = 0``. The parts add to the variance of the
estimate from k blocks of b points out of n, m = k b, with ``s1^2 = mean g_i^2`` and ``s2^2 = mean g_ij^2``:

    4 s1^2 / m  (n - m) / (n - 1)                                                 of single points,
    s2^2 [ 1/k c + (1 - 1/k) 2 / ((n-2)(n-3)) ],
        c = 2 / (b (b-1)) (n-b)(n-b-1) / ((n-2)(n-3))                             of pairs.

The first vanishes where all points are used. ``s2^2`` is measured without the first: cut a block into halves A, B; in
``D = U_A + U_B - 2 U_AB``, of the means within and between them, the terms of single points cancel, and
``E[D^2] = s2^2 (4 / (a (a-1)) + 4 / a^2) (n-1) / (n-3)`` with a = b/2. What the spread between blocks,
``E[S^2] = 4 s1^2 n / (b (n-1)) + s2^2 (c - 2 / ((n-2)(n-3)))``, has beyond that is of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.analysis.variance_moments import Gates, PointMoments, joined, layer_pairs, point_moments
from inrfast.layers import Factors
from inrfast.memory import chunks
from inrfast.ops import gemm
from inrfast.ops.factors import Room
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.layer_products import LayerProducts, layer_products
from inrfast.progress import Bar, progress_bar
from inrfast.tangent.local import NTK
from inrfast.threads import share

LEAST_POINTS = 128
"""Fewest points of an estimate: 32 blocks of 4."""

LEAST_BLOCKS = 32
"""Blocks that an error bar is made from at least."""

BLOCK = 1024
"""Points of a block, where there are enough: their pairs then take about as long as their factors."""

CONFIDENCE = 0.95

FEWER = 4
"""Blocks that count as one normal number: measured on kernels of ReLU, sine and encoded networks, 1,000 seeds each,
intervals that took each block for one held in 91 to 96 % of them, these in 95 to 98 %."""

LEAST_EFFECTIVE = 24
"""Fewest points, ``(sum K_ii^2)^2 / sum K_ii^4``, that an interval is made from. Where fewer hold most of the squares,
means over blocks are far from normal: of 60 kernels each at points of log-normal size, 640 of them, 59 intervals held
with a median of 74 such points, 49 with 3 and 29 with 1."""

AIM = 0.9
"""Share of the allowed error that more blocks are planned for: a forecast may be wrong."""

GROWTH = 8
"""Factor by which blocks become larger at most."""


class FewPointsError(ValueError):
    """A few points hold most of a kernel's squares, so that an estimate has no interval."""


@dataclass(frozen=True)
class Estimate:
    """What is found of the matrix of pairs C (L, L), of the layers' mean eigenvalues (L,), with half widths of 95 %
    intervals: of v, of each entry of C, of mu, and of ``v - 2 (v / mu) mu``, whose error is that of v / mu^2 times
    mu^2; and sums over all pairs that were looked at."""

    pairs: Tensor
    means: Tensor
    error: float
    pairs_error: Tensor
    mean_error: float
    ratio_error: float
    sums: LayerProducts
    weights: Tensor
    used: int
    note: str


@dataclass(frozen=True)
class _Block:
    """One block: C from its pairs, the same from both halves less twice that between them, sums over its pairs."""

    pairs: Tensor
    split: Tensor
    means: Tensor
    sums: LayerProducts
    weights: Tensor


@dataclass(frozen=True)
class Design:
    """Blocks of ``size`` points out of ``total``."""

    total: int
    size: int

    @property
    def most(self) -> int:
        """Number of disjoint blocks."""
        return self.total // self.size

    @property
    def _least(self) -> float:
        """``2 / ((n-2)(n-3))``: the covariance of the pairs' terms of two blocks, for ``s2 = 1``."""
        return 2 / ((self.total - 2) * (self.total - 3))

    @property
    def _own(self) -> float:
        """Variance of a block's mean of the terms of pairs, for ``s2 = 1``."""
        n, b = self.total, self.size
        return self._least * (n - b) * (n - b - 1) / (b * (b - 1))

    def components(self, values: Tensor, splits: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``s1^2`` and ``s2^2`` without bias, but for the first from 0 on, from blocks (k, ...)."""
        n, a = self.total, self.size // 2
        second = splits.square().mean(0) / ((4 / (a * (a - 1)) + 4 / a**2) * (n - 1) / (n - 3))
        rest = values.var(0) - second * (self._own - self._least)
        return (rest * self.size * (n - 1) / (4 * n)).clamp_min(0), second

    def variance(self, first: Tensor, second: Tensor, blocks: int) -> Tensor:
        """Return the variance of a mean over so many blocks."""
        n, m = self.total, blocks * self.size
        own = 4 * first / m * (n - m) / (n - 1)
        return own + second * (self._own / blocks + (1 - 1 / blocks) * self._least)

    def half_width(self, values: Tensor, splits: Tensor) -> Tensor:
        """Return half widths of 95 % intervals of means over blocks (k, ...)."""
        blocks = len(values)
        return quantile(blocks) * self.variance(*self.components(values, splits), blocks).sqrt()


def quantile(blocks: int) -> float:
    """Return the factor of a standard deviation, from so many blocks, that makes a 95 % interval.

    That of Student's t with a quarter of their degrees of freedom: squares of a block's D are heavy-tailed, and blocks
    are added until an interval is narrow.
    """
    from scipy.special import stdtrit  # slow to import, and scipy.stats, which calls it, far slower

    return float(stdtrit(blocks / FEWER - 1, (1 + CONFIDENCE) / 2))


def estimated(kernel: NTK, gates: Gates, rtol: float, seed: int, progress: bool | None) -> Estimate:
    """Return the estimate: more blocks until the error is below ``rtol v`` or no points are left, then larger ones."""
    total = len(kernel.coords)
    if total < LEAST_POINTS:
        raise ValueError(f"coords must hold at least {LEAST_POINTS} points for an estimate, got {total}; use 'exact'")
    largest = total // LEAST_BLOCKS // 2 * 2
    design = Design(total, min(BLOCK, largest))
    effective = _effective_points(kernel)
    _need_many(effective, total, total)
    generator = torch.Generator().manual_seed(seed)
    with progress_bar(total=LEAST_BLOCKS, desc="variance", unit="block", progress=progress, leave=False) as bar:
        while True:
            order = torch.randperm(total, generator=generator)
            blocks, larger = _blocks(kernel, gates, design, order, rtol, largest, bar)
            if larger is None:
                _need_many(effective, len(blocks) * design.size, total)
                return _summed(design, blocks)
            design = Design(total, larger)


def _need_many(effective: float, used: int, total: int) -> None:
    """Raise where too few of the points that matter can be expected among those that are used."""
    expected = effective * used / total
    if expected < LEAST_EFFECTIVE:
        raise FewPointsError(
            f"an estimate has no interval here: about {effective:.0f} of {total:,} points hold most of the squares of "
            f"the kernel's diagonal, {expected:.0f} of them can be expected among {used:,}, and it takes "
            f"{LEAST_EFFECTIVE}; use method='exact'"
        )


def _effective_points(kernel: NTK) -> float:
    """Return ``(sum K_ii^2)^2 / sum K_ii^4`` over all points; infinity for a kernel that is zero."""
    store, found = kernel.left.store, []

    def worker() -> Callable[[slice], None]:
        memory, room = store.room(BLOCK), Room()

        def compute(part: slice) -> None:
            factors, some = store.recompute(kernel.coords[part], memory, room), slice(part.stop - part.start)
            own = [factors[index].at(some) for index in kernel.left.indices]
            found.append(gram_diagonal(own, kernel.output, kernel.outputs).double().cpu())

        return compute

    workers = gemm.threads(kernel.dtype, kernel.device) if kernel.capture.concurrent else 1
    share(chunks(len(kernel.coords), BLOCK), [worker() for _ in range(workers)])
    diagonal = torch.cat(found)
    squares = (diagonal / (diagonal.amax() or 1.0)).square()
    fourth = float(squares.square().sum())
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else math.inf


@dataclass(frozen=True)
class _Forecast:
    """What is known of the terms of pairs, and the half width that is allowed."""

    first: Tensor
    second: Tensor
    allowed: float

    def reached(self, design: Design, blocks: int) -> bool:
        """Return whether so many blocks will probably do."""
        width = quantile(blocks) * float(design.variance(self.first, self.second, blocks).sqrt())
        return width <= AIM * self.allowed

    def wanted(self, design: Design, blocks: int) -> int:
        """Return the number of blocks, beyond ``blocks``, that will probably do; or all."""
        return next((k for k in range(blocks + 1, design.most) if self.reached(design, k)), design.most)

    def larger(self, design: Design, largest: int) -> int:
        """Return the size of larger blocks, the first in powers of 2 that would do with all points."""
        size = design.size
        for _ in range(int(math.log2(GROWTH))):
            size = min(2 * size, largest)
            larger = Design(design.total, size)
            if self.reached(larger, larger.most):
                break
        return size


def _blocks(
    kernel: NTK, gates: Gates, design: Design, order: Tensor, rtol: float, largest: int, bar: Bar
) -> tuple[list[_Block], int | None]:
    """Return blocks of one design, or the size of larger ones that would do where these do not."""
    found: list[_Block] = []
    wanted = LEAST_BLOCKS
    while True:
        bar.total, bar.n = wanted, len(found)
        bar.refresh()
        found += _computed(kernel, gates, design, order, range(len(found), wanted), bar)
        values = torch.stack([block.pairs.sum() for block in found])
        splits = torch.stack([block.split.sum() for block in found])
        allowed = rtol * float(values.mean())
        if float(design.half_width(values, splits)) <= allowed or (wanted == design.most and design.size == largest):
            return found, None
        forecast = _Forecast(*design.components(values, splits), allowed)
        if design.size < largest and (wanted == design.most or not forecast.reached(design, design.most)):
            return found, forecast.larger(design, largest)
        wanted = forecast.wanted(design, wanted)


def _computed(kernel: NTK, gates: Gates, design: Design, order: Tensor, numbers: range, bar: Bar) -> list[_Block]:
    """Return some blocks, shared by threads."""
    found: dict[int, _Block] = {}
    store = kernel.left.store

    def worker() -> Callable[[int], None]:
        memory, room, slopes = store.room(design.size), Room(), Room()

        def compute(number: int) -> None:
            chosen = order[number * design.size : (number + 1) * design.size].to(kernel.device)
            coords = kernel.coords[chosen]
            factors = store.recompute(coords, memory, room)
            own = [factors[index] for index in kernel.left.indices]
            found[number] = _block(kernel, gates, coords, own, slopes)
            bar.update()

        return compute

    workers = gemm.threads(kernel.dtype, kernel.device) if kernel.capture.concurrent else 1
    share(numbers, [worker() for _ in range(min(workers, len(numbers)))])
    return [found[number] for number in numbers]


def _block(kernel: NTK, gates: Gates, coords: Tensor, factors: list[Factors], room: Room) -> _Block:
    """Return what one block of points gives."""
    total, fold, count = len(kernel.coords), kernel.sides.fold, len(coords)
    half = count // 2
    cuts = slice(0, half), slice(half, count)
    sides = [[own.at(cut) for own in factors] for cut in cuts]
    moments: list[PointMoments] = [point_moments(kernel, side) for side in sides]
    whole = joined(moments)
    slopes = gates.at(coords, whole.energy, room)
    single = [[slope[cut] for slope in slopes] for cut in cuts]

    def sums(one: int, other: int | None) -> LayerProducts:
        right = None if other is None else sides[other]
        both = single[one], None if other is None else single[other]
        return layer_products(sides[one], right, kernel.output, kernel.outputs, kernel.dtype, both)

    def pairs(products: LayerProducts, number: int, spread: Tensor, own: Tensor) -> Tensor:
        return layer_pairs(total, fold, products.products, number, spread.cpu(), own.cpu())

    first, second, across = sums(0, None), sums(1, None), sums(0, 1)
    inside = [
        pairs(found, half * (half - 1), own.spread(), own.own)
        for found, own in ((first, moments[0]), (second, moments[1]))
    ]
    between = pairs(across, half * half, moments[0].spread_to(moments[1]), whole.own)
    both = first + second + across.times(2.0)
    return _Block(
        pairs=pairs(both, count * (count - 1), whole.spread(), whole.own),
        split=inside[0] + inside[1] - 2 * between,
        means=whole.diagonal.mean(1).cpu(),
        sums=both,
        weights=whole.weights().cpu(),
    )


def _summed(design: Design, blocks: list[_Block]) -> Estimate:
    """Return the estimate from all blocks of a design."""
    pairs, splits = torch.stack([block.pairs for block in blocks]), torch.stack([block.split for block in blocks])
    means = torch.stack([block.means for block in blocks])
    values, halves, mus = pairs.sum((1, 2)), splits.sum((1, 2)), means.sum(1)
    mean = float(mus.mean())
    slope = 2 * float(values.mean()) / mean if mean > 0 else 0.0
    used = len(blocks) * design.size
    nothing = torch.zeros_like(halves)
    return Estimate(
        pairs=pairs.mean(0),
        means=means.mean(0),
        error=float(design.half_width(values, halves)),
        pairs_error=design.half_width(pairs, splits),
        mean_error=float(design.half_width(mus, nothing)),
        ratio_error=float(design.half_width(values - slope * mus, halves)),
        sums=sum((block.sums for block in blocks[1:]), start=blocks[0].sums),
        weights=torch.stack([block.weights for block in blocks]).sum(0),
        used=used,
        note=f"{len(blocks):,} blocks of {design.size:,} points",
    )
