"""Losses known by name: the loss of one entry, its slope in the prediction, and which device functions compute both.

The loss of a fit is the weighted mean of its entries, ``sum w l(f, y) / sum w`` over points n and outputs m. The error
at the head of a network is then ``E[n, m] = w[n, m] l'(f[n, m], y[n, m]) / sum w``. Every file of this package adds one
loss to :data:`LOSSES`; ``LOSSES.add(name, loss)`` adds a loss of your own, from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_float, nearest
from inrfast.registry import Registry

LossSpec = str | Mapping[str, Any]
"""How a loss is named: ``"huber"``, or with its numbers, ``{"name": "huber", "delta": 0.1}``."""


@dataclass(frozen=True)
class Loss:
    """One kind of loss, as formulas on tensors of one shape.

    Attributes
    ----------
    name
        What it is called in settings and files.
    value, slope
        ``value(prediction, target, *numbers)`` is the loss of each entry, twice differentiable by autograd where the
        formula is; ``slope(prediction, target, *numbers)`` its derivative in the prediction.
    numbers
        Names and defaults of its numbers, which must be above 0, in the order of the formulas' arguments.
    targets
        Smallest and largest target that it takes; None: any.
    cost
        ``cost(error, *numbers)``: the loss of an entry that is off by ``error`` > 0, by which a warning tells a small
        loss from a large one; None: the value of a prediction that far from its target.
    native, triton
        Names of its functions in the native step (``csrc/mlp_step_losses.h``) and in the Triton kernels
        (``kernels/losses.py``); None: none there, so that fits take PyTorch's operations.
    """

    name: str
    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[float, float] | None = None
    cost: Callable[..., float] | None = None
    native: str | None = None
    triton: str | None = None


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its numbers."""

    kind: Loss
    numbers: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Name of the kind."""
        return self.kind.name

    @property
    def is_mean_square(self) -> bool:
        """Whether it is the mean squared error, which PSNRs are made of."""
        return self.kind.name == "mse"

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each entry."""
        return self.kind.value(prediction, target, *self.numbers)

    def slope(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the derivative of each entry's loss in its prediction."""
        return self.kind.slope(prediction, target, *self.numbers)

    def mean(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Return ``sum w l(f, y) / sum w``; ``weight`` has the target's shape, or is None for the plain mean."""
        values = self.value(prediction, target)
        return values.mean() if weight is None else (values * weight).sum() / weight.sum()

    def cost(self, error: float) -> float:
        """Return the loss of an entry that is off by ``error``."""
        if self.kind.cost is not None:
            return self.kind.cost(error, *self.numbers)
        off = torch.tensor([error, 0.0], dtype=torch.float64)
        return float(self.value(off[0], off[1]))

    def check_target(self, argument: str, target: Tensor) -> None:
        """Refuse targets that the loss does not take."""
        low, high = (float(value) for value in torch.aminmax(target))
        if self.kind.targets is not None and not (self.kind.targets[0] <= low <= high <= self.kind.targets[1]):
            least, most = self.kind.targets
            raise ValueError(
                f"{argument} must lie in [{least:g}, {most:g}] for loss={self.name!r}, got {low:g} to {high:g}"
            )

    def config(self) -> str | dict[str, Any]:
        """Return the loss as it is named in settings and files: its name, with its numbers where it has any."""
        named = dict(zip(self.kind.numbers, self.numbers, strict=True))
        return {"name": self.name, **named} if named else self.name


LOSSES: Registry[Loss] = Registry("loss", "inrfast.losses")
"""The losses known by name."""


def loss_of(spec: Any, argument: str = "loss") -> BoundLoss:
    """Return the loss that a name, or a mapping of its name and numbers, stands for.

    Raises
    ------
    ValueError, TypeError
        An unknown name or number (with the nearest match), or a number that is not finite and above 0.
    """
    given = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    if "name" not in given:
        raise ValueError(f"{argument} must say which loss it is, as in {{'name': 'huber', 'delta': 0.1}}, got {spec!r}")
    kind = LOSSES.find(argument, given.pop("name"))
    for key in given:
        if key not in kind.numbers:
            known = f"takes {', '.join(kind.numbers)}" if kind.numbers else "has no numbers"
            raise ValueError(
                f"{argument} {kind.name!r} {known}, got {key!r}.{nearest(key, kind.numbers) if kind.numbers else ''}"
            )
    numbers = {**kind.numbers, **given}
    return BoundLoss(
        kind,
        tuple(
            check_float(f"{key} of {argument} {kind.name!r}", value, minimum=0.0, exclusive=True)
            for key, value in numbers.items()
        ),
    )
