"""How far rounding moves the Jacobian that a factor pass computes: measured by Monte Carlo arithmetic.

The factors Z and S are computed in fp64, and a deep sine network amplifies the rounding of its first layers by orders
of magnitude. Here the pass is repeated on a sample of points with every result disturbed at random, by much more than a
rounding error and by much less than what would leave the linear range. What that does to the Jacobian's rows, scaled
back to the size of a rounding error, is the error of the pass (Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997).
It takes any module, since it needs to know nothing of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from inrfast.linalg.operators import UNIT
from inrfast.memory import chunks
from inrfast.ops.sparse_rows import coalesced, is_sparse

WHOLE = 2.0**26
"""Size up to which products of whole numbers are exact in fp64."""

DISTURBANCE = 2.0**-44
"""Standard deviation of the relative disturbances: far above rounding (2^-53), far below what is no longer linear."""

LINEAR = 1e-3
"""Size of the response, relative to the Jacobian's rows, up to which it counts as linear; beyond, nothing is known."""

TRIALS, SAME = 24, 1e-6
"""Disturbed passes over a point that may lie on hinges, and the difference, relative to the Jacobian's row, up
to which two of them count as one result: of seven gates in doubt two passes take the same side, very probably."""

QUIET, SCALED = 1e-10, 256.0
"""What rounding makes of a point, relative to its row, where it moves no gate; and the largest ratio of squared moves
by large and small disturbances at which they count as equal: of moves in proportion it is 16,384."""

TYPICAL = 256.0
"""Squared response of an ordinary network, in squared disturbances."""

SAFETY = 8.0
"""Factor from the measured standard deviation to the stated bound. A sum of n products may round sqrt(n) / 4 times as
much as a single operation, which 8 covers up to width 1,024; what it leaves is for the sampling. Of 3,000 random
networks the bound was 1.1 to 12,000 times the error found in long double, 20 times in the median; most where products
of fp32 numbers are exact."""

SLACK = 1e-6
"""Relative size of what rounding adds to errors that are computed."""

POINTS, PASSES = 64, 128
"""Points of the sample, and disturbed passes over points of it, all together."""

_NAMES = (
    "_to_copy abs alias amax amin cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy copy_ detach embedding "
    "eq fill_ flip floor fmod frac full_like gather ge gt index index_select kthvalue le lt masked_fill masked_fill_ "
    "max maximum min minimum ne neg neg_ new_zeros ones_like relu relu_ repeat roll round sign sort stack threshold "
    "threshold_backward topk trunc where zero_ zeros_like"
)
EXACT = frozenset(_NAMES.split())
"""Operators of torch that round nothing."""

NOTHING = 4 * UNIT
"""Size of a sum, relative to that of its terms, up to which it counts as zero, which stays so: the point lies on a
hinge, and which side rounding takes is what :mod:`inrfast.doubts` is for."""

_SUMS = "addbmm addmm addmm_ addmv addmv_ addr baddbmm baddbmm_ bmm convolution cumsum dot matmul mm mv sum trace vdot"
SUMS = frozenset(_SUMS.split())
"""Operators of torch that add up their arguments or products of them: partial sums round too, and may be larger than
the result. Of the squares of their arguments they make the sum of the squares of their terms."""

OF_WHOLE_NUMBERS = frozenset({"add", "add_", "mul", "mul_", "rsub", "sub", "sub_"})
"""Operators of torch that round nothing where they are given whole numbers: places in a table are computed so."""

Row = tuple[Tensor | None, Tensor | None]


