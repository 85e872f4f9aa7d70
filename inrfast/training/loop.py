"""The training loop: fit a network to a signal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrfast import backends
from inrfast.errors import (
    DivergedError,
    NotAvailableError,
    check_choice,
    check_coords,
    check_float,
    check_int,
    check_tensor,
)
from inrfast.memory import budget_bytes
from inrfast.metrics import mse_to_psnr
from inrfast.nn import INR
from inrfast.threads import one_core
from inrfast.training.divergence import first_nonfinite
from inrfast.training.gradients import LOSSES, Gradient, Loss, gradient_of, modes_kept
from inrfast.training.layerwise import LayerwiseGradient
from inrfast.training.optimizers import OPTIMIZERS, Adam, learning_rates

PRECISIONS = ("highest", "high", "medium")
EVALUATIONS = 100
"""Evaluations of the PSNR in a run where ``eval_every`` is not given: enough for a curve, few enough to cost little."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did; the network itself holds the last weights.

    Attributes
    ----------
    steps
        Updates done: fewer than asked for after an interrupt or at ``target_psnr``.
    losses
        The training loss of every update, taken on its batch with the weights before the update.
    eval_steps, psnrs
        PSNR (dB, data range 1, all points, eval mode) after that many updates; the first is of the start, the last of
        the end.
    psnr
        PSNR of the last weights.
    best_psnr, best_step, best_state
        The best of ``psnrs``, its step, and a copy of the ``state_dict`` that had it.
    seconds
        Wall-clock time of the whole call.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete update.
    config
        The settings and ``"gradient"``: ``"layerwise"``, ``"chunked"`` or ``"whole"``, the way gradients were taken.
    """

    steps: int
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...]
    psnrs: tuple[float, ...]
    psnr: float
    best_psnr: float
    best_step: int
    best_state: dict[str, Tensor]
    seconds: float
    interrupted: bool
    config: dict[str, Any]


def fit(
    net: nn.Module,
    coords: Tensor,
    target: Tensor,
    steps: int = 2000,
    lr: float = 1e-3,
    schedule: str | Callable[[int], float] = "exponential",
    batch_size: int | None = None,
    loss: Loss = "mse",
    weight: Tensor | None = None,
    optimizer: str = "adam",
    precision: str = "high",
    backend: str = "auto",
    callbacks: Sequence[Any] = (),
    eval_every: int | None = None,
    target_psnr: float | None = None,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    memory_budget: int | None = None,
) -> FitResult:
    """Train ``net`` in place so that ``net(coords)`` approaches ``target``; it ends on the last weights.

    The network is trained in train mode and measured in eval mode, then gets its own mode back. Gradients are taken
    over chunks of points where that is exact (a mean of per-point losses, no coupling between points), otherwise over
    the whole batch. Frozen parameters stay as they are; ``.grad`` is overwritten and None at the end.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64, with trainable parameters.
    coords
        Points (N, d), of the network's dtype and device.
    target
        Values (N, M) or (*grid, M) with N grid points in row-major order, where M = 1 also (N,) or (*grid); dtype and
        device of the network.
    steps
        Updates; 2000 is the usual budget for one image.
    lr, schedule
        Adam's learning rate and its factor over the steps t: ``"exponential"`` (``0.1^(t/steps)``), ``"cosine"``,
        ``"constant"``, or a callable of t.
    batch_size
        Points a step, drawn without replacement from a seeded permutation a pass (what is left of a pass when no full
        batch remains is skipped); None takes all.
    loss
        ``"mse"`` (mean over points and outputs) or a callable of (predictions, targets) of the step's whole batch,
        shapes (n, M), that returns a scalar tensor.
    optimizer
        ``"adam"`` with torch's defaults.
    precision
        ``"high"``: the network's own dtype; ``"highest"``: fp64, which asks for an fp64 network.
    backend
        ``"auto"`` or ``"torch"``.
    eval_every
        Steps between two evaluations; None takes a hundred of them. With full batches and ``"mse"`` they cost nothing.
    target_psnr
        Stop at the first evaluation that reaches this PSNR (dB).
    seed
        Of the batches; the global generators are untouched.
    progress
        Whether to show a progress bar; None shows it on a terminal only.
    memory_budget
        Bytes for the buffers of chunked gradients; None takes half of what is free. A gradient over the whole batch
        takes what autograd takes.
    weight, callbacks, checkpoint, checkpoint_seconds, resume
        Not available in this version.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices, ranges or names; NaN or Inf in coordinates, targets or weights; no trainable
        parameter.
    DivergedError
        A loss or gradient became NaN or Inf; the network holds the last weights whose loss and gradient were finite.
    NotAvailableError
        An argument of a later version was used, or a backend that cannot run here.

    Examples
    --------
    >>> from inrfast import INR, grid
    >>> net = INR(1, 1, width=32, hidden_layers=1, activation="sine", init="siren")
    >>> x = grid(64)
    >>> result = fit(net, x, torch.sin(3 * x), steps=100)
    >>> result.psnr > 20
    True
    """
    start = time.perf_counter()
    _refuse_later_arguments(weight, callbacks, checkpoint, resume)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    if not callable(loss):
        check_choice("loss", loss, LOSSES)
    check_float("checkpoint_seconds", checkpoint_seconds, minimum=0.0)
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None, got {progress!r}")
    steps = check_int("steps", steps, minimum=1)
    rates = learning_rates(check_float("lr", lr, minimum=0.0, exclusive=True), schedule, steps)
    eval_every = max(1, steps // EVALUATIONS) if eval_every is None else check_int("eval_every", eval_every, minimum=1)
    goal = math.inf if target_psnr is None else check_float("target_psnr", target_psnr)
    coords, target = _check_data(net, coords, target)
    backends.torch_only(backend, "fitting")
    _check_precision(precision, coords.dtype)
    if batch_size is not None:
        batch_size = check_int("batch_size", batch_size, minimum=1)
        if batch_size > len(coords):
            raise ValueError(f"batch_size must be at most the number of points {len(coords)}, got {batch_size}")
    batches = _batches(len(coords), batch_size, check_int("seed", seed, minimum=0), coords.device)
    budget = budget_bytes(memory_budget, coords.device)

    with (
        ExitStack() as cores,
        _training(net),
        tqdm(total=steps, disable=None if progress is None else not progress, unit="step") as bar,
    ):
        gradient = gradient_of(net, coords, target, loss, budget)
        run = _Run(net, coords, target, gradient, full_batch=batch_size in (None, len(coords)), lr=lr)
        try:
            if isinstance(gradient, LayerwiseGradient) and len(gradient.passes) > 1:
                cores.enter_context(one_core())
            for step in range(steps):
                if not run.step(next(batches), rates(step), step % eval_every == 0, goal):
                    break
                bar.set_postfix_str(f"PSNR {run.history[-1][1]:.2f} dB", refresh=False)
                bar.update()
            interrupted = False
        except KeyboardInterrupt:
            run.undo_half_update()
            interrupted = True
        run.evaluate_end()

    best_step, best_psnr = max(run.history, key=lambda evaluation: evaluation[1])
    return FitResult(
        steps=run.done,
        losses=tuple(run.losses[: run.done]),
        eval_steps=tuple(step for step, _ in run.history),
        psnrs=tuple(psnr for _, psnr in run.history),
        psnr=run.history[-1][1],
        best_psnr=best_psnr,
        best_step=best_step,
        best_state=run.best_state,
        seconds=time.perf_counter() - start,
        interrupted=interrupted,
        config={
            "steps": steps,
            "lr": lr,
            "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__name__", repr(schedule)),
            "batch_size": batch_size,
            "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", repr(loss)),
            "optimizer": optimizer,
            "precision": precision,
            "eval_every": eval_every,
            "target_psnr": target_psnr,
            "seed": seed,
            "points": len(coords),
            "gradient": gradient.name,
            "net": net.config() if isinstance(net, INR) else type(net).__name__,
        },
    )


def _refuse_later_arguments(weight: Any, callbacks: Any, checkpoint: Any, resume: Any) -> None:
    """Raise :class:`NotAvailableError` for what the signature promises to a later version."""
    given = {
        "weight": weight is not None,
        "callbacks": len(tuple(callbacks)) > 0,
        "checkpoint": checkpoint is not None,
        "resume": bool(resume),
    }
    for argument, used in given.items():
        if used:
            raise NotAvailableError(f"{argument} is not available in this version of inrfast; leave it at its default")


def _check_precision(precision: str, dtype: torch.dtype) -> None:
    check_choice("precision", precision, PRECISIONS)
    if precision == "medium":
        raise NotAvailableError("precision='medium' is not available for fits in this version; use 'high'")
    if precision == "highest" and dtype != torch.float64:
        raise ValueError(f"precision='highest' trains in fp64 but the network is {dtype}; call net.double() first")


def _check_data(net: Any, coords: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return contiguous points (N, d) and targets (N, M), both fit for the network."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("net has no trainable parameter")
    dtype, device = trainable[0].dtype, trainable[0].device
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"net must be fp32 or fp64, got {dtype}")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        check_tensor(f"net.{name}", tensor, floating=False, nonempty=False)
    coords = check_coords("coords", coords, net.in_features if isinstance(net, INR) else None, device)
    target = check_tensor("target", target, finite=False)
    if target.device != device:
        raise ValueError(f"target is on {target.device} but the network is on {device}; move one of them")
    check_tensor("target", target)
    for argument, tensor in (("coords", coords), ("target", target)):
        if tensor.dtype != dtype:
            raise TypeError(f"{argument} must have the network's dtype {dtype}, got {tensor.dtype}")
    coords = coords.detach().contiguous()
    n, outputs = len(coords), _count_outputs(net, coords)
    flat = target.shape if target.shape[-1:] == (outputs,) and target.ndim > 1 else (*target.shape, 1)
    if math.prod(flat[:-1]) != n or flat[-1] != outputs:
        single = f", or without the last axis: ({n},) or (*grid)" if outputs == 1 else ""
        raise ValueError(
            f"target must have shape ({n}, {outputs}) or (*grid, {outputs}) with {n} grid points{single}, "
            f"got {tuple(target.shape)}"
        )
    return coords, target.detach().reshape(n, outputs).contiguous()


@torch.no_grad()
def _count_outputs(net: nn.Module, coords: Tensor) -> int:
    """Return M, from two points or, for a network that takes nothing else, from all."""
    if isinstance(net, INR):
        return net.out_features
    with modes_kept(net):
        net.eval()
        try:
            rows = coords[:2]
            values = net(rows)
        except Exception:  # whatever a network raises on two points, it may still take its full grid
            rows = coords
            try:
                values = net(rows)
            except Exception as error:
                raise ValueError(f"net does not take coords of shape {tuple(coords.shape)}: {error}") from error
    if not isinstance(values, Tensor):
        raise TypeError(f"net must return a tensor (N, M), got {type(values).__name__}")
    if values.ndim != 2 or len(values) != len(rows) or values.shape[1] == 0:
        raise ValueError(f"net must map ({len(rows)}, d) to ({len(rows)}, M), got shape {tuple(values.shape)}")
    return values.shape[1]


def _batches(n: int, size: int | None, seed: int, device: torch.device) -> Iterator[Tensor | None]:
    """Yield the rows of each step, endlessly; None stands for all of them."""
    if size is None or size == n:
        while True:
            yield None
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator).to(device)
        yield from order[: n - n % size].split(size)


@contextmanager
def _training(net: nn.Module) -> Iterator[None]:
    """Put ``net`` in train mode; afterwards every module has its own mode again and no gradient is left."""
    with modes_kept(net):
        net.train()
        try:
            yield
        finally:
            for parameter in net.parameters():
                parameter.grad = None


@torch.no_grad()
def _copy(source: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for old, new in zip(into, source, strict=True):
        old.copy_(new)


class _Run:
    """The moving parts of one fit: optimiser, history, best weights, and the weights to go back to."""

    def __init__(
        self, net: nn.Module, coords: Tensor, target: Tensor, gradient: Gradient, full_batch: bool, lr: float
    ) -> None:
        self.net, self.coords, self.target, self.gradient = net, coords, target, gradient
        self.loss_is_mse = full_batch and gradient.loss_is_mse
        self.trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = Adam(self.trainable, lr)
        self.state = [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]
        self.good = [tensor.clone() for tensor in self.state]
        # Updates begun and done differ only while an update runs: what an interrupt has to know.
        self.begun = self.done = 0
        self.losses: list[float] = []
        self.history: list[tuple[int, float]] = []
        self.best_state: dict[str, Tensor] = {}

    def step(self, batch: Tensor | None, lr: float, evaluate: bool, goal: float) -> bool:
        """Take one gradient, measure if asked, update; False (and no update) once the PSNR reached the goal."""
        loss = self.gradient(batch)
        self._check_finite(loss, batch, lr)
        if evaluate:
            self._record(mse_to_psnr(loss if self.loss_is_mse else self.gradient.mean_square()))
            if self.history[-1][1] >= goal:
                return False
        self.losses.append(loss)
        _copy(self.state, self.good)
        self.optimizer.lr = lr
        self.begun = self.done + 1
        self.optimizer.step()
        self.done = self.begun
        return True

    def evaluate_end(self) -> None:
        """Measure the last weights, unless that was just done."""
        if not self.history or self.history[-1][0] != self.done:
            self._record(mse_to_psnr(self.gradient.mean_square()))

    def undo_half_update(self) -> None:
        """Go back to the last complete update if an interrupt came in the middle of one."""
        if self.begun != self.done:
            _copy(self.good, self.state)

    def _check_finite(self, loss: float, batch: Tensor | None, lr: float) -> None:
        gradients = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        # A sum is NaN or Inf where an entry is (the cheapest pass over them), and may be where none is.
        suspicious = not math.isfinite(loss + float(torch.stack([gradient.sum() for gradient in gradients]).sum()))
        if suspicious and not (math.isfinite(loss) and all(bool(g.isfinite().all()) for g in gradients)):
            self._diverge(batch, lr)

    def _diverge(self, batch: Tensor | None, lr: float) -> NoReturn:
        """Go back to the last weights that gave finite numbers, and say what happened."""
        where = first_nonfinite(self.net, self.coords if batch is None else self.coords[batch])
        _copy(self.good, self.state)
        raise DivergedError(
            f"the fit met a NaN or Inf after {self.done} updates, first in {where}; lower lr (it was {lr:.3g}), omega "
            f"or the gain of the initialisation. The network was set back to its last good weights"
        )

    def _record(self, psnr: float) -> None:
        if math.isnan(psnr) or psnr == -math.inf:
            self._diverge(None, self.optimizer.lr)
        if not self.history or psnr > max(value for _, value in self.history):
            self.best_state = {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}
        self.history.append((self.done, psnr))
