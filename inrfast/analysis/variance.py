"""The variance of a tangent kernel's eigenvalues: exact without N x N, or estimated from pairs of points."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.analysis.variance_estimate import BLOCK as ESTIMATE_BLOCK
from inrfast.analysis.variance_estimate import Estimate, FewPointsError, estimated
from inrfast.analysis.variance_moments import (
    Gates,
    PointMoments,
    joined,
    layer_pairs,
    layer_variances,
    point_moments,
    ratio,
    similarities,
)
from inrfast.analysis.variance_result import NTKVariance
from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import NotAvailableError, check_choice, check_flag, check_float, check_seed
from inrfast.linalg.certificates import kernel_error
from inrfast.memory import chunks
from inrfast.modes import in_own_modes
from inrfast.ops import gemm
from inrfast.ops.factors import Room
from inrfast.ops.layer_products import LayerProducts, layer_products
from inrfast.progress import Bar, progress_bar
from inrfast.tangent.local import NTK, ntk
from inrfast.threads import share

METHODS = ("auto", "exact", "estimate")

EXACT_FLOPS, EXACT_FLOPS_GPU = 1e12, 1e14
"""FLOP up to which ``"auto"`` is exact, some ten seconds on two cores without AVX-512; a product in fp64 counts twice.
A fixed number: the method depends on the question, not on the machine."""

SMALL = 1024
"""Points up to which ``"auto"`` is always exact."""

SINGLE_ERROR = 1.5e-6
"""Error of an entry in fp32 relative to ``sqrt(K_ii K_jj)``: 1e-6 of its factors and products, the rest of features
brought to length 1."""

BLOCK, LEAST_BLOCK = 8192, 512
"""Points whose factors are brought to length 1 at a time."""


@in_own_modes
def variance(
    net: nn.Module,
    coords: ArrayLike,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    method: str = "auto",
    rtol: float = 0.01,
    seed: int = 0,
    progress: bool | None = None,
    memory_budget: int | None = None,
) -> NTKVariance:
    """Return mean and variance of the eigenvalues of a network's tangent kernel, by layer and pair of layers.

    With ``mu = Tr K / n`` the variance is ``v = Tr K^2 / n - mu^2``, computed as the sum
    ``1/n sum_{i != j} K_ij^2 + Var(K_ii)``, in which nothing cancels. ``v / mu^2`` says how far the eigenvalues are
    from being equal, so from training all parts of a signal at one rate. Nothing N x N is stored.

    Parameters
    ----------
    net, coords, output, params, select, precision, memory_budget
        As of :func:`inrfast.ntk`: any network that has a tangent kernel, at points (N, d), two or more.
    backend
        ``"torch"``, on a CPU or GPU; ``"auto"`` is the same. No fused kernels know the products of layers.
    method
        ``"exact"``: all pairs of points, tile by tile. ``"estimate"``: the pairs within random disjoint blocks of
        points, until the 95 % interval of v is narrower than ``rtol``. ``"auto"``: exact up to 1,024 points, and where
        that takes up to 1e12 FLOP (1e14 on a GPU); products in fp64 count twice. ``method`` and ``note`` of the result
        say which it was and why.
    rtol
        Half width of the estimate's 95 % interval of v, relative to v. What is not reached is told by ``error`` and
        ``note``.
    seed
        Of the blocks: the same seed gives the same estimate on the same machine.
    progress
        Whether to show a bar with the time left; None: on a terminal and in a notebook.

    Raises
    ------
    NotAvailableError
        ``backend="triton"``.
    RangeError
        The kernel's largest entry is outside 1e-150 to 1e150.
    MemoryBudgetError
        Factors of a few points and tiles exceed the budget.
    UnsupportedModuleError, ValueError, TypeError
        A network that has no tangent kernel; bad arguments; fewer than two points, for an estimate fewer than 128,
        or points a few of which hold most of the kernel's squares (``method="auto"`` then takes the exact value).

    Notes
    -----
    Cost of the exact value: half of a dense kernel's N^2 entries, each ``2 sum_l (D_in + M D_out)`` FLOP, beside them
    ``2 sum D`` for the gates and ``2 L^2`` for the pairs of L layers. With a network in closed form 16,384 points take
    0.6 TFLOP at three hidden layers of width 256. An estimate costs the factors of all points, once more
    those whose pairs it looks at, and ``b / 2`` pairs for each of these in blocks of b = 1,024 points or more.

    v, the matrix of pairs and the layers' variances of an estimate are unbiased; ratios of estimates are not quite.
    A kernel that is zero has a normalised variance of NaN, and the note says so.

    Examples
    --------
    >>> import inrfast as inr
    >>> found = inr.variance(inr.INR(2, 1, width=16), inr.grid((8, 8)))
    >>> found.method, abs(float(found.pairs.sum()) / found.variance - 1) < 1e-12
    ('exact', True)

    Source: Ou, Zhuang, arXiv 2512.15169, of which this project has a summary only; the split by layers, the
    similarities and the estimator are its own.
    """
    method = check_choice("method", method, METHODS)
    rtol = check_float("rtol", rtol, minimum=0.0, exclusive=True)
    seed = check_seed("seed", seed)
    shown = None if progress is None else check_flag("progress", progress)
    if check_choice("backend", backend, ("auto", "torch", "triton")) == "triton":
        raise NotAvailableError(
            "backend='triton' cannot run: no fused kernel knows the products of a kernel's layers; use backend='torch'"
        )
    asked = ntk(net, coords, None, output, params, select, precision, "torch", memory_budget)
    points = len(asked.coords)
    if points < 2:
        raise ValueError(f"coords must hold at least 2 points, whose eigenvalues can vary, got {points}")
    kernel = asked.squarable()
    gates = Gates(kernel)
    taken, note = _method(kernel, gates, method)
    if taken == "exact":
        return _exact(kernel, gates, note, shown)
    try:
        return _estimate(kernel, gates, note, rtol, seed, shown)
    except FewPointsError:
        if method == "estimate":
            raise
        return _exact(kernel, gates, f"{note}; a few points hold most of the kernel's squares", shown)


def exact_flops(kernel: NTK, gates: Gates) -> float:
    """Return the FLOP of an exact variance."""
    pairs = len(kernel.coords) ** 2
    layers = 2.0 * (len(kernel.specs) * kernel.sides.fold) ** 2
    return kernel.cost().dense_flops + pairs / 2 * (2.0 * gates.width + layers)


def _method(kernel: NTK, gates: Gates, asked: str) -> tuple[str, str]:
    """Return the method that is taken, and why."""
    flops, points = exact_flops(kernel, gates), len(kernel.coords)
    cost = f"all pairs of points take {flops:.2g} FLOP"
    if asked != "auto":
        return asked, f"asked for; {cost}"
    most = EXACT_FLOPS if kernel.device.type == "cpu" else EXACT_FLOPS_GPU
    weight = 2.0 if kernel.dtype == torch.float64 else 1.0
    if points <= SMALL:
        return "exact", f"up to {SMALL:,} points always"
    if weight * flops <= most:
        return "exact", cost
    return "estimate", f"{cost}, {weight * flops / most:.2g} times what method='auto' spends"


# ---- exact -------------------------------------------------------------------------------------------------------


def _exact(kernel: NTK, gates: Gates, note: str, progress: bool | None) -> NTKVariance:
    """Return the variance from all pairs of points."""
    sides, points = kernel.sides, len(kernel.coords)
    each = kernel.capture.numbers_per_point + gates.width
    block = max(LEAST_BLOCK, min(BLOCK, points, kernel.memory_budget // (16 * each * kernel.dtype.itemsize)))
    held = 2 * min(block, points) * each + 4 * len(kernel.specs) * points
    keeps = points * gates.width * kernel.dtype.itemsize <= kernel.memory_budget // 8
    with sides.room_for(held + points * gates.width * keeps, "the variance", "take fewer points or layers"):
        parts = [point_moments(kernel, factors) for _, factors in kernel.left.chunks()]
        moments = joined(parts)
        slopes = _GateRows(gates, moments, keeps)
        with progress_bar(
            total=points**2 / 2, desc="variance", unit="pair", unit_scale=True, progress=progress, leave=False
        ) as bar:
            sums = _all_pairs(kernel, slopes, block, bar)
    pairs = points * (points - 1)
    fold = sides.fold
    found = layer_pairs(points, fold, sums.products, pairs, moments.spread().cpu(), moments.own.cpu())
    forms = forms_of(kernel)
    alike, network = similarities(kernel, gates, sums, moments.weights().cpu(), forms)
    means = moments.diagonal.mean(1).cpu()
    error, pairs_error, mean_error = rounding(kernel, found, means)
    mean, whole = float(means.sum()), float(found.sum())
    if mean == 0:
        note += "; the kernel is zero, so that it has no normalised variance"
    return NTKVariance(
        mean=mean,
        variance=whole,
        normalised=ratio(whole, mean),
        error=error,
        mean_error=mean_error,
        normalised_error=_ratio_error(whole, error, mean, mean_error),
        method="exact",
        note=note,
        layers=layer_variances([spec.name for spec in kernel.specs], means, found, alike),
        pairs=found,
        pairs_error=pairs_error,
        similarities=network,
        points=points,
        used=points,
    )


def _ratio_error(variance: float, error: float, mean: float, mean_error: float) -> float:
    if mean <= 0:
        return math.nan
    return error / mean**2 + 2 * ratio(variance, mean) * mean_error / mean


def forms_of(kernel: NTK) -> list[tuple[bool, bool]]:
    """Return whether each layer has dense features, and sensitivities of its own."""
    return [(a > 0 and not spec.sparse, b > 0) for spec, (a, b) in zip(kernel.specs, kernel.sides.stored, strict=True)]


def rounding(kernel: NTK, pairs: Tensor, means: Tensor) -> tuple[float, Tensor, float]:
    """Return bounds on what rounding does to v, to the matrix of pairs and to mu.

    An entry is off by at most ``e sqrt(K_ii K_jj)``, so the kernel by ``e Tr K`` in the Frobenius norm, and
    ``sqrt(n v)``, the norm of ``K - mu I``, by no more.
    """
    n = kernel.shape[0]
    relative, passed = SINGLE_ERROR, 0.0
    if kernel.dtype == torch.float64:
        relative = kernel.entry_error + 8 * torch.finfo(torch.float64).eps
        trace = float(means.sum()) * n
        passed = kernel_error(kernel.jacobian_error, trace) / math.sqrt(n)
    off = relative * math.sqrt(n) * means + passed
    roots = pairs.diagonal().clamp_min(0).sqrt()
    by_pairs = torch.outer(roots, off)
    by_pairs = by_pairs + by_pairs.t() + torch.outer(off, off)
    whole = relative * math.sqrt(n) * float(means.sum()) + passed
    error = 2 * math.sqrt(max(float(pairs.sum()), 0.0)) * whole + whole**2
    return error, by_pairs, relative * float(means.sum()) + passed / math.sqrt(n)


class _GateRows:
    """The factors of the gates at points of the grid: kept, or computed where they are asked for."""

    def __init__(self, gates: Gates, moments: PointMoments, keeps: bool) -> None:
        self.gates, self.energy = gates, moments.energy
        self.coords = gates.kernel.coords
        self.kept: list[Tensor] | None = None
        if keeps and gates.places:
            self.kept = self._computed(slice(0, len(self.coords)))

    def at(self, rows: slice) -> list[Tensor]:
        """Return them at some points."""
        if self.kept is not None:
            return [own[rows] for own in self.kept]
        return self._computed(rows) if self.gates.places else []

    def _computed(self, rows: slice) -> list[Tensor]:
        kernel, count = self.gates.kernel, rows.stop - rows.start
        mlp = kernel.capture.modulated_mlp
        assert mlp is not None
        widths = [mlp.widths[number] for number in self.gates.numbers]
        whole = [torch.empty(count, width, dtype=kernel.dtype, device=kernel.device) for width in widths]

        def worker() -> Any:
            room = Room()

            def compute(part: slice) -> None:
                here = slice(rows.start + part.start, rows.start + part.stop)
                found = self.gates.at(self.coords[here], self.energy[:, here], room)
                for into, values in zip(whole, found, strict=True):
                    into[part] = values

            return compute

        workers = gemm.threads(torch.float64, kernel.device) if kernel.capture.concurrent else 1
        share(chunks(count, LEAST_BLOCK), [worker() for _ in range(workers)])
        return whole


def _all_pairs(kernel: NTK, gates: _GateRows, block: int, bar: Bar) -> LayerProducts:
    """Return the sums over all pairs of different points."""
    sides, fold = kernel.sides, kernel.sides.fold
    lock, total = threading.Lock(), list[LayerProducts]()

    def advance(pairs: int) -> None:
        with lock:
            bar.update(pairs)

    def compute(i: slice, j: slice, rows: Any, columns: Any) -> None:
        first, other = i.start // fold, j.start // fold
        for p, q in _blocks((i.stop - i.start) // fold, (j.stop - j.start) // fold, block, columns is None):
            same = columns is None and p == q
            left = [factors.at(p) for factors in rows]
            right = None if same else [factors.at(q) for factors in (rows if columns is None else columns)]
            gates_left = gates.at(slice(first + p.start, first + p.stop))
            gates_right = None if same else gates.at(slice(other + q.start, other + q.stop))
            single = gates_left, gates_right
            found = layer_products(left, right, sides.output, sides.outputs, sides.dtype, single, advance)
            total.append(found if same else found.times(2.0))

    sides.for_each_block(compute)
    return sum(total[1:], start=total[0])


def _blocks(n: int, m: int, block: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of pairs; of a symmetric set those on and above the diagonal."""
    for p in chunks(n, block):
        for q in chunks(m, block):
            if not symmetric or q.start >= p.start:
                yield p, q


