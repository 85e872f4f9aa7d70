"""The outer loop of meta-learning: its steps, progress, interrupts, checkpoints, and the way back from a NaN."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from inrfast.errors import DivergedError, warn
from inrfast.metrics import mse_to_psnr
from inrfast.progress import progress_bar
from inrfast.threads import interrupts_later
from inrfast.training.batches import Batches
from inrfast.training.data import Data
from inrfast.training.meta.checkpoint import MetaCheckpoint, load_state
from inrfast.training.meta.inner import Inner, Learned, Learner
from inrfast.training.optimizers.adam import Adam
from inrfast.training.stack import Stack

LAST, GROWN = 20, 2.0
"""Steps whose median loss is that of the end, and times that of the start from which it has grown."""


class Outer:
    """Outer steps of one call.

    Parameters
    ----------
    net, data
        The network, whose weights the steps change, and the set of signals.
    learner
        What gives the direction of a step.
    inner
        The inner steps, for messages.
    lr, batch, seed
        Of the outer steps.

    Attributes
    ----------
    done
        Outer steps done.
    before, after
        Mean losses of every step.
    interrupted
        Whether an interrupt ended the loop.
    """

    def __init__(
        self, net: nn.Module, data: Data, learner: Learner, inner: Inner, lr: float, batch: int, seed: int
    ) -> None:
        self.net, self.data, self.learner, self.inner, self.lr = net, data, learner, inner, lr
        self.batches = Batches(len(data.target), batch, [seed], data.target.device)
        self.stack = Stack([net])
        self.optimizer = Adam(self.stack)
        self.good = [own.clone() for own in self.stack.parameters.values()]
        self.done, self.interrupted = 0, False
        self.before: list[float] = []
        self.after: list[float] = []

    # ---- state ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on, beside the network."""
        losses = {"before": self.before[: self.done], "after": self.after[: self.done]}
        tensors = {name: torch.tensor(own, dtype=torch.float64) for name, own in losses.items()}
        return {"done": self.done, **tensors, "optimizer": self.optimizer.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, the network's own included."""
        load_state(self.net, state["net"])
        self.optimizer.load(state["optimizer"])
        self.done, self.before, self.after = state["done"], state["before"].tolist(), state["after"].tolist()
        self._mark()

    def _mark(self) -> None:
        for kept, own in zip(self.good, self.stack.parameters.values(), strict=True):
            kept.copy_(own)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def learn(self, steps: int, progress: bool | None, checkpoint: MetaCheckpoint | None, seconds: float) -> None:
        """Take the steps up to ``steps``, or those until an interrupt."""
        written, begun = time.monotonic(), self.done
        with _bar(steps, progress) as bar:
            bar.update(self.done)
            try:
                while self.done < steps:
                    self.step()
                    if not bar.disable:
                        told = f"{mse_to_psnr(self.after[-1]):.2f} dB after {self.inner.steps} inner steps"
                        bar.set_postfix_str(told, refresh=False)
                    bar.update(1)
                    if checkpoint is not None and time.monotonic() - written >= seconds:
                        checkpoint.write(self.state())
                        written = time.monotonic()
            except KeyboardInterrupt:
                self.interrupted = True
            except DivergedError:
                raise
            except BaseException:
                if checkpoint is not None and self.done > begun:
                    checkpoint.write(self.state(), last=True)
                raise
        if checkpoint is not None:
            checkpoint.write(self.state(), last=True)
        if not self.interrupted:
            self._warn()

    @torch.no_grad()
    def step(self) -> None:
        """Take one outer step.

        Raises
        ------
        DivergedError
            Losses or their gradient are not finite; the weights are the last that gave finite ones.
        """
        rows = self.batches.rows(self.done)
        chosen = list(range(len(self.data.target))) if rows is None else rows[0].tolist()
        found = self.learner(self.data if rows is None else self.data.keep(chosen))
        self._check(found, chosen)
        with interrupts_later():
            self._mark()
            for name, grad in found.grads.items():
                self.stack.grads[name][0].copy_(grad)
            self.optimizer.done = self.done
            self.optimizer.step([self.lr], lambda: 0.0)
            self.before.append(float(found.before.mean()))
            self.after.append(float(found.after.mean()))
            self.done += 1

    def _check(self, found: Learned, chosen: Sequence[int]) -> None:
        """Refuse what is not finite, and go back."""
        wrong = [chosen[i] for i in (~torch.isfinite(found.after)).nonzero().flatten().tolist()]
        fault = f"the loss after the inner steps of signals {wrong[:8]} is" if wrong else ""
        if not bool(torch.isfinite(found.before).all()):
            fault = "the loss of the start is"
        bad = [name for name, grad in found.grads.items() if not bool(torch.isfinite(grad).all())]
        if not fault and not bad:
            return
        with interrupts_later():
            for kept, own in zip(self.good, self.stack.parameters.values(), strict=True):
                own.copy_(kept)
        raise DivergedError(
            f"in outer step {self.done} {fault or f'the gradient of {bad[0]} is'} NaN or Inf; lower inner_lr (it was "
            f"{self.inner.lr:.3g}) or lr (it was {self.lr:.3g}). The network holds the last weights that gave finite "
            "losses and gradients"
        )

    def _warn(self) -> None:
        """Warn where the inner steps do harm, or the loss grew, and nobody would see it but in the curve."""
        if len(self.after) < LAST:
            return
        before, after = (statistics.median(own[-LAST:]) for own in (self.before, self.after))
        if after > before:
            warn(
                f"the inner steps raise the loss, from {before:.3g} to {after:.3g} at the end; lower inner_lr (it was "
                f"{self.inner.lr:.3g})"
            )
        first = statistics.median(self.after[:LAST])
        if after > GROWN * first:
            warn(
                f"the loss after the inner steps grew, from {first:.3g} to {after:.3g}; lower lr (it was {self.lr:.3g})"
            )


def _bar(steps: int, progress: bool | None) -> Any:
    return progress_bar(total=steps, progress=progress, unit="step", dynamic_ncols=True)
