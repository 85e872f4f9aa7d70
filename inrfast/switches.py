"""Gates and selections that rounding decides: found by bounds of every layer's errors, and what each is worth.

A ReLU whose pre-activation is zero up to rounding has slope 0 or 1 by chance, and of two units as large as the smallest
that a TopK norm keeps, chance keeps either. No small disturbance shows that. Here the errors of every layer are bounded
a priori, to first order, at every point; a unit within its bound is in doubt, and what its other choice does to the
Jacobian is computed and counted as an error.

A sum of D products and a bias has an error of at most ``(D + 1) u (sum |w z| + |b|)`` in any order (Higham, Accuracy
and Stability of Numerical Algorithms, 2002, section 3.1), ``u = 2^-53``. With errors ``dz`` of a layer's inputs ::

    |du_j| <= |w_j| (|dz| + (D + 1) u |z|) + (D + 1) u |b_j|
    |du|   <= |W| |dz| + (D + 1) u (|W|_F |z| + |b|)

in Euclidean and spectral norms: that takes a forward pass and some operations per unit. Only points with a unit in
doubt by these are looked at again, entry by entry with ``|W|``, and the smaller bound counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.linalg.operators import UNIT
from inrfast.memory import DEVICE_ROWS, chunks
from inrfast.mlp import MLP, HiddenLayer, LinearLayer
from inrfast.modes import own_modes
from inrfast.modulations import Modulation
from inrfast.norms import Norm
from inrfast.norms.batch import BatchNorm
from inrfast.norms.layer import LayerNorm
from inrfast.norms.topk import ROWWISE, Selecting, TopKNorm
from inrfast.ops.factors import linear, mlp_factors
from inrfast.rounding import (
    DISTURBANCE,
    LINEAR,
    SAFETY,
    SLACK,
    Disturbed,
    PassErrors,
    Row,
    on_cpu,
    sample,
    squared_distance,
)
from inrfast.threads import share

ROWS, BYTES, BYTES_GPU = 8192, 2**21, 2**26
"""Points looked at together at most, and the size of one buffer of theirs: on a GPU a chunk must fill it, and ten of
them are there at once."""

MOST_EXACT, MOST_PRODUCTS = 20_000, 2**22
"""Units of a chunk of points whose sums are computed in fractions (0.1 s), and products of whole layers of a chunk
that are looked at one by one."""

CASES = 512
"""Choices of gates and selections whose effects are computed together."""

MOST_CASES = 2**14
"""Choices whose effects are computed; of more nothing is known."""

REPEATS = 4
"""Disturbed passes through an encoding, or a filter without bounds of its own."""

BESIDE_ZERO = 2.0**-500
"""Where the slopes of an activation on both sides of 0 are taken."""

GATE, SELECTION = 0, 1


# ---- bounds of errors --------------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """Bounds of the errors of a layer's values (n, D): of their Euclidean norm (n,), and of each, if it is known."""

    length: Tensor
    each: Tensor | None


@dataclass(frozen=True)
class _Layer:
    """A hidden layer with the norms of its weight and bias.

    Attributes
    ----------
    rows, spectral, whole, bias
        Euclidean norms of the weight's rows (D,), a bound of its spectral norm, its Frobenius norm and the bias's norm.
    sides
        The activation's slopes below and above 0, None where they are the same.
    """

    layer: HiddenLayer
    rows: Tensor
    spectral: float
    whole: float
    bias: float
    sides: tuple[float, float] | None

    @classmethod
    def of(cls, layer: HiddenLayer) -> _Layer:
        """Return a layer with its norms."""
        weight, bias = layer.linear.weight, layer.linear.bias
        whole = float(torch.linalg.vector_norm(weight))
        length = 0.0 if bias is None else float(torch.linalg.vector_norm(bias))
        rows = torch.linalg.vector_norm(weight, dim=1)
        return cls(layer, rows, _spectral_bound(weight, whole), whole, length, sides_of(layer.activation, weight))

    @property
    def decides(self) -> bool:
        """Whether rounding may decide anything in this layer."""
        return self.sides is not None or isinstance(self.layer.norm, Selecting)


