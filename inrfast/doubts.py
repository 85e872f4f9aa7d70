"""Gates and selections that rounding decides, found by bounds of the errors of every layer.

A ReLU whose pre-activation is zero up to rounding has slope 0 or 1 by chance, and of two units as large as the smallest
that a TopK norm keeps, chance keeps either. No small disturbance shows that. Here the errors of every layer are bounded
a priori, to first order, at every point: a unit within its bound is in doubt. What its other choice does to the
Jacobian is counted as an error (:mod:`inrfast.switches`).

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
from dataclasses import dataclass
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
from inrfast.norms.sphere import Sphere
from inrfast.norms.topk import ROWWISE, Selecting, TopKNorm, TopKSphereNorm
from inrfast.ops.factors import linear
from inrfast.rounding import (
    DISTURBANCE,
    LINEAR,
    SAFETY,
    SLACK,
    Disturbed,
    sample,
)
from inrfast.threads import share

ROWS, BYTES, BYTES_GPU = 8192, 2**21, 2**26
"""Points looked at together at most, and the size of one buffer of theirs: on a GPU a chunk must fill it, and ten of
them are there at once."""

MOST_EXACT, MOST_PRODUCTS = 20_000, 2**22
"""Units of a chunk of points whose sums are computed in fractions (0.1 s), and products of whole layers of a chunk
that are looked at one by one."""

REPEATS = 4
"""Disturbed passes through an encoding, or a filter without bounds of its own."""

GATE, SELECTION, DIRECTION = 0, 1, 2
"""What rounding may decide: a unit's slope, whether a norm keeps it, and where on a sphere a point lies (unit 0)."""


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
        whole = float(torch.linalg.vector_norm(weight)) * (1 + SLACK)
        length = 0.0 if bias is None else float(torch.linalg.vector_norm(bias))
        rows = torch.linalg.vector_norm(weight, dim=1)
        return cls(layer, rows, _spectral_bound(weight, whole), whole, length, layer.activation.sides)

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
    return whole * min(1.0, float(torch.linalg.vector_norm(power @ power)) ** 0.125 * (1 + SLACK))


class Doubts(NamedTuple):
    """What is in doubt in a layer at n points: gates and selections (n, D), directions (n, 1). None: nothing can be."""

    gates: Tensor | None = None
    selections: Tensor | None = None
    directions: Tensor | None = None


def _through_layer(own: _Layer, z: Tensor, errors: Errors, x: Tensor) -> tuple[Tensor, Errors, Doubts]:
    """Return a hidden layer's output, its errors, and what is in doubt.

    Errors of single units are carried on where those of the inputs are given. ``x`` are the coordinates, for filters.
    """
    layer, fine = own.layer, errors.each is not None
    norm, after, found = layer.norm, layer.norm_after, Doubts()
    u, bounds = _sums(own, z, errors)
    tested, within = u, bounds.each
    if norm is not None and not after:
        u, bounds, found = _through_norm(norm, u, bounds)
        if not isinstance(norm, ROWWISE):  # the others keep signs, whose errors are known best before them
            tested, within = u, bounds.each
    gates = None
    if own.sides is not None:
        assert within is not None
        gates = (tested.abs() <= 2 * within) & (within > 0)
        if isinstance(norm, Selecting) and not after:
            assert found.selections is not None
            gates &= found.selections | norm.kept(tested).bool()
    if not fine and not (after and isinstance(norm, Selecting)):
        bounds = Errors(bounds.length, None)
    values, bounds = _through_activation(layer.activation, own.sides, u, bounds, gates)
    if norm is not None and after:
        values, bounds, found = _through_norm(norm, values, bounds)
    if layer.modulation is not None:
        values, bounds = _through_filter(layer.modulation, values, bounds, x)
    return values, bounds if fine else Errors(bounds.length, None), found._replace(gates=gates)


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
            size = torch.minimum(size, torch.linalg.vector_norm(each, dim=1))
        return values, Errors(size, each)
    slope = act.slope(u).abs()
    if sides is not None and gates is not None:
        slope = torch.where(gates, max(map(abs, sides)), slope)
    largest = u.abs() if act.bound is None else act.bound  # of what a value may be a difference of: GELU's 1 + erf
    lost = 4 * UNIT * (values.abs() + largest * (u != 0))
    size = slope.amax(1) * (size + 2 * UNIT * torch.linalg.vector_norm(u, dim=1))
    size = size + torch.linalg.vector_norm(lost, dim=1)
    if each is not None:
        each = torch.minimum(slope * (each + 2 * UNIT * u.abs()) + lost, size.unsqueeze(1))
    return values, Errors(size, each)


def _through_norm(norm: Norm, u: Tensor, errors: Errors) -> tuple[Tensor, Errors, Doubts]:
    """Return a norm's values, their errors, and what is in doubt."""
    size, each = errors
    selections = norm.doubtful(u, 2 * each) if isinstance(norm, Selecting) and each is not None else None
    doubts = Doubts(None, selections)
    if isinstance(norm, (Sphere, TopKSphereNorm)):
        kept = u if isinstance(norm, Sphere) else u * norm.kept(u)
        doubts = doubts._replace(directions=(size > LINEAR * torch.linalg.vector_norm(kept, dim=1)).unsqueeze(1))
    values, state = norm.forward(u.clone())
    left, directions = norm.slope(state)
    left = left.abs().expand_as(values)
    terms, zero = (u.shape[1] + 1) * UNIT, u.new_zeros(())
    if isinstance(norm, BatchNorm):
        apart = (values - norm.shift).abs()
        before, after = zero, 8 * UNIT * apart + UNIT * values.abs() * (apart != values.abs())
    elif isinstance(norm, LayerNorm) and u.shape[1] == 1:  # the shift alone
        before, after, left = zero, zero, torch.zeros_like(left)
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
        return values, Errors(size, None), doubts
    each = each + before
    if directions is not None:
        sizes = directions.abs()
        each = each + (sizes.mT @ (sizes @ each.unsqueeze(2))).squeeze(2)
    return values, Errors(size, torch.minimum(left * each + after, size.unsqueeze(1))), doubts


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
    jumps in slope; :data:`SELECTION`: its size is that of the smallest that its norm keeps; or :data:`DIRECTION`: what
    a norm projects onto a sphere is next to nothing but rounding. Sums that round nothing, as of fp32 numbers on a
    line, are not in doubt. The errors of encodings are measured on a sample of points, and those of filters without
    bounds of their own on disturbed passes; those of all else are bounds a priori.

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
        z, bounds, doubts = _through_layer(own, z, bounds, x)
        for doubt in doubts:
            if doubt is not None:
                found |= doubt.any(1)
    return found


def _places(layers: Sequence[_Layer], z: Tensor, errors: Tensor | None, x: Tensor) -> Iterator[Tensor]:
    """Yield what is in doubt at a few points, rows as those of :func:`in_doubt`."""
    each = _at_inputs(z, errors)
    bounds = Errors(torch.linalg.vector_norm(each, dim=1), each)
    for index, own in enumerate(layers):
        z, bounds, doubts = _through_layer(own, z, bounds, x)
        for kind, doubt in zip((GATE, SELECTION, DIRECTION), doubts, strict=True):
            if doubt is not None:
                points, units = doubt.nonzero().cpu().unbind(1)
                numbers = (torch.full_like(units, index), units, torch.full_like(units, kind))
                yield torch.stack([points, *numbers], dim=1)
