"""What :func:`inrfast.fit` and :func:`inrfast.fit_many` share: the door, the loop over steps, checkpoints, results."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrfast.errors import (
    DivergedError,
    InrfastError,
    MemoryBudgetError,
    NotAvailableError,
)
from inrfast.files import shown, sole_writer
from inrfast.memory import is_refusal
from inrfast.mlp import describe
from inrfast.nn import described_network
from inrfast.ops import gemm
from inrfast.threads import interrupts_later, one_core
from inrfast.training import callables, optimizers
from inrfast.training.checkpoint import check_like, differences, fingerprint, read_fit
from inrfast.training.data import range_of, stacked
from inrfast.training.divergence import growth, remedies
from inrfast.training.engines.task import against_formula
from inrfast.training.group import Member, Run
from inrfast.training.options import Settings, check_not_there
from inrfast.training.schema import FIT_SCHEMA, check
from inrfast.training.stack import modes_kept
from inrfast.training.trees import fault_told, pack, write_tree
from inrfast.words import one_line

UNLIKE_SCHEDULES = ("steps", "eval_every", "target_psnr", "patience")
"""Settings that a checkpoint may differ in; the number of steps only where no rate depends on it."""

Described = dict[str, dict[str, str]]
"""What is known of each callable of a fit, by its place."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did; the network itself holds the last weights.

    Attributes
    ----------
    steps
        Updates done: fewer than asked for where it stopped early.
    losses
        The training loss of every update, taken on its batch with the weights before the update.
    eval_steps, psnrs
        PSNR (dB, for ``data_range``, all points of the evaluation, eval mode) after that many updates; the first is of
        the start, the last of the end.
    psnr
        PSNR of the last weights.
    best_psnr, best_step, best_state
        The best of ``psnrs``, its step, and a copy of the ``state_dict`` that had it. With a loss of your own and a
        target that only stands in (zeros), they mean nothing.
    seconds
        Wall-clock time of the whole call; after a resume, of this call alone.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete update.
    config
        The settings and ``"gradient"``: ``"fused"``, ``"layerwise"``, ``"chunked"`` or ``"whole"``, the way gradients
        were taken.
    stopped
        Why it ended: ``"steps"`` (all done), ``"target_psnr"``, ``"patience"``, ``"callback"``, ``"interrupted"``, and
        in ``fit_many`` ``"diverged"``.
    error
        In ``fit_many``, what a diverged network's own fit would have raised.
    data_range
        The range of the signal for which the PSNRs are stated: see ``data_range`` of :func:`inrfast.fit`.
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
    stopped: str = "steps"
    error: DivergedError | None = None
    data_range: float = 1.0


# ---- the fit -----------------------------------------------------------------------------------------------------


