"""Checkpoints of fits: what is said about a fit, its state, and whether a file's state is that of the fit at hand."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import NotAvailableError, warn
from inrfast.files import shown
from inrfast.nn import INR, described_network, has_drawn_seed
from inrfast.ops import gemm
from inrfast.threads import interrupts_later
from inrfast.training import callables
from inrfast.training.callbacks import callers, places
from inrfast.training.data import Data
from inrfast.training.group import Group, kind_of
from inrfast.training.member import Member, tensors_of, unsaved
from inrfast.training.networks import load_network, save_network
from inrfast.training.optimizers.torchs import check_started, started
from inrfast.training.options import Options, check_not_there
from inrfast.training.schema import FIT_SCHEMA, check, check_fit, check_like
from inrfast.training.trees import fault_told, pack, read_tree, write_tree
from inrfast.words import one_line, shortened

__all__ = ["Checkpoint", "load_network", "save_network"]

UNLIKE_SCHEDULES = ("steps", "eval_every", "target_psnr", "patience")
"""Settings that a checkpoint may differ in; the number of steps only where no rate depends on it."""

Described = dict[str, dict[str, str]]
"""What is known of each callable of a fit, by its place."""


class Checkpoint:
    """The file of one fit: read once at its start, written again and again.

    Made before anything of the file is loaded into networks, optimisers and callbacks.

    Parameters
    ----------
    path
        The file.
    members, options
        The networks, and what they have in common.
    config
        The options as plain values.
    """

    def __init__(self, path: Path, members: Sequence[Member], options: Options, config: dict[str, Any]) -> None:
        self.path, self.members, self.options, self.config = path, members, options, config
        self.in_states = [callables.names_in_state(callback) for callback in options.callbacks]
        self.watching = self._callbacks()
        self.about: dict[str, Any] = {}
        self.causes: set[str] = set()
        # What an optimiser of the user's own is, before anything changes it.
        self.start: dict[str, Any] = {}
        if not isinstance(options.optimizer, str):
            self.start["optimizer"] = started(options.optimizer, members[0].net, members[0].modules)

    # ---- what is said about a fit --------------------------------------------------------------------------------

    def describe(self) -> None:
        """Take down what is said about the fit in the files to come; refuse states of callbacks that none can hold."""
        for place, callback in zip(places(self.options.callbacks), self.options.callbacks, strict=True):
            try:
                state = callback.state_dict() if hasattr(callback, "state_dict") else None
            except Exception:  # it may have none yet
                continue
            pack(state, f"{place}.state_dict()", {})
        dtypes = {member.data.target.dtype for member in self.members}
        self.about = {
            **self._configuration(),
            "identities": {**self._identities(), **self.watching},
            "gemm": {str(dtype).removeprefix("torch."): gemm.choices(dtype) for dtype in dtypes},
            "machine": machine_of(self._device),
            **self.start,
        }

    @property
    def _device(self) -> torch.device:
        return self.members[0].data.target.device

    def _configuration(self) -> dict[str, Any]:
        """Return what a checkpoint and the fit that goes on from it must have in common."""
        members = self.members
        return {
            "config": self.config,
            "nets": [described_network(member.net) or str(member.net) for member in members],
            "data": [_fingerprint_of(m.data) for m in members],
            "parts": [{name: fingerprint(own) for name, own in _parts_of(m.data).items()} for m in members],
            "own": [{"lr": m.lr, "seed": m.seed, "data_range": m.data_range} for m in members],
            "trainable": [[name for name, p in m.net.named_parameters() if p.requires_grad] for m in members],
            "evaluation": [None if (e := m.evaluation) is None else _fingerprint_of(e, 2) for m in members],
        }

    def _identities(self) -> Described:
        """Return what tells the callables and modules of a fit from others of the same text."""
        given: dict[str, Any] = {term.place: term.call for term in self.options.objective.terms}
        given |= {"schedule": self.options.schedule, "select": self.options.select}
        found = {name: callables.described(own) for name, own in given.items() if callable(own)}
        for member in self.members:
            found[f"nets[{member.index}]"] = callables.attributes(member.net)
            for place, module in enumerate(member.modules):
                found[f"modules[{member.index}][{place}]"] = callables.attributes(module)
        return found

    def _callbacks(self) -> Described:
        """Return what tells the callbacks from others, beside their states."""
        given = zip(places(self.options.callbacks), self.options.callbacks, self.in_states, strict=True)
        return {place: callables.of_callback(*own) for place, *own in given}

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], last: bool = False) -> None:
        """Write the file if every optimiser's state is that of its network's last update.

        Where that fails the fit goes on and says so, once for every cause and for the ``last`` one: a checkpoint is
        there to save work, not to end it.
        """
        if not self.about or not all(group.whole for group in groups):
            return
        try:
            with interrupts_later():
                about = {**self.about, **self._present(groups)}
                write_tree(self.path, FIT_SCHEMA, self._state(groups), about, durable=last)
        except Exception as error:
            reason = str(getattr(error, "strerror", None) or error)
            if not last and reason in self.causes:
                return
            self.causes.add(reason)
            done = max((group.done for group in groups), default=0)
            kept = "holds an earlier state" if self.path.exists() else "is not there"
            then = f"it is the last one, and {shown(self.path)} {kept}" if last else "the fit goes on, and tries again"
            warn(f"a checkpoint was not written after {done} steps: {reason}; {then}")

    def _state(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        return {
            "networks": [member.state() for member in self.members],
            "groups": [group.state() for group in groups if group.members],
            "callbacks": [
                callback.state_dict() if hasattr(callback, "state_dict") else None
                for callback in self.options.callbacks
            ],
        }

    def _present(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Return what is said about the fit and may be another than at its start."""
        # What has changed since the start is state, such as a count of calls, and tells nothing from another.
        now = {**self._identities(), **self._callbacks()}
        fixed = {
            place: {key: text for key, text in own.items() if now[place].get(key) == text}
            for place, own in self.about["identities"].items()
        }
        return {"identities": fixed, "layout": _layout(groups)}

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any] | None:
        """Return the state in the file, if there is one to go on from and it is one of this fit.

        What is said there about the start of the fit's optimiser is then what counts, for the files to come too.

        Raises
        ------
        ValueError
            It is damaged, or of another fit.
        FileExistsError
            It is there, and the fit is not to go on from it.
        """
        check_not_there(self.path, self.options.resume)  # once more, now that no other fit writes it
        if not self.path.exists():
            return None
        tree, about = read_fit(self.path)
        _as_before(about["own"], self.members)
        now, before = self._identities(), about.get("identities", {})
        _place_norms_as_now(about["nets"], before, self.members)
        _seeds_as_now(about["nets"], self.members)
        self._check_same(about, now, before)
        if len(tree["callbacks"]) != len(self.options.callbacks):
            added = len(self.options.callbacks) - len(callers(self.options.callbacks))  # a solver's, in every fit of it
            then_now = f"{len(tree['callbacks']) - added} callbacks, got {len(self.options.callbacks) - added}"
            raise ValueError(f"checkpoint: {shown(self.path)} is of a fit with {then_now}")
        with fault_told(f"checkpoint: {shown(self.path)} does not fit this fit"):
            self._check_state(tree)
            if "optimizer" in self.start and "optimizer" in about:  # files of old have none
                groups = [group["optimizer"].get("param_groups") for group in tree["groups"]]
                kept = groups[0] if groups else None
                check_started(self.start["optimizer"], about["optimizer"], kept, "optimizer")
        self.start.update({key: about[key] for key in self.start if key in about})
        self._warn_of("; not compared with what", callables.uncompared, now, before)
        # Most callbacks only watch, and what they do to the fit nobody knows.
        self._warn_of(" with callbacks other than", callables.different, self.watching, before)
        return {**tree, "about": about}

    def _check_same(self, about: dict[str, Any], now: Described, before: Described) -> None:
        """Check that the file's networks, data and options are those of this fit."""
        mine: dict[str, Any] = self._configuration()
        then: dict[str, Any] = {key: about[key] for key in mine if key in about}  # files of old have fewer
        mine = {key: mine[key] for key in then}
        by_steps = self.config["schedule"] in ("exponential", "cosine")
        free = set(UNLIKE_SCHEDULES[1:] if by_steps else UNLIKE_SCHEDULES)
        for side in (mine, then):
            side["config"] = {key: value for key, value in side["config"].items() if key not in free}
        wrong = _other_data(mine, then) + differences(mine, then)
        wrong += [f"{place}: {key}" for place in now for key in callables.different(now[place], before.get(place, {}))]
        if wrong:
            raise ValueError(f"checkpoint: {shown(self.path)} is of another fit, with other {_listed(wrong, 8)}")

    def _check_state(self, tree: dict[str, Any]) -> None:
        """Check that a checkpoint's networks and groups are like those of this fit, before any of them is changed."""
        for index, (member, kept) in enumerate(zip(self.members, tree["networks"], strict=True)):
            place, own, beside = f"tree.networks[{index}]", dict(member.net.state_dict()), unsaved(member.net)
            check_like(kept["net"], own, f"{place}.net")
            if kept["best_state"] or kept["stopped"]:
                check_like(kept["best_state"], own, f"{place}.best_state")
            buffers = kept.get("buffers", {})  # files of old have none
            check_like(buffers, {name: beside.get(name) for name in buffers}, f"{place}.buffers")
            modules = [tensors_of(module) for module in member.modules]
            check_like(kept.get("modules", []), modules, f"{place}.modules")
        for index, group in enumerate(tree["groups"]):
            kinds = {kind_of(self.members[place]) for place in group["members"]}
            check(f"tree.groups[{index}].members", len(kinds) == 1, "of networks of one shape", group["members"])

    def _warn_of(self, what: str, keys: Callable[..., list[str]], now: Described, then: Described) -> None:
        """Name what ``keys`` finds between two descriptions, ``now`` and that of the fit in the checkpoint."""
        found = [f"{place}: {key}" for place in now for key in keys(now[place], then.get(place, {}))]
        if found:
            warn(f"the fit goes on from {shown(self.path)}{what} it began with: {_listed(found, 5)}")

    def warn_of_other_digits(self, groups: Sequence[Group], then: dict[str, Any]) -> None:
        """Warn if the fit will not repeat the digits of an uninterrupted one."""
        known = {name: value for name, value in self.about["machine"].items() if name in then["machine"]}
        now: dict[str, Any] = {"machine": known, "layout": _layout(groups)}  # files of old do not name the device
        if self._device.type == "cpu":  # the libraries of a CPU multiply nothing on a GPU
            now["gemm"] = self.about["gemm"]
        changed = differences(now, {key: then[key] for key in now})
        if changed:
            warn(f"the fit goes on from {shown(self.path)}, but not bit by bit: other {'; '.join(changed)}")

    def libraries(self, about: dict[str, Any]) -> tuple[torch.dtype, dict[str, str]] | None:
        """Return the matrix libraries to force: those of the checkpoint, whatever is measured now."""
        if self._device.type != "cpu":
            return None
        dtype = self.members[0].data.target.dtype
        libraries = about["gemm"].get(str(dtype).removeprefix("torch."), {})
        try:
            with gemm.forced(dtype, libraries):
                return dtype, libraries
        except NotAvailableError as error:
            warn(f"the fit goes on, but not bit by bit: {error}")
            return None


