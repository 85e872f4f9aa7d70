"""The options of a fit that all its networks have in common, checked when it begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inrfast import backends
from inrfast.calling import Select
from inrfast.errors import check_choice, check_float, check_int
from inrfast.files import check_writable, shown, target_of
from inrfast.memory import budget_bytes
from inrfast.ops import gemm
from inrfast.training.callbacks import check_callbacks
from inrfast.training.objective import Objective, check_objective
from inrfast.training.optimizers import OPTIMIZERS

PRECISIONS = ("highest", "high", "medium")
EVALUATIONS = 100
"""Evaluations of the PSNR in a run where ``eval_every`` is not given: enough for a curve, few enough to cost little."""

LEAST_BETWEEN = 10
"""Steps at least between two of them where each takes a pass of its own over all points of a step."""


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`inrfast.fit` that networks have in common, by their names there, checked and resolved.

    Attributes
    ----------
    eval_every
        Resolved: a number of steps; ``often`` says that it was given, and is taken at its word.
    memory_budget
        Resolved: bytes; ``budgeted`` says that it was given, so that functions of the user's own may be tried before
        the first step.
    backend
        Resolved: ``"triton"`` or ``"torch"``; ``named`` says that ``"triton"`` was asked for by name, and must not be
        replaced.
    narrow
        Whether products may be in 16 bits: ``precision="medium"``, where that gains something.
    """

    steps: int
    schedule: str | Callable[[int], float]
    batch_size: int | None
    objective: Objective
    optimizer: str | torch.optim.Optimizer
    weight_decay: float
    clip_norm: float | None
    precision: str
    backend: str
    callbacks: tuple[Any, ...]
    eval_every: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_seconds: float
    resume: bool
    progress: bool | None
    memory_budget: int
    narrow: bool
    often: bool
    budgeted: bool
    named: bool
    select: Select

    @classmethod
    def checked(cls, given: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Options:
        """Return the options of networks of this dtype and device.

        Parameters
        ----------
        given
            The arguments of :func:`inrfast.fit` or :func:`inrfast.fit_many` by name; others are left alone.

        Raises
        ------
        ValueError, TypeError, FileExistsError, OSError, NotAvailableError
            As :func:`inrfast.fit`.
        """
        optimizer, weight_decay = check_optimizer(given["optimizer"], given["weight_decay"])
        # Each network of fit_many has modules of its own.
        modules = () if "nets" in given else given["modules"]
        weighted = given["weight"] is not None
        net = given.get("net") if isinstance(given.get("net"), nn.Module) else None
        objective = check_objective(given["loss"], weighted, given["regularizers"], modules, net)
        steps = check_int("steps", given["steps"], minimum=1)
        backend = backends.resolve(given["backend"], device)
        clip_norm, eval_every, patience = given["clip_norm"], given["eval_every"], given["patience"]
        often = eval_every is not None
        return cls(
            steps=steps,
            schedule=given["schedule"],
            batch_size=None if given["batch_size"] is None else check_int("batch_size", given["batch_size"], minimum=1),
            objective=objective,
            optimizer=optimizer,
            weight_decay=weight_decay,
            clip_norm=None if clip_norm is None else check_float("clip_norm", clip_norm, minimum=0.0, exclusive=True),
            precision=check_precision(given["precision"], dtype),
            backend=backend,
            callbacks=check_callbacks(given["callbacks"]),
            eval_every=check_int("eval_every", eval_every, minimum=1) if often else max(1, steps // EVALUATIONS),
            patience=None if patience is None else check_int("patience", patience, minimum=1),
            checkpoint=check_checkpoint(given["checkpoint"], given["checkpoint_seconds"], given["resume"]),
            checkpoint_seconds=given["checkpoint_seconds"],
            resume=given["resume"],
            progress=check_progress(given["progress"]),
            memory_budget=budget_bytes(given["memory_budget"], device),
            narrow=given["precision"] == "medium" and gains_by_16_bits(device, backend),
            often=often,
            budgeted=given["memory_budget"] is not None,
            named=given["backend"] == "triton",
            select=given["select"],
        )

    def described(self, target_psnr: float | None) -> dict[str, Any]:
        """Return what networks have in common as plain values, for results and checkpoints."""
        return {
            "steps": self.steps,
            "schedule": _plain(self.schedule),
            "batch_size": self.batch_size,
            **self.objective.config(),
            "optimizer": _plain(self.optimizer),
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
            "precision": self.precision,
            "eval_every": self.eval_every,
            "target_psnr": target_psnr,
            "patience": self.patience,
            **({} if self.select is None else {"select": _plain(self.select)}),
        }


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


def check_precision(precision: Any, dtype: torch.dtype) -> str:
    """Return a precision in which networks of this dtype can be trained."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "highest" and dtype != torch.float64:
        raise ValueError(f"precision='highest' trains in fp64 but the network is {dtype}; call net.double() first")
    if precision == "medium" and dtype != torch.float32:
        raise ValueError(f"precision='medium' takes fp32 networks, got {dtype}; use 'high' or 'highest'")
    return str(precision)


def gains_by_16_bits(device: torch.device, backend: str) -> bool:
    """Return whether products in 16 bits are faster on this device and backend."""
    return device.type == "cuda" or backend == "triton" or gemm.multiplies_bf16()


def check_batch_size(batch_size: int | None, points: int, masked: bool = False) -> None:
    """Check that a step takes at most all points; ``masked``: weights of 0 have left some out."""
    if batch_size is not None and batch_size > points:
        which = "points of weight above 0," if masked else "points"
        raise ValueError(f"batch_size must be at most the number of {which} {points}, got {batch_size}")


def check_checkpoint(checkpoint: Any, seconds: Any, resume: Any) -> Path | None:
    """Return the file of checkpoints; what would fail after an hour fails now.

    Raises
    ------
    FileExistsError
        There is a file and the fit is not to go on from it: an hour's work is not overwritten by a forgotten argument.
    OSError, ValueError
        No file can be written there: see :func:`inrfast.files.whole_file`.
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


def _plain(value: Any) -> str | int:
    """Return what an option is called."""
    if isinstance(value, torch.optim.Optimizer):
        return _optimizer_named(value)
    return value if isinstance(value, str | int) else getattr(value, "__name__", type(value).__name__)


def _optimizer_named(optimizer: torch.optim.Optimizer) -> str:
    plain = {name: value for name, value in optimizer.defaults.items() if isinstance(value, (int, float, bool, tuple))}
    return f"{type(optimizer).__name__}({', '.join(f'{name}={value}' for name, value in plain.items())})"
