"""The fit of many networks at once: those of one shape take their steps together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from inrfast.errors import check_coords, check_float, check_int, check_seed
from inrfast.modes import in_training_modes
from inrfast.nn import warn_of_dead_units
from inrfast.training.callables import warn_of_untrained
from inrfast.training.data import (
    Data,
    aligned,
    check_apart,
    check_data,
    check_measured,
    check_net,
    check_spread,
    count_outputs,
    range_of,
)
from inrfast.training.engines.task import Loss
from inrfast.training.fit import check_evaluation
from inrfast.training.group import Member
from inrfast.training.optimizers import OPTIMIZERS, learning_rates
from inrfast.training.options import (
    check_checkpoint,
    check_loss,
    check_optimizer,
    check_progress,
    check_settings,
    described,
)
from inrfast.training.trainer import FitResult, Session

T = TypeVar("T")


@in_training_modes
def fit_many(
    nets: Sequence[nn.Module],
    coords: Tensor | Sequence[Tensor],
    targets: Tensor | Sequence[Tensor],
    steps: int = 2000,
    lr: float | Sequence[float] = 1e-3,
    schedule: str | Callable[[int], float] = "exponential",
    batch_size: int | None = None,
    loss: Loss = "mse",
    weight: Tensor | Sequence[Tensor | None] | None = None,
    optimizer: str = "adam",
    precision: str = "high",
    backend: str = "auto",
    callbacks: Sequence[Any] = (),
    eval_every: int | None = None,
    target_psnr: float | Sequence[float | None] | None = None,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int | Sequence[int] = 0,
    progress: bool | None = None,
    memory_budget: int | None = None,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    eval_coords: Tensor | Sequence[Tensor] | None = None,
    eval_target: Tensor | Sequence[Tensor] | None = None,
    data_range: float | Sequence[float | None] | None = None,
) -> list[FitResult]:
    """Train many networks in place, each as :func:`inrfast.fit` would; the results come in the networks' order.

    INRs of one shape without norms, on equally many points, are stacked: their parameters lie side by side, and each
    thread takes its own networks, or on a GPU one sequence of launches all of them. All others (batch norm, other
    modules, losses of your own) take their steps one after another in the same loop. A network that reaches its goal,
    loses patience or diverges stops; the others go on.

    Parameters
    ----------
    nets
        B networks that share no parameter, on one device, of one dtype.
    coords
        Points (N, d) for all, or B of them: a sequence, or a tensor (B, N, d). They may differ in N.
    targets
        Values for all, (N, M) or (*grid, M), or B of them: a sequence, or a tensor (B, N, M) or (B, *grid, M).
    lr, seed, target_psnr, data_range
        One for all, or one a network. With one seed all networks see the same batches.
    weight, eval_coords, eval_target
        One for all, or a sequence of one a network; see :func:`inrfast.fit`.
    optimizer
        ``"adam"``, ``"adamw"`` or ``"sgd"``.
    steps, schedule, batch_size, loss, precision, backend, callbacks, eval_every, checkpoint, checkpoint_seconds, resume
        See :func:`inrfast.fit`. One checkpoint holds all networks; callbacks are told each network by ``state.index``.
    progress, memory_budget, weight_decay, clip_norm, patience
        See :func:`inrfast.fit`; norms are clipped, and patience is lost, by each network for itself.

    Raises
    ------
    ValueError, TypeError, FileExistsError, MemoryBudgetError, NotAvailableError
        As :func:`inrfast.fit`; the message names the network. A network that diverges raises nothing: its result says
        so in ``stopped`` and ``error``.

    Examples
    --------
    >>> from inrfast import INR, grid
    >>> x = grid(64)
    >>> nets = [INR(1, 1, width=16, hidden_layers=1, activation="sine", init="siren", seed=s) for s in range(3)]
    >>> results = fit_many(nets, x, [(k * x).sin() for k in (1.0, 2.0, 3.0)], steps=50, lr=[1e-3, 2e-3, 3e-3])
    >>> [result.steps for result in results]
    [50, 50, 50]
    """
    start = time.perf_counter()
    nets = _check_nets(nets)
    count = len(nets)
    if not isinstance(optimizer, str):
        raise TypeError(
            f"optimizer must be one of {list(OPTIMIZERS)} for several networks, got {type(optimizer).__name__}; "
            "call fit for each network to use an optimizer of your own"
        )
    name, weight_decay = check_optimizer(optimizer, weight_decay)
    loss = check_loss(loss, weight is not None)
    path = check_checkpoint(checkpoint, checkpoint_seconds, resume)
    progress = check_progress(progress)
    steps = check_int("steps", steps, minimum=1)
    rates = [check_float(f"lr[{i}]", own, minimum=0.0, exclusive=True) for i, own in enumerate(_each("lr", lr, count))]
    seeds = [check_seed(f"seed[{i}]", own, bits=63) for i, own in enumerate(_each("seed", seed, count))]
    goals = [
        None if own is None else check_float(f"target_psnr[{i}]", own)
        for i, own in enumerate(_each("target_psnr", target_psnr, count))
    ]
    dtype, device = check_net(nets[0], "nets[0]")
    given_ranges = _each("data_range", data_range, count)
    spread = [not callable(loss) and own is None for own in given_ranges]
    data, evaluations = _check_all(nets, coords, targets, weight, eval_coords, eval_target, spread)
    measured = [evaluation or own for own, evaluation in zip(data, evaluations, strict=True)]
    ranges = [
        range_of(one, own, f"data_range[{i}]") for i, (one, own) in enumerate(zip(measured, given_ranges, strict=True))
    ]
    if callable(loss):
        for i, (one, goal) in enumerate(zip(measured, goals, strict=True)):
            asked = {"target_psnr": goal, "patience": patience}
            check_measured(one, [key for key, value in asked.items() if value is not None], f"targets[{i}]")
        warn_of_untrained(loss, nets, stacklevel=3)
    for net, one in zip(nets, data, strict=True):
        warn_of_dead_units(net, one.coords[0], stacklevel=3)
    settings = check_settings(
        points=min(one.points for one in data),
        dtype=dtype,
        device=device,
        steps=steps,
        batch_size=batch_size,
        loss=loss,
        optimizer=name,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        eval_every=eval_every,
        patience=patience,
        precision=precision,
        backend=backend,
        memory_budget=memory_budget,
        callbacks=callbacks,
        schedule=schedule,
    )
    members = [
        Member(
            net,
            data[i],
            evaluations[i],
            rates[i],
            learning_rates(rates[i], schedule, steps),
            goals[i],
            seeds[i],
            ranges[i],
            given_ranges[i] is not None,
        )
        for i, net in enumerate(nets)
    ]
    config = described(settings, schedule, None, precision)
    session = Session(members, settings, config, path, checkpoint_seconds, resume, progress)
    session.train()
    seconds = time.perf_counter() - start
    return [session.result(member, seconds) for member in members]


def _check_nets(nets: Any) -> list[nn.Module]:
    """Return networks of one dtype and device that share nothing."""
    if isinstance(nets, nn.Module) and not isinstance(nets, nn.ModuleList):
        raise TypeError(f"nets must be a sequence of networks, got one {type(nets).__name__}; for one there is fit")
    try:
        given = list(nets)
    except TypeError:
        raise TypeError(f"nets must be a sequence of networks, got {type(nets).__name__}") from None
    if not given:
        raise ValueError("nets must hold at least one network, got none")
    owner: dict[int, int] = {}
    kinds = [check_net(net, f"nets[{i}]") for i, net in enumerate(given)]
    for i, net in enumerate(given):
        if kinds[i] != kinds[0]:
            raise ValueError(f"nets must have one dtype and device, got {kinds[0]} and, in nets[{i}], {kinds[i]}")
        for tensor in (*net.parameters(), *net.buffers()):
            if owner.setdefault(id(tensor), i) != i:
                raise ValueError(f"nets must share no parameter, but nets[{owner[id(tensor)]}] and nets[{i}] do")
    check_apart(
        {f"nets[{i}].{name}": parameter for i, net in enumerate(given) for name, parameter in net.named_parameters()}
    )
    return given


def _each(argument: str, given: Any, count: int) -> list[Any]:
    """Return one value a network, from one for all or from a sequence."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != count:
            raise ValueError(f"{argument} must be one value or {count} of them (one a network), got {len(given)}")
        return list(given)
    return [given] * count


