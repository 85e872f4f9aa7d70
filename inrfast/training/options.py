"""The settings of a fit, checked at its door: what all its networks have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inrfast import backends
from inrfast.errors import check_choice, check_float, check_int
from inrfast.files import check_writable, shown, target_of
from inrfast.memory import budget_bytes
from inrfast.ops import gemm
from inrfast.training.callbacks import check_callbacks
from inrfast.training.engines.task import LOSSES, Loss
from inrfast.training.optimizers import OPTIMIZERS

PRECISIONS = ("highest", "high", "medium")
EVALUATIONS = 100
"""Evaluations of the PSNR in a run where ``eval_every`` is not given: enough for a curve, few enough to cost little."""

LEAST_BETWEEN = 10
"""Steps at least between two of them where each takes a pass of its own over all points of a step."""


@dataclass(frozen=True)
class Settings:
    """What all networks of a fit have in common."""

    steps: int
    batch_size: int | None
    loss: Loss
    optimizer: str | torch.optim.Optimizer
    weight_decay: float
    clip_norm: float | None
    eval_every: int
    patience: int | None
    narrow: bool
    budget: int
    callbacks: tuple[Any, ...]
    backend: str
    named: bool
    """Whether the backend was asked for by name, and must not fall back."""
    schedule: str | Callable[[int], float] = "exponential"
    budgeted: bool = False
    """Whether ``memory_budget`` was given, so that a loss of the user's own may be tried before its first step."""
    often: bool = False
    """Whether ``eval_every`` was given, and is taken at its word."""


def check_settings(
    *,
    points: int,
    dtype: torch.dtype,
    device: torch.device,
    steps: int,
    batch_size: Any,
    loss: Loss,
    optimizer: str | torch.optim.Optimizer,
    weight_decay: float,
    clip_norm: Any,
    eval_every: Any,
    patience: Any,
    precision: Any,
    backend: str,
    memory_budget: Any,
    callbacks: Any,
    schedule: str | Callable[[int], float] = "exponential",
) -> Settings:
    """Return the settings of networks of this dtype and device, on so many points at least.

    ``steps``, ``loss``, ``optimizer`` and ``weight_decay`` are checked already.
    """
    resolved = backends.resolve(backend, device)
    often = max(1, steps // EVALUATIONS)
    return Settings(
        steps=steps,
        batch_size=check_batch_size(batch_size, points),
        loss=loss,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=None if clip_norm is None else check_float("clip_norm", clip_norm, minimum=0.0, exclusive=True),
        eval_every=often if eval_every is None else check_int("eval_every", eval_every, minimum=1),
        patience=None if patience is None else check_int("patience", patience, minimum=1),
        narrow=check_precision(precision, dtype, device, resolved),
        budget=budget_bytes(memory_budget, device),
        budgeted=memory_budget is not None,
        callbacks=check_callbacks(callbacks),
        backend=resolved,
        named=backend == "triton",
        schedule=schedule,
        often=eval_every is not None,
    )


def check_loss(loss: Any, weighted: bool) -> Loss:
    """Return a loss known by name or a callable, which takes no weights."""
    if not callable(loss):
        return check_choice("loss", loss, LOSSES)
    if weighted:
        raise ValueError("weight goes with loss='mse'; a loss of your own weights its points itself")
    return loss


def check_optimizer(optimizer: Any, weight_decay: Any) -> tuple[str | torch.optim.Optimizer, float]:
    """Return an optimiser known by name or torch's, which has its own weight decay."""
    weight_decay = check_float("weight_decay", weight_decay, minimum=0.0)
    if isinstance(optimizer, torch.optim.Optimizer):
        if weight_decay:
            raise ValueError("weight_decay goes with an optimizer named here; give it to your own optimizer instead")
        return optimizer, 0.0
    if not isinstance(optimizer, str):
        raise TypeError(
            f"optimizer must be one of {list(OPTIMIZERS)} or a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    return check_choice("optimizer", optimizer, OPTIMIZERS), weight_decay


def check_precision(precision: Any, dtype: torch.dtype, device: torch.device, backend: str) -> bool:
    """Return whether products may be in 16 bits: asked for, and a gain on this device and backend."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "highest" and dtype != torch.float64:
        raise ValueError(f"precision='highest' trains in fp64 but the network is {dtype}; call net.double() first")
    if precision == "medium" and dtype != torch.float32:
        raise ValueError(f"precision='medium' takes fp32 networks, got {dtype}; use 'high' or 'highest'")
    return precision == "medium" and (device.type == "cuda" or backend == "triton" or gemm.multiplies_bf16())


def check_batch_size(batch_size: Any, points: int) -> int | None:
    """Return the points of a step, at most all of them."""
    if batch_size is None:
        return None
    batch_size = check_int("batch_size", batch_size, minimum=1)
    if batch_size > points:
        raise ValueError(f"batch_size must be at most the number of points {points}, got {batch_size}")
    return batch_size


def check_checkpoint(checkpoint: Any, seconds: Any, resume: Any) -> Path | None:
    """Return the file of checkpoints; what would fail after an hour fails now.

    Raises
    ------
    FileExistsError
        There is a file and the fit is not to go on from it: an hour's work is not overwritten by a forgotten argument.
    OSError, ValueError
        No file can be written there: see :func:`inrfast.files.whole_path`.
    """
    check_float("checkpoint_seconds", seconds, minimum=0.0)
    if not isinstance(resume, bool):
        raise TypeError(f"resume must be True or False, got {resume!r}")
    if checkpoint is None:
        if resume:
            raise ValueError("resume=True needs checkpoint, the file to go on from")
        return None
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a path, got {type(checkpoint).__name__}")
    path = Path(checkpoint)
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint must be a file, got the folder {shown(path)}")
    target = target_of(path)
    if not target.parent.is_dir():
        kind = NotADirectoryError if target.parent.exists() else FileNotFoundError
        folder = shown(target.parent)
        raise kind(f"checkpoint: cannot write {shown(path)}: {folder} is not an existing folder")
    check_writable(path)
    check_not_there(path, resume)
    return path.absolute()  # a callback may go elsewhere


def check_not_there(path: Path, resume: bool) -> None:
    """Refuse to write over a checkpoint that the fit does not go on from."""
    if path.exists() and not resume:
        raise FileExistsError(f"checkpoint: {shown(path)} exists; go on from it with resume=True, or remove it")


def check_progress(progress: Any) -> bool | None:
    """Return whether to show a bar; None leaves it to the terminal."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None, got {progress!r}")
    return progress


def described(
    settings: Settings, schedule: str | Callable[[int], float], target_psnr: float | None, precision: str
) -> dict[str, Any]:
    """Return the settings that networks have in common as plain values, for results and checkpoints."""
    optimizer = settings.optimizer
    return {
        "steps": settings.steps,
        "schedule": _named(schedule),
        "batch_size": settings.batch_size,
        "loss": _named(settings.loss),
        "optimizer": optimizer if isinstance(optimizer, str) else _optimizer_named(optimizer),
        "weight_decay": settings.weight_decay,
        "clip_norm": settings.clip_norm,
        "precision": precision,
        "eval_every": settings.eval_every,
        "target_psnr": target_psnr,
        "patience": settings.patience,
    }


def _named(given: Any) -> str:
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def _optimizer_named(optimizer: torch.optim.Optimizer) -> str:
    plain = {name: value for name, value in optimizer.defaults.items() if isinstance(value, (int, float, bool, tuple))}
    return f"{type(optimizer).__name__}({', '.join(f'{name}={value}' for name, value in plain.items())})"
