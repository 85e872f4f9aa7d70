"""How far rounding moves the Jacobian that a factor pass computes: measured by Monte Carlo arithmetic.

The factors Z and S are computed in fp64, and a deep sine network amplifies the rounding of its first layers by orders
of magnitude. Here the pass is repeated on a sample of points with every result disturbed at random, by much more than a
rounding error and by much less than what would leave the linear range. What that does to the Jacobian's rows, scaled
back to the size of a rounding error, is the error of the pass (Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997).
It takes any module, since it needs to know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from inrfast.linalg.operators import UNIT
from inrfast.memory import DEVICE_ROWS, chunks
from inrfast.mlp import MLP, HiddenLayer, LinearLayer
from inrfast.norms import Norm
from inrfast.norms.topk import ROWWISE, Selecting, TopKNorm
from inrfast.ops.factors import linear, mlp_factors, mlp_features
from inrfast.ops.sparse_rows import coalesced, is_sparse

WHOLE = 2.0**26
"""Size up to which products of whole numbers are exact in fp64."""

DISTURBANCE = 2.0**-44
"""Standard deviation of the relative disturbances: far above rounding (2^-53), far below what is no longer linear."""

LINEAR = 1e-3
"""Size of the response, relative to the Jacobian's rows, up to which it counts as linear; beyond, nothing is known."""

TYPICAL = 256.0
"""Squared response of an ordinary network, in squared disturbances."""

SAFETY = 8.0
"""Factor from the measured standard deviation to the stated bound. A sum of n products may round sqrt(n) / 4 times as
much as a single operation, which 8 covers up to width 1,024; what it leaves is for the sampling. Of 3,000 random
networks the bound was 1.1 to 12,000 times the error found in long double, 20 times in the median; most where products
of fp32 numbers are exact."""

POINTS, PASSES = 64, 128
"""Points of the sample, and disturbed passes over points of it, all together."""

HINGE_ROWS, HINGE_BYTES, MOST_EXACT = 8192, 2**21, 20_000
"""Points whose hinges are looked at together at most, the size of one buffer of theirs, and hinges next to a point that
are computed exactly (0.1 s)."""

HINGE_BYTES_GPU = 2**26
"""Size of one buffer on a GPU, which a chunk must fill; five of them are there at once."""

