"""Norms of hidden layers: to add one is to add a file here, which makes its module and knows its derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from inrfast.errors import check_float, check_int
from inrfast.registry import Registry, check_number_known, name_and_numbers


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
    native
        Its name in ``csrc/mlp_step_norms.h``; None: the native step does not have it.
    """

    module: ClassVar[type[nn.Module]]
    native: ClassVar[str | None] = None

    @classmethod
    def numbers(cls, width: int) -> Mapping[str, int | float]:
        """Return the norm's numbers by name, with their defaults for layers of ``width`` units. Default: none.

        A whole default takes whole numbers. The order is that of the command line: ``topk:64``.
        """
        return {}

    @classmethod
    def check_numbers(cls, width: int, **numbers: Any) -> dict[str, Any]:
        """Return numbers of the types of their defaults; those that no layer of this width has raise ``ValueError``."""
        return numbers

    @classmethod
    @abstractmethod
    def make(cls, width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return the module for layers of ``width`` units. A norm with numbers takes these too, by name."""

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


NORMS: Registry[type[Norm]] = Registry("norm", "inrfast.norms", Norm, classes=True)
"""The norms that ``INR(norm=...)`` takes."""


def norm_config(given: Any, width: int, argument: str = "norm") -> str | dict[str, Any]:
    """Return a norm as configs have it: its name, or ``{"name": ..., **numbers}``, with all numbers, if it has any.

    Parameters
    ----------
    given
        A name, or ``{"name": ..., **numbers}`` with some or all of its numbers.
    width
        Units of the layers that it is for.
    argument
        What an error calls ``given``.

    Raises
    ------
    ValueError, TypeError
        Unknown names of norms or numbers, with the nearest match; numbers out of their range.
    """
    given, numbers = name_and_numbers(argument, given)
    kind = NORMS.find(argument, given)
    usual = dict(kind.numbers(width))
    for number, value in numbers.items():
        check_number_known(f"the norm {given!r}", number, usual)
        check = check_int if isinstance(usual[number], int) else check_float
        usual[number] = check(f"{number} of the norm {given!r}", value)
    return {"name": given, **kind.check_numbers(width, **usual)} if usual else str(given)


def norm_from(config: str | Mapping[str, Any]) -> tuple[type[Norm], dict[str, Any]]:
    """Return the class and the numbers that :func:`norm_config` has put into words."""
    if isinstance(config, str):
        return NORMS[config], {}
    return NORMS[config["name"]], {key: value for key, value in config.items() if key != "name"}


def made_norm(config: str | Mapping[str, Any], width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the module of a norm that :func:`norm_config` has put into words."""
    kind, numbers = norm_from(config)
    return kind.make(width, device, dtype, **numbers)


def norm_of(module: nn.Module) -> Norm | str | None:
    """Return the norm of a module, None for ``nn.Identity``, or why there is none that the factor pass takes."""
    if type(module) is nn.Identity:
        return None
    kinds = [kind for kind in NORMS.values() if type(module) is kind.module]
    return kinds[0].of(module) if kinds else f"is a {type(module).__name__}, no norm of inrfast.norms"
