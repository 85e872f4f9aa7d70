"""A factorisation whose rows several processes share: every process makes each of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inrfast.linalg.factorization import Factorization
from inrfast.modes import in_own_modes, methods_in_own_modes
from inrfast.tangent.agreement import collective

if TYPE_CHECKING:
    from inrfast.tangent.sharded import ShardedNTK


@methods_in_own_modes
class SharedFactorization(Factorization):
    """A :class:`inrfast.Factorization` of which each process holds the rows of its points.

    Made by ``K.factor(shift)`` of a kernel that :func:`inrfast.distributed.ntk` returned. Right-hand sides and
    solutions are whole in every process. As with the kernel, every process must make every call, with the same
    arguments, that of :attr:`residual` among them; ``nbytes`` counts the bytes of all processes.
    """

    def __init__(self, made: Factorization, kernel: ShardedNTK) -> None:
        vars(self).update(vars(made))
        self._kernel = kernel

    @contextmanager
    def together(self, call: str, given: Mapping[str, Any]) -> Iterator[None]:
        """Run a call once every process is seen to make it, of this factorisation and with the arguments ``given``."""
        own = {"the shift": self.shift, "the factor's precision": self.precision}
        with self._kernel.together(f"{call} of a factorisation", {**own, **given}):
            yield

    @property
    def residual(self) -> float:
        """Bound on the spectral norm of ``K - shift I - M``; to be read in every process."""
        with self.together("residual", {}):
            return super().residual

    def refined(self, b: Tensor, tol: float, progress: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return what :meth:`solve` found, however good it is, and the relative residuals of its columns."""
        return super().refined(b, tol, self._kernel._shown(progress))


COLLECTIVE = ("__call__", "count", "logdet", "refined", "solve", "told")
"""Methods that exchange numbers."""

for _name in COLLECTIVE:
    setattr(SharedFactorization, _name, in_own_modes(collective(getattr(SharedFactorization, _name))))