def _parts_of(data: Data) -> dict[str, Tensor | None]:
    """Return points, with the axes that a network is called with, values and weights by the names of the arguments."""
    return {"coords": data.calling.with_axes(data.coords), "target": data.target, "weight": data.weight}


def _fingerprint_of(data: Data, parts: int = 3) -> str:
    return fingerprint(*list(_parts_of(data).values())[:parts])


def _other_data(mine: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Take the data out of two descriptions, and say which arguments differ, and of which network of several."""
    now, before = mine.pop("data"), then.pop("data")
    parts = zip(mine.pop("parts", [{}] * len(now)), then.pop("parts", [{}] * len(before)), strict=False)
    if len(now) != len(before):
        return [f"nets (now {len(now)}, in the checkpoint {len(before)})"]
    found = []
    for index, (one, other, (own, theirs)) in enumerate(zip(now, before, parts, strict=True)):
        if one != other:
            names = [name for name in own if theirs.get(name) != own[name]] if theirs else []
            of = f" of nets[{index}]" if len(now) > 1 else ""
            found.append((", ".join(names) or "coords, target or weight") + of)
    return found


def _layout(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [group.gradient.layout for group in groups if group.members]


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return what of a machine decides about the last digits."""
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "processor": gemm.processor(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _device_name(device: torch.device) -> str:
    """Return what a GPU is called, or the kind of any other device: another one gives other digits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _listed(found: Sequence[str], most: int) -> str:
    return "; ".join(one_line(entry, 160) for entry in found[:most]) + (
        f" and {len(found) - most} more" if len(found) > most else ""
    )


def _as_before(own: list[dict[str, Any]], members: Sequence[Member]) -> None:
    """Take the file's seed where none is asked for, and the PSNR's range of files that do not name it, which is 1."""
    for then, member in zip(own, members, strict=False):
        if not member.seed_given:
            member.seed = then["seed"]
        if "data_range" not in then:
            then["data_range"] = 1.0
            member.data_range = member.data_range if member.range_given else 1.0


def _seeds_as_now(nets: list[Any], members: Sequence[Member]) -> None:
    """Take the seeds of networks that were drawn for those of the file, whose weights they are about to get."""
    for then, member in zip(nets, members, strict=False):
        if isinstance(then, dict) and has_drawn_seed(member.net) and isinstance(then.get("seed"), int):
            member.own_seed, then["seed"] = then["seed"], member.net.seed


def _place_norms_as_now(nets: list[Any], before: Described, members: Sequence[Member]) -> None:
    """Take the present position of norms for networks that have none: files state the default of their version."""
    for then, member in zip(nets, members, strict=False):
        if not isinstance(then, dict) or not isinstance(member.net, INR):
            continue
        if not any(then["norm"] if isinstance(then["norm"], list) else [then["norm"]]):
            then["norm_position"] = member.net.norm_position
            before.get(f"nets[{member.index}]", {}).pop("norm_position", None)


def read_fit(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tree of a checkpoint and what is said about its fit, both as the schema has them.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError, MemoryBudgetError, ValueError
        As :func:`inrfast.training.trees.read_tree`; the file's description is damaged.
    """
    _, tree, about = read_tree(path, (FIT_SCHEMA,))
    with fault_told(f"{shown(path)} is damaged"):
        check_fit(tree, about)
    return tree, about


def fingerprint(*tensors: Tensor | None) -> str:
    """Return a hash of values, shapes and dtypes: whether a fit goes on with the data it began with."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return, in words, the entries in which two descriptions differ."""
    found = []
    for key in now | then:
        mine, other = (json.loads(json.dumps(side.get(key))) for side in (now, then))
        if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            named = [{f"{key}[{index}]": value for index, value in enumerate(side)} for side in (mine, other)]
            found += differences(*named)
        elif isinstance(mine, dict) and isinstance(other, dict):
            found += [f"{key}.{inner}" for inner in differences(mine, other)]
        elif mine != other:
            found.append(f"{key} (now {shortened(repr(mine), 40)}, in the checkpoint {shortened(repr(other), 40)})")
    return found
