"""Networks that take their steps together: gradient, evaluation, update, and the way back from a step that failed."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import DivergedError
from inrfast.metrics import mse_to_psnr
from inrfast.mlp import describe
from inrfast.norms.batch import BatchNorm
from inrfast.norms.topk import ROWWISE
from inrfast.threads import cores, interrupts_later
from inrfast.training.batches import Batches, drawing_from
from inrfast.training.callbacks import Callback, FitState, told
from inrfast.training.data import Data, stacked
from inrfast.training.divergence import first_nonfinite
from inrfast.training.engines import (
    RegularizedGradient,
    Taken,
    Task,
    engine_of,
    evaluation_of,
    gradient_of,
    require_single,
)
from inrfast.training.engines.autograd import AutogradGradient
from inrfast.training.engines.batch_norms import against_norms, norms_of
from inrfast.training.engines.fused import FusedGradient, FusedOptimizer, FusedSteps
from inrfast.training.engines.native import NativeGradient, against_filters
from inrfast.training.engines.task import against_formula
from inrfast.training.member import Member, named
from inrfast.training.objective import Batch, Objective, batch_of, nonfinite_part
from inrfast.training.optimizers import OPTIMIZERS, Optimizer
from inrfast.training.optimizers.torchs import TorchOptimizer
from inrfast.training.options import LEAST_BETWEEN, Options
from inrfast.training.schema import check_like
from inrfast.training.stack import Stack
from inrfast.training.trained import ChangedError, Layout, named_of
from inrfast.training.weights import Weights, copy_

LONGEST = 0.5
"""Seconds after which an interrupt should have been heard and a bar moved: fewer steps are taken at once then."""


class Group:
    """Networks of one shape, or one network of any shape, that take their steps together.

    Those that have stopped leave the group, and the others go on in a smaller one.

    Parameters
    ----------
    members
        The networks with their data.
    options
        What they have in common.

    Attributes
    ----------
    members
        Those that go on.
    done
        Updates done.
    """

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        self.members, self.options = list(members), options
        self.data = stacked([member.data for member in members])
        evaluations = [member.evaluation for member in members if member.evaluation is not None]
        self.evaluation = stacked(evaluations) if evaluations else None
        # Now, while torch may use all cores: between the steps of threads it may use one.
        self.callers_cores = torch.get_num_threads()
        self.engine, self.reason = engine_of(self._task())
        if issubclass(self.engine, AutogradGradient):
            require_single(self._task(), "steps")
        self.stack = Stack([member.net for member in members], self.engine.flat, self.members[0].modules)
        try:
            self._begin()
        except BaseException:
            self.stack.release()
            raise

    def _task(self) -> Task:
        """Return what is asked of the engine."""
        return task_of(self.members, self.data, self.options, self.callers_cores)

    def _begin(self) -> None:
        """Make what takes the steps, and keep the weights of the start."""
        seeds = [member.seed for member in self.members]
        self.batches = Batches(self.data.points, self.options.batch_size, seeds, self.data.coords.device)
        self.optimizer = self._optimizer()
        self.begun = self.done = 0
        self.finite = True
        self._take()
        self.weights = Weights(self.stack, self._shaped())

    def _shaped(self) -> Tensor:
        """Return the first network's points with the axes that it is called with."""
        return self.data.calling.with_axes(self.data.coords[0])

    def _optimizer(self) -> Optimizer:
        given, decay = self.options.optimizer, self.options.weight_decay
        if not isinstance(given, str):
            return TorchOptimizer(self.stack, given, self.members[0].lr)
        kind = OPTIMIZERS[given]
        if self.stack.flat is not None and kind.kernel is not None:
            return FusedOptimizer(self.stack, kind, decay)
        return kind(self.stack, decay)

    def _take(self) -> None:
        """Make the gradient and the evaluation of the stack."""
        options, task = self.options, self._task()
        self.gradient: Taken = gradient_of(self.stack, task, self.engine)
        self.losses: list[float] = []
        self.rates: list[float] = []
        self._norms: Tensor | None = None
        self._gradient_at = -1
        own = self.evaluation is None and self.gradient.measures and task.objective.link is None
        if own:
            self.mean_square = self.gradient.mean_square
        else:
            self.mean_square = evaluation_of(self.stack, replace(task, data=self.evaluation or self.data))
        full = options.batch_size in (None, self.data.points)
        # Then the loss that a step takes anyway is the evaluation of its weights.
        plain = task.objective.is_mean_square and self.data.weight is None
        self.free = own and full and plain and not (self.gradient.several or self.gradient.coupled)
        self.every = options.eval_every
        if self.gradient.coupled and full and not options.often:
            self.every = max(self.every, LEAST_BETWEEN)
        # Where callbacks can change them; engines that take the network as a whole call its hooks, old and new.
        layouts = self.members if options.callbacks else []
        whole = self.gradient.whole
        self.layouts = [Layout(named_of(m.net, m.modules, m.place), not whole) for m in layouts]
        for member in self.members:
            member.gradient, member.reason = self.gradient.name, self.reason
            member.eval_every = self.every
        self.several: FusedSteps | None = None
        alone = options.clip_norm is not None or _watches_steps(options.callbacks)
        of_loss = self.gradient
        if isinstance(self.gradient, RegularizedGradient):
            of_loss, alone = self.gradient.of, True
        if isinstance(of_loss, FusedGradient) and isinstance(self.optimizer, FusedOptimizer):
            self.several = FusedSteps(of_loss, self.optimizer, self.batches)
        self.at_once = 1
        if self.several is not None and not alone:
            self.at_once = self.several.most

    # ---- steps ---------------------------------------------------------------------------------------------------

    def reach(self) -> int:
        """Return up to which step the next call of :meth:`advance` could go: not past the next evaluation."""
        if (self.options.callbacks or self.gradient.coupled) and self.done % self.every == 0:
            # Callbacks may edit weights; and a step's own batch has moved running statistics when it is measured.
            return self.done + 1
        evaluation = (self.done // self.every + 1) * self.every
        return min(self.done + self.at_once, evaluation, self.options.steps)

    def advance(self, stop: int) -> None:
        """Take the steps up to ``stop``, at most :meth:`reach`: several at once where the kernels do."""
        if self.several is None or stop == self.done + 1 or not self.finite:
            self.step()
            self.finite = self.several is None or not self.members or self.stack.flat_finite()
            return
        if self.done % self.every == 0 and self._evaluate(None):
            self._drop_finished()
        if not self.members:
            return
        seconds = self._several_steps(stop)
        if seconds is None:  # step by step again, up to the one that diverges
            while self.members and self.done < stop:
                self.step()
            self.finite = not self.members or self.stack.flat_finite()
            return
        for member in self.members:
            member.done = self.done
        if seconds > LONGEST and self.at_once > 1:
            self.at_once //= 2

    def _several_steps(self, stop: int) -> float | None:
        """Take the steps up to ``stop`` at once, or none (None) where they lead to NaN or Inf.

        Returns the seconds that they took; 0 for the first time, which compiles them.
        """
        several, optimizer = self.several, self.optimizer
        assert several is not None
        assert isinstance(optimizer, FusedOptimizer)
        rates = [[member.rate(step) for member in self.members] for step in range(self.done, stop)]
        with interrupts_later():
            self.weights.mark()
            moments, scales = optimizer.copy(), several.gradient.state()
            self.begun = stop
            compiled, start = several.compiled, time.perf_counter()
            losses, self.finite = several.take(self.done, rates)
            seconds = time.perf_counter() - start
            if self.finite:
                for member, own in zip(self.members, losses.T.tolist(), strict=True):
                    del member.losses[self.done :]
                    member.losses.extend(own)
                self.done = stop
            else:
                self.weights.go_back()
                optimizer.restore(moments, self.done)
                several.gradient.load(scales)
                self.begun = self.done
        if not self.finite:
            return None
        return seconds if compiled else 0.0

    def step(self) -> None:
        """Take one gradient, measure if it is time, update; networks that end here are left as they were."""
        options = self.options
        batch = self.batches.rows(self.done)
        self.rates = [member.rate(self.done) for member in self.members]
        self.weights.begin()
        self.losses = self._gradient(batch).tolist()
        self._norms, self._gradient_at = None, self.done
        self._drop_diverged(batch)
        if self.members and self.done % self.every == 0 and self._evaluate(self.losses if self.free else None):
            self._drop_finished()
        if not self.members:
            return
        if options.clip_norm is not None:
            self._norms = self.stack.clip_gradients_(options.clip_norm)
        for member, loss in zip(self.members, self.losses, strict=True):
            del member.losses[self.done :]  # an interrupt may have come after the last time
            member.losses.append(loss)
        with interrupts_later() if isinstance(options.optimizer, str) else nullcontext():
            self.weights.mark()
            self.begun = self.done + 1
            self.optimizer.done = self.done
            self.optimizer.step(self.rates, functools.partial(self._again, batch))
            self.done = self.begun
            self.weights.end()
        self._tell_step()

    def _gradient(self, batch: Tensor | None) -> Tensor:
        with self._seeded():
            return self.gradient(batch, self.done)

    def _seeded(self) -> AbstractContextManager[Any]:
        """Draw what a network or a function of the user's own draws (dropout, points) from seed and step alone."""
        if not self.gradient.draws:
            return nullcontext()
        return drawing_from(self.members[0].seed, self.done, self.data.coords.device)

    def _again(self, batch: Tensor | None) -> float:
        """Take the gradient anew, for optimisers that look around before they step."""
        loss = float(self._gradient(batch))
        self._norms = None
        if self.options.clip_norm is not None:
            self._norms = self.stack.clip_gradients_(self.options.clip_norm)
        return loss

    # ---- callbacks -----------------------------------------------------------------------------------------------

    def _tell_step(self) -> None:
        ended = False
        for place, member in enumerate(self.members):
            member.done = self.done
            if self.options.callbacks and self._told("on_step", place, self.losses[place], self.rates[place]):
                member.stopped, ended = "callback", True
        if ended:
            self._drop_finished()

    def _told(self, method: str, place: int, loss: float, rate: float) -> bool:
        member, taken_at = self.members[place], self.done - (method == "on_step")

        def state() -> FitState:
            return FitState(
                net=member.net,
                index=member.index,
                step=self.done,
                steps=self.options.steps,
                loss=loss,
                lr=rate,
                psnr=member.psnr,
                best_psnr=member.best_psnr,
                coords=member.data.calling.with_axes(member.data.coords[0]),
                select=member.data.calling.select,
                _gradient_norm=functools.partial(self._gradient_norm, place, taken_at),
            )

        after = functools.partial(self._check_layout, place, method)
        with cores(self.callers_cores):
            return told(self.options.callbacks, method, member.net, state, after)

    def _check_layout(self, place: int, method: str) -> None:
        """Refuse what callbacks have done to a network that its fit would not follow."""
        change = self.layouts[place].change()
        if change is not None:
            kinds = ", ".join(dict.fromkeys(type(callback).__name__ for callback in self.options.callbacks))
            raise ChangedError(
                f"callbacks ({kinds}) may edit weights in place alone, but after {method} {change}; a fit would go on "
                "with what it began with: freeze, convert, replace and hook before the fit, or end it (state.stop()) "
                "and begin another"
            )

    def _gradient_norm(self, place: int, taken_at: int) -> float:
        """Return the norm, before clipping, of a network's gradient at the weights after ``taken_at`` updates."""
        if self._gradient_at != taken_at:
            return math.nan
        if self._norms is None:
            self._norms = self.stack.gradient_norms()
        return float(self._norms[place])

    # ---- evaluations ---------------------------------------------------------------------------------------------

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
                self._diverge(place, None)
                ended = True
                continue
            new = not member.history or member.history[-1][0] != self.done
            if member.record(self.done, psnr):
                improved.append(place)
            if new and self.options.callbacks:
                last = member.losses[self.done - 1] if self.done else math.nan
                rate = member.rate(self.done - 1) if self.done else math.nan
                if self._told("on_eval", place, last, rate):
                    member.stopped = "callback"
            member.stopped = member.stopped or self._verdict(member)
            ended |= bool(member.stopped)
        self.weights.improve(improved)
        return ended

    def _verdict(self, member: Member) -> str:
        """Return why a network needs no more steps, or an empty string."""
        if member.goal is not None and member.psnr >= member.goal:
            return "target_psnr"
        patience = self.options.patience
        return "patience" if patience is not None and member.since_best >= patience else ""

    def evaluate_end(self) -> None:
        """Measure the last weights, unless that was just done."""
        if any(not member.history or member.history[-1][0] != self.done for member in self.members):
            self._evaluate(None)

    # ---- ends ----------------------------------------------------------------------------------------------------

    def _drop_diverged(self, batch: Tensor | None) -> None:
        """Take networks out of the stack whose loss or gradient is not finite."""
        grads = self.stack.grads.values()
        sums = torch.stack([grad.reshape(len(grad), -1).sum(1) for grad in grads]).sum(0).tolist()
        ended = False
        for place, (loss, total) in enumerate(zip(self.losses, sums, strict=True)):
            # A sum is NaN or Inf where an entry is (the cheapest pass over them), and may be where none is.
            if math.isfinite(loss + total):
                continue
            if math.isfinite(loss) and all(bool(grad[place].isfinite().all()) for grad in grads):
                continue
            self._diverge(place, batch)
            ended = True
        if ended:
            self._drop_finished()

    def _diverge(self, place: int, batch: Tensor | None) -> None:
        """Set a network back to the last weights that gave finite numbers, and say what happened."""
        member = self.members[place]
        for name, grad in self.stack.grads.items():
            self.stack.owner(name, place).grad = grad[place]
        coords = member.data.coords[0]
        rows = None if batch is None else batch[place % len(batch)]
        calling = member.data.calling
        where = first_nonfinite(member.net, coords if rows is None else coords[rows], self.stack.beside, calling)
        part = self._nonfinite_part(place, rows) if where.startswith(("the loss", "the gradient")) else None
        self.weights.set_back(place)
        lr = member.rate(max(self.done - 1, 0))
        wider = ", or take precision='high'" if self.options.narrow else ""
        advice = (
            f"lower lr (it was {lr:.3g}), omega, the gain of the initialisation or the degree of a polynomial encoding"
        )
        if part is not None and self.done == 0:  # no rate has done anything yet
            advice = (
                "it is so at the weights of the start, whatever lr is: look at its formula, and at its numbers there"
            )
        who = named(member, len(self.members))
        member.stopped, member.error = (
            "diverged",
            DivergedError(
                f"{who} met a NaN or Inf after {self.done} updates, first in {part or where}; {advice}{wider}. The "
                "network was set back to its last good weights"
            ),
        )

    def _nonfinite_part(self, place: int, rows: Tensor | None) -> str | None:
        """Say which part of the objective fails at a network's weights on these rows, if one does by itself."""
        member = self.members[place]
        objective = replace(self.options.objective, modules=member.modules)
        parameters = [self.stack.owner(name, place) for name in self.stack.trainable]

        def batch() -> Batch:
            index = slice(None) if rows is None else rows
            own = batch_of(member.data, member.net, objective, index, self.done)
            return replace(own, prediction=member.data.calling.predicted(member.net, own.coords))

        with self._seeded():
            return nonfinite_part(objective, batch, parameters)

    def _drop_finished(self) -> None:
        """Take networks that have stopped out of the stack, with their losses and rates of this step."""
        for member in self.members:
            member.done = self.done
        if any(member.stopped and member.error is None for member in self.members):
            self.evaluate_end()
        for place, member in enumerate(self.members):
            if member.stopped:
                member.best_state = self.weights.best_state(place)
        index = [place for place, member in enumerate(self.members) if not member.stopped]
        if len(index) == len(self.members):
            return
        self.members = [self.members[place] for place in index]
        if not self.members:
            self.stack.release()
            return
        losses, rates, taken_at = self.losses, self.rates, self._gradient_at
        scales = self.gradient.state()
        self.stack, self.data = self.stack.keep(index), self.data.keep(index)
        self.evaluation = None if self.evaluation is None else self.evaluation.keep(index)
        self.weights.keep(self.stack, index, self._shaped())
        self.batches.keep(index)
        self.optimizer.keep(self.stack, index)
        self.engine, self.reason = engine_of(self._task())
        self._take()
        if scales is not None:
            self.gradient.load(scales[index])
        self._gradient_at = taken_at
        self.losses, self.rates = ([own[place] for place in index] if own else [] for own in (losses, rates))

    def undo(self) -> None:
        """Go back to the end of the last complete update, wherever in a step an interrupt or an error came."""
        if self.begun != self.done:
            self.weights.go_back()
        self.weights.undo()  # buffers too, which the step's forward pass had changed before its update
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
            member.best_state = self.weights.best_state(place)
        self.stack.release()

    def release(self) -> None:
        """Leave nothing of the fit in the networks but their weights."""
        self.stack.release()
        self.optimizer.release()

    # ---- states --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on: members, their number of steps, weights, best weights, optimiser."""
        scales = self.gradient.state()
        return {
            "members": [member.index for member in self.members],
            "done": self.done,
            "best": self.weights.best,
            "optimizer": self.optimizer.state(),
            **({} if scales is None else {"gradient": scales}),
        }

    def load(self, state: dict[str, Any], place: str, compared: bool = False) -> None:
        """Go on from a state of the same members, whose weights are in place.

        ``compared`` says that the settings of their optimiser are known to be those that the fit was started with.

        Raises
        ------
        ValueError
            It is not built as this group's own is; ``place`` names it.
        """
        check_like(state["best"], self.weights.best, f"{place}.best")
        self.optimizer.check(state["optimizer"], f"{place}.optimizer", settings=not compared)
        copy_(state["best"], self.weights.best)
        self.optimizer.load(state["optimizer"])
        scales = self.gradient.state()
        if scales is not None and "gradient" in state:
            check_like(state["gradient"], scales, f"{place}.gradient")
            self.gradient.load(state["gradient"])
        self.weights.mark()
        self.begun = self.done = state["done"]


def kind_of(member: Member, narrow: bool = False) -> Any:
    """Return what two networks must have in common to be stacked; a key of its own for what cannot be.

    ``narrow``: whether products between hidden layers may be in 16 bits.
    """
    net, data = member.net, member.data
    mlp = describe(net, modulated=True)
    if data.calling.select is not None or data.calling.axes > 2:
        return id(net)
    if isinstance(mlp, str) or all(against_formula(mlp, norms, modulated=True) for norms in ((BatchNorm,), ROWWISE)):
        return id(net)
    batch = any(isinstance(norm, BatchNorm) for norm in mlp.norms)
    if mlp.norms and narrow and not (batch and data.coords.device.type != "cpu"):
        return id(net)
    if batch and against_norms(net) is not None:
        return id(net)
    if mlp.modulations and (batch or against_filters(mlp) is not None):
        return id(net)
    parameters = [(name, tuple(p.shape), p.requires_grad, p.dtype, p.device) for name, p in net.named_parameters()]
    encoding = None if mlp.encoding is None else repr(mlp.encoding.config() | {"columns": mlp.columns})
    shapes = [None if own is None else tuple(own.shape) for own in (data.coords, data.target, data.weight)]
    evaluation = None if member.evaluation is None else member.evaluation.points
    activations = [(activation.name, activation.numbers) for activation in mlp.activations]
    normed = norms_of(net) if batch else [(layer.norm, layer.norm_after) for layer in mlp.hidden]
    filters = [None if layer.modulation is None else type(layer.modulation) for layer in mlp.hidden]
    return str((parameters, encoding, activations, normed, filters, shapes, evaluation))


def are_together(members: Sequence[Member], options: Options) -> bool:
    """Return whether networks of one :func:`kind_of` are stepped and measured together.

    Those with filters of the coordinates only by native steps.
    """
    found = describe(members[0].net, modulated=True)
    if isinstance(found, str) or not found.modulations:
        return True
    if options.objective.link is not None:
        return False
    task = task_of(members, members[0].data, options, torch.get_num_threads())
    measured = replace(task, data=members[0].evaluation or task.data, objective=Objective(), batch=None, measuring=True)
    return NativeGradient.reason_against(task) is None and NativeGradient.reason_against(measured) is None


def task_of(members: Sequence[Member], data: Data, options: Options, cores: int) -> Task:
    """Return what is asked of an engine."""
    return Task(
        nets=[member.net for member in members],
        data=data,
        objective=replace(options.objective, modules=members[0].modules),
        batch=options.batch_size,
        budget=options.memory_budget,
        narrow=options.narrow,
        cores=cores,
        trials=options.budgeted,
        backend=options.backend,
        named=options.named,
    )


def _watches_steps(callbacks: Sequence[Any]) -> bool:
    """Return whether a callback is to be told every step."""
    methods = [getattr(type(callback), "on_step", getattr(callback, "on_step", None)) for callback in callbacks]
    return any(method is not None and method is not Callback.on_step for method in methods)
