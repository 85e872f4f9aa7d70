"""One call of ``fit`` or ``fit_many``: its groups of networks, the loop over their steps, checkpoints, results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import InrfastError, MemoryBudgetError, warn
from inrfast.files import shown, sole_writer
from inrfast.memory import is_refusal
from inrfast.mlp import describe
from inrfast.modes import modes_kept
from inrfast.nn import described_network
from inrfast.ops import gemm
from inrfast.progress import progress_bar
from inrfast.threads import one_core
from inrfast.training.callbacks import places
from inrfast.training.checkpoint import Checkpoint
from inrfast.training.data import range_of
from inrfast.training.divergence import growth, remedies
from inrfast.training.group import Group, are_together, kind_of
from inrfast.training.member import Member, named
from inrfast.training.options import Options
from inrfast.training.result import FitResult
from inrfast.training.trained import ChangedError, named_of, sole_trainer


class Trainer:
    """Takes the steps of all networks of a fit.

    Parameters
    ----------
    members
        The networks with their data.
    options
        What they have in common.
    config
        The options for results and checkpoints, as plain values.
    """

    def __init__(self, members: Sequence[Member], options: Options, config: dict[str, Any]) -> None:
        self.members, self.options, self.config = list(members), options, config
        for index, member in enumerate(self.members):
            member.index = index
        self.groups: list[Group] = []
        self.interrupted = False
        self.written = [member.data.written() for member in self.members]
        path = options.checkpoint
        self.checkpoint = None if path is None else Checkpoint(path, self.members, options, config)

    def train(self) -> None:
        """Take all steps, or those until an interrupt; the members hold what came of it.

        Raises
        ------
        MemoryBudgetError
            Memory ended; the networks are as they were after their last complete update.
        BlockingIOError
            Another fit writes the checkpoint.
        RuntimeError
            Another fit trains one of the networks.
        """
        with ExitStack() as stack:
            given = [named_of(member.net, member.modules, member.place) for member in self.members]
            stack.enter_context(sole_trainer({name: module for own in given for name, module in own.items()}))
            state = self._read(stack)
            for member in self.members:
                for module in (member.net, *member.modules):
                    stack.enter_context(_training(module))
            self._force_libraries(stack, state)
            bar = stack.enter_context(self._bar())
            begun, at_start = False, 0
            try:
                stack.callback(self._release)
                self._begin(state)
                if all(group.gradient.one_core for group in self.groups):
                    stack.enter_context(one_core())
                begun = True
                at_start = self._updates()
                with _out_of_memory_told(self.options):
                    self._steps(bar)
            except KeyboardInterrupt:
                if not begun:  # nothing was done that a result could tell of
                    raise
                self.interrupted = True
            except BaseException as error:
                for group in self.groups:
                    group.undo()
                if begun:
                    self._save_after(error, at_start)
                raise
            try:
                self._end()
            except BaseException as error:  # of a callback that is told the last evaluation
                self._save_after(error, at_start)
                raise

    def _read(self, stack: ExitStack) -> dict[str, Any] | None:
        """Return the state to go on from, if there is one, as the only fit that writes the checkpoint."""
        if self.checkpoint is None:
            return None
        stack.enter_context(sole_writer(self.checkpoint.path))
        return self.checkpoint.read()

    def _force_libraries(self, stack: ExitStack, state: dict[str, Any] | None) -> None:
        if self.checkpoint is None or state is None:
            return
        libraries = self.checkpoint.libraries(state["about"])
        if libraries is not None:
            stack.enter_context(gemm.forced(*libraries))

    def _begin(self, state: dict[str, Any] | None) -> None:
        self._make_groups(state)
        if self.checkpoint is not None:
            self.checkpoint.describe()
            if state is not None:
                self.checkpoint.warn_of_other_digits(self.groups, state["about"])

    def _check_unwritten(self) -> None:
        """Refuse functions that changed the points, values or weights that they were given to read."""
        for member, before in zip(self.members, self.written, strict=True):
            names = ("coords", "target", "weight")
            changed = [n for n, a, b in zip(names, before, member.data.written(), strict=True) if a != b]
            if changed:
                suspects = [*own_code(member.net), *self.options.objective.own_code]
                raise ValueError(
                    f"{' and '.join(changed)} of {named(member, len(self.members))} changed in its steps, which are "
                    f"taken on copies of your tensors: {' or '.join(suspects)} writes into its arguments; let it work "
                    "on a copy (.clone())"
                )

    def _end(self) -> None:
        """Measure the last weights and write the last checkpoint."""
        for group in self.groups:
            group.undo()
        self._check_unwritten()
        if self.interrupted:  # before the end is measured, which an uninterrupted fit does not do here
            self._write(last=True)
        for group in self.groups:
            group.end("interrupted" if self.interrupted else "steps")
        if not self.interrupted and not self._failed():
            self._write(last=True)
            self._warn_of_growth()

    def _write(self, last: bool = False) -> None:
        if self.checkpoint is not None:
            self.checkpoint.write(self.groups, last)

    def _save_after(self, error: BaseException, at_start: int) -> None:
        """Write the last complete update where an error would lose it: there were more than ``at_start``."""
        # A handler of SIGTERM raises SystemExit, which is an interrupt.
        worth = self._updates() > at_start or isinstance(error, SystemExit)
        if worth and not isinstance(error, ChangedError):
            self._write(last=True)

    def _updates(self) -> int:
        return sum(group.done for group in self.groups)

    def _bar(self) -> Any:
        shown = self.options.progress
        return progress_bar(total=self.options.steps, progress=shown, unit="step", dynamic_ncols=True)

    def _warn_of_growth(self) -> None:
        """Warn, once for all networks, where a loss grew and nobody would see it but in the curve."""
        objective, found = self.options.objective, []
        loss = None if objective.regularizers else objective.named
        for member in self.members:
            whole = loss is not None and self.options.batch_size in (None, member.data.points)
            how = growth(member.losses, loss, range_of(member.data, None), whole)
            if how is not None and member.error is None:
                found.append((member, how))
        if not found:
            return
        member, how = found[0]
        others = f" ({len(found)} of {len(self.members)} networks are like this)" if len(found) > 1 else ""
        advice = remedies(member.net, member.data.coords[0], member.lr)
        warn(
            f"{named(member, len(self.members))} {how}{others}; {advice}. The best weights, of step "
            f"{member.best_step}, are in best_state"
        )

    def _steps(self, bar: Any) -> None:
        options, groups = self.options, self.groups
        step = min((group.done for group in groups), default=options.steps)
        bar.update(step)
        written = shown = time.monotonic()
        looked = False
        while step < options.steps:
            going = [group for group in groups if group.members and group.done == step]
            stop = min((group.reach() for group in going), default=options.steps)
            for group in going:
                group.advance(stop)
            if not looked:
                looked = True
                self._check_unwritten()
            if not any(group.members for group in groups) or self._failed():
                break
            now = time.monotonic()
            if self.checkpoint is not None and now - written >= options.checkpoint_seconds:
                self._write()
                written = time.monotonic()
            if now - shown > 0.05 and not bar.disable:
                bar.set_postfix_str(self._outcome(), refresh=False)
                shown = now
            bar.update(stop - step)
            step = stop
        bar.set_postfix_str(self._outcome())

    def _failed(self) -> bool:
        """Return whether the only network diverged: its fit raises."""
        return len(self.members) == 1 and self.members[0].error is not None

    def _outcome(self) -> str:
        """Return the PSNR for the progress bar; the loss where targets stand in beside a loss of one's own."""
        if self.options.objective.named is None and all(_stands_in(member) for member in self.members):
            losses = [member.losses[-1] for member in self.members if member.losses]
            return f"loss {statistics.median(losses):.3g}" if losses else ""
        psnrs = [member.psnr for member in self.members if member.history]
        if not psnrs:
            return ""
        if len(self.members) == 1:
            return f"PSNR {psnrs[0]:.2f} dB"
        going = sum(len(group.members) for group in self.groups)
        return f"median PSNR {statistics.median(psnrs):.2f} dB, {going} of {len(self.members)} networks going"

    def result(self, member: Member, seconds: float) -> FitResult:
        """Return what one network's fit did."""
        net = described_network(member.net) or type(member.net).__name__
        own = {
            "lr": member.lr,
            "seed": member.seed,
            "data_range": member.data_range,
            "eval_every": member.eval_every,
            "points": member.data.points,
            "gradient": member.gradient,
            "reason": member.reason,
            "net": net,
            **member.made.described(),
        }
        return FitResult(
            steps=member.done,
            losses=tuple(member.losses[: member.done]),
            eval_steps=tuple(step for step, _ in member.history),
            psnrs=tuple(psnr for _, psnr in member.history),
            psnr=member.psnr,
            best_psnr=member.best_psnr,
            best_step=member.best_step,
            best_state=member.best_state,
            seconds=seconds,
            interrupted=member.stopped == "interrupted",
            config={**self.config, **own},
            stopped=member.stopped,
            error=member.error,
            data_range=member.data_range,
            grid=member.made.grid,
        )

    # ---- groups --------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        for group in self.groups:
            group.release()

    def _make_groups(self, state: dict[str, Any] | None) -> None:
        """Make the groups: networks of one shape together, every other network by itself."""
        if state is None:
            # Functions of the user's own are of one network.
            alone = bool(self.options.objective.terms) or any(member.modules for member in self.members)
            for members in [[member] for member in self.members] if alone else _grouped(self.members, self.options):
                self.groups.append(Group(members, self.options))
            return
        tensors = [tensor for m in self.members for module in (m.net, *m.modules) for tensor in _tensors(module)]
        before = [tensor.clone() for tensor in tensors]
        try:
            self._load(state)
        except BaseException as error:
            self._release()
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)
            if isinstance(error, ValueError) and not isinstance(error, InrfastError):
                assert self.checkpoint is not None
                raise ValueError(f"checkpoint: {shown(self.checkpoint.path)} does not fit this fit: {error}") from error
            raise

    def _load(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state of networks, groups and callbacks."""
        going = {index for kept in state["groups"] for index in kept["members"]}
        for member, kept in zip(self.members, state["networks"], strict=True):
            member.load(kept, member.index in going)
        for index, kept in enumerate(state["groups"]):
            self.groups.append(Group([self.members[place] for place in kept["members"]], self.options))
            self.groups[-1].load(kept, f"tree.groups[{index}]", compared="optimizer" in state["about"])
        named = zip(places(self.options.callbacks), self.options.callbacks, state["callbacks"], strict=True)
        for place, callback, kept in named:
            if kept is None:
                continue
            try:
                callback.load_state_dict(kept)
            except Exception as error:  # of anybody's class, and of another than the one that wrote it
                name = f"{place} ({type(callback).__name__})"
                words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
                raise ValueError(f"{name} does not take its state ({words})") from error


def _stands_in(member: Member) -> bool:
    """Return whether the values that a PSNR would compare with are one value everywhere."""
    target = (member.evaluation or member.data).target
    return bool((target == target.flatten()[0]).all())


def own_code(net: nn.Module) -> list[str]:
    """Return what of a network calls code that is not this library's and gets the coordinates, as messages call it."""
    mlp = describe(net)
    if isinstance(mlp, str):
        return [f"the network ({type(net).__name__})"]
    return [] if mlp.known_encoding else [f"the encoding ({type(mlp.encoding).__name__})"]


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _grouped(members: Sequence[Member], options: Options) -> list[list[Member]]:
    """Return networks whose steps can be taken together: INRs of one shape on equally many points."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(kind_of(member, options.narrow), []).append(member)
    found: list[list[Member]] = []
    for own in groups.values():
        found += [own] if len(own) == 1 or are_together(own, options) else [[member] for member in own]
    return found


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


@contextmanager
def _out_of_memory_told(options: Options) -> Iterator[None]:
    """Say what would fit where memory ends after all."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, InrfastError) or not is_refusal(error):
            raise
        advice = "a smaller batch_size" if options.batch_size is None else f"a batch_size below {options.batch_size}"
        raise MemoryBudgetError(
            f"memory ended during the fit ({str(error).splitlines()[0]}); {advice} or a narrower network would fit. "
            "The networks are as they were after their last complete update"
        ) from error
