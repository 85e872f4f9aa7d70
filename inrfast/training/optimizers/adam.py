"""Adam and AdamW with torch's defaults, in torch's fused form where the device has one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrfast.ops.fused_mlp import Update
from inrfast.training.optimizers import OPTIMIZERS, Optimizer, per_network
from inrfast.training.stack import Stack, has_gaps

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""torch's defaults, the same in every fit."""

ARGUMENTS: dict[str, Any] = {
    "foreach": False,
    "amsgrad": False,
    "beta1": BETA1,
    "beta2": BETA2,
    "eps": EPSILON,
    "maximize": False,
}
"""Arguments of ``torch.optim.adam.adam`` that are the same in every fit."""


class Adam(Optimizer):
    """Adam (Kingma and Ba, ICLR 2015); weight decay is added to the gradient as ``weight_decay * p``.

    The update itself is ``torch.optim.adam.adam``, which is no public name: a torch without it takes
    :func:`plain_adam`. The class ``torch.optim.Adam`` would import torch's compiler when it is made, which takes longer
    than many a fit; and on a CPU the fused update took a third of the time of the others on the weights of a 3 x 256
    network.
    """

    keeps = ("means", "squares")
    kernel = Update("adam", BETA1, BETA2, EPSILON)
    decoupled: ClassVar[bool] = False

    def __init__(self, stack: Stack, weight_decay: float = 0.0) -> None:
        super().__init__(stack, weight_decay)
        # Step counts are fp32 tensors on the device: what the fused update takes.
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=grad.device) for name, grad in stack.grads.items()
        }

    def take(self, stack: Stack) -> None:
        """See :class:`Optimizer`."""
        super().take(stack)
        self.parameters = [stack.parameters[name] for name in stack.grads]
        self.grads = list(stack.grads.values())
        # The fused update walks raw memory: a parameter with gaps is updated in a copy, laid out as its gradient is.
        self.copies = {i: torch.empty_like(self.grads[i]) for i, p in enumerate(self.parameters) if has_gaps(p)}
        self.blocks = [self.copies.get(i, parameter) for i, parameter in enumerate(self.parameters)]
        self.fused = self.grads[0].device.type in ("cpu", "cuda")

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """Update the parameters in place."""
        if min(rates) == max(rates):
            for i, copy in self.copies.items():
                copy.copy_(self.parameters[i])
            self._update(self.blocks, self.grads, rates[0], self.weight_decay)
            for i, copy in self.copies.items():
                self.parameters[i].copy_(copy)
            return
        # An update is a multiple of its rate: it is taken at the rate 1 from 0, then each network's multiple added.
        moves = [torch.zeros_like(grad) for grad in self.grads]
        own = [per_network(rates, parameter) for parameter in self.parameters]
        grads = self.grads
        if self.weight_decay and self.decoupled:
            for parameter, rate in zip(self.parameters, own, strict=True):
                parameter.mul_(1 - rate * self.weight_decay)
        else:
            grads = [self.decayed(name, grad) for name, grad in self.stack.grads.items()]
        self._update(moves, grads, 1.0, 0.0)
        for parameter, move, rate in zip(self.parameters, moves, own, strict=True):
            parameter.addcmul_(move, rate)

    def _update(self, parameters: list[Tensor], grads: list[Tensor], lr: float, weight_decay: float) -> None:
        functional_adam()(
            parameters,
            grads,
            list(self.kept["means"].values()),
            list(self.kept["squares"].values()),
            [],
            list(self.steps.values()),
            fused=self.fused,
            decoupled_weight_decay=self.decoupled,
            lr=lr,
            weight_decay=weight_decay,
            **ARGUMENTS,
        )

    def state(self) -> dict[str, Any]:
        """See :class:`Optimizer`."""
        return {**super().state(), "steps": self.steps}


class AdamW(Adam):
    """Adam with weight decay taken off as ``lr weight_decay p`` (Loshchilov and Hutter, ICLR 2019)."""

    kernel = Update("adamw", BETA1, BETA2, EPSILON)
    decoupled = True


OPTIMIZERS.add("adam", Adam)
OPTIMIZERS.add("adamw", AdamW)


def plain_adam(
    parameters: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    **options: Any,
) -> None:
    """Update as ``torch.optim.adam.adam`` does without AMSGrad, in plain operations."""
    for parameter, grad, mean, square, step in zip(parameters, grads, means, squares, steps, strict=True):
        step.add_(1)
        count = float(step)
        if weight_decay and decoupled_weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        elif weight_decay:
            grad = grad.add(parameter, alpha=weight_decay)
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**count)).add_(eps)
        parameter.addcdiv_(mean, scale, value=-lr / (1 - beta1**count))


@functools.cache
def functional_adam() -> Callable[..., None]:
    """Return ``torch.optim.adam.adam`` if it is there and takes our arguments, else :func:`plain_adam`."""
    one, zero = torch.ones(1), torch.zeros(1)
    try:
        from torch.optim.adam import adam

        tensors: tuple[Any, ...] = [one.clone()], [one], [zero.clone()], [zero.clone()], [], [torch.zeros(())]
        update: Callable[..., None] = adam
        update(*tensors, fused=True, decoupled_weight_decay=False, lr=1.0, weight_decay=0.0, **ARGUMENTS)
    except Exception:  # a private function may be gone or changed in any way
        return plain_adam
    return update
