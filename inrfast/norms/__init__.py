"""Norms of hidden layers: to add one is to add a file here, which makes its module and knows its derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from inrfast.registry import Registry


class NormFactors(NamedTuple):
    """Factors of a norm's own weight and bias: normalised input (n, D) and sensitivities of the output (n, M, D)."""

    normalised: Tensor
    sensitivities: Tensor


class NormSlope(NamedTuple):
    """The derivative of a norm's output in its input at n points: ``diag(left) (I - sum_k v_k v_k^T)``.

    ``left`` is (n, D), (n, 1) or (D,); ``directions`` (n, K, D) holds the vectors v_k, which are orthogonal to each
    other, and is None where the norm mixes no units.
    """

    left: Tensor
    directions: Tensor | None = None


class Norm(ABC):
    """The norm of one hidden layer as the factor pass takes it, with the numbers that its module had at that time.

    A subclass with its module, derivative and factors, added to :data:`NORMS`, is a norm that ``INR(norm=...)`` takes
    and that fits, kernels, files and the command line know. :func:`inrfast.testing.check_norm` checks it.

    Attributes
    ----------
    module
        Class of the module that :meth:`make` returns. :meth:`of` takes this class itself, no subclasses.
    """

    module: ClassVar[type[nn.Module]]

    @classmethod
    @abstractmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return the module for layers of ``width`` units."""

    @classmethod
    def state(cls, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the module's parameters and buffers by name, allocating nothing. Default: none."""
        return {}

    @classmethod
    @abstractmethod
    def of(cls, module: Any) -> Norm | str:
        """Return the norm of a module of the class :attr:`module`, or why the factor pass does not take it."""

    @property
    def couples(self) -> bool:
        """Whether, in the module's present mode, points influence each other. Default: they never do."""
        return False

    @abstractmethod
    def forward(self, u: Tensor) -> tuple[Tensor, Any]:
        """Return the values at ``u`` (n, D), and what the other methods need of this pass: a tensor, or a tuple.

        ``u`` may be overwritten and returned, unless what the other methods need is made of it later; values are
        overwritten by the caller, so a state that holds them as they are must be the same tensor, or a copy.
        """

    @abstractmethod
    def backward(self, gradient: Tensor, state: Any) -> tuple[Tensor, NormFactors | None]:
        """Return the gradient (n, M, D) in the norm's input from that in its values, and the factors of its weights.

        The factors are None for a norm without weights. ``gradient`` may be overwritten, unless they hold it.
        """

    @abstractmethod
    def slope(self, state: Any) -> NormSlope:
        """Return the derivative of the values in the input."""


NORMS: Registry[type[Norm]] = Registry("norm", "inrfast.norms")
"""The norms that ``INR(norm=...)`` takes."""


def norm_of(module: nn.Module) -> Norm | str | None:
    """Return the norm of a module, None for ``nn.Identity``, or why there is none that the factor pass takes."""
    if type(module) is nn.Identity:
        return None
    kinds = [kind for kind in NORMS.values() if type(module) is kind.module]
    return kinds[0].of(module) if kinds else f"is a {type(module).__name__}, no norm of inrfast.norms"
