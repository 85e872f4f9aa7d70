"""Batch norms of fused training steps: their memory and launches, see :mod:`inrfast.kernels.mlp_norms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from inrfast import backends

if TYPE_CHECKING:
    from types import ModuleType

    from inrfast.mlp import MLP
    from inrfast.ops.fused_mlp import Draws, FusedMLP


@dataclass(frozen=True)
class NormPlace:
    """A batch norm behind the activation of a hidden layer.

    ``scale`` and ``shift`` are where its numbers begin among those of a network; ``momentum`` None: the running
    statistics are means over all batches.
    """

    layer: int
    scale: int
    shift: int
    eps: float
    momentum: float | None


class Statistics(NamedTuple):
    """Running statistics of one norm of B networks: mean and variance (B, width), number of batches (B,)."""

    mean: Tensor
    variance: Tensor
    batches: Tensor


HEAD = -1
"""In place of a norm: the head."""


class Part(NamedTuple):
    """A part of a pass, between norms: layers from ``low`` up to, not including, ``top``.

    ``norm`` is that behind its last layer, whose statistics a forward pass leaves, and through which a backward pass
    comes; :data:`HEAD` where there is none. A backward pass without layers leaves the sums of the head alone; one that
    begins at the number of hidden layers begins at the head.
    """

    low: int
    top: int
    norm: int


class FusedNorms:
    """What the norms of fused steps keep between launches.

    Parameters
    ----------
    of
        The steps.
    statistics
        Of each norm; they change in place.

    Attributes
    ----------
    moments
        (B, norms, tiles, 2, width): sums and squared deviations of the features of each tile of points.
    maps
        (B, norms, 4, width): factor, offset, mean and inverse deviation.
    corrections
        (B, norms, 2, width): what errors lose by the statistics' own slopes.
    """

    def __init__(self, of: FusedMLP, statistics: Sequence[Statistics]) -> None:
        self.of, self.statistics = of, list(statistics)
        count, width = len(of.shape.norms), of.shape.width
        assert len(self.statistics) == count
        tiles = of.tiles if of.gradient else 0
        new = of.parameters.new_empty
        self.moments = new(of.models, count, tiles, 2, width) if count else new(1)
        self.maps = new(of.models, count, 4, width) if count else new(1)
        self.corrections = new(of.models, count, 2, width) if count else new(1)

    def gradients(self, some: slice, draws: Draws | None, step: int, track: bool) -> None:
        """Leave the partial sums of the gradients over all points of a step: from norm to norm, and back.

        ``track``: the running statistics move.
        """
        of, places, hidden = self.of, self.of.shape.norms, self.of.shape.hidden
        of.weights.copy_(of.parameters)
        begin = 0
        for norm, place in enumerate(places):
            of.forward(some, of.points.weight, True, draws, step, Part(begin, place.layer + 1, norm))
            self.fold(norm, some.stop, track)
            begin = place.layer + 1
        of.forward(some, of.points.weight, True, draws, step, Part(begin, hidden, HEAD))
        top, reached = hidden, HEAD
        if begin == hidden:
            of.backward(some, draws, step, Part(hidden, hidden, HEAD))
            reached = len(places) - 1
            self.unfold(reached, some.stop)
        while True:
            below = [norm for norm, place in enumerate(places) if place.layer < top - 1]
            part = Part(places[below[-1]].layer + 1 if below else 0, top, reached)
            of.backward(some, draws, step, part)
            of.weight_gradients(some, draws, step, part)
            if not below:
                return
            top, reached = part.low, below[-1]
            self.unfold(reached, some.stop)

    def freeze(self) -> None:
        """Fold all norms by their running statistics, for an evaluation."""
        if self.statistics:
            self.of.weights.copy_(self.of.parameters)
        for norm in range(len(self.statistics)):
            self.fold(norm, None)

    def fold(self, norm: int, points: int | None, track: bool = False) -> None:
        """Fold a norm into the layer above it, by the statistics of so many points or (None) the running ones.

        ``track``: the running ones move towards those of the points.
        """
        of, kernels, place, own = self.of, _kernels(), self.of.shape.norms[norm], self.statistics[norm]
        width, above, count = of.shape.width, place.layer + 1, len(of.shape.norms)
        weight, bias = of.shape.places[above]
        rows = of.shape.outputs if above == of.shape.hidden else width
        if track and points is not None:
            own.batches.add_(1)
        with backends.launching_on(of.device):
            kernels.mlp_norm_maps[(-(-width // kernels.NORM_COLUMNS), of.models)](
                of.parameters,
                self.moments,
                self.maps,
                *own,
                0 if points is None else points,
                of.tiles,
                norm,
                count,
                int(track),
                place.scale,
                place.shift,
                of.parameters.stride(0),
                width=width,
                RUNNING=points is None,
                EPSILON=place.eps,
                MOMENTUM=place.momentum or 0.0,
                ROWS=of.tile.rows,
                COLUMNS=kernels.NORM_COLUMNS,
                TILES=kernels.NORM_PARTS,
            )
            kernels.mlp_norm_fold[(-(-rows // kernels.NORM_ROWS), of.models)](
                of.parameters,
                of.weights,
                of.operands,
                self.maps,
                norm,
                count,
                weight,
                bias,
                rows,
                of.parameters.stride(0),
                width=width,
                COPY=of.operands is not of.weights,
                ROWS=kernels.NORM_ROWS,
                COLUMNS=kernels.NORM_COLUMNS,
            )

    def unfold(self, norm: int, points: int) -> None:
        """Make of the sums of the layer above a norm its gradients, and those of the norm."""
        of, kernels, shape = self.of, _kernels(), self.of.shape
        width, above = shape.width, shape.norms[norm].layer + 1
        few = 0 if shape.encoded else shape.inputs
        if above == shape.hidden:
            source = of.thin_at + (shape.hidden + few) * width
            parts = (source, of.thin, of.tiles, source + shape.outputs * width)
        else:
            parts = ((above - 1) * width * width, of.dense, of.splits, of.thin_at + above * width)
        with backends.launching_on(of.device):
            kernels.mlp_norm_backward[(-(-width // kernels.SLOPE_COLUMNS), of.models)](
                of.parameters,
                of.partials,
                self.maps,
                self.corrections,
                points,
                norm,
                len(shape.norms),
                shape.places[above][0],
                shape.outputs if above == shape.hidden else width,
                *parts,
                of.thin,
                of.tiles,
                of.norms_at + 2 * norm * width,
                of.parameters.stride(0),
                of.partial_model,
                width=width,
                ROWS=kernels.NORM_ROWS,
                COLUMNS=kernels.SLOPE_COLUMNS,
                PARTS=kernels.NORM_PARTS,
                maxnreg=kernels.SLOPE_REGISTERS,
            )


def reason_against_norms(mlp: MLP, points: int) -> str | None:
    """Return why batch norms of a network have no fused step over so many points, or None."""
    if not all(layer.norm_after for layer in mlp.hidden if layer.norm is not None):
        return "its norms stand before the activations (norm_position='pre')"
    if any(layer.bias is None for layer in mlp.layers):
        return "a layer above a norm needs a bias, and its layers have none"
    if points < 2:
        return "a batch norm takes at least 2 points per step"
    return None


def _kernels() -> ModuleType:
    from inrfast.kernels import fused_mlp  # imports triton

    return fused_mlp
