"""Callbacks of a fit: what is called after steps and evaluations, the tangent kernel tracked, and loggers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.analysis.diagnosis import RTOLS
from inrfast.arrays import ArrayLike
from inrfast.calling import Calling, Select
from inrfast.errors import MissingLibraryError, check_coords, check_float, check_int, check_seed, check_takes
from inrfast.linalg.spectrum import RankInterval
from inrfast.memory import chunks
from inrfast.mlp import describe
from inrfast.training.tracked import KernelNumbers, KernelSource, check_rtols, numbers_of, same, subset

TOGETHER = 2**16
"""Points of a picture that are evaluated at once, by a network whose points are known not to influence each other."""


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


class Logger(Callback):
    """Base of callbacks that log every evaluation: loss, learning rate, PSNR and the best PSNR, by their names.

    A number that is not finite is left out: there is no loss before the first step, and no PSNR of an exact fit. The
    fit is only read: its steps are the same to the bit, and as fast.

    Parameters
    ----------
    name
        In front of the names: ``fit/psnr``. Of the networks of ``fit_many`` the first has this name, the others are
        ``fit-1``, ``fit-2``, ...
    shape
        (H, W) of the picture that is fitted, whose pixels are the fit's points, row after row: then the reconstruction
        is logged too. It takes a pass over all points. None: no picture.
    every
        Evaluations between two pictures; the first evaluation has one.
    value_range
        Values that are black and white.

    Raises
    ------
    ValueError, TypeError
        What is no shape, number or name. While fitting: a shape that does not hold the fit's points, or a network
        whose outputs are not 1 or 3.
    """

    def __init__(
        self,
        name: str = "fit",
        shape: Sequence[int] | None = None,
        every: int = 10,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a text, got {type(name).__name__}")
        self.name = name
        self.shape = None if shape is None else tuple(check_int("shape", size, minimum=1) for size in shape)
        if self.shape is not None and len(self.shape) != 2:
            raise ValueError(f"shape must be (H, W), got {self.shape}")
        self.every = check_int("every", every, minimum=1)
        low, high = (check_float("value_range", value) for value in value_range)
        if not low < high:
            raise ValueError(f"value_range must rise from black to white, got ({low:g}, {high:g})")
        self.value_range = low, high
        self._evaluations: dict[int, int] = {}

    def on_eval(self, state: FitState) -> None:
        """Log the numbers, and the picture if it is this evaluation's turn."""
        name = self.name if state.index == 0 else f"{self.name}-{state.index}"
        numbers = {"loss": state.loss, "lr": state.lr, "psnr": state.psnr, "best_psnr": state.best_psnr}
        finite = {f"{name}/{key}": value for key, value in numbers.items() if math.isfinite(value)}
        number = self._evaluations.get(state.index, 0)
        self._evaluations[state.index] = number + 1
        picture = self._picture(state) if self.shape is not None and number % self.every == 0 else None
        self._log(name, state.step, finite, picture)

    def _log(self, name: str, step: int, numbers: dict[str, float], picture: np.ndarray | None) -> None:
        """Log numbers and a picture (H, W, C) of bytes."""
        raise NotImplementedError

    def _picture(self, state: FitState) -> np.ndarray:
        """Return the reconstruction (H, W, C), C = 1 or 3, as bytes."""
        assert self.shape is not None
        points = state.coords.shape[-2]
        if math.prod(self.shape) != points:
            raise ValueError(f"shape must hold the {points} points of the fit, got {self.shape}")
        calling, coords = Calling(state.select, state.coords.ndim), state.coords.reshape(points, -1)
        together = points if isinstance(describe(state.net), str) else TOGETHER
        with torch.no_grad():
            found = torch.cat([calling.predicted(state.net, coords[rows]) for rows in chunks(points, together)])
        if found.shape[1] not in (1, 3):
            raise ValueError(f"shape must be None for a network of {found.shape[1]} outputs: a picture has 1 or 3")
        low, high = self.value_range
        levels = ((found.double() - low) / (high - low)).nan_to_num(0.0).clamp(0, 1) * 255
        return levels.round().to("cpu", torch.uint8).reshape(*self.shape, -1).numpy()


class TensorBoard(Logger):
    """Log a fit to TensorBoard: ``fit(..., callbacks=[TensorBoard("runs/1")])``, then ``tensorboard --logdir runs``.

    Parameters
    ----------
    writer
        A folder, for a ``torch.utils.tensorboard.SummaryWriter`` that is opened here, or such a writer of your own.
    name, shape, every, value_range
        As in :class:`Logger`.

    Raises
    ------
    MissingLibraryError
        A folder was given, and tensorboard is not installed.
    ValueError, TypeError
        As in :class:`Logger`; a writer that cannot log numbers.
    """

    def __init__(
        self,
        writer: Any,
        name: str = "fit",
        shape: Sequence[int] | None = None,
        every: int = 10,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(name, shape, every, value_range)
        if isinstance(writer, str | os.PathLike):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingLibraryError("logging to TensorBoard needs it: pip install tensorboard") from error
            writer = SummaryWriter(os.fspath(writer))
        if not all(callable(getattr(writer, method, None)) for method in ("add_scalar", "add_image", "flush")):
            raise TypeError(f"writer must be a folder or a SummaryWriter, got {type(writer).__name__}")
        self.writer = writer

    def _log(self, name: str, step: int, numbers: dict[str, float], picture: np.ndarray | None) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)
        if picture is not None:
            self.writer.add_image(f"{name}/reconstruction", picture, step, dataformats="HWC")
        self.writer.flush()


class WandB(Logger):
    """Log a fit to Weights & Biases: ``wandb.init(...)``, then ``fit(..., callbacks=[WandB()])``.

    Numbers are drawn over ``fit/step``, so that other things can be logged to the same run.

    Parameters
    ----------
    run
        What ``wandb.init`` returned; None: the run that is active.
    name, shape, every, value_range
        As in :class:`Logger`.

    Raises
    ------
    MissingLibraryError
        wandb is not installed.
    ValueError, TypeError
        As in :class:`Logger`; no run is active, or what was given cannot log.
    """

    def __init__(
        self,
        run: Any = None,
        name: str = "fit",
        shape: Sequence[int] | None = None,
        every: int = 10,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(name, shape, every, value_range)
        try:
            import wandb
        except ImportError as error:
            raise MissingLibraryError("logging to Weights & Biases needs it: pip install wandb") from error
        self._image = wandb.Image
        self.run = wandb.run if run is None else run
        if self.run is None:
            raise ValueError("run must be given where none is active: call wandb.init(...) first")
        if not all(callable(getattr(self.run, method, None)) for method in ("log", "define_metric")):
            raise TypeError(f"run must be what wandb.init returned, got {type(run).__name__}")
        self._named: set[str] = set()

    def _log(self, name: str, step: int, numbers: dict[str, float], picture: np.ndarray | None) -> None:
        if name not in self._named:
            self._named.add(name)
            self.run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        logged: dict[str, Any] = {**numbers, f"{name}/step": step}
        if picture is not None:
            logged[f"{name}/reconstruction"] = self._image(picture if picture.shape[2] == 3 else picture[..., 0])
        self.run.log(logged)


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
