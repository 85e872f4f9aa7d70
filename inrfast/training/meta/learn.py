"""Meta-learning: weights from which any signal of a set is fitted in a few steps (MAML, its first order, Reptile)."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrfast.errors import DivergedError, check_choice, check_float, check_int, check_seed
from inrfast.memory import budget_bytes
from inrfast.metrics import mse_to_psnr
from inrfast.modes import in_training_modes, modes_kept
from inrfast.threads import interrupts_later
from inrfast.training.batches import Batches
from inrfast.training.data import Data
from inrfast.training.meta.first_order import FirstOrder
from inrfast.training.meta.inner import Inner, Learner
from inrfast.training.meta.second_order import AutogradSecondOrder
from inrfast.training.meta.signals import check_signals
from inrfast.training.optimizers.adam import Adam
from inrfast.training.options import check_checkpoint, check_progress
from inrfast.training.stack import Stack
from inrfast.training.trained import sole_trainer

METHODS = ("maml", "fomaml", "reptile")


@dataclass(frozen=True)
class MetaResult:
    """What :func:`inrfast.meta_learn` did; the network itself holds the start.

    Attributes
    ----------
    steps
        Outer steps done: fewer than asked for after an interrupt.
    start_losses, losses
        One per outer step, the mean over its signals: the mean squared error at the start before the step, and after
        the inner steps from there; with ``"reptile"`` before the last of these.
    seconds
        Wall-clock time of the whole call; after a resume, of this call alone.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete outer step.
    config
        The settings, and how gradients were taken.
    """

    steps: int
    start_losses: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    interrupted: bool
    config: dict[str, Any]


@in_training_modes
def meta_learn(
    net: nn.Module,
    coords: Tensor,
    signals: Tensor,
    method: str = "maml",
    inner_steps: int = 2,
    inner_lr: float = 1e-2,
    steps: int = 5000,
    lr: float = 1e-5,
    batch: int = 3,
    *,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    memory_budget: int | None = None,
) -> MetaResult:
    """Change the weights of ``net`` in place to a start from which a signal of the set is fitted in a few steps.

    The defaults are those of Tancik et al. (Learned initializations for optimizing coordinate-based neural
    representations, CVPR 2021) for images, and of the authors of "A structured dictionary perspective on implicit
    neural representations" (Yuce et al., CVPR 2022). Both take, as is done here, the **mean** over points and outputs
    of the squared error as the loss of a signal: a rate for the sum would be N M times smaller.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64, without batch norm or dropout.
        Frozen parameters stay as they are.
    coords
        Points (N, d) of all signals, or (B, N, d) of each.
    signals
        Values (B, N, M) or (B, *grid, M), where M = 1 also without the last axis; or a sequence of B tensors of one
        shape.
    method
        ``"maml"``: the gradient of the loss after the inner steps, exactly, through these steps (Finn, Abbeel, Levine,
        ICML 2017). ``"fomaml"``: the gradient at the adapted weights instead. ``"reptile"``: the way there, over the
        inner rate (Nichol, Achiam, Schulman, arXiv 1803.02999).
    inner_steps, inner_lr
        Steps of plain gradient descent on all points of a signal, and their rate.
    steps, lr
        Outer steps, of Adam with torch's defaults, and their constant rate.
    batch
        Signals of an outer step, drawn without replacement from a seeded permutation per pass (what is left of a pass
        when no full batch remains is skipped). The outer direction is the mean over them.

    Returns
    -------
    MetaResult
        The losses of every step. ``inrfast.training.networks.save_network`` keeps the start.

    Examples
    --------
    >>> from inrfast import INR, grid, meta_learn
    >>> x = grid(64)
    >>> waves = torch.stack([(3 * x + p).sin() for p in (0.0, 0.3, 0.6, 0.9)])
    >>> net = INR(1, 1, width=16, hidden_layers=1, activation="tanh")
    >>> result = meta_learn(net, x, waves, steps=50, lr=1e-2, batch=2, progress=False)
    >>> result.losses[-1] < result.losses[0]
    True
    """
    start = time.perf_counter()
    data = check_signals(net, coords, signals)
    check_choice("method", method, METHODS)
    inner = Inner(
        check_int("inner_steps", inner_steps, minimum=1),
        check_float("inner_lr", inner_lr, minimum=0.0, exclusive=True),
    )
    steps = check_int("steps", steps, minimum=1)
    lr = check_float("lr", lr, minimum=0.0, exclusive=True)
    batch = check_int("batch", batch, minimum=1)
    if batch > len(data.target):
        raise ValueError(f"batch must be at most the number of signals {len(data.target)}, got {batch}")
    seed = check_seed("seed", seed, bits=63)
    check_checkpoint(checkpoint, checkpoint_seconds, resume)
    progress = check_progress(progress)
    budget = budget_bytes(memory_budget, data.target.device)
    learner: Learner
    if method == "maml":
        learner = AutogradSecondOrder(net, inner, None, False)
    else:
        learner = FirstOrder(net, inner, method == "reptile", batch, budget)
    meta = Meta(net, data, learner, steps, lr, batch, seed, progress)
    with ExitStack() as stack:
        stack.enter_context(sole_trainer({"net": net}))
        stack.enter_context(modes_kept(net))
        net.train()
        meta.learn()
    seconds = time.perf_counter() - start
    config = {
        "method": method,
        "inner_steps": inner.steps,
        "inner_lr": inner.lr,
        "steps": steps,
        "lr": lr,
        "batch": batch,
        "seed": seed,
        **learner.layout,
    }
    return MetaResult(meta.done, tuple(meta.before), tuple(meta.after), seconds, meta.interrupted, config)


class Meta:
    """The outer loop of one call."""

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        learner: Learner,
        steps: int,
        lr: float,
        batch: int,
        seed: int,
        progress: bool | None,
    ) -> None:
        self.net, self.data, self.learner, self.steps, self.lr = net, data, learner, steps, lr
        self.batches = Batches(len(data.target), batch, [seed], data.target.device)
        self.stack = Stack([net])
        self.optimizer = Adam(self.stack)
        self.progress = progress
        self.done, self.interrupted = 0, False
        self.before: list[float] = []
        self.after: list[float] = []

    def learn(self) -> None:
        bar = tqdm(
            total=self.steps,
            disable=None if self.progress is None else not self.progress,
            unit="step",
            dynamic_ncols=True,
        )
        with bar:
            try:
                while self.done < self.steps:
                    self.step()
                    bar.update(1)
                    if not bar.disable:
                        bar.set_postfix_str(
                            f"{mse_to_psnr(self.after[-1]):.2f} dB after the inner steps", refresh=False
                        )
            except KeyboardInterrupt:
                self.interrupted = True

    def step(self) -> None:
        rows = self.batches.rows(self.done)
        data = self.data if rows is None else self.data.keep(rows[0].tolist())
        found = self.learner(data)
        if not math.isfinite(float(found.after.sum())) or not all(
            bool(torch.isfinite(g).all()) for g in found.grads.values()
        ):
            raise DivergedError(f"step {self.done} met NaN or Inf")
        with interrupts_later():
            for name, grad in found.grads.items():
                self.stack.grads[name][0].copy_(grad)
            self.optimizer.done = self.done
            self.optimizer.step([self.lr], lambda: 0.0)
            self.done += 1
            self.before.append(float(found.before.mean()))
            self.after.append(float(found.after.mean()))
