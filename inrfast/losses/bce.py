"""Binary cross-entropy of a logit f and a target y in [0, 1]: ``log(1 + e^f) - y f``.

The predicted probability is ``sigmoid(f)``, and the slope ``sigmoid(f) - y``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.losses import LOSSES, Loss


def _value(prediction: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(prediction, target, reduction="none")


def _slope(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.sigmoid() - target


def _cost(error: float) -> float:
    """A probability that is off by a small e costs ``-log(1 - e)``, a logit that is off by a large one e: about e."""
    return error


BCE = LOSSES.add(
    "bce", Loss("bce", _value, _slope, {}, (0.0, 1.0), _cost, native="bce", triton="bce", link=torch.sigmoid)
)
