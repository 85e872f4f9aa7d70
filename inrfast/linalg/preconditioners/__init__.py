"""Preconditioners of conjugate gradients by name; to add one is to add a file here, or to call ``PRECONDITIONERS.add``.

A preconditioner is a function of a :class:`System` that returns P, an approximation of ``(K + ridge I)^-1``, as a
function of a block of vectors. P must be linear, symmetric and positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inrfast.linalg.factorization import Factorization
from inrfast.linalg.operators import SymmetricOperator
from inrfast.memory import require
from inrfast.registry import Registry

PROBES = 4
"""Random vectors on which a preconditioner of the user's own is tried."""

LOOSE = 1e-2
"""Asymmetry and nonlinearity, relative to the norm of P's results, up to which one passes: solvers in fp32 do."""

Apply = Callable[[Tensor], Tensor]
"""Takes this process's rows of a block of residuals (n, c), fp64; returns those of ``P residuals``, a new tensor."""


@dataclass(frozen=True)
class System:
    """A system ``(K + ridge I) X = Y`` to be solved by iteration.

    Attributes
    ----------
    operator
        K, positive semidefinite, fp64.
    ridge
        0 or more, in the units of K.
    budget, reserved
        Bytes for everything, and those of them that the iteration itself takes.
    seed
        Of what it draws.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.
    flops
        FLOP beside the operator's own that a preconditioner should take at most, where it has a choice.
    """

    operator: SymmetricOperator
    ridge: float
    budget: int
    reserved: int
    seed: int
    progress: bool | None
    flops: float = math.inf


Preconditioner = Callable[[System], Apply]

PRECONDITIONERS: Registry[Preconditioner] = Registry("preconditioner", "inrfast.linalg.preconditioners", Callable)
"""The known preconditioners."""


def find(given: object) -> Preconditioner:
    """Return the preconditioner that ``preconditioner=`` names, or one of a user's function of whole residuals.

    Raises
    ------
    ValueError, TypeError
        An unknown name; neither a name nor a function nor a factorisation.
    """
    if isinstance(given, Factorization):
        return lambda system: _of_factor(given, system)
    if callable(given):
        return lambda system: _checked(given, system)
    if not isinstance(given, str):
        raise TypeError(
            "preconditioner must be a name, a function of the residual (n, c), a Factorization, or None for the "
            f"default, got {type(given).__name__}"
        )
    return PRECONDITIONERS.find("preconditioner", given)


def _of_factor(factor: Factorization, system: System) -> Apply:
    """Return a factorisation, of this or of another kernel of the same order, as P."""
    if factor.negative:
        raise ValueError(
            f"preconditioner is not positive definite: this factorisation has {factor.negative} negative eigenvalues; "
            "conjugate gradients need a positive definite one, such as K.factor(-ridge)"
        )
    if factor.shape != system.operator.shape or factor.device != system.operator.device:
        raise ValueError(
            f"preconditioner must have shape {system.operator.shape} on {system.operator.device}, got a factorisation "
            f"of shape {factor.shape} on {factor.device}"
        )
    if factor.whole == system.operator.partition.whole:  # each process has the same rows of both
        require_iteration(system)
        return factor.rows_of_inverse
    return _checked(factor, system)


def require_iteration(system: System) -> None:
    """Raise if the iteration alone exceeds the budget; for preconditioners that need next to no memory."""
    what = f"an iteration of order {system.operator.shape[0]}"
    require(system.reserved, system.budget, what, "raise memory_budget")


def _checked(function: Callable[[Tensor], Tensor], system: System) -> Apply:
    """Return a user's function as P: it gets the residuals of all rows in every process, and is tried first."""
    require_iteration(system)
    partition = system.operator.partition

    def apply(rows: Tensor) -> Tensor:
        residual = partition.gather(rows)
        with partition.all_or_none():  # the function may raise in one process alone
            found = _result(function(residual.clone()), residual)  # the iteration goes on with its own
        return partition.mine(found.detach().to(torch.float64, copy=True))

    power = _probe(apply, system)
    return lambda rows: apply(rows).div_(power)  # the iteration is the same for every multiple of P


def _result(found: object, residual: Tensor) -> Tensor:
    """Return what a user's function made of a residual, if it is a tensor of the same shape."""
    if not isinstance(found, Tensor):
        raise TypeError(f"preconditioner must return a torch.Tensor, got {type(found).__name__}")
    if found.shape != residual.shape or found.device != residual.device or not found.is_floating_point():
        raise ValueError(
            f"preconditioner must return a floating tensor of shape {tuple(residual.shape)} on {residual.device}, "
            f"got {found.dtype} {tuple(found.shape)} on {found.device}"
        )
    return found


def _probe(apply: Apply, system: System) -> float:
    """Return the power of two that is the size of P's results, near 1 for random vectors once divided by it.

    Raises
    ------
    ValueError
        P is seen to be other than linear, symmetric and positive definite on random vectors.
    """
    partition = system.operator.partition
    x = partition.random(PROBES, system.seed, system.operator.diagonal())
    image = apply(x)
    largest = float(partition.gather(image).abs().amax())
    if not math.isfinite(largest):
        raise ValueError("preconditioner returned NaN or Inf for a random residual")
    power = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0
    image /= power
    found = partition.total(x.t() @ image)
    size = partition.norm(image)
    needed = "conjugate gradients need a linear, symmetric, positive definite one"
    # The sum of two vectors, as a block of its own: columns must not count for each other either.
    apart = float(partition.norm(apply(x[:, :1] + x[:, 1:2]) / power - image[:, :1] - image[:, 1:2]))
    if apart > LOOSE * float(size.amax()):
        raise ValueError(f"preconditioner is not linear, column by column: P(x + y) is off by {apart:.1e}; {needed}")
    gap = float((found - found.t()).abs().amax())
    if gap > LOOSE * float(size.amax()):
        raise ValueError(f"preconditioner is not symmetric: x^T P(y) and y^T P(x) differ by {gap:.1e}; {needed}")
    smallest = float(torch.linalg.eigvalsh((found + found.t()) / 2)[0])
    if smallest <= -1e-8 * float(size.amax()) or float(found.diagonal().min()) <= 0:
        raise ValueError(
            f"preconditioner is not positive definite: x^T P(x) = {smallest:.1e} for a combination x of "
            f"random residuals; {needed}"
        )
    return power
