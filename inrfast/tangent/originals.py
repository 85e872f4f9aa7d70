"""Originals: whether a copy of a network reaches the parameters of the network that it was copied from.

A copy has parameters of its own, and methods and submodules that use these. A lambda, a closure or a bound method that
is kept as an attribute still holds the original network, and a tensor made of a parameter outside the forward pass
still holds its old numbers: rows of the Jacobian by the copy's parameters would be zero there, and nobody would see it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrfast.errors import UnsupportedModuleError, warn
from inrfast.layers.calls import tensors_in
from inrfast.snapshot import own_dtype, rms_norm_epsilon
from inrfast.tangent.network import PASS_DTYPE, Network
from inrfast.tangent.watching import address_of

RMS_NORMS = (F.rms_norm, torch.rms_norm)

ARGUMENTS_OF_RMS_NORM = ("input", "normalized_shape", "weight", "eps")

REACH = (
    "Reach it through self in the forward pass: by methods, submodules or functions that get it as an argument, in "
    "place of lambdas, closures and bound methods that hold the network, and of tensors made of it outside"
)

_told: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


class _Originals(TorchFunctionMode):
    """Refuses functions that take the original's tensors, or a number from the dtype, in a block that runs copies."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        named: Mapping[str, Mapping[str, Tensor]] = {
            "buffer": dict(net.named_buffers()),
            "parameter": dict(net.named_parameters()),
        }
        self._names = {
            address_of(tensor): f"{kind} {name!r}"
            for kind, tensors in named.items()
            for name, tensor in tensors.items()
            if address_of(tensor) > 0
        }
        self._dtype = own_dtype(net)
        self.refusal: UnsupportedModuleError | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, unless it is refused."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name not in ("__get__", "__deepcopy__"):  # a shape is no number of it; a view of it enters something else
            for tensor in (*tensors_in(args), *tensors_in(kwargs)):
                original = self._names.get(address_of(tensor))
                if original is not None:
                    self._refuse(
                        f"net reaches its {original} through something that still holds the original network where a "
                        f"copy of it runs, so its derivatives would be lost. {REACH}"
                    )
        if function in RMS_NORMS and self._dtype != PASS_DTYPE:
            given = {**dict(zip(ARGUMENTS_OF_RMS_NORM, args, strict=False)), **kwargs}
            if given.get("eps") is None and given["input"].dtype == PASS_DTYPE:
                self._refuse(
                    f"net calls rms_norm without eps, which then takes it from the dtype: in {PASS_DTYPE}, in which "
                    f"factors are computed, it is another one than in {self._dtype}. Give it: "
                    f"eps={rms_norm_epsilon(self._dtype)!r} is what {self._dtype} takes"
                )
        return function(*args, **kwargs)

    def _refuse(self, why: str) -> None:
        self.refusal = UnsupportedModuleError(why)
        raise self.refusal


@contextmanager
def without_originals(net: nn.Module) -> Iterator[None]:
    """Refuse, in a block that runs copies of ``net`` in fp64, whatever takes a parameter or buffer of ``net`` itself.

    So is ``F.rms_norm`` without ``eps``, which is another function in fp64. Whatever the block makes of it, this is
    the error that is raised.

    Raises
    ------
    UnsupportedModuleError
        As said.
    """
    mode = _Originals(net)
    try:
        with mode:
            yield
    finally:
        if mode.refusal is not None:
            raise mode.refusal


def check_unused(net: nn.Module, network: Network, names: Sequence[str], coords: Tensor) -> list[str]:
    """Return the parameters, of those that are named, which the copy's outputs do not depend on.

    Parameters
    ----------
    net
        The original. It runs once if there are such parameters, and is left as it was.
    network
        Its copy in fp64.
    names
        The parameters that nothing is known of.
    coords
        A few of the points (n, d), in fp64.

    Raises
    ------
    UnsupportedModuleError
        The outputs of ``net`` itself do depend on one.
    """
    with network.alone() as module, torch.enable_grad():
        own = dict(module.named_parameters())
        found = _gradients(network.call(coords), [own[name] for name in names])
    unused = [name for name, gradient in zip(names, found, strict=True) if gradient is None]
    if not unused:
        return []
    own = dict(net.named_parameters())
    asked = [name for name in unused if own[name].requires_grad]
    with left_as_it_was(net), torch.enable_grad():
        outputs = None
        with suppress(RuntimeError):  # parts of several dtypes run in fp64 only
            outputs = network.call(coords[:2].to(own_dtype(net)), net)
        try:
            found = [] if outputs is None else _gradients(outputs, [own[name] for name in asked])
        except RuntimeError as error:  # its graph is no longer there
            raise UnsupportedModuleError(f"{_lost(unused[0])} ({error}). {REACH}") from error
    for name, gradient in zip(asked, found, strict=False):  # none, where it does not run
        if gradient is not None and bool((gradient != 0).any()):
            raise UnsupportedModuleError(f"{_lost(name)}. {REACH}")
    _tell(net, unused)
    return unused


def _lost(name: str) -> str:
    return (
        f"net reaches its parameter {name!r} through something that a copy does not take along, as a tensor that was "
        "made of it at construction or in an earlier pass and is kept"
    )


def _gradients(outputs: Tensor, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients of a sum of the outputs; None for what they do not depend on."""
    if not outputs.requires_grad or not wanted:
        return [None] * len(wanted)
    weights = torch.linspace(0.5, 1.5, outputs.numel()).to(outputs).view_as(outputs)
    # A graph that the network itself keeps is left to it.
    return torch.autograd.grad((outputs * weights).sum(), list(wanted), retain_graph=True, allow_unused=True)


def _tell(net: nn.Module, names: Sequence[str]) -> None:
    """Say once for every network which parameters it does not use."""
    listed = ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if listed not in _told.setdefault(net, set()):
        _told[net].add(listed)
        warn(
            f"the outputs of net ({type(net).__name__}) do not depend on its parameters {listed}: their rows of the "
            "Jacobian are zero"
        )


@contextmanager
def left_as_it_was(net: nn.Module) -> Iterator[None]:
    """Give a network the attributes and buffers, and torch the generators, back at the end that they had before."""
    attributes = [(module, _shallow(vars(module))) for module in net.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for module, before in attributes:
                own = vars(module)
                for key in own.keys() - before.keys():
                    del own[key]
                for key, (value, items) in before.items():
                    own[key] = value
                    if items is not None:
                        value.clear()
                        value.update(items)
            with torch.no_grad():
                for buffer, numbers in buffers:
                    if not torch.equal(buffer, numbers):
                        buffer.copy_(numbers)


def _shallow(own: Mapping[str, Any]) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Return the attributes of a module, each with its items if it is a dictionary."""
    return {key: (value, dict(value) if isinstance(value, dict) else None) for key, value in own.items()}
