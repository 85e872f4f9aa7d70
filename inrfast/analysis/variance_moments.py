"""From sums over pairs of points to a kernel's eigenvalue variance, its parts by layer and its similarities.

With ``E_i`` the mean of the kernel's diagonal at point i and ``G_i`` the variance of the eigenvalues of the block of
outputs at that point (0 for one output) the variance of a kernel at N points with M rows each is

    v = mean_i G_i + sum_{i != j} [ |K_ij|_F^2 / (N M) + (E_i - E_j)^2 / (2 N^2) ]

a sum of terms that are not negative: nothing cancels. For one output it is ``1/n sum_{i != j} K_ij^2 + Var(K_ii)``. As
a mean over pairs of points it can be estimated without bias from some of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.analysis.variance_result import LayerVariance, Similarities
from inrfast.layers import Factors
from inrfast.ops.factors import Room, activation_slopes
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.layer_products import LayerProducts
from inrfast.ops.sparse_rows import is_sparse
from inrfast.tangent.local import NTK


@dataclass(frozen=True)
class PointMoments:
    """What single points give: ``energy`` (L, n) the layers' diagonals added up over a point's rows, and ``own``
    (L, L) the means of ``<K_k,ii - E_k,i I, K_l,ii - E_l,i I> / M`` over points."""

    energy: Tensor
    own: Tensor
    fold: int

    @property
    def count(self) -> int:
        """Number of points."""
        return self.energy.shape[1]

    @property
    def diagonal(self) -> Tensor:
        """``E`` (L, n)."""
        return self.energy / self.fold

    def spread(self) -> Tensor:
        """Return the covariances of the diagonals over points (L, L), with divisor n - 1."""
        apart = self.diagonal - self.diagonal.mean(1, keepdim=True)
        return apart @ apart.t() / (self.count - 1)

    def spread_to(self, other: PointMoments) -> Tensor:
        """Return half the mean product of differences between points here and points there (L, L)."""
        means = self.diagonal.mean(1) - other.diagonal.mean(1)
        inner = (one.spread() * (1 - 1 / one.count) for one in (self, other))
        return (sum(inner, start=torch.outer(means, means))) / 2

    def weights(self) -> Tensor:
        """Return ``sum_{i != j} w_ij`` of every layer (L,)."""
        before = self.energy.cumsum(1)[:, :-1]
        return 2 * (self.energy[:, 1:] * before).sum(1)


def point_moments(kernel: NTK, factors: Sequence[Factors]) -> PointMoments:
    """Return the moments of single points from the factors of the kernel's layers there."""
    output, outputs, fold = kernel.output, kernel.outputs, kernel.sides.fold
    rows = torch.stack([gram_diagonal([own], output, outputs) for own in factors])
    energy = rows.unflatten(1, (-1, fold)).sum(2)
    count = len(factors)
    own = torch.zeros(count, count, dtype=torch.float64, device=energy.device)
    if fold > 1:
        blocks = torch.stack([_own_block(layer, outputs) for layer in factors])  # (L, n, M, M)
        blocks -= torch.diag_embed((energy / fold).unsqueeze(2).expand(-1, -1, fold))
        flat = blocks.flatten(1)
        own = flat @ flat.t() / (fold * energy.shape[1])
    return PointMoments(energy, own, fold)


def _own_block(factors: Factors, outputs: int) -> Tensor:
    """Return a layer's kernel between the outputs at every point, (n, M, M) fp64."""
    z, s = factors
    if s is None:
        assert z is not None
        inner = torch.eye(outputs, dtype=torch.float64, device=z.device).expand(len(z), -1, -1)
    else:
        inner = s.double() @ s.double().mT
    if z is None or is_sparse(z):
        return inner.clone()
    return inner * z.double().square().sum(1)[:, None, None]


def joined(parts: Sequence[PointMoments]) -> PointMoments:
    """Return the moments of the points of several sets."""
    energy = torch.cat([part.energy for part in parts], dim=1)
    own = sum((part.count * part.own for part in parts), start=torch.zeros_like(parts[0].own))
    return PointMoments(energy, own / energy.shape[1], parts[0].fold)


def layer_pairs(total: int, fold: int, products: Tensor, pairs: int, spread: Tensor, own: Tensor) -> Tensor:
    """Return the matrix C of a kernel at ``total`` points from sums and means over some ``pairs`` of them."""
    return (total - 1) / (fold * pairs) * products + (total - 1) / total * spread + own