def _spectral_bound(weight: Tensor, whole: float) -> float:
    """Return ``(sum_i sigma_i^16)^(1/16)``, which is at most ``D^(1/16)`` times the spectral norm."""
    if not 0 < whole < math.inf:
        return whole
    unit = weight / whole
    gram = unit @ unit.mT if unit.shape[0] < unit.shape[1] else unit.mT @ unit
    power = gram @ gram
    return min(whole, whole * float(torch.linalg.vector_norm(power @ power)) ** 0.125 * (1 + 1e-6) + whole * 1e-12)


def sides_of(activation: BoundActivation, like: Tensor) -> tuple[float, float] | None:
    """Return an activation's slopes just below and just above 0, or None where they are the same.

    A jump in slope anywhere else is not found.
    """
    if activation.kind.keeps == "mask":
        return 0.0, 1.0
    if activation.kind.keeps == "nothing":
        return None
    at = torch.tensor([-BESIDE_ZERO, BESIDE_ZERO], dtype=torch.float64, device=like.device)
    below, above = activation.slope(at).tolist()
    jump = abs(below - above)
    return (below, above) if LINEAR**2 * max(abs(below), abs(above)) < jump < math.inf else None


def _through_layer(
    own: _Layer, z: Tensor, errors: Errors, x: Tensor
) -> tuple[Tensor, Errors, Tensor | None, Tensor | None]:
    """Return a hidden layer's output, its errors, and which gates and which selections (n, D) are in doubt, if any.

    Errors of single units are carried on where those of the inputs are given. ``x`` are the coordinates, for filters.
    """
    layer, fine = own.layer, errors.each is not None
    norm, after = layer.norm, layer.norm_after
    u, found = _sums(own, z, errors)
    tested, within, selected = u, found.each, None
    if norm is not None and not after:
        u, found, selected = _through_norm(norm, u, found)
        if not isinstance(norm, ROWWISE):  # the others keep signs, whose errors are known best before them
            tested, within = u, found.each
    gates = None
    if own.sides is not None:
        assert within is not None
        gates = (tested.abs() <= 2 * within) & (within > 0)
        if isinstance(norm, Selecting) and not after:
            assert selected is not None
            gates &= selected | norm.kept(tested).bool()
    if not fine and not (after and isinstance(norm, Selecting)):
        found = Errors(found.length, None)
    values, found = _through_activation(layer.activation, own.sides, u, found, gates)
    if norm is not None and after:
        values, found, selected = _through_norm(norm, values, found)
    if layer.modulation is not None:
        values, found = _through_filter(layer.modulation, values, found, x)
    return values, found if fine else Errors(found.length, None), gates, selected


def _sums(own: _Layer, z: Tensor, errors: Errors) -> tuple[Tensor, Errors]:
    """Return pre-activations and their errors, which are 0 where inputs are exact and nothing was rounded."""
    weight, bias, terms = own.layer.linear.weight, own.layer.linear.bias, (z.shape[1] + 1) * UNIT
    length = torch.linalg.vector_norm(z, dim=1)
    u = linear(z, weight, bias)
    each = torch.outer(errors.length + terms * length, own.rows)
    if bias is not None:
        each += terms * bias.abs()
    size = own.spectral * errors.length + terms * (own.whole * length + own.bias)
    if errors.each is not None:
        beyond = None if bias is None else terms * bias.abs()
        each = torch.minimum(each, linear(errors.each + terms * z.abs(), weight.abs(), beyond))
        known = (errors.each == 0).all(1)
        each.masked_fill_(_exact(u, each, z, own.layer.linear, known), 0.0)
        size = torch.minimum(size, torch.linalg.vector_norm(each, dim=1))
    return u, Errors(size, each)


