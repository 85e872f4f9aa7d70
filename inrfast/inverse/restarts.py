"""What the solvers have in common: networks with their regularisers, restarts, options of the fit, the choice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import DivergedError, check_coords, check_float, check_int, check_seed, warn
from inrfast.grids import grid
from inrfast.inverse.history import History, Truth
from inrfast.inverse.operators import MeasurementLoss, Operator, Shape, check_adjoint, check_operator, on_grid
from inrfast.inverse.result import Reconstruction
from inrfast.modes import modes_kept
from inrfast.nn import declared_sizes
from inrfast.training.callbacks import check_callbacks
from inrfast.training.data import calling_of, check_net, count_outputs
from inrfast.training.objective import Regularizers

OPTIONS = (
    "backend",
    "callbacks",
    "checkpoint",
    "checkpoint_seconds",
    "clip_norm",
    "memory_budget",
    "modules",
    "optimizer",
    "precision",
    "progress",
    "resume",
    "schedule",
    "select",
    "weight_decay",
)
"""Options of ``inr.fit`` that solvers pass on; all others would not mean anything here, or are the solver's own."""


@dataclass
class Attempt:
    """One start of a solver: what is trained, and what came of it.

    Attributes
    ----------
    net, regularizers
        Trained together.
    signal
        (*shape_in, M), once there is one.
    history, losses, steps, interrupted
        How it was approached.
    """

    net: nn.Module
    regularizers: Regularizers
    history: History
    signal: Tensor | None = None
    losses: tuple[float, ...] = ()
    steps: int = 0
    interrupted: bool = False


