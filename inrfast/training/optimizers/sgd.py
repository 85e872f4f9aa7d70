"""Plain gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from inrfast.ops.fused_mlp import Update
from inrfast.training.optimizers import OPTIMIZERS, Optimizer


class SGD(Optimizer):
    """``p - lr (g + weight_decay p)``."""

    kernel = Update("sgd")

    @torch.no_grad()
    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """See :class:`Optimizer`."""
        for name, grad in self.stack.grads.items():
            self.move(name, self.decayed(name, grad), rates)


OPTIMIZERS.add("sgd", SGD)