class Gates:
    """The slopes of a network's activations as factors whose inner products, squared, have the weights of a layer.

    Attributes
    ----------
    places
        The index of the kernel's layer that each of these hidden layers has, by the layer's name.
    reason
        Why there are none; else None.
    """

    def __init__(self, kernel: NTK) -> None:
        self.kernel = kernel
        mlp = kernel.capture.modulated_mlp
        self.places: dict[str, int] = {}
        self.reason: str | None = None
        if mlp is None:
            self.reason = f"the network has no closed form, as {kernel.capture.against_closed_form}"
            return
        modules = {spec.module: index for index, spec in enumerate(kernel.specs) if spec.kind == "linear"}
        names = [layer.linear.name for layer in mlp.hidden]
        self.places = {name: modules[name] for name in names if name in modules}
        self.numbers = [names.index(name) for name in self.places]
        if not self.places:
            self.reason = "no weight of a hidden layer is differentiated"

    @property
    def width(self) -> int:
        """Numbers per point."""
        mlp = self.kernel.capture.modulated_mlp
        return 0 if mlp is None else sum(mlp.widths[number] for number in self.numbers)

    def at(self, coords: Tensor, energy: Tensor, room: Room | None = None) -> list[Tensor]:
        """Return the factors at ``coords`` (n, d), whose layers have the energies (L, n)."""
        mlp = self.kernel.capture.modulated_mlp
        if mlp is None or not self.places:
            return []
        slopes = activation_slopes(mlp, self.kernel.capture.inputs(coords), room, coords.double())
        found = []
        for number, place in zip(self.numbers, self.places.values(), strict=True):
            slope = slopes[number]
            length = torch.linalg.vector_norm(slope, dim=1)
            scale = energy[place].sqrt() / torch.where(length > 0, length, 1.0)
            found.append((slope * scale.unsqueeze(1)).to(self.kernel.dtype))
        return found


def similarities(
    kernel: NTK, gates: Gates, sums: LayerProducts, weights: Tensor, factors: Sequence[tuple[bool, bool]]
) -> tuple[list[tuple[float | None, float | None, float]], Similarities]:
    """Return every layer's (features, sensitivities, joint), and those of the network.

    ``sums`` and ``weights`` (L,) are over the same pairs; ``factors`` says of every layer whether it has features and
    sensitivities of its own.
    """
    repeats = kernel.outputs if kernel.output == "full" else 1
    inner = sums.products.diagonal()
    alike: list[tuple[Tensor | None, Tensor | None, Tensor]] = []
    for index, (z, s) in enumerate(factors):
        if z and s:
            alike.append((sums.features[index], sums.sensitivities[index], inner[index]))
        elif z:  # the head, whose sensitivities are the identity
            alike.append((repeats * inner[index], weights[index] / repeats, inner[index]))
        else:
            alike.append((None, None, inner[index]))

    def mean(parts: Sequence[tuple[Tensor | None, Tensor]]) -> float | None:
        found = [(top, weight) for top, weight in parts if top is not None]
        if not found or not (below := float(sum(weight for _, weight in found))) > 0:
            return None
        return float(sum(top for top, _ in found)) / below

    def parts(which: int, chosen: Sequence[int]) -> list[tuple[Tensor | None, Tensor]]:
        return [(alike[index][which], weights[index]) for index in chosen]

    everything = range(len(alike))
    layers = [tuple(mean(parts(which, [index])) for which in range(3)) for index in everything]
    described = kernel.capture.modulated_mlp
    filters = {} if described is None else described.filter_places  # they take coordinates, no features
    names = [spec.module for spec in kernel.specs]
    linear = [index for index in everything if alike[index][0] is not None and names[index] not in filters]
    first = _first_linear(kernel, linear)
    weighted = {
        name: (sums.single[number], weights[place]) for number, (name, place) in enumerate(gates.places.items())
    }
    network = Similarities(
        input=None if first is None else mean(parts(0, [first])),
        hidden=mean(parts(0, [index for index in linear if index != first])),
        gate=mean(list(weighted.values())),
        sensitivities=mean(parts(1, everything)),
        joint=mean(parts(2, everything)),
        gates={name: found for name, pair in weighted.items() if (found := mean([pair])) is not None},
        reason=gates.reason,
    )
    return [(z, s, math.nan if both is None else both) for z, s, both in layers], network


def _first_linear(kernel: NTK, linear: Sequence[int]) -> int | None:
    """Return which of the layers with features is the network's first linear one, if it is among them."""
    mlp = kernel.capture.modulated_mlp
    if mlp is None:
        return linear[0] if linear else None
    return next((index for index in linear if kernel.specs[index].module == mlp.layers[0].name), None)


def layer_variances(
    names: Sequence[str], means: Tensor, pairs: Tensor, alike: Sequence[tuple[float | None, float | None, float]]
) -> Mapping[str, LayerVariance]:
    """Return the layers' parts by name, from their mean eigenvalues (L,) and the matrix of pairs."""
    whole = float(pairs.sum())
    found = {}
    for index, name in enumerate(names):
        mean, own = float(means[index]), float(pairs[index, index])
        share = float(pairs[index].sum()) / whole if whole > 0 else math.nan
        found[name] = LayerVariance(mean, own, ratio(own, mean), share, *alike[index])
    return found


def ratio(variance: float, mean: float) -> float:
    """Return ``v / mu^2``, NaN of a kernel that is zero."""
    return variance / mean**2 if mean > 0 else math.nan
