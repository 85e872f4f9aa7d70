"""Callbacks of a fit: what is called after steps and evaluations, and the tangent kernel tracked while training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn

from inrfast.analysis.diagnosis import RTOLS
from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import check_coords, check_int, check_seed, check_takes
from inrfast.linalg.spectrum import RankInterval
from inrfast.training.tracked import KernelNumbers, KernelSource, check_rtols, numbers_of, same, subset


@dataclass(frozen=True)
class FitState:
    """What a callback is told, in ``on_step`` after every update and in ``on_eval`` after every evaluation.

    Attributes
    ----------
    net
        The network, in eval mode for the time of the call. What a callback does to its weights in place counts; what
        replaces, converts or freezes them, or adds hooks, is refused.
    index
        Its place among the networks of ``fit_many``; 0 in ``fit``.
    step, steps
        Updates done, and asked for.
    loss, lr
        Of the last update; NaN before the first.
    psnr, best_psnr
        Of the last evaluation, and the best so far (dB, for the fit's ``data_range``).
    coords
        The points of the fit, (N, d), or with the leading axes that the network is called with, (1, N, d).
    select
        What takes the output from what the network returns: the fit's.
    """

    net: nn.Module
    index: int
    step: int
    steps: int
    loss: float
    lr: float
    psnr: float
    best_psnr: float
    coords: Tensor
    select: Select = None
    _gradient_norm: Callable[[], float] = field(default=lambda: math.nan, repr=False)
    _stopped: list[bool] = field(default_factory=list, repr=False)
    _over: list[bool] = field(default_factory=list, repr=False)

    def gradient_norm(self) -> float:
        """Return the norm of the gradient of the loss over all trained parameters, before clipping.

        In ``on_step`` it is that of the update just done, in ``on_eval`` that of the weights as they are. It costs
        nothing where nobody asks. NaN at the end of a fit, where no more gradient is taken.

        Raises
        ------
        RuntimeError
            The call that this state was given to is over, and the gradient another.
        """
        self._check_now("gradient_norm")
        return self._gradient_norm()

    def stop(self) -> None:
        """End the fit of this network after the call."""
        self._check_now("stop")
        self._stopped.append(True)

    def _check_now(self, method: str) -> None:
        if self._over:
            raise RuntimeError(
                f"state.{method}() belongs to the call of step {self.step}, which is over; call it within on_step or "
                "on_eval, and keep what it returns"
            )


class Callback:
    """Base of callbacks; any object with one of the two methods will do.

    A callback with ``state_dict()`` and ``load_state_dict(state)`` is kept in checkpoints (tensors, numbers, strings,
    dicts and lists) and goes on after ``resume``.
    """

    def on_step(self, state: FitState) -> None:
        """Be called after every update."""

    def on_eval(self, state: FitState) -> None:
        """Be called after every evaluation, the one of the start included."""


class OwnCallback:
    """Base of the callbacks that this library adds to the caller's; messages neither count nor number them."""


def callers(callbacks: Iterable[Any]) -> list[Any]:
    """Return the callbacks that are the caller's."""
    return [callback for callback in callbacks if not isinstance(callback, OwnCallback)]


def places(callbacks: Iterable[Any]) -> list[str]:
    """Return what messages call callbacks: those of the caller by their numbers among these, others by their class."""
    numbers = count()
    return [type(own).__name__ if isinstance(own, OwnCallback) else f"callbacks[{next(numbers)}]" for own in callbacks]


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return the callbacks as a tuple, each with a method that a fit calls."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a sequence of callbacks, got {type(callbacks).__name__}")
    given = tuple(callbacks)
    for place, callback in zip(places(given), given, strict=True):
        methods = [method for method in ("on_step", "on_eval") if callable(getattr(callback, method, None))]
        if isinstance(callback, type):
            check_takes(place, callback, ())
        if not methods:
            got = type(callback).__name__
            raise TypeError(f"{place} must have a method on_step(state) or on_eval(state), got {got}")
        for method in methods:
            check_takes(f"{place}.{method}", getattr(callback, method), ["state"])
    return given


