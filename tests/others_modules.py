"""Coordinate networks as their authors build them: the same attributes, state-dict keys and ways of calling.

Written anew from the structure of public code, which every class names; nothing of that code is copied. ``OTHERS`` has
those that every operation must take, ``REFUSED`` those that are refused by name.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from others_fields import (
    Bacon,
    CodedScene,
    FeatureGrid,
    FilterNet,
    FourierFeatures,
    FourierLayer,
    GaborLayer,
    HashNeRF,
    HashTables,
    KPlanes,
    NeRF,
    SdfScene,
    decoder,
)
from others_sines import (
    Batched,
    Chain,
    GaussLayer,
    LearnedSine,
    OfDictionary,
    RealGaborLayer,
    SingleBVPNet,
    Siren,
    SirenNet,
    SirenWrapper,
    Wire,
    finer,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Size:
    """How large a network is: units of a layer, hidden layers, and rows of every table."""

    width: int = 8
    layers: int = 2
    entries: int = 2**5


@dataclass(frozen=True)
class Other:
    """A network of somebody else.

    Attributes
    ----------
    make
        Returns a new one of some size.
    dimensions
        Number of coordinates d; points lie in [-1, 1]^d.
    select
        What takes the output from what it returns.
    inner
        Returns a network of the same outputs and parameters that ``torch.func`` can run, where it cannot run this one.
    """

    make: Callable[[Size], nn.Module]
    dimensions: int = 2
    select: Any = None
    inner: Callable[[nn.Module], nn.Module] | None = None

    def output(self, returned: Any) -> Tensor:
        """Return the output (n, M) in what the network returns for n points."""
        found: Tensor = returned if self.select is None else returned[self.select]
        return found.reshape(len(found), -1)


# ---- ways of calling ---------------------------------------------------------------------------------------------


class ResidualMLP(nn.Module):
    """A residual MLP, with norms before its blocks or without."""

    def __init__(self, width, blocks, norm):
        super().__init__()
        self.inlet, self.head = nn.Linear(2, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, width), nn.GELU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )  # fmt: skip

    def forward(self, x):
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Called(nn.Module):
    """An MLP that calls its layers by keyword, in a checkpoint, or keeps what they give, and may squeeze its output."""

    def __init__(self, size, way, squeezed=False):
        super().__init__()
        self.way, self.squeezed = way, squeezed
        self.inlet = nn.Linear(2, size.width)
        self.hidden = nn.ModuleList(nn.Linear(size.width, size.width) for _ in range(size.layers))
        self.head = nn.Linear(size.width, 1)
        self.activations = {}

    def forward(self, coords):
        x = torch.tanh(self.inlet(input=coords))
        for k, linear in enumerate(self.hidden):
            if self.way == "checkpoint":
                x = checkpoint(lambda z, layer=linear: torch.tanh(layer(z)), x, use_reentrant=False)
            elif self.way == "keyword":
                x = torch.tanh(linear(input=x))
            else:
                x = torch.tanh(linear(x))
            if self.way == "cache":
                self.activations[f"hidden.{k}"] = x
        out = self.head(x)
        return out.squeeze(-1) if self.squeezed else out


def without_checkpoints(net):
    """Return a network with the same parameters that keeps its activations in place of computing them twice."""
    twin = copy.copy(net)
    twin.way = "plain"
    return twin


class PointwiseConv(nn.Module):
    """Convolutions of width 1 over points as an axis, as charlesq34/pointnet does it."""

    def __init__(self, width, layers):
        super().__init__()
        sizes = [2, *[width] * (layers + 1)]
        pairs = pairwise(sizes)
        self.mlp = nn.Sequential(*[part for a, b in pairs for part in (nn.Conv1d(a, b, 1), nn.ReLU())])
        self.head = nn.Conv1d(width, 3, 1)

    def forward(self, x):
        return self.head(self.mlp(x.t().unsqueeze(0))).squeeze(0).t()


def siren(size):
    return Siren(2, size.width, size.layers, 3)


def bvp(size):
    return SingleBVPNet(1, 2, size.width, size.layers)


OTHERS: dict[str, Other] = {
    "siren": Other(siren, select=0, inner=lambda net: net.net),
    "siren bvp": Other(lambda size: OfDictionary(bvp(size)), select="model_out", inner=lambda net: net.net.net),
    "siren batched": Other(
        lambda size: Batched(OfDictionary(bvp(size)), "model_out"), inner=lambda net: net.net.net.net
    ),
    "siren-pytorch": Other(lambda size: SirenNet(2, size.width, 3, size.layers + 1)),
    "siren-pytorch modulated": Other(lambda size: SirenWrapper(SirenNet(2, size.width, 1, size.layers + 1), 6)),
    "finer": Other(lambda size: finer(size, first_bias_scale=1.0)),
    "finer with its slope": Other(lambda size: finer(size, omega_0=5, first_bias_scale=1.0, scale_req_grad=True)),
    "gauss": Other(
        lambda size: Chain(
            GaussLayer(2, size.width, 2.0),
            *[GaussLayer(size.width, size.width, 2.0) for _ in range(size.layers)],
            nn.Linear(size.width, 3),
        )
    ),
    "wire real": Other(
        lambda size: Chain(
            RealGaborLayer(2, size.width, 5.0, 2.0),
            *[RealGaborLayer(size.width, size.width, 5.0, 2.0) for _ in range(size.layers)],
            nn.Linear(size.width, 3),
        )
    ),
    "learned frequencies": Other(
        lambda size: Chain(
            LearnedSine(2, size.width),
            *[LearnedSine(size.width, size.width) for _ in range(size.layers)],
            nn.Linear(size.width, 1),
        )
    ),
    "fourier features": Other(lambda size: FourierFeatures(2, size.width // 2, size.width, size.layers, 3)),
    "nerf": Other(lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,)), dimensions=6),
    "nerf colour": Other(
        lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,), heads=True),
        dimensions=6,
        select="rgb",
    ),
    "nerf density": Other(
        lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,), heads=True),
        dimensions=6,
        select="sigma",
    ),
    "mfn fourier": Other(lambda size: FilterNet(FourierLayer, 2, size.width, 1, size.layers)),
    "mfn gabor": Other(lambda size: FilterNet(GaborLayer, 2, size.width, 1, size.layers)),
    "bacon": Other(lambda size: Bacon(2, size.width, 1, size.layers), select=1),
    "residual": Other(lambda size: ResidualMLP(size.width, size.layers, norm=False)),
    "layer norm": Other(lambda size: ResidualMLP(size.width, size.layers, norm=True)),
    "hash embeddings": Other(lambda size: HashNeRF(size.entries, size.width), dimensions=3),
    "hash tables": Other(lambda size: HashTables(size.entries, size.width)),
    "feature grid": Other(lambda size: FeatureGrid(4, math.isqrt(size.entries), size.width)),
    "k-planes": Other(lambda size: KPlanes(4, math.isqrt(size.entries // 3), size.width), dimensions=3),
    "deepsdf": Other(lambda size: SdfScene(decoder(size, norm_layers=(0,)), 4), dimensions=3),
    "deepsdf bare code": Other(lambda size: CodedScene(decoder(size), 4), dimensions=3),
    "keyword": Other(lambda size: Called(size, "keyword")),
    "squeezed": Other(lambda size: Called(size, "plain", squeezed=True)),
    "checkpointed": Other(lambda size: Called(size, "checkpoint"), inner=without_checkpoints),
    "caching": Other(lambda size: Called(size, "cache")),
    "pointwise conv": Other(lambda size: PointwiseConv(size.width, size.layers)),
}

REFUSED: dict[str, tuple[Other, str]] = {
    "wire complex": (Other(lambda size: Wire(2, size.width, size.layers, 3)), "complex"),
    "deepsdf weight norm": (
        Other(
            lambda size: SdfScene(decoder(size, norm_layers=(0, 1), weight_norm=True), 4),
            dimensions=3,
        ),
        "weight.*normed.*remove_weight_norm",
    ),
}
"""Networks that are refused, and what the message says."""
