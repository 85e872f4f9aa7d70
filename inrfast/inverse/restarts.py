"""What the solvers have in common: networks with their regularisers, restarts, options of the fit, the choice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import check_float, check_int, check_seed
from inrfast.grids import grid
from inrfast.inverse.history import History, Truth
from inrfast.inverse.operators import MeasurementLoss, Operator, Shape, check_adjoint, check_operator, on_grid
from inrfast.inverse.result import Reconstruction
from inrfast.modes import modes_kept
from inrfast.training.data import calling_of, check_net
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
        size = None if data_range is None else check_float("data_range", data_range, minimum=0.0, exclusive=True)
        truth = Truth(values.detach().clone(), operator, size)  # the caller may reuse its memory
    restarts = check_int("restarts", restarts, minimum=1)
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


def best_of(problem: Problem, net: Start, attempt: Callable[[Problem, Attempt, int], None]) -> Reconstruction:
    """Run every restart and return the one whose measurements fit best; the truth has no say."""
    began, attempts = time.perf_counter(), []
    for number in range(problem.restarts):
        trained, own = network_of(net, problem.seed + number, problem.restarts > 1)
        now = Attempt(trained, [*own, *problem.regularizers], History(problem.loss, problem.truth))
        attempt(replace(problem, options=checkpoint_of(problem.options, number, problem.restarts)), now, number)
        attempts.append(now)
        if now.interrupted:
            break
    residuals = [own.history.last("residuals") for own in attempts]
    chosen = min(range(len(attempts)), key=lambda i: residuals[i])  # type: ignore[arg-type,return-value]
    taken = attempts[chosen]
    assert taken.signal is not None
    psnrs = [own.history.last("psnrs") for own in attempts]
    return Reconstruction(
        signal=taken.signal,
        net=taken.net,
        residual=float(residuals[chosen] or 0.0),
        psnr=psnrs[chosen],
        steps=taken.steps,
        losses=taken.losses,
        eval_steps=taken.history["steps"],
        residuals=taken.history["residuals"],
        psnrs=taken.history["psnrs"],
        gaps=taken.history["gaps"],
        restart=chosen,
        restart_residuals=tuple(float(own or 0.0) for own in residuals),
        restart_psnrs=tuple(own for own in psnrs if own is not None),
        seconds=time.perf_counter() - began,
        interrupted=any(own.interrupted for own in attempts),
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


def points_of(net: nn.Module, coords: ArrayLike | None, shape: Shape, what: str) -> Tensor:
    """Return the points of a grid (N, d) in the dtype and on the device of the network; of None ``inr.grid(shape)``."""
    dtype, device = check_net(net)
    found = grid(shape) if coords is None else as_tensor("coords", coords, device)
    count = math.prod(shape)
    if found.numel() != count * found.shape[-1] or found.ndim < 2:
        raise ValueError(
            f"coords must be the {count} points of {what}, {shape}, as inr.grid({shape}) makes them, got shape "
            f"{tuple(found.shape)}"
        )
    return found.detach().to(device, dtype, copy=True)
