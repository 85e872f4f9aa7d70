"""Huber's loss of ``e = f - y``: ``e^2 / 2`` up to ``delta``, ``delta (|e| - delta / 2)`` beyond.

P. J. Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35 (1964); in torch's form.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from inrfast.losses import LOSSES, Loss


def _value(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    return F.huber_loss(prediction, target, reduction="none", delta=delta)


def _slope(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    return (prediction - target).clamp(-delta, delta)


HUBER = LOSSES.add("huber", Loss("huber", _value, _slope, {"delta": 1.0}, native="huber", triton="huber"))
