"""Starts of a plain ReLU network around the paper's: hinges turned about their points, layers of other sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from inrfast.experiments.inlet_rank_collapse.methods import DEFAULT, OURS, Method
from inrfast.nn import INR

GAINS = (1.0, 2.0, 3.0, 5.0, 10.0)
SHIFTS = (1e-3, 0.085)
"""Shifts of the hinges (``eps``): the paper's kind, and one from which on every point sees an active unit of 256."""

DIRECTIONS = ("outward", "random", "inward")
HIDDEN = {"default": "torch's default", "kaiming": "He", "xavier": "Xavier"}
"""Initialisations of the layers behind the first, with their names in words."""

SCALED, SCALES = (1, 2, 3), (0.1, 0.3, 3.0)
"""Layers that are scaled one at a time, the head last, and by how much."""

LARGE = (("kaiming", 1.0), ("default", 3.0))
"""Hidden init and gain of the networks of which layers are scaled: two ways to larger representations."""


@dataclass(frozen=True)
class Start(Method):
    """A plain ReLU network: only its first weights differ from another's.

    ``options`` may hold, beside those of a :class:`.methods.Method`, ``"directions"``, one of :data:`DIRECTIONS`, and
    ``"scales"``, a factor by a layer's number as text, which multiplies its weights and biases.

    Attributes
    ----------
    factors
        What the start is in the family, by the name of each factor; empty outside of the family.
    """

    factors: dict[str, Any] = field(default_factory=dict)

    def network(self, inputs: int, outputs: int, seed: int, *args: Any, **more: Any) -> INR:
        """Return the network, as :meth:`.methods.Method.network` does."""
        options = dict(self.options)
        directions, scales = options.pop("directions", "outward"), options.pop("scales", {})
        net = Method(self.name, self.label, options).network(inputs, outputs, seed, *args, **more)
        turn_(net, directions, options, seed)
        with torch.no_grad():
            for layer, factor in scales.items():
                for parameter in net.layers[int(layer)].parameters():
                    parameter.mul_(factor)
        return net


@torch.no_grad()
def turn_(net: INR, directions: str, options: dict[str, Any], seed: int) -> None:
    """Turn the hinges of a rank-expanding first layer about their points, in place.

    A unit of the paper is ``gain (u . x + eps - u . v)`` with ``u = v / |v|``: its hinge passes ``eps`` before the
    point ``v``. ``v`` stays; ``u`` becomes ``-v / |v|`` (``"inward"``) or a random
    unit vector of this seed (``"random"``).
    """
    if directions == "outward":
        return
    rule = options["init"]["first"]
    gain, eps = rule["gain"], rule["eps"]
    kept = net.layers[0].get_parameter("weight"), net.layers[0].get_parameter("bias")
    weight, bias = (one.double() / gain for one in kept)
    points = (eps - bias).unsqueeze(1) * weight
    if directions == "inward":
        turned = -weight
    else:
        draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        turned = (draw / torch.linalg.vector_norm(draw, dim=1, keepdim=True)).to(weight.device)
    kept[0].copy_(gain * turned)
    kept[1].copy_(gain * (eps - (turned * points).sum(1)))


def _expanding(directions: str, hidden: str, gain: float, eps: float, **more: Any) -> Start:
    options = {
        "init": {"first": {"name": "rank_expanding", "gain": gain, "eps": eps}, "hidden": hidden},
        "directions": directions,
        **more,
    }
    label = f"{directions}, gain {gain:g}, eps {eps:g}, {HIDDEN[hidden]} hidden"
    factors = {"hidden": hidden, "directions": directions, "gain": gain, "eps": eps}
    return Start(f"{directions}-{hidden}-{gain:g}-{eps:g}", label, options, factors=factors)


def _scaled(hidden: str, gain: float, layer: int, scale: float) -> Start:
    one = _expanding("outward", hidden, gain, SHIFTS[1], scales={str(layer): scale})
    where = "head" if layer == max(SCALED) else f"layer {layer + 1}"
    return Start(f"{one.name}-{where.replace(' ', '')}x{scale:g}", f"{one.label}, {where} x {scale:g}", one.options)


BASELINES = {
    start.name: start
    for start in (
        Start("default", DEFAULT.label, dict(DEFAULT.options)),
        Start("ours", OURS.label, dict(OURS.options)),
        Start("he", "He, all layers", {"init": "kaiming"}),
        Start("he-first", "He first layer", {"init": {"first": "kaiming", "hidden": "default"}}),
    )
}
"""What is compared in any case: torch's default, the paper's, He's everywhere and He's in the first layer alone."""

FAMILY = {
    start.name: start
    for start in (
        *(
            _expanding(directions, hidden, gain, eps)
            for directions in DIRECTIONS
            for hidden in HIDDEN
            for gain in GAINS
            for eps in SHIFTS
            if (directions, hidden, gain, eps) != ("outward", "default", 1.0, SHIFTS[0])  # the paper's own
        ),
        *(_scaled(*large, layer, scale) for large in LARGE for layer in SCALED for scale in SCALES),
    )
}
"""The starts that are searched."""

STARTS = {**BASELINES, **FAMILY}
