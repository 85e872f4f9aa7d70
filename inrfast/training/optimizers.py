"""Optimisers and learning-rate schedules of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as functional_adam

from inrfast.errors import check_choice, check_float

OPTIMIZERS = ("adam",)

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "exponential": lambda progress: 0.1**progress,
}
"""Factor of the learning rate as a function of the fraction of the fit that is done."""


def learning_rates(lr: float, schedule: str | Callable[[int], float], steps: int) -> Callable[[int], float]:
    """Return the learning rate of each step ``0 <= t < steps``.

    Parameters
    ----------
    lr
        Learning rate that the schedule multiplies.
    schedule
        ``"exponential"`` (``0.1^(t/steps)``, a tenth at the end), ``"cosine"`` (to 0), ``"constant"``, or a callable
        from the step to a factor.

    Raises
    ------
    ValueError, TypeError
        An unknown name (with the nearest match); later, a callable whose factor is negative, not finite or no number.
    """
    if not callable(schedule):
        shape = SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]
        return lambda step: lr * shape(step / steps)
    return lambda step: lr * check_float(f"schedule({step})", schedule(step), minimum=0.0)


class Adam:
    """Adam with torch's defaults, in its fused form where the device has one.

    The update itself is ``torch.optim.adam.adam``. The class ``torch.optim.Adam`` would import torch's compiler when
    it is made, which takes longer than many a fit; and on a CPU the fused update took a third of the time of the others
    on the weights of a 3 x 256 network.

    Parameters
    ----------
    parameters
        What is updated from its ``.grad``, which every parameter must have; all on one device.
    lr
        Learning rate of the next step; may be set between steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.lr = lr
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        # Step counts are fp32 tensors on the device: what the fused update takes.
        self.steps = [torch.zeros((), dtype=torch.float32, device=parameter.device) for parameter in self.parameters]
        self.fused = self.parameters[0].device.type in ("cpu", "cuda")

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters in place."""
        functional_adam(
            self.parameters,
            [parameter.grad for parameter in self.parameters if parameter.grad is not None],
            self.means,
            self.squares,
            [],
            self.steps,
            foreach=False,
            fused=self.fused,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