DOUBTFUL_ROWS = 512
"""Hinges in doubt whose slopes are computed together."""

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
hinge, and which side rounding takes is what :func:`hinges_in_doubt` is for."""

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

    def __init__(self, seed: int, device: torch.device, tables: bool = False) -> None:
        super().__init__()
        self.tables = tables
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
                    value.addcmul_(noise, sizes.mul_(value.abs() > NOTHING * sizes), value=DISTURBANCE)
                elif not whole:
                    value.mul_(noise.mul_(DISTURBANCE).add_(1))
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
        rows[layer] += jacobian.cpu() / SAFETY**2
        slopes[layer] += sensitivities / SAFETY**2
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
    index, share = _sample(coords, weights)
    points, repeats = coords[index.to(coords.device)], max(1, PASSES // len(index))
    share = share / repeats * (UNIT / DISTURBANCE) ** 2
    exact = _on_cpu(factors(points))
    jumps = torch.zeros(len(index), dtype=torch.bool) if aside is None else torch.isin(index, aside.cpu())
    with Disturbed(0, coords.device, tables):
        disturbed = _on_cpu(factors(points.repeat(repeats, 1)))
    sizes = [squared_rows(layer, outputs) for layer in exact]
    size = torch.stack(sizes).sum((0, 2))
    jacobian = torch.zeros(len(exact), outputs, dtype=torch.float64)
    single = torch.zeros(2, len(exact), dtype=torch.float64)
    for part in chunks(repeats * len(points), len(points)):
        moved = [_rows_of(layer, part) for layer in disturbed]
        distances = [_squared_distance(one, other, outputs) for one, other in zip(exact, moved, strict=True)]
        response = torch.stack(distances).sum((0, 2))
        linear = response <= LINEAR**2 * size
        others = (~linear & ~jumps).nonzero().flatten().tolist()
        chaos = 2 * len(others) > len(points)
        if chaos or not all(_repeats(factors, points, exact, n, float(size[n])) for n in others):
            return PassErrors(torch.full_like(jacobian, math.inf), *torch.full_like(single, math.inf))
        # A hinge exactly at a point, where nothing rounds: it counts as the most sensitive of the other points.
        known = linear & (size > 0)
        level = max(float((response / size)[known].max()) if bool(known.any()) else 0.0, TYPICAL * DISTURBANCE**2)
        for layer, distance in enumerate(distances):
            jacobian[layer] += share @ torch.where(linear.unsqueeze(1), distance, level * sizes[layer])
            for kind, (before, after) in enumerate(zip(exact[layer], moved[layer], strict=True)):
                if before is not None and after is not None and before.is_floating_point():
                    squares = (after - before).square().flatten(1).sum(1)
                    single[kind, layer] += share @ torch.where(
                        linear, squares, level * before.square().flatten(1).sum(1)
                    )
    return PassErrors(jacobian, single[0], single[1])


def _sample(coords: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
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


def _on_cpu(layers: Sequence[Row]) -> list[Row]:
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


def _repeats(
    factors: Callable[[Tensor], Sequence[Row]], points: Tensor, exact: Sequence[Row], n: int, size: float
) -> bool:
    """Return whether a point alone, whose sums add up in another order, has the same Jacobian up to :data:`LINEAR`.

    If so, what a disturbance made of it was the switch of a ReLU whose hinge no rounding moves.
    """
    alone = _on_cpu(factors(points[n : n + 1]))
    one = [_rows_of(layer, slice(n, n + 1)) for layer in exact]
    outputs = max([1, *(s.shape[1] for _, s in one if s is not None)])
    distance = sum(float(_squared_distance(a, b, outputs).sum()) for a, b in zip(one, alone, strict=True))
    return distance <= LINEAR**2 * size


def squared_rows(layer: Row, outputs: int) -> Tensor:
    """Return ``|s|^2 |z|^2``, (n, M)."""
    z, s = layer
    if s is None:
        assert z is not None
        return z.square().sum(1, keepdim=True).expand(-1, outputs)
    rows = s.square().sum(2)
    return rows if z is None or is_sparse(z) else rows * z.square().sum(1, keepdim=True)


def _squared_distance(one: Row, other: Row, outputs: int) -> Tensor:
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


# ---- hinges ------------------------------------------------------------------------------------------------------


class Hinges(NamedTuple):
    """ReLUs of the first layer, k of them, whose slope at a point rounding decided.

    Attributes
    ----------
    points, inputs
        The points (k, d), and the input of the first layer there (k, D).
    units
        The units (k,).
    gradient
        Derivatives (k, M) of the outputs by the unit's value: what its slope adds to them, or does not.
    """

    points: Tensor
    inputs: Tensor
    units: Tensor
    gradient: Tensor


def hinges_in_doubt(mlp: MLP, inputs: Callable[[Tensor], Tensor], coords: Tensor) -> Iterator[Hinges]:
    """Yield the first-layer ReLUs whose hinge rounding puts on one side of a point, some of them at a time.

    Their values are next to 0, but their slopes are 0 or 1, and no small disturbance shows that. Of networks without a
    norm before the first activation; others have none. Where the sum ``w x + b`` is exact, as for fp32 numbers on a
    line, nothing is in doubt.

    Parameters
    ----------
    mlp, inputs
        The network, and what makes the inputs of its first layer from coordinates.
    coords
        All points (N, d).
    """
    outputs, first, above = mlp.outputs, mlp.layers[0], mlp.layers[1].weight
    norm = mlp.hidden[0].norm
    if mlp.activations[0].kind.keeps != "mask" or not (norm is None or mlp.hidden[0].norm_after):
        return
    for part in chunks(len(coords), _rows_at_once(max(first.weight.shape), coords)):
        x = inputs(coords[part])
        u, terms = linear(x, first.weight, first.bias), x.abs() @ first.weight.abs().t()
        if first.bias is not None:
            terms += first.bias.abs()
        near = (u.abs() <= 8 * (x.shape[1] + 1) * UNIT * terms) & (terms > 0)
        places = near.nonzero()
        if len(places) == 0:
            continue
        places = torch.cat([_doubtful(u, x, first, places[:MOST_EXACT]), places[MOST_EXACT:]])
        for some in places.split(DOUBTFUL_ROWS):
            rows, units = some.unbind(1)
            if len(mlp.hidden) > 1:
                behind = mlp_factors(mlp, x[rows]).sensitivities[1]
            else:
                behind = torch.eye(outputs, dtype=x.dtype, device=x.device).expand(len(rows), -1, -1)
            if norm is None:
                gradient = (behind * above[:, units].t().unsqueeze(1)).sum(2)
            else:
                _, state = norm.forward(mlp.activations[0].value(linear(x[rows], first.weight, first.bias)))
                units_of = units.view(-1, 1, 1).expand(-1, outputs, 1)
                gradient = norm.backward(behind @ above, state)[0].gather(2, units_of).squeeze(2)
            yield Hinges(coords[part][rows], x[rows], units, gradient)


def _doubtful(u: Tensor, x: Tensor, layer: LinearLayer, places: Tensor) -> Tensor:
    """Return the places (point, unit) whose pre-activations ``u`` rounding made: another order of the sum differs."""
    rows, units = places.unbind(1)
    bias = u.new_zeros(len(places)) if layer.bias is None else layer.bias[units]
    numbers = torch.cat([u[rows, units].unsqueeze(1), bias.unsqueeze(1), x[rows], layer.weight[units]], dim=1)
    rounded = [index for index, (computed, *terms) in enumerate(numbers.tolist()) if not _is_exact(computed, *terms)]
    return places[torch.tensor(rounded, dtype=torch.int64).to(places.device)]


def _is_exact(computed: float, bias: float, *factors: float) -> bool:
    """Return whether ``bias`` and the products of the first half of ``factors`` with the other add up to this."""
    half = len(factors) // 2
    terms = [Fraction(a) * Fraction(b) for a, b in zip(factors[:half], factors[half:], strict=True)]
    return Fraction(computed) == sum(terms, Fraction(bias))


# ---- selections --------------------------------------------------------------------------------------------------

MOST_SELECTIONS = 2**14
"""Units in doubt whose effect is computed; of more nothing is known."""


def selections_in_doubt(mlp: MLP, inputs: Callable[[Tensor], Tensor], coords: Tensor) -> Tensor:
    """Return the units (k, 3) that a norm of the largest ones keeps or leaves out as rounding has it.

    Each row has the numbers of a point, a hidden layer and a unit whose size is that of the smallest that is kept, up
    to the errors of both: which of them is the larger decides about features and slopes, and no small disturbance shows
    that. Errors are bounds a priori, to first order, layer by layer. Sums of the first layer that are exact, as for
    fp32 numbers on a line, are not in doubt.

    Parameters
    ----------
    mlp, inputs
        The network, and what makes the inputs of its first layer from coordinates.
    coords
        All points (N, d).
    """
    found = [torch.empty(0, 3, dtype=torch.int64)]
    if not any(isinstance(norm, Selecting) for norm in mlp.norms):
        return found[0]
    last = max(index for index, layer in enumerate(mlp.hidden) if isinstance(layer.norm, Selecting))
    for part in chunks(len(coords), _rows_at_once(max(mlp.columns, *mlp.widths), coords)):
        z = inputs(coords[part])
        errors = torch.zeros_like(z)
        for index, layer in enumerate(mlp.hidden[: last + 1]):
            z, errors, places = _bounded(layer, z, errors, first=index == 0)
            rows, units = places.cpu().unbind(1)
            found.append(torch.stack([rows + part.start, torch.full_like(rows, index), units], 1))
    return torch.cat(found)


def _rows_at_once(widest: int, coords: Tensor) -> int:
    """Return how many points are looked at together, in layers of so many columns at most."""
    if coords.device.type != "cpu":
        return min(DEVICE_ROWS, max(256, HINGE_BYTES_GPU // (8 * widest)))
    return min(HINGE_ROWS, max(256, HINGE_BYTES // (8 * widest)))


def _bounded(layer: HiddenLayer, z: Tensor, errors: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return a hidden layer's output, bounds of its errors, and the places (point, unit) of units in doubt."""
    weight, bias, terms = layer.linear.weight, layer.linear.bias, (z.shape[1] + 1) * UNIT
    u = linear(z, weight, bias)
    own = linear(errors + terms * z.abs(), weight.abs(), None if bias is None else terms * bias.abs())
    exact = (z, u, layer.linear) if first and layer.activation.kind.keeps in ("mask", "nothing") else None
    before = after = torch.zeros(0, 2, dtype=torch.int64, device=z.device)
    if layer.norm is not None and not layer.norm_after:
        u, own, before = _through_norm(layer.norm, u, own, (z, u, layer.linear) if first else None)
    values, slope = layer.activation.value(u), layer.activation.slope(u).abs()
    if layer.activation.kind.keeps == "mask":
        slope = (u > -own).to(u.dtype)
    own = slope * (own + 2 * UNIT * u.abs()) + 4 * UNIT * values.abs() * (layer.activation.kind.keeps != "mask")
    if layer.norm is not None and layer.norm_after:
        values, own, after = _through_norm(layer.norm, values, own, exact)
    return values, own, torch.cat([before, after])