class Disturbed(TorchDispatchMode):
    """Context in which every fp64 result gets a random error: ``DISTURBANCE xi`` times its size, with normal xi.

    What is exactly zero stays so. A difference of nearly equal results shows the digits that it loses; within a sum or
    a matrix product nobody sees them, so that its error is relative to the root of its own square and those of its
    terms, whose partial sums are of that size. With ``tables`` sums and products of whole numbers stay exact: they are
    places in tables. Looking for them waits for the device.
    """

    def __init__(self, seed: int, device: torch.device, tables: bool = False, disturbance: float = DISTURBANCE) -> None:
        super().__init__()
        self.tables, self.disturbance = tables, disturbance
        self.generator = torch.Generator(device).manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return false: torch would load its compiler, 170 MB, to keep it from compiling what is here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        squares = _squares_of_terms(func.overloadpacket, args, kwargs) if name in SUMS else None
        found = func(*args, **kwargs)
        aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
        if name in EXACT or not all(alias.is_write for alias in aliases):  # else it is a view
            return found
        whole = self.tables and name in OF_WHOLE_NUMBERS and all(map(_is_whole, args))
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                noise = torch.randn(value.shape, generator=self.generator, dtype=value.dtype, device=value.device)
                if squares is not None:
                    sizes = squares.addcmul_(value, value).sqrt_()
                    value.addcmul_(noise, sizes.mul_(value.abs() > NOTHING * sizes), value=self.disturbance)
                elif not whole:
                    value.mul_(noise.mul_(self.disturbance).add_(1))
        return found