# ---- estimated ---------------------------------------------------------------------------------------------------


def _estimate(kernel: NTK, gates: Gates, note: str, rtol: float, seed: int, progress: bool | None) -> NTKVariance:
    """Return the variance from the pairs within blocks of points."""
    each = kernel.capture.numbers_per_point + gates.width
    held = 2 * min(ESTIMATE_BLOCK, len(kernel.coords)) * each
    with kernel.sides.room_for(held, "an estimate of the variance", "take fewer layers"):
        found: Estimate = estimated(kernel, gates, rtol, seed, progress)
    error, pairs_error, mean_error = rounding(kernel, found.pairs, found.means)
    mean, whole = float(found.means.sum()), float(found.pairs.sum())
    alike, network = similarities(kernel, gates, found.sums, found.weights, forms_of(kernel))
    own = found.error + error
    note = f"{note}; {found.note}"
    if own > rtol * whole:
        note += f"; rtol={rtol:g} was not reached"
    if mean == 0:
        note += "; the kernel is zero, so that it has no normalised variance"
    squared = mean**2 if mean > 0 else math.nan
    return NTKVariance(
        mean=mean,
        variance=whole,
        normalised=ratio(whole, mean),
        error=own,
        mean_error=found.mean_error + mean_error,
        normalised_error=found.ratio_error / squared + _ratio_error(whole, error, mean, mean_error),
        method="estimate",
        note=note,
        layers=layer_variances([spec.name for spec in kernel.specs], found.means, found.pairs, alike),
        pairs=found.pairs,
        pairs_error=found.pairs_error + pairs_error,
        similarities=network,
        points=len(kernel.coords),
        used=found.used,
    )
