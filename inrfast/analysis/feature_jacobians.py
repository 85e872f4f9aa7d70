"""Ranks of feature Jacobians: ``d z_out / d z_in`` of every hidden layer at single points, counted in fp64.

Behind an elementwise activation the Jacobian at a point is ``diag(a) W``: D numbers differ from point to point.
Its singular values are the roots of the eigenvalues of the smaller of its two Gram matrices. Where the rows are the
smaller side, that is ``diag(a) W W^T diag(a)``: entries of a matrix common to all points, with the rows and columns
left out that an activation switches off.

A Gram matrix squares the condition number, so that every count is checked: where an eigenvalue lies within its error of
a threshold, the singular values of that one matrix decide. All matrices are decomposed on the CPU, also those of a
network on a GPU, by as many threads as there are cores: torch hands a GPU's library a batch of eigenproblems beyond
order 32 matrix by matrix, at several milliseconds each, while one core takes two at order 256.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from inrfast.analysis.report import FeatureJacobian, PixelRanks
from inrfast.linalg.tsqr import GRAM_RTOL, gram_error
from inrfast.memory import chunks
from inrfast.mlp import MLP
from inrfast.ops.factors import Slopes, hidden_slopes
from inrfast.progress import Bar
from inrfast.threads import MOST_THREADS, share

PASS_PIXELS, PASS_BUFFERS = 4096, 8
"""Pixels whose slopes are computed at once at most, and numbers in fp64 that it takes for one of a layer's units."""

JACOBIAN_BUFFERS = 5
"""Numbers in fp64 that a thread takes for one of a feature Jacobian: rows that count, Gram matrix, decomposition."""