def _squares_of_terms(add: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the sums of squares of what one of :data:`SUMS` adds up, or None where its result is not in fp64."""
    given = {name: value for name, value in kwargs.items() if name != "out"}
    factors = {name: given.pop(name) ** 2 for name in ("alpha", "beta") if name in given}
    squared, given = tree_map_only(Tensor, torch.square, (args, given))
    found = add(*squared, **given, **factors)
    return found if isinstance(found, Tensor) and found.dtype == torch.float64 else None


def _is_whole(number: Any) -> bool:
    """Return whether an operand is a whole number, or a tensor of them, small enough for exact products and sums."""
    if isinstance(number, Tensor):
        return not number.is_floating_point() or bool(((number == number.round()) & (number.abs() < WHOLE)).all())
    return isinstance(number, (int, float)) and abs(number) < WHOLE and float(number).is_integer()


@dataclass(frozen=True)
class PassErrors:
    """Squared rounding errors of a factor pass, estimated over all points, without the safety factor.

    Attributes
    ----------
    jacobian
        ``sum_n |dJ_n|^2`` of every layer and output, (layers, M); like the others on the CPU.
    features, sensitivities
        ``sum_n |dz_n|^2`` and ``sum_n |dS_n|^2`` of every layer, (layers,); 0 for a factor that is constant.
    """

    jacobian: Tensor
    features: Tensor
    sensitivities: Tensor

    def plus(self, layer: int, jacobian: Tensor, sensitivities: float) -> PassErrors:
        """Return the same with more squared errors in one layer, (M,) and a number, which need no safety factor."""
        rows, slopes = self.jacobian.clone(), self.sensitivities.clone()
        share = (1 + SLACK) ** 2 / SAFETY**2
        rows[layer] += share * jacobian.cpu()
        slopes[layer] += share * sensitivities
        return PassErrors(rows, self.features, slopes)

    def and_those_of(self, other: PassErrors) -> PassErrors:
        """Return the sums of both."""
        sums = (self.jacobian + other.jacobian, self.features + other.features)
        return PassErrors(*sums, self.sensitivities + other.sensitivities)


def pass_errors(
    factors: Callable[[Tensor], Sequence[Row]],
    coords: Tensor,
    outputs: int,
    weights: Tensor | None = None,
    tables: bool = False,
    aside: Tensor | None = None,
) -> PassErrors:
    """Return the squared rounding errors of a factor pass over ``coords`` (N, d), measured on some points.

    On all of up to :data:`POINTS`. Of more, on so many drawn at random, which stand for all, and on the outermost of
    every axis, which stand for themselves: there it assumes that what the sample does not see is no worse. It assumes
    that the operators of torch are as accurate as their arguments. A network that amplifies rounding beyond
    :data:`LINEAR` gets an infinite error.

    Parameters
    ----------
    factors
        The pass: from points (n, d) to one pair (features, sensitivities) per layer, in fp64.
    coords
        All points.
    outputs
        M.
    weights
        The kernel's diagonal (N,), or None. Half of the sample is drawn in proportion to it, half evenly: points with a
        large row of the Jacobian, which make the spectrum, are not missed where they are few.
    tables
        Whether the pass may read tables at places that it computes: see :class:`Disturbed`.
    aside
        Numbers (k,) of points at which a jump is known, whose error the caller adds; None: there are none.
    """
    index, share = sample(coords, weights)
    points, repeats = coords[index.to(coords.device)], max(1, PASSES // len(index))
    share = share / repeats * (UNIT / DISTURBANCE) ** 2
    exact = on_cpu(factors(points))
    jumps = torch.zeros(len(index), dtype=torch.bool) if aside is None else torch.isin(index, aside.cpu())
    with Disturbed(0, coords.device, tables):
        disturbed = on_cpu(factors(points.repeat(repeats, 1)))
    sizes = [squared_rows(layer, outputs) for layer in exact]
    size = torch.stack(sizes).sum((0, 2))

    @functools.cache
    def switches(n: int) -> bool:
        own = [_rows_of(layer, slice(n, n + 1)) for layer in exact]
        return _switches(factors, points[n : n + 1], own, float(size[n]), tables)

    jacobian = torch.zeros(len(exact), outputs, dtype=torch.float64)
    single = torch.zeros(2, len(exact), dtype=torch.float64)
    for part in chunks(repeats * len(points), len(points)):
        moved = [_rows_of(layer, part) for layer in disturbed]
        distances = [squared_distance(one, other, outputs) for one, other in zip(exact, moved, strict=True)]
        response = torch.stack(distances).sum((0, 2))
        linear = response <= LINEAR**2 * size
        others = (~linear & ~jumps).nonzero().flatten().tolist()
        chaos = 2 * len(others) > len(points)
        if chaos or not all(switches(n) for n in others):
            return PassErrors(torch.full_like(jacobian, math.inf), *torch.full_like(single, math.inf))
        # A hinge exactly at a point, where nothing rounds: it counts as the most sensitive of the other points.
        known = linear & (size > 0)
        level = max(float((response / size)[known].max()) if bool(known.any()) else 0.0, TYPICAL * DISTURBANCE**2)
        for layer, distance in enumerate(distances):
            # Where this layer's part is no longer linear, it is taken to move as much by rounding.
            own, part_size = distance.sum(1, keepdim=True), sizes[layer].sum(1, keepdim=True)
            far = torch.where(own <= LINEAR**2 * part_size, 1.0, (DISTURBANCE / UNIT) ** 2)
            jacobian[layer] += share @ torch.where(linear.unsqueeze(1), far * distance, level * sizes[layer])
            for kind, (before, after) in enumerate(zip(exact[layer], moved[layer], strict=True)):
                if before is not None and after is not None and before.is_floating_point():
                    squares = (after - before).square().flatten(1).sum(1)
                    single[kind, layer] += share @ torch.where(
                        linear, squares, level * before.square().flatten(1).sum(1)
                    )
    return PassErrors(jacobian, single[0], single[1])


def sample(coords: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which points are looked at, and how many of all points each stands for."""
    count = len(coords)
    if count <= POINTS:
        return torch.arange(count), torch.ones(count, dtype=torch.float64)
    chance = torch.full((count,), 1 / count, dtype=torch.float64)
    own = None if weights is None else weights.to("cpu", torch.float64)
    if own is not None and float(own.sum()) > 0:
        chance = chance / 2 + own / (2 * own.sum())
    # By the inverse of the distribution function: torch.multinomial ends at 2^24 points.
    draws = torch.rand(POINTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = torch.searchsorted(chance.cumsum(0), draws).clamp_max(count - 1)
    outer = torch.cat([coords.argmin(0), coords.argmax(0)]).cpu().unique()
    share = torch.cat([1 / (POINTS * chance[index]), torch.ones(len(outer), dtype=torch.float64)])
    return torch.cat([index, outer]), share


def on_cpu(layers: Sequence[Row]) -> list[Row]:
    """Return factors of a few points on the CPU, in one transfer: what is done with them are many small operations."""
    tensors = [t for row in layers for t in row if t is not None]
    if not tensors or tensors[0].device.type == "cpu":
        return [(z, s) for z, s in layers]
    flat = torch.cat([t.flatten() for t in tensors]).cpu().split([t.numel() for t in tensors])
    parts = iter([part.view(t.shape).to(t.dtype) for part, t in zip(flat, tensors, strict=True)])
    return [(None if z is None else next(parts), None if s is None else next(parts)) for z, s in layers]


def _rows_of(layer: Row, points: slice) -> Row:
    z, s = layer
    return None if z is None else z[points], None if s is None else s[points]


def _switches(
    factors: Callable[[Tensor], Sequence[Row]], point: Tensor, exact: Sequence[Row], size: float, tables: bool
) -> bool:
    """Return whether what disturbances make of a point (1, d) is the switch of gates that lie on their hinges there.

    Run alone, where sums add up in another order, the point has the same Jacobian: no rounding moves the hinge. And

    - two of :data:`TRIALS` passes come to the same Jacobian: of a few gates there are few. Those of a network that
      amplifies rounding beyond all bounds all differ;
    - or disturbances of the size of rounding do nothing;
    - or they do as much as large ones, and features are continuous: of many gates.
    """
    outputs = max([1, *(s.shape[1] for _, s in exact if s is not None)])

    def distances(one: Sequence[Row], other: Sequence[Row]) -> Tensor:
        return sum((squared_distance(a, b, outputs).sum(1) for a, b in zip(one, other, strict=True)), torch.zeros(()))

    def passes(disturbance: float) -> list[Row]:
        with Disturbed(1, point.device, tables, disturbance):
            return on_cpu(factors(point.repeat(TRIALS, 1)))

    if float(distances(exact, on_cpu(factors(point)))) > LINEAR**2 * size:
        return False
    zeros = torch.zeros(TRIALS, dtype=torch.int64)
    large, small = passes(DISTURBANCE), passes(4 * UNIT)
    first, second = torch.triu_indices(TRIALS, TRIALS, 1)
    pairs = [[(None if z is None else z[at], None if s is None else s[at]) for z, s in large] for at in (first, second)]
    if float(distances(*pairs).min()) <= SAME**2 * size:
        return True
    repeated = [(None if z is None else z[zeros], None if s is None else s[zeros]) for z, s in exact]
    by_large, by_small = distances(repeated, large), distances(repeated, small)
    if float(by_small.max()) <= QUIET**2 * size:
        return True
    before, after = ([z.double() for z, _ in rows if z is not None] for rows in (exact, large))
    moved = [float((b - a).norm(dim=1).max()) / (float(a.norm()) or 1.0) for a, b in zip(before, after, strict=True)]
    return max(moved, default=0.0) <= SAME and float(by_small.median()) >= float(by_large.median()) / SCALED


def squared_rows(layer: Row, outputs: int) -> Tensor:
    """Return ``|s|^2 |z|^2``, (n, M)."""
    z, s = layer
    if s is None:
        assert z is not None
        return z.square().sum(1, keepdim=True).expand(-1, outputs)
    rows = s.square().sum(2)
    return rows if z is None or is_sparse(z) else rows * z.square().sum(1, keepdim=True)


def squared_distance(one: Row, other: Row, outputs: int) -> Tensor:
    """Return ``|s' z'^T - s z^T|^2``, (n, M): ``ds z'^T + s dz^T`` without the differences of products."""
    (z, s), (z2, s2) = one, other
    if z is None:
        assert s is not None and s2 is not None
        return (s2 - s).square().sum(2)
    assert z2 is not None
    if is_sparse(z):
        assert s is not None and s2 is not None
        # A disturbance may lead to other places of a table, with entries that were next to zero.
        return coalesced(torch.cat([z2, z], dim=1), torch.cat([s2, -s], dim=2))[1].square().sum(2)
    dz = z2 - z
    if s is None or s2 is None:
        return dz.square().sum(1, keepdim=True).expand(-1, outputs)
    ds = s2 - s
    left, right = z2.square().sum(1, keepdim=True), dz.square().sum(1, keepdim=True)
    cross = (z2 * dz).sum(1, keepdim=True) * (ds * s).sum(2)
    return (ds.square().sum(2) * left + s.square().sum(2) * right + 2 * cross).clamp_min_(0)
