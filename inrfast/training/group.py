"""The moving parts of a fit: networks that take their steps together, their histories, best and last good weights."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import DivergedError
from inrfast.metrics import mse_to_psnr
from inrfast.snapshot import twin
from inrfast.threads import cores, interrupts_later
from inrfast.training import optimizers
from inrfast.training.batches import Batches, step_seed
from inrfast.training.callbacks import Callback, FitState, told
from inrfast.training.checkpoint import check_like
from inrfast.training.data import Data
from inrfast.training.divergence import first_nonfinite
from inrfast.training.engines import Gradient, Task, engine_of, evaluation_of
from inrfast.training.engines.autograd import PROBE_ROWS
from inrfast.training.engines.fused import FusedGradient, FusedOptimizer, FusedSteps
from inrfast.training.engines.whole import WholeGradient
from inrfast.training.options import LEAST_BETWEEN, Settings
from inrfast.training.stack import Stack

LONGEST = 0.5
"""Seconds after which an interrupt should have been heard and a bar moved: fewer steps are taken at once then."""


@dataclass
class Member:
    """One network of a fit: what is its own, and its history.

    ``stopped`` is why it takes no more steps: ``"steps"``, ``"target_psnr"``, ``"patience"``, ``"callback"`` or
    ``"diverged"``, then with the ``error``.
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
    index: int = 0
    done: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[tuple[int, float]] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    gradient: str = ""
    eval_every: int = 1
    best_step: int = 0
    best_psnr: float = math.nan
    since_best: int = 0
    stopped: str = ""
    error: DivergedError | None = None

    @property
    def psnr(self) -> float:
        """PSNR of the last evaluation."""
        return self.history[-1][1] if self.history else math.nan

    def record(self, step: int, psnr: float) -> bool:
        """Take down an evaluation, once a step; return whether it is the best so far."""
        if self.history and self.history[-1][0] == step:
            return False
        self.history.append((step, psnr))
        if len(self.history) == 1 or psnr > self.best_psnr:
            self.best_step, self.best_psnr, self.since_best = step, psnr, 0
            return True
        self.since_best += 1
        return False


