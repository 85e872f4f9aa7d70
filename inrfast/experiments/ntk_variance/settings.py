"""Where claims are tested: points, width, depth, initialisation, and which parameters count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from inrfast.experiments.ntk_variance.measures import measured
from inrfast.experiments.ntk_variance.variants import Variant
from inrfast.experiments.paper import Cell, Found, Request, Work
from inrfast.grids import grid
from inrfast.nn import INR

RUNS = 20
"""Seeds of a claim."""


@dataclass(frozen=True)
class Setting:
    """One place where claims are tested.

    Attributes
    ----------
    name
        As files spell it.
    label
        As tables spell it.
    side
        Points per axis of a grid of [-1, 1]^2.
    count, dimension
        Of random points in its place: ``"sphere"``, unit vectors, or ``"gaussian"``, ``N(0, I / d)``.
    points
        ``"grid"``, ``"sphere"`` or ``"gaussian"``.
    width, hidden_layers
        Of the network.
    options
        Of :class:`inrfast.INR`, beside those of a variant.
    theory
        Whether it is the model of the paper's theory: one hidden layer without biases, weights ``N(0, 1)``, a head of
        ``+-1 / sqrt(m)``, and the first layer trained alone.
    """

    name: str
    label: str
    side: int = 16
    points: str = "grid"
    count: int = 256
    dimension: int = 2
    width: int = 64
    hidden_layers: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    theory: bool = False

    def coords(self, seed: int) -> Tensor:
        """Return the points (n, d), fp64; random ones are of the seed."""
        if self.points == "grid":
            return grid((self.side,) * self.dimension, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.count, self.dimension, generator=generator, dtype=torch.float64)
        if self.points == "sphere":
            return drawn / drawn.norm(dim=1, keepdim=True)
        return drawn / self.dimension**0.5

    def network(self, variant: Variant, seed: int) -> INR:
        """Return a variant in this setting, fp64."""
        others = {**self.options, **({"bias": False} if self.theory else {})}
        net = variant.network(self.dimension, self.width, self.hidden_layers, seed, dtype=torch.float64, **others)
        if self.theory:
            draw_theory_(net, seed)
        return net

    @property
    def params(self) -> Sequence[str] | None:
        """Names of the parameters that count; None: all."""
        return ("layers.0.weight",) if self.theory else None

    def measured(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return the numbers of one network."""
        return measured(self.network(variant, seed), self.coords(seed), self.params)

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on."""
        found = asdict(self)
        del found["label"]
        return found


@torch.no_grad()
def draw_theory_(net: INR, seed: int) -> None:
    """Give a network of one hidden layer the weights of the theory's model."""
    first, head = (layer.weight for layer in net.layers)
    assert isinstance(first, Tensor) and isinstance(head, Tensor)
    generator = torch.Generator().manual_seed(seed + 2**20)  # unlike that of the points
    first.copy_(torch.randn(tuple(first.shape), generator=generator, dtype=torch.float64))
    signs = torch.randint(0, 2, tuple(head.shape), generator=generator).double() * 2 - 1
    head.copy_(signs / head.shape[1] ** 0.5)


def cell(setting: Setting, variants: Sequence[Variant], seeds: Sequence[int], name: str = "") -> Cell:
    """Return the cell of all seeds of some variants in a setting: numbers by the variant's name, one per seed."""

    def run(work: Work) -> Found:
        return Found({one.name: [setting.measured(one, seed) for seed in seeds] for one in variants})

    told = {one.name: dict(one.options) for one in variants}
    settings = {**setting.settings, "variants": told, "seeds": list(seeds)}
    points = setting.side**setting.dimension if setting.points == "grid" else setting.count
    cost = len(variants) * len(seeds) * (points * setting.width * setting.hidden_layers) * 1e-6
    return Cell(name or setting.name, settings, run, cost)


def settings_of(request: Request) -> list[Setting]:
    """Return the settings of a preset; in the paper's, networks are wider."""
    width, wide = (64, 256) if request.quick else (256, 512)
    return [
        Setting("base", f"16x16 grid, width {width}, 3 hidden layers, torch's default start", width=width),
        Setting("32x32", "32x32 grid", side=32, width=width),
        Setting("64x64", "64x64 grid", side=64, width=width),
        Setting("wide", f"width {wide}", width=wide),
        Setting("narrow", "width 16", width=16),
        Setting("one-layer", "1 hidden layer", hidden_layers=1, width=width),
        Setting("five-layers", "5 hidden layers", hidden_layers=5, width=width),
        Setting("no-bias", "without biases", options={"bias": False}, width=width),
        Setting("he", "He start (biases 0, but trained)", options={"init": "kaiming"}, width=width),
        Setting("he-no-bias", "He start without biases", options={"init": "kaiming", "bias": False}, width=width),
        Setting("circle", "256 points of the unit circle", points="sphere", width=width),
        Setting("sphere-16", "256 points of the unit sphere in 16 dimensions", points="sphere", dimension=16,
                width=width),
        Setting("theory-2", "the theory's model, 256 Gaussian points in 2 dimensions", points="gaussian",
                hidden_layers=1, theory=True, width=wide),
        Setting("theory-16", "the theory's model, 256 Gaussian points in 16 dimensions", points="gaussian",
                hidden_layers=1, dimension=16, theory=True, width=wide),
    ]  # fmt: skip
