"""The eigenvalue variance of a tangent kernel as a result: its numbers, its parts by layer, its print."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from inrfast import notebook
from inrfast.records import Record, in_a_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerVariance(Record):
    """The eigenvalues of one layer's part ``K_l`` of a tangent kernel, and how alike points are in its factors.

    With ``e_i = K_l,ii`` and weights ``w_ij = e_i e_j`` the similarities are weighted means over pairs of different
    points; ``None`` where a layer has no two factors ``Z`` and ``S``. Squared cosines lie between 0 and 1. These are
    this project's own definitions.

    Attributes
    ----------
    mean, variance, normalised
        ``mu_l = Tr K_l / n``, ``v_l = Tr K_l^2 / n - mu_l^2`` and ``v_l / mu_l^2``; NaN of a kernel that is zero.
    share
        Of the network's variance: the layer's row of the matrix of pairs, added up, over ``v``. It may be negative;
        those of all layers add up to 1.
    features
        Mean of ``cos^2(z_i, z_j)``, the layer's input with its column of ones.
    sensitivities
        Mean of ``cos^2(s_i, s_j)``, the outputs' derivatives in the layer's pre-activations.
    joint
        Mean of the product of both: ``sum_{i != j} K_l,ij^2 / sum_{i != j} w_ij``, of any layer.
    """

    mean: float
    variance: float
    normalised: float
    share: float
    features: float | None
    sensitivities: float | None
    joint: float


@dataclass(frozen=True)
class Similarities(Record):
    """How alike different points are to a network, as energy-weighted squared cosines between 0 and 1.

    Each is a mean over pairs of different points with the weights ``w_ij = K_l,ii K_l,jj``, over several layers one of
    all their pairs. This project's own reading of a summary of arXiv 2512.15169.

    Attributes
    ----------
    input
        Of the features of the first linear layer: the coordinates, or what an encoding makes of them.
    hidden
        Of the features of all other linear layers.
    gate
        Of the slopes ``act'(u_i)`` of the hidden layers' activations, norms left out.
    sensitivities, joint
        Of the sensitivities of the layers that have two factors; of the rows of the Jacobian of every layer.
    gates
        The part of every hidden layer in :attr:`gate`, by the name of its linear layer.
    reason
        Why there are no gates; else None.
    """

    input: float | None
    hidden: float | None
    gate: float | None
    sensitivities: float | None
    joint: float | None
    gates: Mapping[str, float]
    reason: str | None


@dataclass(frozen=True)
class NTKVariance(Record):
    """Mean and variance of a tangent kernel's eigenvalues, split by layers; made by :func:`inrfast.variance`.

    Attributes
    ----------
    mean
        ``mu = Tr K / n``, n the kernel's order.
    variance
        ``v = Tr K^2 / n - mu^2``.
    normalised
        ``v / mu^2``: 0 where all eigenvalues are equal, n - 1 where only one is not zero. NaN of a kernel that is zero.
    error, mean_error, normalised_error
        Of an estimate half widths of 95 % intervals; of exact values bounds on their rounding.
    method, note
        ``"exact"`` or ``"estimate"``, and why, in words.
    layers
        The parts by the layers' names, in the order of :attr:`pairs`.
    pairs
        The matrix ``C_kl = <K_k - mu_k I, K_l - mu_l I>_F / n`` (L, L), fp64. Its sum is v; exact, it is positive
        semidefinite.
    pairs_error
        The same as ``error``, of every entry.
    similarities
        Squared cosines of the network's factors.
    points, used
        Points of the grid, and those that were looked at.
    """

    mean: float
    variance: float
    normalised: float
    error: float
    mean_error: float
    normalised_error: float
    method: str
    note: str
    layers: Mapping[str, LayerVariance]
    pairs: Tensor
    pairs_error: Tensor
    similarities: Similarities
    points: int
    used: int

    def __repr__(self) -> str:
        numbers = [f"mean={self.mean:.4g}", f"variance={self.variance:.4g}", f"normalised={self.normalised:.4g}"]
        numbers += [f"error={self.error:.2g}", f"method={self.method!r}"]
        return in_a_line("NTKVariance", [*numbers, f"{len(self.layers)} layers", f"{self.points:,} points"])

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        rows: list[tuple[str, ...]] = [("layer", "mean", "normalised", "share", "features", "sensitivities", "joint")]
        for name, own in self.layers.items():
            cells = (own.mean, own.normalised, own.share, own.features, own.sensitivities, own.joint)
            rows.append((name or "network", *map(_cell, cells)))
        told = {"mean": (self.mean, self.mean_error), "variance": (self.variance, self.error)}
        told["normalised"] = self.normalised, self.normalised_error
        lines = [", ".join(f"{name} {_pair(*own)}" for name, own in told.items()) + f"; {self.method} ({self.note})"]
        return notebook.Page(f"NTK eigenvalue variance at {self.points:,} points", rows, lines, figure=self.plot)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a figure of :attr:`pairs`, relative to the variance, and of the layers' shares.

        With ``path`` (.png, .pdf, .svg) it is also written there, whole or not at all.

        Raises
        ------
        ValueError
            The variance is not positive, so that there are no shares; another suffix.
        """
        from inrfast.analysis.variance_figure import draw  # most draw nothing

        if not 0 < self.variance < math.inf:
            raise ValueError(f"a variance of {self.variance:g} cannot be drawn: its parts have no shares")
        return draw(self, path)

    def to_json(self) -> str:
        """Return the fields as JSON; numbers that are not finite become null."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        rows = [
            f"NTK variance at {self.points:,} points, {self.method} ({self.note})",
            f"mean eigenvalue  {_pair(self.mean, self.mean_error)}",
            f"variance         {_pair(self.variance, self.error)}",
            f"normalised       {_pair(self.normalised, self.normalised_error)}",
        ]
        width = max(len("layer"), *(len(name) for name in self.layers))
        heads = ("mean", "normalised", "share", "features", "sensitiv.", "joint")
        rows.append(f"{'layer':<{width}}" + "".join(f"  {head:>10}" for head in heads))
        for name, layer in self.layers.items():
            cells = (layer.mean, layer.normalised, layer.share, layer.features, layer.sensitivities, layer.joint)
            rows.append(f"{name:<{width}}" + "".join(f"  {_cell(cell):>10}" for cell in cells))
        own = self.similarities
        named = (("input", own.input), ("hidden", own.hidden), ("gate", own.gate), ("joint", own.joint))
        rows.append("squared cosines  " + ", ".join(f"{name} {_cell(value)}" for name, value in named))
        if own.reason is not None:
            rows.append(f"no gates: {own.reason}")
        return "\n".join(rows)


def _pair(value: float, error: float) -> str:
    return f"{value:.6g} ± {error:.2g}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