def _through_norm(
    norm: Norm, u: Tensor, errors: Tensor, exact: tuple[Tensor, Tensor, LinearLayer] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a norm's values at ``u``, bounds of their errors, and the places of units in doubt.

    ``exact`` are inputs, sums and weights of a first layer whose values are exact where these sums are.
    """
    places = torch.zeros(0, 2, dtype=torch.int64, device=u.device)
    if isinstance(norm, Selecting):
        places = norm.doubtful(u, errors).nonzero()
        if exact is not None and 0 < len(places) <= MOST_EXACT:
            inputs, sums, linear_layer = exact
            rounded = _doubtful(sums, inputs, linear_layer, places)
            known = errors.clone()
            known[places.unbind(1)] = 0
            known[rounded.unbind(1)] = errors[rounded.unbind(1)]
            places = norm.doubtful(u, known).nonzero()
    elif not isinstance(norm, ROWWISE):  # it subtracts a mean
        errors = errors + (u.shape[1] + 1) * UNIT * u.abs().amax(1, keepdim=True)
    values, state = norm.forward(u.clone())
    left, directions = norm.slope(state)
    if directions is not None:
        sizes = directions.abs()
        errors = errors + (sizes.mT @ (sizes @ errors.unsqueeze(2))).squeeze(2)
    own = 0.0 if isinstance(norm, TopKNorm) else (u.shape[1] + 1) * UNIT
    return values, left.abs() * errors + own * values.abs(), places


def selection_errors(
    mlp: MLP,
    places: Tensor,
    factors: Callable[[MLP, Tensor], Sequence[Row]],
    inputs: Callable[[Tensor], Tensor],
    coords: Tensor,
) -> PassErrors:
    """Return the squared errors that :func:`selections_in_doubt` stand for, computed with each unit kept or left out.

    With m units in doubt at a point, the square of the sum of their effects is at most m times the sum of squares. The
    effect of several together is that sum to first order; the safety factor is for the rest.

    Parameters
    ----------
    mlp, places, inputs, coords
        Of :func:`selections_in_doubt`.
    factors
        The pass of a network like this one, from points (n, d): as in :func:`pass_errors`.
    """
    outputs = mlp.outputs
    coords = coords.to(torch.float64)
    layers = len(factors(mlp, coords[:1]))
    jacobian = torch.zeros(layers, outputs, dtype=torch.float64)
    single = torch.zeros(2, layers, dtype=torch.float64)
    if len(places) > MOST_SELECTIONS:
        return PassErrors(torch.full_like(jacobian, math.inf), *torch.full_like(single, math.inf))
    counts = torch.bincount(places[:, 0], minlength=1).to(torch.float64)
    for index in places[:, 1].unique().tolist():
        for some in places[places[:, 1] == index].split(DOUBTFUL_ROWS):
            points, units = some[:, 0], some[:, 2].to(coords.device)
            x = coords[points.to(coords.device)]
            before = _on_cpu(factors(mlp, x))
            after = _on_cpu(factors(_switched(mlp, index, inputs(x), units), x))
            share = counts[points]
            for layer, (one, other) in enumerate(zip(before, after, strict=True)):
                jacobian[layer] += share @ _squared_distance(one, other, outputs)
                for kind, (was, found) in enumerate(zip(one, other, strict=True)):
                    if was is not None and found is not None and was.is_floating_point():
                        single[kind, layer] += share @ (found - was).square().flatten(1).sum(1)
    return PassErrors(jacobian, single[0], single[1])


def _switched(mlp: MLP, index: int, inputs: Tensor, units: Tensor) -> MLP:
    """Return the network that, of some points, keeps one more unit of a hidden layer, or one less."""
    layer = mlp.hidden[index]
    norm = layer.norm
    assert isinstance(norm, Selecting)
    z = mlp_features(mlp, inputs, index)[:, :-1]
    u = linear(z, layer.linear.weight, layer.linear.bias)
    chosen = norm.kept(layer.activation.value(u) if layer.norm_after else u).bool()
    every = torch.arange(len(units), device=units.device)
    chosen[every, units] = ~chosen[every, units]
    other = replace(layer, norm=replace(norm, chosen=chosen))
    return replace(mlp, hidden=(*mlp.hidden[:index], other, *mlp.hidden[index + 1 :]))
