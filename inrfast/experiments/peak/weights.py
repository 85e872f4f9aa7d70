"""KAR in some of the steps only, and with another function in place of softmax: figure 9's "activation function"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.training.regularizers.kar import KAR, NORMS

LEAST = 1e-6
"""Added to the sum of a row's magnitudes: a row of zeros stays one."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "softmin": lambda logits: (-logits).softmax(1),
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky-relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
}
"""Of logits (rows, keys). Those without rows that sum to one are divided by the sum of a row's magnitudes."""


class OtherWeights(nn.Module):
    """KAR whose weights are ``function(g(x)^T g(X))``, each row over the sum of its magnitudes.

    A point is left out of its own mean, as in :class:`inrfast.KAR`.
    """

    def __init__(self, points: Tensor, function: str, **options: Any) -> None:
        super().__init__()
        self.kar, self.function = KAR(points, **options), function

    def forward(self, net: nn.Module, coords: Tensor, step: int | None = None) -> Tensor:
        """Return the regulariser of a network and training points (N, d), a tensor of one element."""
        rows, keys = self.kar.drawn(coords, step)
        both = torch.cat([rows, keys])
        values, features = net(both), self.kar.attention(both)
        logits = features[: len(rows)] @ features[len(rows) :].T
        itself = (rows[:, None] == keys[None]).all(2)
        if "soft" in self.function:  # a weight of zero is a logit at infinity
            logits = logits.masked_fill(itself, float("inf") if self.function == "softmin" else -float("inf"))
            weights = FUNCTIONS[self.function](logits)
        else:
            weights = FUNCTIONS[self.function](logits).masked_fill(itself, 0.0)
            weights = weights / (weights.abs().sum(1, keepdim=True) + LEAST)
        return NORMS[self.kar.norm](values[: len(rows)] - weights @ values[len(rows) :])


class Seldom(nn.Module):
    """A regulariser in every so many steps, times that number: the same sum over a fit for a part of its price.

    Source: the lazy regularisation of Karras et al., Analyzing and improving the image quality of StyleGAN, CVPR 2020.
    """

    def __init__(self, own: nn.Module, every: int) -> None:
        super().__init__()
        self.own, self.every = own, every

    def forward(self, net: nn.Module, coords: Tensor, step: int) -> Tensor:
        """Return the regulariser of a network and training points (N, d), a tensor of one element; zero in between."""
        if step % self.every:
            return coords.new_zeros(())
        given = {"coords": coords} if isinstance(self.own, KAR | OtherWeights) else {}
        return self.every * self.own(net, step=step, **given)