@dataclass(frozen=True)
class Problem:
    """What a solver was asked: operator, measurements, truth, and the settings of its fits."""

    operator: Operator
    loss: MeasurementLoss
    truth: Truth | None
    options: Mapping[str, Any]
    regularizers: Regularizers
    restarts: int
    seed: int
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the signal."""
        return int(self.loss.measurements.shape[-1])


Start = nn.Module | Callable[[int], Any]
"""What solvers take as a network: a module, or a function of the seed that makes one."""


def problem_of(
    operator: Any,
    measurements: ArrayLike,
    target: ArrayLike | None,
    data_range: float | None,
    regularizers: Regularizers,
    restarts: int,
    seed: int,
    options: Mapping[str, Any],
) -> Problem:
    """Return what a solver was asked, checked: shapes, measurements, the adjoint where there is one, options."""
    check_operator(operator)
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option of this solver; those of inr.fit it takes are {', '.join(OPTIONS)}")
    callbacks = check_callbacks(options.get("callbacks", ()))
    loss = MeasurementLoss(operator, measurements)
    if not bool(loss.measurements.any()):
        raise ValueError("measurements must not all be zero: nothing can be said of a signal from them")
    if operator.linear:
        check_adjoint(operator, draws=1, channels=1)
    truth = None
    if target is not None:
        values, _ = on_grid("target", target, operator.shape_in, "the truth, only for scores")
        if values.shape[-1] != loss.measurements.shape[-1]:
            raise ValueError(f"target has {values.shape[-1]} channels, measurements {loss.measurements.shape[-1]}")
        if values.is_complex():
            raise TypeError(f"target must be real, as the outputs of networks are, got {values.dtype}")
        size = None if data_range is None else check_float("data_range", data_range, minimum=0.0, exclusive=True)
        truth = Truth(values.detach().clone(), operator, size)  # the caller may reuse its memory
    restarts = check_int("restarts", restarts, minimum=1)
    shared = [] if restarts == 1 else [*modules_in(regularizers), *options.get("modules", ())]
    for module in shared:
        if trainable(module):
            raise TypeError(
                f"{type(module).__name__} is trained with the network, and restarts would go on from each other's; let "
                "the function that net is make one for each seed, and return it with the network as inr.PEAK does"
            )
    options = {**options, "callbacks": callbacks}
    return Problem(operator, loss, truth, options, regularizers, restarts, check_seed("seed", seed))


def network_of(net: Start, seed: int, several: bool) -> tuple[nn.Module, list[Any]]:
    """Return the network of a start and the regularisers that come with it, as of ``inr.PEAK``."""
    if isinstance(net, nn.Module) or hasattr(net, "regularizers"):
        if several:
            raise TypeError("with restarts, net must be a function of the seed that makes a network, got a network")
        made: Any = net
    elif callable(net):
        made = net(seed)
    else:
        raise TypeError(f"net must be a network or a function of the seed that makes one, got {type(net).__name__}")
    own = list(getattr(made, "regularizers", ()))
    trained = made.net if hasattr(made, "regularizers") else made
    check_net(trained)
    return trained, own


def checkpoint_of(options: Mapping[str, Any], number: int, restarts: int) -> dict[str, Any]:
    """Return the options of the fit of one start: of several each has a checkpoint of its own, ``name.3.ending``."""
    found = dict(options)
    if found.get("checkpoint") is not None and restarts > 1:
        path = Path(found["checkpoint"])
        found["checkpoint"] = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return found


def starts_of(problem: Problem, net: Start) -> Iterator[Attempt | Exception]:
    """Yield the start of every restart, or why its network could not be made.

    The second is made with the first: a function that makes no new network is refused before any work is done.

    Raises
    ------
    TypeError
        The function returns for the second seed what it returned for the first.
    """
    kept: list[nn.Module] = []  # so that no other parameter gets the identity of one of them

    def make(number: int) -> Attempt | Exception:
        try:
            trained, own = network_of(net, problem.seed + number, problem.restarts > 1)
        except Exception as error:  # of the user's function
            if number == 0:
                raise
            return error
        before = {id(parameter) for module in kept for parameter in trainable(module)}
        modules = [trained, *modules_in(own)]
        if any(id(parameter) in before for module in modules for parameter in trainable(module)):
            again = TypeError(
                "net must make a new network, and new trained regularisers, for each seed; it returned some again for "
                f"seed {problem.seed + number}, so that restarts would go on from each other"
            )
            if number == 1:
                raise again
            return again
        kept.extend(modules)
        return Attempt(trained, [*own, *problem.regularizers], History(problem.loss, problem.truth))

    ahead = [make(number) for number in range(min(2, problem.restarts))]
    yield from ahead
    for number in range(2, problem.restarts):
        yield make(number)


def modules_in(regularizers: Any) -> list[nn.Module]:
    """Return the modules among regularisers, functions or pairs (function, factor)."""
    calls = [own[0] if isinstance(own, tuple | list) and own else own for own in regularizers]
    return [own for own in calls if isinstance(own, nn.Module)]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that a fit trains."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def attempts_of(
    problem: Problem, net: Start, attempt: Callable[[Problem, Attempt, int], None]
) -> tuple[dict[int, Attempt], int, bool]:
    """Run every restart; return those that came to an end by number, how many began, and whether Ctrl-C stopped them.

    One that diverges, or whose network cannot be made, is warned of and left out.

    Raises
    ------
    DivergedError
        No restart came to an end.
    """
    done: dict[int, Attempt] = {}
    failed: dict[int, Exception] = {}
    starts, interrupted, number = starts_of(problem, net), False, 0
    for number in range(problem.restarts):
        try:
            now = next(starts)
            if isinstance(now, Attempt):
                options = checkpoint_of(problem.options, number, problem.restarts)
                attempt(replace(problem, options=options), now, number)
                done[number], interrupted = now, now.interrupted
            else:
                failed[number] = now
        except DivergedError as error:
            if problem.restarts == 1:
                raise
            failed[number] = error
        except KeyboardInterrupt:
            if not done:
                raise
            interrupted = True
        if interrupted:
            break
        if number in failed:
            why = f"{type(failed[number]).__name__}: {failed[number]}"
            warn(f"restart {number}, of seed {problem.seed + number}, is left out: {why}")
    if not done:
        first = failed[0]
        raise DivergedError(f"none of {problem.restarts} restarts came to an end; the first: {first}") from first
    return done, number + 1, interrupted


def best_of(problem: Problem, net: Start, attempt: Callable[[Problem, Attempt, int], None]) -> Reconstruction:
    """Run every restart and return the one whose measurements fit best; the truth has no say."""
    began = time.perf_counter()
    done, count, interrupted = attempts_of(problem, net, attempt)
    residuals, psnrs = [math.inf] * count, [math.nan] * count
    for number, own in done.items():
        last = own.history.last("residuals")
        residuals[number] = last if last is not None and math.isfinite(last) else math.inf
        psnr = own.history.last("psnrs")
        psnrs[number] = math.nan if psnr is None else psnr
    chosen = min(done, key=lambda number: residuals[number])
    taken = done[chosen]
    assert taken.signal is not None
    return Reconstruction(
        signal=taken.signal,
        net=taken.net,
        residual=residuals[chosen],
        psnr=taken.history.last("psnrs"),
        steps=taken.steps,
        losses=taken.losses,
        eval_steps=taken.history["steps"],
        residuals=taken.history["residuals"],
        psnrs=taken.history["psnrs"],
        gaps=taken.history["gaps"],
        restart=chosen,
        restart_residuals=tuple(residuals),
        restart_psnrs=() if problem.truth is None else tuple(psnrs),
        seconds=time.perf_counter() - began,
        interrupted=interrupted,
        config={
            "operator": repr(problem.operator),
            "restarts": problem.restarts,
            "seed": problem.seed,
            **problem.config,
        },
    )


def predicted(net: nn.Module, coords: Tensor, select: Any = None) -> Tensor:
    """Return the network's output (N, M) at points (N, d), of which it gets a copy, in eval mode, without gradients."""
    with modes_kept(net), torch.no_grad():
        net.eval()
        return calling_of(net, coords, select).predicted(net, coords.reshape(-1, coords.shape[-1]).clone())


def points_of(problem: Problem, net: nn.Module, coords: ArrayLike | None, shape: Shape, what: str) -> Tensor:
    """Return the points of a grid (N, d) in the dtype and on the device of the network; of None ``inr.grid(shape)``.

    Raises
    ------
    ValueError
        There are others; the network does not take them, or has another number of outputs than measurements channels.
    """
    dtype, device = check_net(net)
    found = grid(shape) if coords is None else as_tensor("coords", coords, device)
    count = math.prod(shape)
    if found.numel() != count * found.shape[-1] or found.ndim < 2:
        raise ValueError(
            f"coords must be the {count} points of {what}, {shape}, as inr.grid({shape}) makes them, got shape "
            f"{tuple(found.shape)}"
        )
    found = found.detach().to(device, dtype, copy=True)
    check_coords("coords", found, declared_sizes(net)[0], device)
    calling = calling_of(net, found, problem.options.get("select"))
    outputs = count_outputs(net, found.reshape(-1, found.shape[-1]), calling=calling)
    if outputs != problem.channels:
        raise ValueError(
            f"measurements have {problem.channels} channels, and net has {outputs} outputs; give a network with an "
            "output for each channel"
        )
    return found