@dataclass(frozen=True)
class TrackedKernel(KernelNumbers):
    """The numbers of the tangent kernel after ``step`` updates of network ``index``, and the seconds that they took."""

    step: int
    index: int
    seconds: float


class TrackNTK(Callback):
    """Spectrum and numerical ranks of the tangent kernel while training, in :attr:`history`.

    At an evaluation the kernel on a fixed random subset of the points is computed densely in fp64: for n points and M
    outputs that takes ``n^2 sum(D_in + M D_out)`` FLOP, summed over layers, and some ``4/3 n^3`` for the eigenvalues.
    Of more than 4,096 points only the ranks are computed, by pivots or by a factorisation of ``K - level I`` for each
    tolerance (``n^3 / 3`` each), and hold except with probability 1e-6.
    Each entry says how long it took, and :attr:`seconds` is their sum: compare it with the fit's own. The probes of
    :func:`inrfast.ntk` are made for the first entry alone, unless more than numbers changes. A kernel of zeros
    (a network whose head and last layer are zero) has ranks of 0.

    Parameters
    ----------
    points
        Points of the subset at most.
    rtols
        Tolerances of the ranks, relative to the largest eigenvalue; five by default, since the verdict depends on it.
    every
        Evaluations between two spectra; the first evaluation always has one.
    coords
        Points (n, d) to take instead of a subset of the fit's.
    seed
        Of the subset.

    Raises
    ------
    ValueError, TypeError
        Numbers below 1, tolerances outside (0, 1). While fitting: what :func:`inrfast.ntk` refuses, by name.
    """

    def __init__(
        self,
        points: int = 512,
        rtols: Sequence[float] = RTOLS,
        every: int = 1,
        coords: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.points = check_int("points", points, minimum=1)
        self.rtols = check_rtols(rtols)
        self.every = check_int("every", every, minimum=1)
        self.coords = (
            None if coords is None else check_coords("coords", coords).detach().clone()
        )  # the caller may reuse its memory
        self.seed = check_seed("seed", seed)
        self.history: list[TrackedKernel] = []
        self._evaluations: dict[int, int] = {}
        self._source: KernelSource | None = None

    @property
    def seconds(self) -> float:
        """Time taken so far."""
        return math.fsum(entry.seconds for entry in self.history)

    def on_eval(self, state: FitState) -> None:
        """Compute the spectrum, if it is this evaluation's turn."""
        number = self._evaluations.get(state.index, 0)
        self._evaluations[state.index] = number + 1
        if number % self.every:
            return
        start = time.perf_counter()
        coords = self._subset(state.coords.reshape(-1, state.coords.shape[-1]))
        given = coords.reshape(*(1,) * (state.coords.ndim - 2), *coords.shape)
        source = self._source
        if source is None or source.select is not state.select or not same(source.given, given):
            self._source = source = KernelSource(coords, select=state.select, given=given)
        numbers = numbers_of(source.kernel(state.net), self.rtols)
        seconds = time.perf_counter() - start
        self.history.append(TrackedKernel(**vars(numbers), step=state.step, index=state.index, seconds=seconds))

    def _subset(self, coords: Tensor) -> Tensor:
        if self.coords is not None:
            return self.coords.to(coords)
        return subset(coords, self.points, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        entries = [{**asdict(entry), "ranks": [asdict(rank) for rank in entry.ranks]} for entry in self.history]
        return {"history": entries, "evaluations": self._evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history = [
            TrackedKernel(**{**entry, "ranks": tuple(RankInterval(**rank) for rank in entry["ranks"])})
            for entry in state["history"]
        ]
        self._evaluations = dict(state["evaluations"])


def told(
    callbacks: Sequence[Any],
    method: str,
    net: nn.Module,
    state: Callable[[], FitState],
    after: Callable[[], None],
) -> bool:
    """Call a method of all callbacks that have it, the network in eval mode; return whether one asked to stop.

    ``after`` follows the calls, whatever they raised.
    """
    methods = [getattr(callback, method, None) for callback in callbacks]
    if not any(callable(method) for method in methods):
        return False
    now = state()
    net.eval()
    try:
        for call in methods:
            if callable(call):
                call(now)
    finally:
        now._over.append(True)
        net.train()
        after()
    return bool(now._stopped)