class Run:
    """Networks of one shape, or one network of any shape, that take their steps together.

    Those that have stopped leave the stack, and the others go on in a smaller one.
    """

    def __init__(
        self, members: Sequence[Member], stack_data: Data, evaluation: Data | None, settings: Settings
    ) -> None:
        self.members, self.settings = list(members), settings
        self.data, self.evaluation = stack_data, evaluation
        # Now, while torch may use all cores: between the steps of threads it may use one.
        self.callers_cores = torch.get_num_threads()
        self.engine = engine_of(self._task())
        self.stack = Stack([member.net for member in members], self.engine.flat)
        try:
            self._begin()
        except BaseException:
            self.stack.release()
            raise

    def _task(self) -> Task:
        """Return what is asked of the engine."""
        settings = self.settings
        return Task(
            nets=[member.net for member in self.members],
            data=self.data,
            loss=settings.loss,
            batch=settings.batch_size,
            budget=settings.budget,
            narrow=settings.narrow,
            cores=self.callers_cores,
            trials=settings.budgeted,
            backend=settings.backend,
            named=settings.named,
        )

    def _begin(self) -> None:
        """Make what takes the steps, and keep the weights of the start."""
        settings, data = self.settings, self.data
        seeds = [member.seed for member in self.members]
        self.batches = Batches(data.points, settings.batch_size, seeds, data.coords.device)
        self.optimizer: optimizers.Optimizer
        if isinstance(settings.optimizer, str) and self.stack.flat is not None:
            self.optimizer = FusedOptimizer(self.stack, settings.optimizer, settings.weight_decay)
        elif isinstance(settings.optimizer, str):
            self.optimizer = optimizers.make(settings.optimizer, self.stack, settings.weight_decay)
        else:
            self.optimizer = optimizers.TorchOptimizer(self.stack, settings.optimizer, self.members[0].lr)
        self.begun = self.done = 0
        self.finite = True
        self._take()
        self.good = [tensor.clone() for tensor in self.stack.state]
        self.best = [tensor.clone() for tensor in self.stack.state]
        self.buffers_before: list[Tensor] | None = None

    def _take(self) -> None:
        """Make the gradient and the evaluation of the stack."""
        s, task = self.settings, self._task()
        self.gradient: Gradient = self.engine(self.stack, task)
        for member in self.members:
            member.gradient = self.gradient.name
        fused = isinstance(self.gradient, FusedGradient)
        own = self.evaluation is None and (fused or not s.narrow)
        if own and not isinstance(self.gradient, WholeGradient):
            self.mean_square = self.gradient.mean_square
        else:
            self.mean_square = evaluation_of(self.stack, replace(task, data=self.evaluation or self.data))
        full = s.batch_size in (None, self.data.points)
        # Then the loss that a step takes anyway is the evaluation of its weights.
        own = own and not fused  # where many steps are taken at once their losses come too late
        self.free = own and full and self.data.weight is None and not isinstance(self.gradient, WholeGradient)
        self.every = s.eval_every
        if isinstance(self.gradient, WholeGradient) and full and not s.often:
            self.every = max(self.every, LEAST_BETWEEN)
        for member in self.members:
            member.eval_every = self.every
        self.several: FusedSteps | None = None
        if isinstance(self.gradient, FusedGradient) and isinstance(self.optimizer, FusedOptimizer):
            self.several = FusedSteps(self.gradient, self.optimizer, self.batches)
        self.at_once = 1
        if self.several is not None and s.clip_norm is None and not _watches_steps(s.callbacks):
            self.at_once = self.several.most
        self.buffers = self._changing_buffers() if len(self.stack) == 1 else []
        places = {id(buffer) for buffer in self.buffers}
        count = len(self.stack.parameters)
        every = list(self.stack.nets[0].buffers()) if len(self.stack) == 1 else []
        # What a step changes; tables of constants and frozen layers would cost a copy each step.
        self.moving = [i for i, name in enumerate(self.stack.parameters) if name in self.stack.grads]
        self.moving += [count + i for i, buffer in enumerate(every) if id(buffer) in places]

    def _changing_buffers(self) -> list[Tensor]:
        """Return the buffers that a forward pass in train mode changes, or all where that can't be tried on a copy."""
        net = self.stack.nets[0]
        own = dict(net.named_buffers())
        probe = twin(net) if own else net
        if probe is net:
            return list(own.values())
        device = self.data.coords.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                probe.train()(self.data.coords[0, :PROBE_ROWS].clone())
        except Exception:  # a network may take nothing but its full grid
            return list(own.values())
        tried = dict(probe.named_buffers())
        return [buffer for name, buffer in own.items() if name not in tried or not torch.equal(buffer, tried[name])]

    @torch.no_grad()
    def _keep(self) -> None:
        """Take down the weights, and what else a step changes, as the last that gave finite numbers."""
        for i in self.moving:
            self.good[i].copy_(self.stack.state[i])

    @torch.no_grad()
    def _go_back(self) -> None:
        """Set them to those last taken down."""
        for i in self.moving:
            self.stack.state[i].copy_(self.good[i])

    # ---- steps ---------------------------------------------------------------------------------------------------

    def reach(self) -> int:
        """Return up to which step the next call of :meth:`advance` could go: not past the next evaluation."""
        if self.settings.callbacks and self.done % self.every == 0:
            return self.done + 1  # what a callback does to the weights counts after the gradient of this step
        evaluation = (self.done // self.every + 1) * self.every
        return min(self.done + self.at_once, evaluation, self.settings.steps)

    def advance(self, stop: int) -> None:
        """Take the steps up to ``stop``, at most :meth:`reach`: several at once where the kernels do."""
        if self.several is None or stop == self.done + 1 or not self.finite:
            self.step()
            self.finite = self.several is None or not self.members or self.stack.flat_finite()
            return None
        if self.done % self.every == 0 and self._evaluate(None):
            self._drop_finished()
        if not self.members:
            return None
        assert self.several is not None
        assert isinstance(self.optimizer, FusedOptimizer)
        rates = [[member.rate(step) for member in self.members] for step in range(self.done, stop)]
        with interrupts_later():
            self._keep()
            moments, scales = self.optimizer.copy(), self.several.gradient.state()
            self.begun = stop
            compiled, start = self.several.compiled, time.perf_counter()
            losses, self.finite = self.several.take(self.done, rates)
            seconds = time.perf_counter() - start
            if self.finite:
                for member, own in zip(self.members, losses.T.tolist(), strict=True):
                    del member.losses[self.done :]
                    member.losses.extend(own)
                self.done = stop
            else:  # step by step again, up to the one that diverges
                self._go_back()
                self.optimizer.restore(moments, self.done)
                self.several.gradient.load(scales)
                self.begun = self.done
        if not self.finite:
            while self.members and self.done < stop:
                self.step()
            self.finite = not self.members or self.stack.flat_finite()
            return None
        for member in self.members:
            member.done = self.done
        if seconds > LONGEST and compiled and self.at_once > 1:
            self.at_once //= 2
        return None

    def step(self) -> None:
        """Take one gradient, measure if it is time, update; networks that end here are left as they were."""
        settings = self.settings
        batch = self.batches.rows(self.done)
        rates = [member.rate(self.done) for member in self.members]
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        losses = self._gradient(batch).tolist()
        losses = self._drop_diverged(losses, batch)
        if not self.members:
            return
        if self.done % self.every == 0 and self._evaluate(losses if self.free else None):
            numbers = {id(member): loss for member, loss in zip(self.members, losses, strict=True)}
            self._drop_finished()
            losses = [numbers[id(member)] for member in self.members]
        if not self.members:
            return
        if settings.clip_norm is not None:
            optimizers.clip_(self.stack, settings.clip_norm)
        if len(rates) != len(self.members):
            rates = [member.rate(self.done) for member in self.members]
        for member, loss in zip(self.members, losses, strict=True):
            del member.losses[self.done :]  # an interrupt may have come after the last time
            member.losses.append(loss)
        with interrupts_later() if isinstance(settings.optimizer, str) else nullcontext():
            self._keep()
            self.begun = self.done + 1
            self.optimizer.step(rates, functools.partial(self._again, batch))
            self.done = self.begun
            self.buffers_before = None
        self._tell_step(losses, rates)

    def _gradient(self, batch: Tensor | None) -> Tensor:
        with self._seeded():
            return self.gradient(batch)

    def _seeded(self) -> AbstractContextManager[Any]:
        """Draw what a network or a loss draws (dropout, collocation points) from the seed and the step alone."""
        if not isinstance(self.gradient, WholeGradient):
            return nullcontext()
        return _drawing_from(self.members[0].seed, self.done, self.data.coords.device)

    def _again(self, batch: Tensor | None) -> float:
        """Take the gradient anew, for optimisers that look around before they step."""
        loss = float(self._gradient(batch))
        if self.settings.clip_norm is not None:
            optimizers.clip_(self.stack, self.settings.clip_norm)
        return loss

    def _tell_step(self, losses: Sequence[float], rates: Sequence[float]) -> None:
        ended = False
        for member, loss, rate in zip(self.members, losses, rates, strict=True):
            member.done = self.done
            if self.settings.callbacks and self._told("on_step", member, loss, rate):
                member.stopped, ended = "callback", True
        if ended:
            self._drop_finished()

    def _told(self, method: str, member: Member, loss: float, rate: float) -> bool:
        def state() -> FitState:
            return FitState(
                net=member.net,
                index=member.index,
                step=self.done,
                steps=self.settings.steps,
                loss=loss,
                lr=rate,
                psnr=member.psnr,
                best_psnr=member.best_psnr,
                coords=member.data.coords[0],
            )

        with cores(self.callers_cores):
            return told(self.settings.callbacks, method, member.net, state)

    # ---- measures ------------------------------------------------------------------------------------------------

    def _evaluate(self, losses: Sequence[float] | None) -> bool:
        """Record the PSNR of the weights as they are, from these losses if they tell it; return whether some end."""
        squares = self.mean_square().tolist() if losses is None else losses
        psnrs = [
            mse_to_psnr(square, member.data_range) if square >= 0 else math.nan
            for square, member in zip(squares, self.members, strict=True)
        ]
        improved, ended = [], False
        for place, (member, psnr) in enumerate(zip(self.members, psnrs, strict=True)):
            if math.isnan(psnr) or psnr == -math.inf:
                ended |= self._diverge(place, None)
                continue
            new = not member.history or member.history[-1][0] != self.done
            if member.record(self.done, psnr):
                improved.append(place)
            if new and self.settings.callbacks:
                last = member.losses[self.done - 1] if self.done else math.nan
                rate = member.rate(self.done - 1) if self.done else math.nan
                if self._told("on_eval", member, last, rate):
                    member.stopped = "callback"
            member.stopped = member.stopped or self._verdict(member)
            ended |= bool(member.stopped)
        if len(improved) == len(self.members):
            _copy(self.stack.state, self.best)
        elif improved:
            for best, now in zip(self.best, self.stack.state, strict=True):
                best[improved] = now[improved]
        return ended

    def _verdict(self, member: Member) -> str:
        """Return why a network needs no more steps, or an empty string."""
        if member.goal is not None and member.psnr >= member.goal:
            return "target_psnr"
        patience = self.settings.patience
        return "patience" if patience is not None and member.since_best >= patience else ""

    def evaluate_end(self) -> None:
        """Measure the last weights, unless that was just done."""
        if any(not member.history or member.history[-1][0] != self.done for member in self.members):
            self._evaluate(None)

    # ---- ends ----------------------------------------------------------------------------------------------------

    def _drop_diverged(self, losses: list[float], batch: Tensor | None) -> list[float]:
        """Take networks out of the stack whose loss or gradient is not finite; return the others' losses."""
        sums = torch.stack([grad.reshape(len(grad), -1).sum(1) for grad in self.stack.grads.values()]).sum(0).tolist()
        ended = False
        for place, (loss, total) in enumerate(zip(losses, sums, strict=True)):
            # A sum is NaN or Inf where an entry is (the cheapest pass over them), and may be where none is.
            if math.isfinite(loss + total):
                continue
            if math.isfinite(loss) and all(bool(g[place].isfinite().all()) for g in self.stack.grads.values()):
                continue
            ended |= self._diverge(place, batch)
        if not ended:
            return losses
        kept = [loss for loss, member in zip(losses, self.members, strict=True) if not member.stopped]
        self._drop_finished()
        return kept

    def _diverge(self, place: int, batch: Tensor | None) -> bool:
        """Set a network back to the last weights that gave finite numbers, and say what happened."""
        member = self.members[place]
        for name, grad in self.stack.grads.items():
            member.net.get_parameter(name).grad = grad[place]
        coords = member.data.coords[0]
        rows = None if batch is None else batch[place % len(batch)]
        where = first_nonfinite(member.net, coords if rows is None else coords[rows])
        for i in self.moving:
            self.stack.state[i][place].copy_(self.good[i][place])
        lr = member.rate(max(self.done - 1, 0))
        wider = ", or take precision='high'" if self.settings.narrow else ""
        who = "the fit" if len(self.members) == 1 else f"the fit of network {member.index}"
        member.stopped, member.error = (
            "diverged",
            DivergedError(
                f"{who} met a NaN or Inf after {self.done} updates, first in {where}; lower lr (it was {lr:.3g}), "
                f"omega, the gain of the initialisation or the degree of a polynomial encoding{wider}. The network was "
                "set back to its last good weights"
            ),
        )
        return True

    def _drop_finished(self) -> None:
        """Take networks that have stopped out of the stack."""
        for member in self.members:
            member.done = self.done
        if any(member.stopped and member.error is None for member in self.members):
            self.evaluate_end()
        for place, member in enumerate(self.members):
            if member.stopped:
                member.best_state = self._best_state(place)
        index = [place for place, member in enumerate(self.members) if not member.stopped]
        if len(index) == len(self.members):
            return
        self.members = [self.members[place] for place in index]
        if not self.members:
            return self.stack.release()
        self.stack, self.data = self.stack.keep(index), self.data.keep(index)
        self.evaluation = None if self.evaluation is None else self.evaluation.keep(index)
        self.good, self.best = ([tensor[index] for tensor in tensors] for tensors in (self.good, self.best))
        self.batches.keep(index)
        self.optimizer.keep(self.stack, index)
        scales = self.gradient.state()[index] if isinstance(self.gradient, FusedGradient) else None
        self.engine = engine_of(self._task())
        self._take()
        if isinstance(self.gradient, FusedGradient) and scales is not None:
            self.gradient.load(scales)
        return None

    def _best_state(self, place: int) -> dict[str, Tensor]:
        """Return a copy of the best ``state_dict`` of one network."""
        net = self.members[place].net
        tensors = [*net.parameters(), *(net.buffers() if len(self.stack) == 1 else ())]
        best = {id(tensor): kept[place] for tensor, kept in zip(tensors, self.best, strict=True)}
        own = net.state_dict(keep_vars=True)
        return {name: best.get(id(tensor), tensor).detach().clone() for name, tensor in own.items()}

    def undo(self) -> None:
        """Go back to the end of the last complete update, wherever in a step an interrupt or an error came."""
        if self.begun != self.done:
            self._go_back()
        elif self.buffers_before is not None:
            _copy(self.buffers_before, self.buffers)
        self.buffers_before = None
        for member in self.members:
            member.done = self.done
            del member.losses[self.done :]

    @property
    def whole(self) -> bool:
        """Whether the optimiser's state is that after the last complete update."""
        return self.begun == self.done

    def end(self, reason: str) -> None:
        """Measure the last weights and let the networks go, for this reason where they had none."""
        if not self.members:
            return
        self.evaluate_end()
        for place, member in enumerate(self.members):
            member.done = self.done
            member.stopped = member.stopped or reason
            member.best_state = self._best_state(place)
        self.stack.release()

    def release(self) -> None:
        """Leave nothing of the fit in the networks but their weights."""
        self.stack.release()
        if isinstance(self.optimizer, optimizers.TorchOptimizer):
            self.optimizer.release()

    # ---- states --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on: members, their number of steps, weights, best weights, optimiser."""
        own = {"gradient": self.gradient.state()} if isinstance(self.gradient, FusedGradient) else {}
        return {
            "members": [member.index for member in self.members],
            "done": self.done,
            "best": self.best,
            "optimizer": self.optimizer.state(),
            **own,
        }

    def load(self, state: dict[str, Any], place: str, compared: bool = False) -> None:
        """Go on from a state of the same members, whose weights are in place.

        ``compared`` says that the settings of their optimiser are known to be those that the fit was started with.

        Raises
        ------
        ValueError
            It is not built as this run's own is; ``place`` names it.
        """
        check_like(state["best"], self.best, f"{place}.best")
        if isinstance(self.optimizer, optimizers.TorchOptimizer):
            self.optimizer.check(state["optimizer"], f"{place}.optimizer", settings=not compared)
        else:
            check_like(state["optimizer"], self.optimizer.state(), f"{place}.optimizer")
        _copy(state["best"], self.best)
        self.optimizer.load(state["optimizer"])
        if isinstance(self.gradient, FusedGradient) and "gradient" in state:
            check_like(state["gradient"], self.gradient.state(), f"{place}.gradient")
            self.gradient.load(state["gradient"])
        self._keep()
        self.begun = self.done = state["done"]


def _watches_steps(callbacks: Sequence[Any]) -> bool:
    """Return whether a callback is to be told every step."""
    methods = [getattr(type(callback), "on_step", getattr(callback, "on_step", None)) for callback in callbacks]
    return any(method is not None and method is not Callback.on_step for method in methods)


@torch.no_grad()
def _copy(source: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for old, new in zip(into, source, strict=True):
        old.copy_(new)


_generators = threading.RLock()
"""PyTorch's generators are the whole process's: fits in several threads draw from them one after another."""


@contextmanager
def _drawing_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for the block; afterwards they are as they were."""
    with _generators, torch.random.fork_rng([device] if device.type == "cuda" else []):
        # torch.manual_seed tells devices that are not there, too, and takes a millisecond for it.
        torch.default_generator.manual_seed(step_seed(seed, step))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(step_seed(seed, step))
        yield