def _through_activation(
    act: BoundActivation, sides: tuple[float, float] | None, u: Tensor, errors: Errors, gates: Tensor | None
) -> tuple[Tensor, Errors]:
    """Return an activation's values and their errors."""
    values, (size, each) = act.value(u), errors
    if act.kind.keeps == "nothing":
        return values, errors
    if act.kind.keeps == "mask":
        if each is not None:
            assert gates is not None
            each = each * (gates | (u > 0))
        return values, Errors(size, each)
    slope = act.slope(u).abs()
    if sides is not None and gates is not None:
        slope = torch.where(gates, max(map(abs, sides)), slope)
    lost = 4 * UNIT * values.abs()
    size = slope.amax(1) * (size + 2 * UNIT * torch.linalg.vector_norm(u, dim=1))
    size = size + torch.linalg.vector_norm(lost, dim=1)
    if each is not None:
        each = torch.minimum(slope * (each + 2 * UNIT * u.abs()) + lost, size.unsqueeze(1))
    return values, Errors(size, each)


def _through_norm(norm: Norm, u: Tensor, errors: Errors) -> tuple[Tensor, Errors, Tensor | None]:
    """Return a norm's values, their errors, and which units of one that keeps the largest are in doubt."""
    size, each = errors
    selected = norm.doubtful(u, 2 * each) if isinstance(norm, Selecting) and each is not None else None
    values, state = norm.forward(u.clone())
    left, directions = norm.slope(state)
    left = left.abs().expand_as(values)
    terms, zero = (u.shape[1] + 1) * UNIT, u.new_zeros(())
    if isinstance(norm, BatchNorm):
        apart = (values - norm.shift).abs()
        before, after = zero, 8 * UNIT * apart + UNIT * values.abs() * (apart != values.abs())
    elif isinstance(norm, LayerNorm):
        before, after = terms * u.abs().amax(1, keepdim=True), terms * (values.abs() + (values - norm.shift).abs())
    elif isinstance(norm, TopKNorm):
        before, after = zero, zero
    elif isinstance(norm, ROWWISE):
        before, after = zero, terms * values.abs()
    else:  # it may subtract a mean, and add a weight
        largest = values.abs().amax(1, keepdim=True)
        before, after = terms * u.abs().amax(1, keepdim=True), terms * (values.abs() + largest)
    scale = left.amax(1)
    if directions is not None:
        scale = scale * (directions.square().sum(2).amax(1) - 1).clamp_min(1)
    size = scale * (size + torch.linalg.vector_norm(before.expand_as(u), dim=1))
    size = size + torch.linalg.vector_norm(after.expand_as(u), dim=1)
    if each is None:
        return values, Errors(size, None), selected
    each = each + before
    if directions is not None:
        sizes = directions.abs()
        each = each + (sizes.mT @ (sizes @ each.unsqueeze(2))).squeeze(2)
    return values, Errors(size, torch.minimum(left * each + after, size.unsqueeze(1))), selected


def _through_filter(own: nn.Module, values: Tensor, errors: Errors, x: Tensor) -> tuple[Tensor, Errors]:
    """Return features times their filter of the coordinates, and the errors: ``|h| |dz| + |z| |dh|``."""
    assert isinstance(own, Modulation)
    h, (size, each) = own(x), errors
    lost = own.rounding(x)
    if lost is None:
        lost = 2 * SAFETY * _moved(own, x)[1].amax(0) + 4 * UNIT * h.abs()
    lost = values.abs() * lost
    values = values * h
    lost += UNIT * values.abs()
    size = h.abs().amax(1) * size + torch.linalg.vector_norm(lost, dim=1)
    return values, Errors(size, None if each is None else h.abs() * each + lost)


