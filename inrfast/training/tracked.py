"""The tangent kernel of a network in training: captured again at little cost, and the numbers that are kept of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.calling import Select
from inrfast.errors import ResolutionError, check_float
from inrfast.linalg import eigenvalues
from inrfast.linalg.spectrum import RankInterval, Spectrum
from inrfast.memory import budget_bytes
from inrfast.modes import own_modes
from inrfast.records import Record
from inrfast.tangent.capture import Capture
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.local import NTK
from inrfast.tangent.network import PASS_DTYPE
from inrfast.tangent.probes import check_axes
from inrfast.tangent.store import FactorStore, backend_for
from inrfast.training.callables import UNKNOWN, attributes, described


def check_rtols(rtols: Iterable[float]) -> tuple[float, ...]:
    """Return relative tolerances as a tuple of numbers in (0, 1), at least one, in the order given."""
    given = tuple(rtols)
    found = tuple(check_float("rtols", rtol, minimum=0.0, exclusive=True) for rtol in given)
    if not found or max(found) >= 1:
        raise ValueError(f"rtols must be tolerances between 0 and 1, got {given}")
    return found


def subset(coords: Tensor, points: int, seed: int) -> Tensor:
    """Return at most ``points`` of the coordinates (N, d), drawn at random, in their order."""
    if len(coords) <= points:
        return coords
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(seed))
    return coords[order[:points].sort().values.to(coords.device)]


def same(coords: Tensor, others: Tensor) -> bool:
    """Return whether two tensors of points are the same numbers in one dtype on one device."""
    alike = coords.dtype == others.dtype and coords.device == others.device and coords.shape == others.shape
    return alike and torch.equal(coords, others)


class KernelSource:
    """The tangent kernels of a network at fixed points while its numbers change, in fp64.

    The probes that :func:`inrfast.ntk` makes are made once for a configuration: all that a network is but the values of
    its parameters and floating-point buffers. Its classes and code (with what that reads of globals and closures),
    hooks, plain attributes and arrays, integer buffers, modes, and names, shapes, dtypes and flags of its tensors are
    compared each time, and anything else than before, or anything that cannot be compared, has all probes made anew.
    With the same configuration, be it that of another network, only those of
    :meth:`inrfast.tangent.capture.Capture.refreshed` are.

    Parameters
    ----------
    coords
        The points (n, d).
    params, select
        As in :func:`inrfast.ntk`.
    given
        Coordinates (..., d) with as many axes as those that the network is called with; None: ``coords``.

    Attributes
    ----------
    probed
        How many times all probes were made.
    """

    def __init__(
        self,
        coords: Tensor,
        params: Iterable[str] | None = None,
        select: Select = None,
        given: Tensor | None = None,
    ) -> None:
        self.coords, self.select, self.probed = coords, select, 0
        self.given = coords if given is None else given
        self.params = params if params is None or isinstance(params, str) else tuple(params)
        self._capture: Capture | None = None
        self._configuration: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_capture": None}  # its network may be one that cannot be pickled

    def kernel(self, net: nn.Module) -> NTK:
        """Return the kernel of the network as it is now.

        Raises
        ------
        UnsupportedModuleError, ValueError, TypeError
            As :func:`inrfast.ntk`.
        """
        with own_modes():
            now, found = configuration(net, self.select), None
            if self._capture is not None and comparable(now) and now == self._configuration:
                found = self._capture.refreshed(net, self.coords)
            if found is None:
                self.probed += 1
                shaped = self.coords.reshape(*(1,) * (self.given.ndim - 2), *self.coords.shape)
                found = Capture(net, shaped, self.params, self.select, "highest")
                check_axes(found.network, self.given.to(PASS_DTYPE))
            self._capture, self._configuration = found, now
            budget = budget_bytes(None, found.device)
            store = FactorStore(found, self.coords, budget // 2, backend_for(found, "auto"))
            return NTK(LayerwiseJacobian(store, budget), None, "trace")


def configuration(net: nn.Module, select: Select) -> dict[str, Any]:
    """Return what a network is but for the values of its parameters and floating-point buffers, by names."""
    found: dict[str, Any] = dict(attributes(net))
    found["select"] = described(select) if callable(select) else repr(select)
    found["training"] = [module.training for module in net.modules()]
    found["default dtype"] = torch.get_default_dtype()
    first: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        facts = (parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad, type(parameter))
        found[f"parameter {name}"] = (first.setdefault(id(parameter), name), *facts)
    for name, buffer in net.named_buffers():
        whole = None if buffer.is_floating_point() or _counts_batches(name, net) else described(buffer)
        found[f"buffer {name}"] = (buffer.shape, buffer.dtype, buffer.device, whole)
    return found


def comparable(configuration: dict[str, Any]) -> bool:
    """Return whether a configuration tells everything: an object that nobody looks into may have changed."""
    select = configuration["select"]
    texts = [*configuration.values(), *(select.values() if isinstance(select, dict) else ())]
    return not any(isinstance(text, str) and text.startswith(UNKNOWN) for text in texts)


def _counts_batches(name: str, net: nn.Module) -> bool:
    """Return whether a buffer is a batch norm's own count of its batches, which grows with every step in training."""
    owner, _, leaf = name.rpartition(".")
    kind = type(net.get_submodule(owner))
    return leaf == "num_batches_tracked" and kind.__module__ == nn.BatchNorm1d.__module__


@dataclass(frozen=True)
class KernelNumbers(Record):
    """What is kept of a tangent kernel: ranks (one a tolerance), effective and stable rank, trace and eigenvalues.

    Beyond :data:`inrfast.linalg.eigenvalues.SMALL` points the eigenvalues are those that a certificate of the ranks
    left behind, and the effective rank is NaN where they do not tell it.
    """

    ranks: tuple[RankInterval, ...]
    effective_rank: float
    stable_rank: float
    trace: float
    eigenvalues: Tensor


def numbers_of(kernel: NTK, rtols: Sequence[float]) -> KernelNumbers:
    """Return the numbers of a kernel; one of zeros (whose head and last layer are zero, say) has ranks of 0.

    Up to 4,096 points that takes a dense kernel and its eigenvalues, above only the ranks are computed: see
    :meth:`inrfast.NTK.spectrum`.
    """
    dense = kernel.shape[0] <= eigenvalues.SMALL
    spectrum = kernel.spectrum(rtols, method="dense" if dense else "auto", progress=False)
    largest = float(spectrum.eigenvalues[0])
    dead = not bool(spectrum.eigenvalues.any())  # before a head of zeros, say: no rank of any kind
    return KernelNumbers(
        ranks=tuple(RankInterval(0, 0, r) if dead else spectrum.count_above(r * largest, r) for r in rtols),
        effective_rank=0.0 if dead else _effective_rank(spectrum),
        stable_rank=0.0 if dead else float(spectrum.stable_rank()),
        trace=float(spectrum.eigenvalues.sum()) if dense else spectrum.trace,
        eigenvalues=spectrum.eigenvalues.cpu(),
    )


def _effective_rank(spectrum: Spectrum) -> float:
    try:
        return spectrum.effective_rank()
    except ResolutionError:
        return math.nan
