"""One network of a fit: what is its own, its history, and what a checkpoint keeps of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import DivergedError
from inrfast.nn import INR
from inrfast.training.data import Data
from inrfast.training.given import NOTHING, Made


@dataclass
class Member:
    """One network of a fit.

    ``stopped`` is why it takes no more steps: ``"steps"``, ``"target_psnr"``, ``"patience"``, ``"callback"``,
    ``"interrupted"`` or ``"diverged"``, then with the ``error``; empty while it goes on. ``own_seed`` is that of the
    network in the checkpoint, where this one's is a drawn one.
    """

    net: nn.Module
    data: Data
    evaluation: Data | None
    lr: float
    rate: Callable[[int], float]
    goal: float | None
    seed: int
    data_range: float = 1.0
    range_given: bool = False
    modules: tuple[nn.Module, ...] = ()
    made: Made = NOTHING
    index: int = 0
    several: bool = False
    seed_given: bool = True
    own_seed: int | None = None
    done: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[tuple[int, float]] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    gradient: str = ""
    reason: str | None = None
    eval_every: int = 1
    best_step: int = 0
    best_psnr: float = math.nan
    since_best: int = 0
    stopped: str = ""
    error: DivergedError | None = None

    @property
    def place(self) -> int | None:
        """Its index in ``fit_many``; None in ``fit``."""
        return self.index if self.several else None

    @property
    def psnr(self) -> float:
        """PSNR of the last evaluation."""
        return self.history[-1][1] if self.history else math.nan

    def record(self, step: int, psnr: float) -> bool:
        """Record an evaluation, once per step; return whether it is the best so far."""
        if self.history and self.history[-1][0] == step:
            return False
        self.history.append((step, psnr))
        if len(self.history) == 1 or psnr > self.best_psnr:
            self.best_step, self.best_psnr, self.since_best = step, psnr, 0
            return True
        self.since_best += 1
        return False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the network, its history included."""
        return {
            "net": dict(self.net.state_dict()),
            "buffers": unsaved(self.net),
            **({"modules": [tensors_of(module) for module in self.modules]} if self.modules else {}),
            "done": self.done,
            "losses": torch.tensor(self.losses[: self.done], dtype=torch.float64),
            "eval_steps": torch.tensor([step for step, _ in self.history], dtype=torch.int64),
            "psnrs": torch.tensor([psnr for _, psnr in self.history], dtype=torch.float64),
            "best_state": self.best_state,
            "stopped": self.stopped,
            "error": None if self.error is None else str(self.error),
        }

    @torch.no_grad()
    def load(self, kept: dict[str, Any], going: bool) -> None:
        """Take over the state of a network, which goes on or has stopped for good."""
        own = self.net.state_dict()
        if self.own_seed is not None and isinstance(self.net, INR):
            self.net.seed = self.own_seed
        if all(isinstance(tensor, Tensor) for tensor in own.values()):
            for name, tensor in own.items():
                tensor.copy_(kept["net"][name])
        else:  # modules with an extra state
            self.net.load_state_dict(kept["net"])
        for name, tensor in unsaved(self.net).items():
            if name in kept.get("buffers", {}):  # files of old have none
                tensor.copy_(kept["buffers"][name])
        for module, tensors in zip(self.modules, kept.get("modules", []), strict=True):
            for name, tensor in tensors_of(module).items():
                tensor.copy_(tensors[name])
        self.done = kept["done"]
        self.losses = kept["losses"].tolist()
        for step, psnr in zip(kept["eval_steps"].tolist(), kept["psnrs"].tolist(), strict=True):
            self.record(step, psnr)
        self.best_state = {
            name: tensor.to(own[name]) if isinstance(tensor, Tensor) else tensor
            for name, tensor in kept["best_state"].items()
        }
        self.stopped = "" if going else kept["stopped"]
        self.error = None if kept["error"] is None else DivergedError(kept["error"])


def named(member: Member, of: int) -> str:
    """Return what messages call the fit of one of so many networks."""
    return "the fit" if of == 1 else f"the fit of network {member.index}"


def unsaved(net: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that ``state_dict`` leaves out (``persistent=False``)."""
    saved = net.state_dict()
    return {name: buffer for name, buffer in net.named_buffers() if name not in saved}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers of a module by name, those included that its ``state_dict`` leaves out."""
    return {name: own.detach() for name, own in (*module.named_parameters(), *module.named_buffers())}
