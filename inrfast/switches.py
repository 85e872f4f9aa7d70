"""What gates and selections that rounding decides do to the Jacobian: computed with each of them switched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from inrfast.activations import BoundActivation
from inrfast.doubts import DIRECTION, GATE, SELECTION
from inrfast.memory import chunks
from inrfast.mlp import MLP
from inrfast.norms.topk import Selecting
from inrfast.ops.factors import linear, mlp_factors
from inrfast.rounding import SAFETY, SLACK, PassErrors, Row, on_cpu, squared_distance

CASES = 512
"""Choices of gates and selections whose effects are computed together."""

MOST_CASES = 2**14
"""Choices whose effects are computed; of more nothing is known."""


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
    """Return which rows of ``in_doubt`` belong to points where only gates of the first layer are in doubt.

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
        As in :func:`inrfast.doubts.in_doubt`.
    places
        The rows that :func:`of_first_layer` picks.
    """
    first, norm, own = mlp.hidden[0], mlp.hidden[0].norm, mlp.hidden[0].linear
    sides = first.activation.sides
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
        sides = self.sides
        assert sides is not None and self.places is not None
        here = u[self.places]
        nearer = (here - sides[0]).abs() <= (here - sides[1]).abs()
        u[self.places] = torch.where(nearer, sides[1], sides[0]).to(u.dtype)


class _Cases(NamedTuple):
    """Choices of gates and selections.

    ``points`` (cases,) are places in a list of points, ``weights`` (cases,) what squared effects are multiplied by.
    ``switches`` (k, 2) holds numbers of a case and of a row of :func:`inrfast.doubts.in_doubt` that it switches.
    """

    points: Tensor
    weights: Tensor
    switches: Tensor


def _cases(places: Tensor, at: Tensor) -> tuple[_Cases, _Cases] | None:
    """Return choices whose squared effects are to be added up, and those of whose squared effects the largest counts.

    With m gates of one layer in doubt at a point, the square of the sum of their effects is at most m times the sum of
    squares. So it is, to first order, with m selections. Where gates of several layers are in doubt, one shuts or opens
    the way to another, and all ``2^m - 1`` choices are looked at. Passes over other numbers of points round otherwise
    and choose otherwise: two choices are at most twice as far apart as the farthest from one. None: there are too many,
    or directions among them.
    """
    if bool((places[:, 3] == DIRECTION).any()):
        return None
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
            weight = 4 * exact if bool((kinds == GATE).all()) else 4.0
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
    """Return the squared errors that some rows of ``in_doubt`` stand for, computed with each switched.

    The safety factor counts for selections, whose effects together are those of each to first order, not for gates.

    Parameters
    ----------
    mlp, inputs, coords
        As in :func:`inrfast.doubts.in_doubt`.
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
    index = where.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    into.scatter_reduce_(0, index, values, how)


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