class Session:
    """One call of ``fit`` or ``fit_many``.

    Parameters
    ----------
    members
        The networks with their data.
    settings
        What they have in common.
    config
        The settings for reports and checkpoints, as plain values.
    checkpoint, checkpoint_seconds, resume
        Where states are kept, how often, and whether to go on from one.
    progress
        Whether to show a bar.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: Settings,
        config: dict[str, Any],
        checkpoint: Path | None,
        checkpoint_seconds: float,
        resume: bool,
        progress: bool | None,
    ) -> None:
        self.members, self.settings, self.config = list(members), settings, config
        for index, member in enumerate(self.members):
            member.index = index
        self.path, self.every, self.progress, self.resume = checkpoint, checkpoint_seconds, progress, resume
        self.runs: list[Run] = []
        self.interrupted = False
        self.about: dict[str, Any] = {}
        self.causes: set[str] = set()
        # Before anything of a checkpoint is loaded into them.
        kept = self.path is not None
        self.in_states = [callables.names_in_state(callback) for callback in settings.callbacks] if kept else []
        self.watching = self._callbacks() if kept else {}

    def train(self) -> None:
        """Take all steps, or those until an interrupt; the members hold what came of it.

        Raises
        ------
        MemoryBudgetError
            Memory ended; the networks are as they were after their last complete update.
        BlockingIOError
            Another fit writes the checkpoint.
        """
        with ExitStack() as stack:
            if self.path is not None:
                stack.enter_context(sole_writer(self.path))
            start = self._start()
            state = self._read(start)
            for member in self.members:
                stack.enter_context(_training(member.net))
            libraries = self._libraries(state)
            if libraries is not None:
                stack.enter_context(gemm.forced(*libraries))
            bar = stack.enter_context(self._bar())
            try:
                stack.callback(self._release)
                begun = False
                self._make_runs(state)
                if self.path is not None:
                    self._check_callbacks()
                    self.about = {**self._describe(), **start}
                if state is not None:
                    self._warn_of_other_digits(state["about"])
                if all(run.gradient.one_core for run in self.runs):
                    stack.enter_context(one_core())
                begun = True
                with _out_of_memory_told(self.settings):
                    self._steps(bar)
            except KeyboardInterrupt:
                if not begun:  # nothing was done that a result could tell of
                    raise
                self.interrupted = True
            except BaseException as error:
                for run in self.runs:
                    run.undo()
                if begun and isinstance(error, SystemExit):  # as a handler of SIGTERM raises it
                    self._write(last=True)
                raise
            for run in self.runs:
                run.undo()
            if self.interrupted:  # before the end is measured, which an uninterrupted fit does not do here
                self._write(last=True)
            for run in self.runs:
                run.end("interrupted" if self.interrupted else "steps")
            if not self.interrupted and not self._failed():
                self._write(last=True)
                self._warn_of_growth()

    def _bar(self) -> Any:
        return tqdm(
            total=self.settings.steps,
            disable=None if self.progress is None else not self.progress,
            unit="step",
            dynamic_ncols=True,
        )

    def _warn_of_growth(self) -> None:
        """Warn, once for all networks, where a loss grew and nobody would see it but in the curve."""
        mean, found = not callable(self.settings.loss), []
        for member in self.members:
            whole = mean and self.settings.batch_size in (None, member.data.points)
            how = growth(member.losses, range_of(member.data, None) ** 2 if mean else None, whole)
            if how is not None and member.error is None:
                found.append((member, how))
        if not found:
            return
        member, how = found[0]
        who = "the fit" if len(self.members) == 1 else f"the fit of network {member.index}"
        others = f" ({len(found)} of {len(self.members)} networks are like this)" if len(found) > 1 else ""
        warnings.warn(
            f"{who} {how}{others}; {remedies(member.net, member.data.coords[0], member.lr)}. The best weights, of step "
            f"{member.best_step}, are in best_state",
            RuntimeWarning,
            stacklevel=5,
        )

    def _steps(self, bar: Any) -> None:
        first = min((run.done for run in self.runs), default=self.settings.steps)
        bar.update(first)
        written = shown = time.monotonic()
        step = first
        while step < self.settings.steps:
            going = [run for run in self.runs if run.members and run.done == step]
            stop = min((run.reach() for run in going), default=self.settings.steps)
            for run in going:
                run.advance(stop)
            if not any(run.members for run in self.runs) or self._failed():
                break
            now = time.monotonic()
            if self.path is not None and now - written >= self.every:
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
        """Return the PSNR for the progress bar."""
        psnrs = [member.psnr for member in self.members if member.history]
        if not psnrs:
            return ""
        if len(self.members) == 1:
            return f"PSNR {psnrs[0]:.2f} dB"
        going = sum(len(run.members) for run in self.runs)
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
            "net": net,
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
        )

    # ---- groups --------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        for run in self.runs:
            run.release()

    def _make_runs(self, state: dict[str, Any] | None) -> None:
        """Make the runs: networks of one shape together, every other network by itself."""
        if state is None:
            # A loss of the user's own is of one network's predictions.
            alone = callable(self.settings.loss)
            for group in [[member] for member in self.members] if alone else _grouped(self.members):
                self.runs.append(self._run(group))
            return
        going = {index for kept in state["groups"] for index in kept["members"]}
        before = [[tensor.clone() for tensor in _tensors(member.net)] for member in self.members]
        try:
            for member, kept in zip(self.members, state["networks"], strict=True):
                _restore(member, kept, member.index in going)
            for index, kept in enumerate(state["groups"]):
                self.runs.append(self._run([self.members[place] for place in kept["members"]]))
                self.runs[-1].load(kept, f"tree.groups[{index}]", compared="optimizer" in state["about"])
            self._load_callbacks(state["callbacks"])
        except BaseException as error:
            self._release()
            with torch.no_grad():
                for member, tensors in zip(self.members, before, strict=True):
                    for tensor, old in zip(_tensors(member.net), tensors, strict=True):
                        tensor.copy_(old)
            if isinstance(error, ValueError) and not isinstance(error, InrfastError):
                raise ValueError(f"checkpoint: {shown(self._file)} does not fit this fit: {error}") from error
            raise

    def _load_callbacks(self, states: Sequence[Any]) -> None:
        for index, (callback, kept) in enumerate(zip(self.settings.callbacks, states, strict=True)):
            if kept is None:
                continue
            try:
                callback.load_state_dict(kept)
            except Exception as error:  # of anybody's class, and of another than the one that wrote it
                name = f"callbacks[{index}] ({type(callback).__name__})"
                words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
                raise ValueError(f"{name} does not take its state ({words})") from error

    @property
    def _file(self) -> Path:
        assert self.path is not None
        return self.path

    def _run(self, members: list[Member]) -> Run:
        evaluations = [member.evaluation for member in members]
        own = None if evaluations[0] is None else stacked([data for data in evaluations if data is not None])
        return Run(members, stacked([member.data for member in members]), own, self.settings)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _check_callbacks(self) -> None:
        """Refuse states of callbacks that no checkpoint can hold, now and not at the first write."""
        for index, callback in enumerate(self.settings.callbacks):
            try:
                state = callback.state_dict() if hasattr(callback, "state_dict") else None
            except Exception:  # it may have none yet
                continue
            pack(state, f"callbacks[{index}].state_dict()", {})

    def _describe(self) -> dict[str, Any]:
        """Return what is said about the fit in its checkpoints."""
        dtypes = {member.data.target.dtype for member in self.members}
        return {
            **self._configuration(),
            "identities": {**self._identities(), **self.watching},
            "gemm": {str(dtype).removeprefix("torch."): gemm.choices(dtype) for dtype in dtypes},
            "machine": {
                "device": _device_name(self.members[0].data.target.device),
                "threads": torch.get_num_threads(),
                "processor": gemm.processor(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }

    def _layout(self) -> list[dict[str, Any]]:
        return [run.gradient.layout for run in self.runs if run.members]

    def _warn_of_other_digits(self, then: dict[str, Any]) -> None:
        """Warn if the fit will not repeat the digits of an uninterrupted one."""
        known = {name: value for name, value in self.about["machine"].items() if name in then["machine"]}
        now: dict[str, Any] = {"machine": known, "layout": self._layout()}  # files of old do not name the device
        if self.members[0].data.target.device.type == "cpu":  # the libraries of a CPU multiply nothing on a GPU
            now["gemm"] = self.about["gemm"]
        changed = differences(now, {key: then[key] for key in now})
        if changed:
            warnings.warn(
                f"the fit goes on from {shown(self._file)}, but not bit by bit: other {'; '.join(changed)}",
                RuntimeWarning,
                stacklevel=5,
            )

    def _configuration(self) -> dict[str, Any]:
        """Return what a checkpoint and the fit that goes on from it must have in common."""
        members = self.members
        return {
            "config": self.config,
            "nets": [described_network(member.net) or str(member.net) for member in members],
            "data": [fingerprint(m.data.coords, m.data.target, m.data.weight) for m in members],
            "own": [{"lr": m.lr, "seed": m.seed, "data_range": m.data_range} for m in members],
            "trainable": [[name for name, p in m.net.named_parameters() if p.requires_grad] for m in members],
            "evaluation": [None if (e := m.evaluation) is None else fingerprint(e.coords, e.target) for m in members],
        }

    def _identities(self) -> dict[str, dict[str, str]]:
        """Return what tells the callables and modules of a fit from others of the same text."""
        given = {"loss": self.settings.loss, "schedule": self.settings.schedule}
        found = {name: callables.described(own) for name, own in given.items() if callable(own)}
        return {**found, **{f"nets[{m.index}]": callables.attributes(m.net) for m in self.members}}

    def _callbacks(self) -> dict[str, dict[str, str]]:
        """Return what tells the callbacks from others, beside their states."""
        given = zip(self.settings.callbacks, self.in_states, strict=True)
        return {f"callbacks[{i}]": callables.of_callback(*own) for i, own in enumerate(given)}

    def _write(self, last: bool = False) -> None:
        """Write a checkpoint if one is asked for and every optimiser's state is that of its network's last update.

        Where that fails the fit goes on and says so, once for every cause and for the ``last`` one: a checkpoint is
        there to save work, not to end it.
        """
        if self.path is None or not self.about or not all(run.whole for run in self.runs):
            return
        try:
            with interrupts_later():
                write_tree(self.path, FIT_SCHEMA, self._state(), {**self.about, **self._present()}, durable=last)
        except Exception as error:
            reason = str(getattr(error, "strerror", None) or error)
            if not last and reason in self.causes:
                return
            self.causes.add(reason)
            done = max((run.done for run in self.runs), default=0)
            kept = "holds an earlier state" if self.path.exists() else "is not there"
            then = f"it is the last one, and {shown(self.path)} {kept}" if last else "the fit goes on, and tries again"
            warnings.warn(
                f"a checkpoint was not written after {done} steps: {reason}; {then}",
                RuntimeWarning,
                stacklevel=5 if last else 6,
            )

    def _state(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        return {
            "networks": [_kept(member) for member in self.members],
            "groups": [run.state() for run in self.runs if run.members],
            "callbacks": [
                callback.state_dict() if hasattr(callback, "state_dict") else None
                for callback in self.settings.callbacks
            ],
        }

    def _present(self) -> dict[str, Any]:
        """Return what is said about the fit and may be another than at its start."""
        # What has changed since the start is state, such as a count of calls, and tells nothing from another.
        now = {**self._identities(), **self._callbacks()}
        fixed = {
            place: {key: text for key, text in own.items() if now[place].get(key) == text}
            for place, own in self.about["identities"].items()
        }
        return {"identities": fixed, "layout": self._layout()}

    def _start(self) -> dict[str, Any]:
        """Return what an optimiser of the user's own is now, before anything changes it, for checkpoints."""
        if self.path is None or isinstance(self.settings.optimizer, str):
            return {}
        return {"optimizer": optimizers.started(self.settings.optimizer, self.members[0].net)}

    def _read(self, start: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state in the checkpoint, if there is one to go on from and it is one of this fit.

        What is said there about the fit's ``start`` is then what counts, for the checkpoints to come too.
        """
        if self.path is None:
            return None
        check_not_there(self.path, self.resume)  # once more, now that no other fit writes it
        if not self.path.exists():
            return None
        tree, about = read_fit(self.path)
        _as_before(about["own"], self.members)
        mine: dict[str, Any] = self._configuration()
        then: dict[str, Any] = {key: about[key] for key in mine if key in about}  # files of old have fewer
        mine = {key: mine[key] for key in then}
        free = (
            set(UNLIKE_SCHEDULES)
            if self.config["schedule"] not in ("exponential", "cosine")
            else set(UNLIKE_SCHEDULES[1:])
        )
        for side in (mine, then):
            side["config"] = {key: value for key, value in side["config"].items() if key not in free}
        wrong = differences(mine, then)
        now, before = self._identities(), about.get("identities", {})
        wrong += [f"{place}: {key}" for place in now for key in callables.different(now[place], before.get(place, {}))]
        if wrong:
            raise ValueError(f"checkpoint: {shown(self.path)} is of another fit, with other {_listed(wrong, 8)}")
        if len(tree["callbacks"]) != len(self.settings.callbacks):
            then_now = f"{len(tree['callbacks'])} callbacks, got {len(self.settings.callbacks)}"
            raise ValueError(f"checkpoint: {shown(self.path)} is of a fit with {then_now}")
        with fault_told(f"checkpoint: {shown(self.path)} does not fit this fit"):
            self._check_state(tree)
            if "optimizer" in start and "optimizer" in about:  # files of old have none
                groups = [group["optimizer"].get("param_groups") for group in tree["groups"]]
                kept = groups[0] if groups else None
                optimizers.check_started(start["optimizer"], about["optimizer"], kept, "optimizer")
        start.update({key: about[key] for key in start if key in about})
        self._warn_of("; not compared with what", callables.uncompared, now, before)
        # Most callbacks only watch, and what they do to the fit nobody knows.
        self._warn_of(" with callbacks other than", callables.different, self.watching, before)
        return {**tree, "about": about}

    def _check_state(self, tree: dict[str, Any]) -> None:
        """Check that a checkpoint's networks and groups are like those of this fit, before any of them is changed."""
        for index, (member, kept) in enumerate(zip(self.members, tree["networks"], strict=True)):
            place, own, unsaved = f"tree.networks[{index}]", dict(member.net.state_dict()), _unsaved(member.net)
            check_like(kept["net"], own, f"{place}.net")
            if kept["best_state"] or kept["stopped"]:
                check_like(kept["best_state"], own, f"{place}.best_state")
            buffers = kept.get("buffers", {})  # files of old have none
            check_like(buffers, {name: unsaved.get(name) for name in buffers}, f"{place}.buffers")
        for index, group in enumerate(tree["groups"]):
            kinds = {_kind(self.members[place]) for place in group["members"]}
            check(f"tree.groups[{index}].members", len(kinds) == 1, "of networks of one shape", group["members"])

    def _warn_of(self, what: str, keys: Callable[..., list[str]], now: Described, then: Described) -> None:
        """Name what ``keys`` finds between two descriptions, ``now`` and that of the fit in the checkpoint."""
        found = [f"{place}: {key}" for place in now for key in keys(now[place], then.get(place, {}))]
        if found:
            warnings.warn(
                f"the fit goes on from {shown(self._file)}{what} it began with: {_listed(found, 5)}",
                RuntimeWarning,
                stacklevel=6,
            )

    def _libraries(self, state: dict[str, Any] | None) -> tuple[torch.dtype, dict[str, str]] | None:
        """Return the matrix libraries to force: those of the checkpoint, whatever is measured now."""
        if state is None or self.members[0].data.target.device.type != "cpu":
            return None
        dtype = self.members[0].data.target.dtype
        libraries = state["about"]["gemm"].get(str(dtype).removeprefix("torch."), {})
        try:
            with gemm.forced(dtype, libraries):
                return dtype, libraries
        except NotAvailableError as error:
            warnings.warn(f"the fit goes on, but not bit by bit: {error}", RuntimeWarning, stacklevel=5)
            return None


def _device_name(device: torch.device) -> str:
    """Return what a GPU is called, or the kind of any other device: another one gives other digits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _listed(found: Sequence[str], most: int) -> str:
    return "; ".join(one_line(entry, 160) for entry in found[:most]) + (
        f" and {len(found) - most} more" if len(found) > most else ""
    )


def _as_before(own: list[dict[str, Any]], members: Sequence[Member]) -> None:
    """Take the PSNR's range of files that do not name it, which is 1, where none is asked for."""
    for then, member in zip(own, members, strict=False):
        if "data_range" not in then:
            then["data_range"] = 1.0
            member.data_range = member.data_range if member.range_given else 1.0


def _kept(member: Member) -> dict[str, Any]:
    """Return the state of one network, its history included."""
    return {
        "net": dict(member.net.state_dict()),
        "buffers": _unsaved(member.net),
        "done": member.done,
        "losses": torch.tensor(member.losses[: member.done], dtype=torch.float64),
        "eval_steps": torch.tensor([step for step, _ in member.history], dtype=torch.int64),
        "psnrs": torch.tensor([psnr for _, psnr in member.history], dtype=torch.float64),
        "best_state": member.best_state,
        "stopped": member.stopped,
        "error": None if member.error is None else str(member.error),
    }


def _unsaved(net: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that ``state_dict`` leaves out (``persistent=False``)."""
    saved = net.state_dict()
    return {name: buffer for name, buffer in net.named_buffers() if name not in saved}


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


@torch.no_grad()
def _restore(member: Member, kept: dict[str, Any], going: bool) -> None:
    """Take over the state of one network, which goes on or has stopped for good."""
    own = member.net.state_dict()
    if all(isinstance(tensor, Tensor) for tensor in own.values()):
        for name, tensor in own.items():
            tensor.copy_(kept["net"][name])
    else:  # modules with an extra state
        member.net.load_state_dict(kept["net"])
    for name, tensor in _unsaved(member.net).items():
        if name in kept.get("buffers", {}):  # files of old have none
            tensor.copy_(kept["buffers"][name])
    member.done = kept["done"]
    member.losses = kept["losses"].tolist()
    for step, psnr in zip(kept["eval_steps"].tolist(), kept["psnrs"].tolist(), strict=True):
        member.record(step, psnr)
    member.best_state = {
        name: tensor.to(own[name]) if isinstance(tensor, Tensor) else tensor
        for name, tensor in kept["best_state"].items()
    }
    member.stopped = "" if going else kept["stopped"]
    member.error = None if kept["error"] is None else DivergedError(kept["error"])


def _grouped(members: Sequence[Member]) -> list[list[Member]]:
    """Return networks whose steps can be taken together: INRs of one shape on equally many points."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(_kind(member), []).append(member)
    return list(groups.values())


def _kind(member: Member) -> Any:
    """Return what two networks must have in common to be stacked; a key of its own for what cannot be."""
    net, data = member.net, member.data
    mlp = describe(net)
    if isinstance(mlp, str) or against_formula(mlp) is not None:
        return id(net)
    parameters = [(name, tuple(p.shape), p.requires_grad, p.dtype, p.device) for name, p in net.named_parameters()]
    encoding = None if mlp.encoding is None else repr(mlp.encoding.config() | {"columns": mlp.columns})
    shapes = [None if own is None else tuple(own.shape) for own in (data.coords, data.target, data.weight)]
    evaluation = None if member.evaluation is None else member.evaluation.points
    activations = [(activation.name, activation.numbers) for activation in mlp.activations]
    return str((parameters, encoding, activations, shapes, evaluation))


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
def _out_of_memory_told(settings: Settings) -> Iterator[None]:
    """Say what would fit where memory ends after all."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, InrfastError) or not is_refusal(error):
            raise
        advice = "a smaller batch_size" if settings.batch_size is None else f"a batch_size below {settings.batch_size}"
        raise MemoryBudgetError(
            f"memory ended during the fit ({str(error).splitlines()[0]}); {advice} or a narrower network would fit. "
            "The networks are as they were after their last complete update"
        ) from error