def _moved(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (n, D) at ``x``, and by how much disturbed passes move them (passes, n, D), per rounding error.

    Jumps are left out: a place in a table that lies on an edge.
    """
    exact = function(x)
    with Disturbed(0, x.device, tables=True):
        moved = function(x.repeat(REPEATS, 1)).unflatten(0, (REPEATS, len(x)))
    apart = (moved - exact).abs()
    return exact, apart.masked_fill_(apart > LINEAR * exact.abs().amax(0), 0.0) * (UNIT / DISTURBANCE)


def _input_errors(mlp: MLP, inputs: Callable[[Tensor], Tensor], coords: Tensor) -> Tensor | None:
    """Return bounds (D,) of the errors of an encoding's columns, measured on a sample of points; None: no encoding."""
    if mlp.encoding is None:
        return None
    points = coords[sample(coords, None)[0].to(coords.device)]
    return SAFETY * _moved(inputs, points)[1].amax((0, 1))


# ---- what is exact -----------------------------------------------------------------------------------------------


def _exact(u: Tensor, each: Tensor, z: Tensor, layer: LinearLayer, known: Tensor) -> Tensor:
    """Return which sums ``u`` (n, D) of exact inputs, those of the points ``known`` (n,), are exact themselves."""
    found = (known.unsqueeze(1) & (each == 0)).clone()
    rows = known.nonzero().flatten()[: max(1, MOST_PRODUCTS // layer.weight.numel())]
    if len(rows) == 0:
        return found
    found[rows] |= _unrounded(u[rows], z[rows], layer)
    places = (known.unsqueeze(1) & ~found & (u.abs() <= 2 * each)).nonzero()[:MOST_EXACT]
    if len(places) > 0:
        points, units = places.unbind(1)
        bias = u.new_zeros(len(places)) if layer.bias is None else layer.bias[units]
        numbers = torch.cat([u[points, units].unsqueeze(1), bias.unsqueeze(1), z[points], layer.weight[units]], dim=1)
        same = [_is_exact(computed, *terms) for computed, *terms in numbers.tolist()]
        found[points, units] = torch.tensor(same, device=u.device)
    return found


def _unrounded(u: Tensor, z: Tensor, layer: LinearLayer) -> Tensor:
    """Return which sums round nowhere, added up term by term: by Dekker's and Knuth's errors of products and sums."""
    weight = layer.weight
    total = torch.zeros_like(u) if layer.bias is None else layer.bias.expand_as(u)
    exact = torch.ones_like(u, dtype=torch.bool)
    for index in range(z.shape[1]):
        a, b = z[:, index : index + 1], weight[:, index]
        product = a * b
        (high, low), (high2, low2) = _halves(a), _halves(b)
        lost = ((high * high2 - product) + high * low2 + low * high2) + low * low2
        exact &= (lost == 0) & ((product.abs() > 1e-250) | (a == 0) | (b == 0))  # the error itself does not underflow
        after = total + product
        back = after - total
        exact &= ((total - (after - back)) + (product - back)) == 0
        total = after
    return exact & (total == u)


def _halves(number: Tensor) -> tuple[Tensor, Tensor]:
    """Return Veltkamp's halves of fp64 numbers, of 26 bits each."""
    large = number * (2.0**27 + 1)
    high = large - (large - number)
    return high, number - high


def _is_exact(computed: float, bias: float, *factors: float) -> bool:
    """Return whether ``bias`` and the products of the first half of ``factors`` with the other add up to this."""
    half = len(factors) // 2
    if not all(map(math.isfinite, (computed, bias, *factors))):
        return False
    terms = [Fraction(a) * Fraction(b) for a, b in zip(factors[:half], factors[half:], strict=True)]
    return Fraction(computed) == sum(terms, Fraction(bias))


# ---- what is in doubt --------------------------------------------------------------------------------------------


def in_doubt(mlp: MLP, inputs: Callable[[Tensor], Tensor], coords: Tensor, threads: int = 1) -> Tensor:
    """Return the gates and selections (k, 4) that rounding decides, sorted, on the CPU.

    Each row has the numbers of a point, a hidden layer and a unit, and :data:`GATE`: the unit lies where its activation
    jumps in slope; or :data:`SELECTION`: its size is that of the smallest that its norm keeps. Sums that round nothing,
    as of fp32 numbers on a line, are not in doubt. The errors of encodings are measured on a sample of points, those
    of all else are bounds a priori.

    Parameters
    ----------
    mlp, inputs
        The network, also with filters, and what makes the inputs of its first layer from coordinates.
    coords
        All points (N, d).
    threads
        Chunks of points looked at at a time.
    """
    layers = [_Layer.of(layer) for layer in mlp.hidden]
    layers = layers[: max([0, *(k for k, own in enumerate(layers, 1) if own.decides)])]
    found = [torch.empty(0, 4, dtype=torch.int64)]
    if not layers:
        return found[0]
    coords = coords.to(torch.float64)
    errors = _input_errors(mlp, inputs, coords)

    def look(part: slice) -> None:
        with own_modes():
            x = coords[part]
            z = inputs(x)
            suspects = _suspects(layers, z, errors, x).nonzero().flatten()
            for some in suspects.split(max(1, len(x) // 4)):
                for places in _places(layers, z[some], errors, x[some]):
                    places[:, 0] = some.cpu()[places[:, 0]] + part.start
                    found.append(places)

    pieces = list(chunks(len(coords), _rows_at_once(max(mlp.columns, *mlp.widths), coords)))
    share(pieces, [look] * max(1, min(threads, len(pieces))))
    return torch.cat(found).unique(dim=0)


def _rows_at_once(widest: int, coords: Tensor) -> int:
    """Return how many points are looked at together, in layers of so many columns at most."""
    if coords.device.type != "cpu":
        return min(DEVICE_ROWS, max(256, BYTES_GPU // (8 * widest)))
    return min(ROWS, max(256, BYTES // (8 * widest)))


def _at_inputs(z: Tensor, errors: Tensor | None) -> Tensor:
    """Return the errors (n, D) of a network's inputs."""
    return torch.zeros_like(z) if errors is None else torch.where(errors > 0, errors + 4 * UNIT * z.abs(), 0.0)


def _suspects(layers: Sequence[_Layer], z: Tensor, errors: Tensor | None, x: Tensor) -> Tensor:
    """Return at which points (n,) anything is in doubt by norms alone."""
    found = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    bounds = Errors(torch.linalg.vector_norm(_at_inputs(z, errors), dim=1), None)
    for own in layers:
        z, bounds, *doubts = _through_layer(own, z, bounds, x)
        for doubt in doubts:
            if doubt is not None:
                found |= doubt.any(1)
    return found


def _places(layers: Sequence[_Layer], z: Tensor, errors: Tensor | None, x: Tensor) -> Iterator[Tensor]:
    """Yield what is in doubt at a few points, rows as those of :func:`in_doubt`."""
    each = _at_inputs(z, errors)
    bounds = Errors(torch.linalg.vector_norm(each, dim=1), each)
    for index, own in enumerate(layers):
        z, bounds, *doubts = _through_layer(own, z, bounds, x)
        for kind, doubt in zip((GATE, SELECTION), doubts, strict=True):
            if doubt is not None:
                points, units = doubt.nonzero().cpu().unbind(1)
                numbers = (torch.full_like(units, index), units, torch.full_like(units, kind))
                yield torch.stack([points, *numbers], dim=1)


# ---- gates of the first layer ------------------------------------------------------------------------------------


class Hinges(NamedTuple):
    """Gates of the first layer in doubt, k of them, at points where nothing else is.

    Attributes
    ----------
    points, inputs
        The points (k, d), and the input of the first layer there (k, D).
    units
        The units (k,).
    gradient
        Derivatives (k, M) of the outputs by the unit's value, times its jump: what its slope adds to them, or does not.
    beside
        How many there are at the point, (k,).
    """

    points: Tensor
    inputs: Tensor
    units: Tensor
    gradient: Tensor
    beside: Tensor


def of_first_layer(mlp: MLP, places: Tensor) -> Tensor:
    """Return which rows of :func:`in_doubt` belong to points where only gates of the first layer are in doubt.

    None where a norm stands before the gates. What each does follows from the layers above it alone.
    """
    if mlp.hidden[0].norm is not None and not mlp.hidden[0].norm_after:
        return torch.zeros(len(places), dtype=torch.bool)
    other = (places[:, 1] > 0) | (places[:, 3] != GATE)
    return ~torch.isin(places[:, 0], places[other, 0])


def hinges(mlp: MLP, places: Tensor, inputs: Callable[[Tensor], Tensor], coords: Tensor) -> Iterator[Hinges]:
    """Yield the places of :func:`of_first_layer`, some of them at a time, with what they are worth.

    Parameters
    ----------
    mlp, inputs, coords
        As in :func:`in_doubt`.
    places
        The rows that :func:`of_first_layer` picks.
    """
    first, norm, own = mlp.hidden[0], mlp.hidden[0].norm, mlp.hidden[0].linear
    sides = sides_of(first.activation, own.weight)
    if len(places) == 0 or sides is None:
        return
    beside = torch.bincount(places[:, 0], minlength=1)
    for some in places.split(CASES):
        x, units = coords[some[:, 0].to(coords.device)].to(torch.float64), some[:, 2].to(coords.device)
        z = inputs(x)
        if len(mlp.hidden) > 1:
            behind = mlp_factors(mlp, z, coords=x).sensitivities[1]
        else:
            behind = torch.eye(mlp.outputs, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        gradient = behind @ mlp.layers[1].weight
        if first.modulation is not None:
            gradient = gradient * first.modulation(x).unsqueeze(1)
        if norm is not None:
            _, state = norm.forward(first.activation.value(linear(z, own.weight, own.bias)))
            gradient = norm.backward(gradient, state)[0]
        gradient = gradient.gather(2, units.view(-1, 1, 1).expand(-1, mlp.outputs, 1)).squeeze(2)
        yield Hinges(x, z, units, gradient * (sides[1] - sides[0]), beside[some[:, 0]].to(x))


# ---- all others --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Switched(BoundActivation):
    """An activation with the slopes of the other side of 0 at some places (rows, units)."""

    places: tuple[Tensor, Tensor] | None = None

    def in_place(self, u: Tensor, value: Tensor, scratch: Tensor) -> None:
        """See :class:`inrfast.activations.BoundActivation`."""
        super().in_place(u, value, scratch)
        sides = sides_of(BoundActivation(self.kind, self.numbers), u)
        assert sides is not None and self.places is not None
        here = u[self.places]
        nearer = (here - sides[0]).abs() <= (here - sides[1]).abs()
        u[self.places] = torch.where(nearer, sides[1], sides[0]).to(u.dtype)


class _Cases(NamedTuple):
    """Choices of gates and selections.

    ``points`` (cases,) are places in a list of points, ``weights`` (cases,) what squared effects are multiplied by.
    ``switches`` (k, 2) holds numbers of a case and of a row of :func:`in_doubt` that it switches.
    """

    points: Tensor
    weights: Tensor
    switches: Tensor


def _cases(places: Tensor, at: Tensor) -> tuple[_Cases, _Cases] | None:
    """Return choices whose squared effects are to be added up, and those of whose squared effects the largest counts.

    With m gates of one layer in doubt at a point, the square of the sum of their effects is at most m times the sum of
    squares. So it is, to first order, with m selections. Where gates of several layers are in doubt, one shuts or opens
    the way to another, and all ``2^m - 1`` choices are looked at. None: there are too many.
    """
    alone: list[tuple[int, float, list[int]]] = []
    together: list[tuple[int, float, list[int]]] = []
    for point, own in enumerate(torch.arange(len(places)).split(torch.bincount(at).tolist())):
        m, kinds = len(own), places[own, 3]
        exact = (1 + SLACK) ** 2 / SAFETY**2
        if bool((kinds == SELECTION).all()):
            alone.extend((point, float(m), [row]) for row in own.tolist())
        elif bool((kinds == GATE).all()) and len(places[own, 1].unique()) == 1:
            alone.extend((point, m * exact, [row]) for row in own.tolist())
        elif m > math.log2(MOST_CASES):
            return None
        else:
            weight = exact if bool((kinds == GATE).all()) else 1.0
            for choice in range(1, 2**m):
                together.append((point, weight, [row for k, row in enumerate(own.tolist()) if choice >> k & 1]))
        if len(alone) + len(together) > MOST_CASES:
            return None
    return _listed(alone), _listed(together)


def _listed(cases: list[tuple[int, float, list[int]]]) -> _Cases:
    points = torch.tensor([point for point, _, _ in cases], dtype=torch.int64)
    weights = torch.tensor([weight for _, weight, _ in cases], dtype=torch.float64)
    switches = [(case, row) for case, (_, _, rows) in enumerate(cases) for row in rows]
    return _Cases(points, weights, torch.tensor(switches, dtype=torch.int64).view(-1, 2))


def switching_errors(
    mlp: MLP,
    places: Tensor,
    factors: Callable[[MLP, Tensor], Sequence[Row]],
    inputs: Callable[[Tensor], Tensor],
    coords: Tensor,
) -> PassErrors:
    """Return the squared errors that some rows of :func:`in_doubt` stand for, computed with each switched.

    The safety factor counts for selections, whose effects together are those of each to first order, not for gates.

    Parameters
    ----------
    mlp, inputs, coords
        As in :func:`in_doubt`.
    places
        All rows of some points.
    factors
        The pass of a network like this one, from points (n, d): as in :func:`inrfast.rounding.pass_errors`.
    """
    coords = coords.to(torch.float64)
    layers = len(factors(mlp, coords[:1]))
    points, at = places[:, 0].unique(return_inverse=True)
    jacobian = torch.zeros(len(points), layers, mlp.outputs, dtype=torch.float64)
    single = torch.zeros(len(points), 2, layers, dtype=torch.float64)
    listed = _cases(places, at)
    if listed is None:
        unknown = torch.full((layers,), math.inf, dtype=torch.float64)
        return PassErrors(torch.full_like(jacobian[0], math.inf), unknown, unknown.clone())
    for how, cases in zip(("sum", "amax"), listed, strict=True):
        for part in chunks(len(cases.points), CASES):
            own = cases.switches[(cases.switches[:, 0] >= part.start) & (cases.switches[:, 0] < part.stop)]
            where, weights = cases.points[part], cases.weights[part]
            x = coords[points[where].to(coords.device)]
            before = on_cpu(factors(mlp, x))
            after = on_cpu(factors(_other(mlp, own[:, 0] - part.start, places[own[:, 1]], inputs(x), x), x))
            for layer, (one, other) in enumerate(zip(before, after, strict=True)):
                _put(jacobian[:, layer], where, squared_distance(one, other, mlp.outputs) * weights.unsqueeze(1), how)
                for kind, (was, found) in enumerate(zip(one, other, strict=True)):
                    if was is not None and found is not None and was.is_floating_point():
                        moved = (found - was).square().flatten(1).sum(1) * weights
                        _put(single[:, kind, layer], where, moved, how)
    sums = single.sum(0)
    return PassErrors(jacobian.sum(0), sums[0], sums[1])


def _put(into: Tensor, where: Tensor, values: Tensor, how: str) -> None:
    """Add rows of values to theirs of ``into``, or take the larger of both."""
    if how == "sum":
        into.index_add_(0, where, values)
    else:
        into.index_reduce_(0, where, values, "amax")


def _other(mlp: MLP, cases: Tensor, places: Tensor, inputs: Tensor, x: Tensor) -> MLP:
    """Return the network that makes other choices at some points (n, d): at places of a network's rows ``cases``."""
    hidden = list(mlp.hidden)
    features = mlp_factors(mlp, inputs, coords=x).features
    cases, places = cases.to(x.device), places.to(x.device)
    for index in places[:, 1].unique().tolist():
        layer = mlp.hidden[index]
        here = places[:, 1] == index
        gates, selections = here & (places[:, 3] == GATE), here & (places[:, 3] == SELECTION)
        if bool(gates.any()):
            act = layer.activation
            hidden[index] = replace(
                layer, activation=_Switched(act.kind, act.numbers, (cases[gates], places[gates, 2]))
            )
        if bool(selections.any()):
            assert isinstance(layer.norm, Selecting)
            u = linear(features[index][:, :-1], layer.linear.weight, layer.linear.bias)
            chosen = layer.norm.kept(layer.activation.value(u) if layer.norm_after else u).bool()
            at = (cases[selections], places[selections, 2])
            chosen[at] = ~chosen[at]
            hidden[index] = replace(hidden[index], norm=replace(layer.norm, chosen=chosen))
    return replace(mlp, hidden=tuple(hidden))