def feature_jacobians(
    mlp: MLP, features: Tensor, rtols: tuple[float, ...], budget: int, bar: Bar
) -> tuple[FeatureJacobian, ...]:
    """Return the ranks of every hidden layer's ``d z_out / d z_in`` at some points; norms count, batch norm frozen.

    Parameters
    ----------
    mlp
        The network in fp64, on any device.
    features
        The input of its first layer (n, D), fp64.
    rtols
        Tolerances relative to sigma_1, descending.
    budget
        Bytes; a matrix of its own for one thread is taken without asking.
    bar
        Moves on by one per layer.
    """
    tolerances = torch.tensor(rtols, dtype=torch.float64)
    found = []
    for index, layer in enumerate(mlp.hidden):
        bar.set_description(f"feature Jacobians of layers.{index}")
        rows, columns = layer.linear.weight.shape
        here = _Layer(layer.linear.weight.cpu(), tolerances)
        ranks = torch.empty(len(features), len(rtols), dtype=torch.int64)
        values = []
        for part in chunks(len(features), max(1, min(PASS_PIXELS, budget // (4 * 8 * PASS_BUFFERS * rows)))):
            activated, slopes = hidden_slopes(layer, features[part])
            values.append(activated)
            _count_into(ranks[part], slopes.each(Tensor.cpu), here, budget)
        features = torch.cat(values)
        pixels = tuple(
            PixelRanks(rtol, int(column.min()), float(column.double().quantile(0.5)), int(column.max()))
            for rtol, column in zip(rtols, ranks.unbind(1), strict=True)
        )
        found.append(FeatureJacobian(f"layers.{index}", rows, columns, len(ranks), pixels))
        bar.update()
    return tuple(found)


def _count_into(ranks: Tensor, slopes: Slopes, layer: _Layer, budget: int) -> None:
    """Write the ranks at every point of ``slopes``, whose matrices are shared by threads."""
    rows, columns = layer.weight.shape
    most = budget // (2 * 8 * JACOBIAN_BUFFERS * rows * max(rows, columns))
    workers = max(1, min(torch.get_num_threads(), MOST_THREADS, len(ranks), most))
    doubtful: Iterable[int] = range(len(ranks))
    if float(layer.tolerances[-1]) >= GRAM_RTOL:
        grams = _Grams(layer, slopes)
        share(doubtful, [grams.decompose] * workers)
        doubtful = grams.count_into(ranks)

    def by_singular_values(pixel: int) -> None:
        values = torch.linalg.svdvals(layer.jacobian(slopes.each(lambda tensor: tensor[pixel]))).unsqueeze(1)
        ranks[pixel] = (values > layer.tolerances * values[:1]).sum(0)

    share(doubtful, [by_singular_values] * workers)


class _Layer:
    """A hidden layer's weight W (D_out, D_in) and the tolerances, descending, both in fp64 on the CPU."""

    def __init__(self, weight: Tensor, tolerances: Tensor) -> None:
        self.weight = weight
        self.tolerances = tolerances

    def jacobian(self, slopes: Slopes) -> Tensor:
        """Return the Jacobian ``A W`` at one point, without rows of zeros."""
        left, directions, right = slopes
        alive = left.nonzero().flatten()  # a ReLU leaves half of the rows, or none
        if directions is None:
            return left[alive].unsqueeze(1) * self.weight[alive]
        inner = self.weight if right is None else right.unsqueeze(1) * self.weight
        for v in directions:  # orthogonal to each other, so one after the other
            inner = torch.addr(inner, v, v @ inner, alpha=-1)
        rows = inner[alive].mul_(left[alive].unsqueeze(1))
        return rows if right is None else rows[(rows != 0).any(1)]


class _Grams:
    """Eigenvalues of the smaller Gram matrix of a layer's Jacobian at several points.

    Parameters
    ----------
    layer
        The layer.
    slopes
        Its derivative at the points.
    """

    def __init__(self, layer: _Layer, slopes: Slopes) -> None:
        self.layer = layer
        self.slopes = slopes
        n, (rows, columns) = len(slopes.left), layer.weight.shape
        diagonal = slopes.directions is None and rows <= columns
        self._products = layer.weight @ layer.weight.t() if diagonal else None
        self._length = columns + 2 if diagonal else max(rows, columns)
        # Places of eigenvalues that a smaller matrix does not have hold -Inf, which counts as nothing.
        self._values = torch.full((n, min(rows, columns)), -math.inf, dtype=torch.float64)
        self._failed = torch.zeros(n, dtype=torch.bool)

    def decompose(self, pixel: int) -> None:
        """Compute the eigenvalues at one point."""
        gram = self._gram(self.slopes.each(lambda tensor: tensor[pixel]))
        if math.isfinite(float(gram.sum())):
            self._values[pixel, : len(gram)] = torch.linalg.eigvalsh(gram)
        else:  # squares overflow
            self._failed[pixel] = True

    def _gram(self, slopes: Slopes) -> Tensor:
        if self._products is None:
            rows = self.layer.jacobian(slopes)
            return rows.t() @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.t()
        alive = slopes.left.nonzero().flatten()
        if len(alive) == len(slopes.left):
            return (self._products * slopes.left.unsqueeze(1)).mul_(slopes.left)
        a = slopes.left[alive]
        return self._products.index_select(0, alive).index_select(1, alive).mul_(a.unsqueeze(1)).mul_(a)

    def count_into(self, ranks: Tensor) -> list[int]:
        """Write the ranks, and return the points where an eigenvalue lies within its error of a threshold."""
        values = self._values
        orders = (values > -math.inf).sum(1).double()
        largest = values.amax(1).clamp_min(0)  # 0 of a matrix without rows
        # Products may have lost digits to underflow before the slopes made them larger.
        sizes = torch.ones_like(self.slopes.left) if self._products is None else self.slopes.left
        products = self._length * sizes.abs().amax(1).square().clamp_min(1)
        # No row is longer than sigma_1.
        error = gram_error(orders, self._length, largest, values.clamp_min(0).sum(1), largest, products)
        doubtful = self._failed.clone()
        for place, rtol in enumerate(self.layer.tolerances.tolist()):
            apart = values - (rtol * rtol * largest).unsqueeze(1)
            ranks[:, place] = (apart > 0).sum(1)
            doubtful |= (apart.abs_() <= 2 * error.unsqueeze(1)).any(1)
        return doubtful.nonzero().flatten().tolist()
