"""The methods that are compared: one network each, with what the paper leaves open as it was tuned on two images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.encodings.spelling import spelled
from inrfast.experiments.peak.weights import OtherWeights, Seldom
from inrfast.nn import INR
from inrfast.training.objective import Regularizers
from inrfast.training.regularizers.kar import KAR
from inrfast.training.regularizers.peak import PEAK
from inrfast.training.regularizers.smoothness import TotalVariation

TUNED_ON = ("Cameraman", "Boat")
"""The two images of table 1 on which rates, widths and each method's own numbers were chosen; the others score."""


EVERY = 4
"""Steps from one with KAR, or total variation, to the next: a step with it takes some three plain ones."""

LARGER = 256
"""Pixels along an axis from which on the settings of larger pictures are taken."""

VARIED_AT = 384
"""Points of total variation in a step: with their neighbours thrice as many, it costs what KAR does."""


@dataclass(frozen=True)
class Method:
    """A network, how it is trained, and what is added to its loss.

    Attributes
    ----------
    name
        As files spell it.
    label
        As tables and drawings spell it.
    network
        Of :class:`inrfast.INR`, as JSON holds it; its encoding is spelled as on the command line.
    lr, batch
        Of Adam, its rate falling tenfold over the fit, and points per step.
    degree
        Of the trained polynomial before the network (:class:`inrfast.PEAK`); None: there is none.
    kar
        Options of :class:`inrfast.KAR` and its ``factor``, and the ``function`` in place of softmax if it is another;
        empty: there is none.
    tv
        Factor of total variation in its place.
    larger
        What was tuned to another value for pictures of 256 pixels and more along an axis: ``lr``, and ``omega`` of the
        first layer.
    colour
        Of its curve.
    """

    name: str
    label: str
    network: Mapping[str, Any]
    lr: float
    batch: int = 2048
    degree: int | None = None
    kar: Mapping[str, Any] = field(default_factory=dict)
    tv: float = 0.0
    larger: Mapping[str, float] = field(default_factory=dict)
    colour: str = "#000000"

    def at(self, side: int) -> Method:
        """Return the method as it was tuned for pictures with so many pixels along an axis."""
        if side < LARGER or not self.larger:
            return self
        network = dict(self.network)
        if "omega" in self.larger:
            network["omega"] = {**network["omega"], "first": self.larger["omega"]}
        return replace(self, network=network, lr=self.larger.get("lr", self.lr), larger={})

    @property
    def settings(self) -> dict[str, Any]:
        """What a fit depends on, as JSON holds it."""
        found = asdict(self)
        for key in ("label", "larger", "colour"):
            del found[key]
        return found | ({"every": EVERY} if self.kar or self.tv else {})

    def made(self, points: Tensor, taught: int, seed: int, device: torch.device) -> tuple[nn.Module, Regularizers]:
        """Return the network and the regularisers of a fit; ``points`` (G, 2) are the whole grid.

        ``taught`` of them are observed: KAR takes no more keys than a step has points.
        """
        options = dict(self.network)
        if "encoding" in options:
            options["encoding"] = spelled(options["encoding"])
        net: nn.Module = INR(2, 1, seed=seed, device=device, **options)
        points = points.to(device)
        kar = {name: value for name, value in self.kar.items() if name not in ("factor", "function")}
        if kar:
            kar |= {"rows": min(kar["rows"], len(points)), "keys": min(kar["keys"], taught, self.batch), "seed": seed}
        if self.degree is not None:
            net = PEAK(net, points, self.degree, **kar).net
        if self.kar:
            function = self.kar.get("function")
            made = KAR(points, **kar) if function is None else OtherWeights(points, function, **kar)
            return net, [(Seldom(made, EVERY), self.kar["factor"])]
        if self.tv:
            varied = TotalVariation(points, rows=min(VARIED_AT, len(points)), seed=seed)
            return net, [(Seldom(varied, EVERY), self.tv)]
        return net, []

    @property
    def told(self) -> str:
        """The settings in words."""
        net = self.network
        parts = [f"{net['hidden_layers']}x{net['width']}"]
        if "omega" in net:
            omega = net["omega"]
            parts.append(f"omega {omega['first']:g}, then {omega['hidden']:g}" if isinstance(omega, Mapping) else
                         f"omega {omega:g}")  # fmt: skip
        parts += [net["encoding"]] if "encoding" in net else []
        parts += [f"polynomial of degree {self.degree}"] if self.degree is not None else []
        parts += [f"Adam {self.lr:g}, batches of {self.batch}"]
        if self.kar:
            parts.append(
                f"KAR in every {EVERY}th step, " + ", ".join(f"{key} {value}" for key, value in self.kar.items())
            )
        if self.tv:
            parts.append(f"total variation {self.tv:g} in every {EVERY}th step")
        return "; ".join(parts)


ATTENTION = {"rows": 128, "keys": 256, "width": 32, "hidden_layers": 2, "r": 100, "omega": 30.0}
"""Of KAR: a part of the points and a small network keep its step near the price of a plain one."""


def sine(width: int, omega: float) -> dict[str, Any]:
    """Return the options of a SIREN with this omega in its first layer, and 30 behind it."""
    return {"width": width, "hidden_layers": 3, "activation": "sine", "omega": {"first": omega, "hidden": 30.0},
            "init": "siren"}  # fmt: skip


def relu(width: int, hidden_layers: int = 3, encoding: str | None = None) -> dict[str, Any]:
    """Return the options of a ReLU network, behind an encoding as the command line spells it."""
    own = {} if encoding is None else {"encoding": encoding}
    return {"width": width, "hidden_layers": hidden_layers, "init": "kaiming", **own}


SINE_AT_256: Mapping[str, float] = {"lr": 3e-4, "omega": 40.0}
"""Of sine networks: with the rate of 128x128 pixels, 2e-3, they do not learn pictures of 256x256."""

MLP = Method("mlp", "MLP", relu(128), 5e-3, larger={"lr": 2e-3}, colour="#999999")
FOURIER = Method("fourier", "Fourier", relu(128, encoding="fourier:128:2"), 2e-3, larger={"lr": 5e-3}, colour="#009E73")
HASH = Method("hash", "Hash", relu(64, 2, "hashgrid:8:2:16384:4:64"), 1e-2, colour="#E69F00")
SIREN = Method("siren", "SIREN", sine(128, 20.0), 2e-3, 1024, larger=SINE_AT_256, colour="#0072B2")
PEAK_METHOD = Method(
    "peak",
    "PEAK",
    sine(128, 20.0),
    2e-3,
    1024,
    degree=1,
    kar={"factor": 0.003, **ATTENTION},
    larger=SINE_AT_256,
    colour="#D55E00",
)
GAMMA = replace(PEAK_METHOD, name="gamma", label="PEAK without KAR", kar={}, colour="#CC79A7")
VARIED = replace(GAMMA, name="tv", label="PEAK with total variation in place of KAR", tv=3e-5)
KAR_ALONE = replace(PEAK_METHOD, name="kar", label="PEAK without its encoding", degree=None)

RIVALS = (MLP, FOURIER, HASH)
"""Those of the paper's table 1 beside PEAK."""

ABLATIONS = (GAMMA, SIREN, VARIED)
"""PEAK without one of its parts; SIREN is its network alone."""
