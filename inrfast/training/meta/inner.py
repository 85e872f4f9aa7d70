"""What the ways to a start have in common: the inner steps, and what one outer step learns from its signals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from inrfast.training.data import Data

Weights = dict[str, Tensor]
"""Parameters, or what has their shapes, by name; of several signals with a first axis for these."""


@dataclass(frozen=True)
class Inner:
    """Inner steps: so many of plain gradient descent, at this rate."""

    steps: int
    lr: float


@dataclass(frozen=True)
class Learned:
    """What an outer step learns from the signals of its batch.

    Attributes
    ----------
    grads
        The direction of the outer step by parameter name: the mean over the signals.
    before, after
        The loss of each signal (b,), fp64, at the start and after the inner steps; of Reptile before the last of them.
    """

    grads: Weights
    before: Tensor
    after: Tensor


class Learner(Protocol):
    """What takes the direction of an outer step from the network's weights as they are."""

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits."""
        ...

    def __call__(self, data: Data) -> Learned:
        """Learn from these signals."""
        ...
