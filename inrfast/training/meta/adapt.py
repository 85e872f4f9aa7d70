"""The few steps from a start to many signals at once, and the PSNR after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_other_box
from inrfast.calling import Select
from inrfast.errors import check_choice, check_int, warn
from inrfast.metrics import data_range_of
from inrfast.modes import in_training_modes
from inrfast.pixels import one_white, range_of_pixels
from inrfast.records import Record
from inrfast.snapshot import snapshot
from inrfast.training.data import Data, check_spread
from inrfast.training.fit import fit_many
from inrfast.training.meta.signals import check_signals
from inrfast.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class AdaptResult(Record):
    """What a few steps from one start have come to.

    Attributes
    ----------
    psnrs
        PSNR (dB, for ``data_range``) of every signal after 0, 1, ..., ``steps`` steps, (steps + 1, B), fp64: on the
        points of the steps, or those of ``eval_coords`` where these were given. NaN after a step that diverged.
    losses
        The loss of every step, taken with the weights before it, (steps, B), fp64: the mean squared error over points
        and outputs of the steps. NaN where there was none any more.
    nets
        The B networks, each in its state after its last finite step.
    data_range
        For which the PSNRs are stated.
    """

    left_out = ("nets",)

    psnrs: Tensor
    losses: Tensor
    nets: list[nn.Module]
    data_range: float


@in_training_modes
def adapt(
    net: nn.Module,
    coords: ArrayLike,
    signals: ArrayLike | Sequence[ArrayLike],
    steps: int = 3,
    lr: float = 1e-2,
    optimizer: str = "sgd",
    *,
    eval_coords: ArrayLike | None = None,
    eval_signals: ArrayLike | Sequence[ArrayLike] | None = None,
    data_range: float | None = None,
    memory_budget: int | None = None,
    select: Select = None,
) -> AdaptResult:
    """Fit copies of ``net`` to B signals, each by a few steps, all at once; ``net`` itself stays as it is.

    The steps are those of :func:`inrfast.fit_many` on all points, with a constant rate; with ``"sgd"`` they are the
    inner steps of :func:`inrfast.meta_learn`, of the same loss: the mean squared error over points and outputs.

    Parameters
    ----------
    net
        The start: an :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64.
    coords
        Points (N, d) of all signals, or (B, N, d) of each.
    signals
        Values (B, N, M) or (B, *grid, M), where M = 1 also without the last axis; or a sequence of B tensors. Pixels of
        whole numbers and pictures are taken as by :func:`inrfast.fit`.
    steps, lr
        Updates, 0 for the PSNRs of the start alone, and their rate.
    optimizer
        ``"sgd"``, ``"adam"``, ``"adamw"``, or one of your own by its name.
    eval_coords, eval_signals
        Points and values of the PSNRs, such as the half of the pixels that the steps do not see; values alone belong to
        ``coords``.
    data_range
        For which PSNRs are stated; None takes that of all the signals together: 1 where they lie in [-1, 1] and span at
        least 0.5, else the largest minus the smallest value. Of pixels it is 1, for which 255 (65535) may stand.
    memory_budget, select
        See :func:`inrfast.fit`.

    Warns
    -----
    RuntimeWarning
        Some of the fits met NaN or Inf: their later PSNRs are NaN.

    Raises
    ------
    ValueError, TypeError, MemoryBudgetError
        As :func:`inrfast.fit_many`.

    Examples
    --------
    >>> import torch
    >>> from inrfast import INR, adapt, grid
    >>> x = grid(64)
    >>> waves = torch.stack([(k * x).sin() for k in (1.0, 2.0)])
    >>> adapt(INR(1, 1, width=16, hidden_layers=1, activation="tanh"), x, waves, steps=2).psnrs.shape
    torch.Size([3, 2])
    """
    steps = check_int("steps", steps, minimum=0)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    data, white = check_signals(net, coords, signals, spread=False, select=select)
    measured: Data | None = None
    if eval_signals is not None:
        points = coords if eval_coords is None else eval_coords
        measured, whites = check_signals(
            net, points, eval_signals, ("eval_coords", "eval_signals"), spread=False, select=select
        )
        if len(measured.target) != len(data.target):
            raise ValueError(f"eval_signals must hold {len(data.target)} signals, got {len(measured.target)}")
        one_white("signals", white, "eval_signals", whites)
    elif eval_coords is not None:
        raise ValueError("eval_coords needs eval_signals, the values there")
    data_range = range_of_pixels(data_range, white)
    if data_range is None:
        check_spread(data, "signals")
        data_range = data_range_of((measured or data).target)
    nets = [snapshot(net) for _ in data.target]
    warn_of_other_box(net, data.coords.flatten(0, 1), nets)
    results = fit_many(
        nets,
        _points(data),
        list(data.target),
        steps=max(steps, 1),
        lr=lr,
        schedule="constant",
        optimizer=optimizer,
        eval_every=1,
        eval_coords=None if measured is None else _points(measured),
        eval_target=None if measured is None else list(measured.target),
        data_range=data_range,
        seed=0,  # nothing is drawn: all points in every step
        progress=False,
        memory_budget=memory_budget,
        select=select,
    )
    failed = [result for result in results if result.error is not None]
    if steps == 0:  # a step was taken for the PSNRs before it
        nets = [snapshot(net) for _ in nets]
    elif failed:
        warn(f"{len(failed)} of {len(results)} fits diverged, and their PSNRs are NaN from there on: {failed[0].error}")
    psnrs = torch.stack([_filled(result.psnrs, steps + 1) for result in results], dim=1)
    losses = torch.stack([_filled(result.losses, steps) for result in results], dim=1)
    return AdaptResult(psnrs, losses, nets, float(data_range))


def _points(data: Data) -> Tensor | list[Tensor]:
    return data.coords[0] if len(data.coords) == 1 else list(data.coords)


def _filled(values: tuple[float, ...], count: int) -> Tensor:
    """Return the first so many values, and NaN for those that there are none of."""
    return torch.tensor([*values[:count], *[float("nan")] * (count - len(values))], dtype=torch.float64)
