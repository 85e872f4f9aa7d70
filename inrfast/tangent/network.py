"""The network that is differentiated: a copy in fp64 of its own, run by one thread at a time."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.calling import Calling, Select
from inrfast.errors import UnsupportedModuleError
from inrfast.memory import is_refusal
from inrfast.pointwise import stirred_
from inrfast.snapshot import snapshot

PASS_DTYPE = torch.float64
"""The factor pass runs in fp64 in every precision: in fp32 a ReLU gate flips and sine layers amplify rounding, so a
factor rounded once is the only one whose error is known. The native pass (:mod:`inrfast.ops.factor_pass`) makes it as
fast as libraries multiply in fp32 on many processors."""

REENTRANT = (
    "net uses activation checkpointing with use_reentrant=True, whose layers cannot be observed; pass "
    "use_reentrant=False to torch.utils.checkpoint.checkpoint"
)


class Network(Calling):
    """A module in fp64 and how it is called.

    Parameters
    ----------
    module
        A copy of the user's network, in fp64, which nobody else uses.
    select, axes
        See :class:`inrfast.calling.Calling`.
    """

    def __init__(self, module: nn.Module, select: Select, axes: int = 2) -> None:
        super().__init__(select, axes)
        self.module = module
        # Hooks sit on one module, which may also keep tensors between calls.
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {"axes": self.axes}
        for name, what in (("module", "the network"), ("select", "its select= function")):
            try:
                state[name] = pickle.dumps(getattr(self, name))
            except Exception as error:
                raise TypeError(
                    f"cannot pickle a kernel or Jacobian: {what} cannot be pickled ({type(error).__name__}: {error}). "
                    "Define classes and functions at the top of a module (no lambda), give select= as a key or an "
                    "index, or build the kernel inside the process that needs it (start method 'spawn')"
                ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        module, select = (pickle.loads(state[name]) for name in ("module", "select"))
        self.__init__(module, select, state["axes"])  # type: ignore[misc]

    @contextmanager
    def alone(self) -> Iterator[nn.Module]:
        """Hold the module in this block: no other thread runs it."""
        with self._lock:
            yield self.module

    def outputs(self, coords: Tensor) -> Tensor:
        """Return the outputs (n, M) at ``coords`` (n, d), without their graph where the caller has gradients off.

        The module runs with gradients on: it may differentiate inside, or hook its tensors.
        """
        if len(coords) == 1:  # modules that squeeze() would drop the axis of a single point
            return self.outputs(coords.expand(2, -1))[:1]
        wanted = torch.is_grad_enabled()
        with self.alone(), torch.enable_grad():
            outputs = self.call(coords)
        return outputs if wanted else outputs.detach()

    def call(self, coords: Tensor, module: nn.Module | None = None) -> Tensor:
        """Return the outputs (n, M) at a copy of ``coords`` (n, d), n at least 2, by one call of the module.

        The caller holds the module (:meth:`alone`). ``module`` is another copy of it to call, of any dtype.
        """
        return self.predicted(self.module if module is None else module, coords.clone())

    def rounded(self, eps: float, seed: int) -> Network:
        """Return this network with parameters changed at random, by a relative ``eps`` at most."""
        module = snapshot(self.module)
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(rounded(parameter, eps, seed + 1000 * number))
        return Network(module, self.select, self.axes)

    def stirred(self) -> Network:
        """Return this network with trainable parameters moved a little."""
        return Network(stirred_(snapshot(self.module)), self.select, self.axes)


def rounded(tensor: Tensor, eps: float, seed: int) -> Tensor:
    """Return a tensor whose entries are changed at random, by a relative ``eps`` at most."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(tensor.shape, generator=generator, dtype=PASS_DTYPE) - 1
    return tensor.detach() * (1 + eps * noise.to(tensor.device))


def gradients(total: Tensor, wanted: Sequence[Tensor], again: bool = False) -> list[Tensor]:
    """Return the gradients of ``total``; zeros for what it does not depend on, or was computed under ``no_grad``.

    ``again`` keeps the graph for more of them.
    """
    found = [torch.zeros_like(tensor) for tensor in wanted]
    places = [place for place, tensor in enumerate(wanted) if tensor.requires_grad]
    if not total.requires_grad or not places:
        return found
    try:
        computed = torch.autograd.grad(
            total, [wanted[place] for place in places], retain_graph=again, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        if "checkpoint" in str(error):
            raise UnsupportedModuleError(REENTRANT) from error
        if is_refusal(error):
            raise
        raise UnsupportedModuleError(f"net cannot be differentiated by torch: {error}") from error
    for place, gradient in zip(places, computed, strict=True):
        found[place] = gradient if gradient.layout == torch.strided else gradient.to_dense()
    return found