def _check_all(
    nets: list[nn.Module],
    coords: Any,
    targets: Any,
    weight: Any,
    eval_coords: Any,
    eval_target: Any,
    spread: Sequence[bool],
) -> tuple[list[Data], list[Data | None]]:
    """Return the data and the evaluation of each network; what is shared is one tensor."""
    count = len(nets)
    points = _own_points("coords", coords, count)
    outputs = _outputs_of(nets[0], points[0])
    values = _own_values("targets", targets, points, count, outputs)
    weights = _each("weight", weight, count)
    eval_points, eval_values = [None] * count, [None] * count
    if eval_target is not None:
        eval_points = points if eval_coords is None else _own_points("eval_coords", eval_coords, count)
        eval_values = _own_values("eval_target", eval_target, eval_points, count, outputs)
    elif eval_coords is not None:
        check_evaluation(nets[0], coords, eval_coords, None)
    data: list[Data] = []
    evaluations: list[Data | None] = []
    for i, net in enumerate(nets):
        try:
            data.append(check_data(net, points[i], values[i], weights[i], ("coords", "targets", "weight")))
            if spread[i]:
                check_spread(data[-1], "targets")
            evaluations.append(check_evaluation(net, points[i], eval_points[i], eval_values[i]))
        except (ValueError, TypeError) as error:
            raise type(error)(f"nets[{i}]: {error}") from error
    return data, evaluations


def _own_points(argument: str, given: Any, count: int) -> list[Any]:
    """Return the points of each network, at an address where they need no copy."""
    if isinstance(given, Tensor):
        if given.ndim == 3 and len(given) != count:
            raise ValueError(f"{argument} must have shape (N, d) or ({count}, N, d), got {tuple(given.shape)}")
        return [aligned(given)] * count if given.ndim != 3 else list(given)
    return _each(argument, given, count)


def _outputs_of(net: nn.Module, coords: Any) -> int:
    """Return M, or 1 where the points are no points: that is said when they are checked."""
    try:
        return count_outputs(net, check_coords("coords", coords).detach())
    except (ValueError, TypeError):
        return 1


def _own_values(argument: str, given: Any, points: list[Any], count: int, outputs: int) -> list[Any]:
    """Return the values of each network: a tensor is for all unless it holds ``count`` times as many."""
    if not isinstance(given, Tensor):
        return _each(argument, given, count)
    n = len(points[0]) if isinstance(points[0], Tensor) and points[0].ndim else 0
    if given.ndim > 1 and len(given) == count and n and not _holds(given, n, outputs) and _holds(given[0], n, outputs):
        return list(given)
    return [aligned(given)] * count


def _holds(values: Tensor, n: int, outputs: int) -> bool:
    """Return whether values (n, M), (*grid, M) or, with M = 1, (n,) or (*grid), belong to ``n`` points."""
    shape = values.shape
    return (outputs == 1 and shape.numel() == n) or (shape[-1:] == (outputs,) and shape[:-1].numel() == n)
