"""Checkpoints of meta-learning: what is said about it, its state, and whether a file's state is that at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import NotAvailableError, warn
from inrfast.files import shown
from inrfast.nn import INR, described_network, has_drawn_seed
from inrfast.ops import gemm
from inrfast.threads import interrupts_later
from inrfast.training import callables
from inrfast.training.checkpoint import differences, fingerprint, machine_of
from inrfast.training.data import Data
from inrfast.training.optimizers import Optimizer
from inrfast.training.options import check_not_there
from inrfast.training.schema import META_ABOUT, META_SCHEMA, META_TREE, check, check_like
from inrfast.training.trees import fault_told, read_tree, write_tree


class MetaCheckpoint:
    """The file of one call of :func:`inrfast.meta_learn`.

    Parameters
    ----------
    path
        The file.
    net, data
        The network, and the set of signals.
    config
        The settings that must be those of the file.
    layout
        What decides about the last digits.
    drawn
        Whether the seed in ``config`` is a drawn one, which that of the file then replaces there.
    """

    def __init__(
        self,
        path: Path,
        net: nn.Module,
        data: Data,
        config: dict[str, Any],
        layout: dict[str, Any],
        drawn: bool = False,
    ) -> None:
        self.path, self.net, self.drawn = path, net, drawn
        dtype, device = data.target.dtype, data.target.device
        self.about: dict[str, Any] = {
            "config": config,
            "net": described_network(net) or str(net),
            "data": {"coords": fingerprint(data.coords), "signals": fingerprint(data.target)},
            "trainable": [name for name, p in net.named_parameters() if p.requires_grad],
            "identity": callables.attributes(net),
            "gemm": gemm.choices(dtype) if device.type == "cpu" else {},
            "machine": machine_of(device),
            "layout": layout,
        }
        self.dtype = dtype

    def write(self, state: dict[str, Any], last: bool = False) -> None:
        """Write the file; where that fails, say so, and go on: a checkpoint is there to save work, not to end it."""
        try:
            with interrupts_later():
                write_tree(self.path, META_SCHEMA, {"net": dict(self.net.state_dict()), **state}, self.about, last)
        except Exception as error:
            reason = str(getattr(error, "strerror", None) or error)
            kept = "holds an earlier state" if self.path.exists() else "is not there"
            warn(f"a checkpoint was not written after {state['done']} steps: {reason}; {shown(self.path)} {kept}")

    def read(self, optimizer: Optimizer, resume: bool, steps: int) -> dict[str, Any] | None:
        """Return the state in the file, if there is one to go on from and it is one of this call.

        Raises
        ------
        ValueError
            It is damaged, or of another network, other signals or other settings, which are named.
        FileExistsError
            It is there, and not to be gone on from.
        """
        check_not_there(self.path, resume)
        if not self.path.exists():
            return None
        _, tree, about = read_tree(self.path, (META_SCHEMA,))
        with fault_told(f"{shown(self.path)} is damaged"):
            META_TREE(tree, "tree")
            META_ABOUT(about, "about")
            for name in ("before", "after"):
                check(f"tree.{name}", len(tree[name]) == tree["done"], f"of {tree['done']} steps", tree[name])
        if self.drawn:
            self.about["config"]["seed"] = about["config"]["seed"]
        if has_drawn_seed(self.net) and isinstance(about["net"], dict) and isinstance(self.about["net"], dict):
            self.about["net"]["seed"] = about["net"].get("seed")
        same = ("config", "net", "trainable", "data")
        wrong = differences({key: self.about[key] for key in same}, {key: about[key] for key in same})
        wrong += callables.different(self.about["identity"], about["identity"])
        if wrong:
            raise ValueError(f"checkpoint: {shown(self.path)} is of another call, with other {'; '.join(wrong[:8])}")
        if tree["done"] > steps:
            raise ValueError(f"checkpoint: {shown(self.path)} holds {tree['done']} steps, more than steps={steps}")
        with fault_told(f"checkpoint: {shown(self.path)} does not fit this network"):
            check_like(tree["net"], dict(self.net.state_dict()), "tree.net")
            optimizer.check(tree["optimizer"], "tree.optimizer")
        if isinstance(self.net, INR) and isinstance(about["net"], dict):
            self.net.seed = about["net"]["seed"]
        unknown = callables.uncompared(self.about["identity"], about["identity"])
        if unknown:
            warn(f"{shown(self.path)} is gone on from; not compared with what it began with: {'; '.join(unknown[:5])}")
        digits = ("machine", "layout")
        changed = differences({key: self.about[key] for key in digits}, {key: about[key] for key in digits})
        if changed:
            warn(f"{shown(self.path)} is gone on from, but not bit by bit: other {'; '.join(changed[:8])}")
        return {**tree, "libraries": self._libraries(about["gemm"])}

    def _libraries(self, kept: dict[str, str]) -> dict[str, str]:
        """Return the matrix libraries of the file, or none where they are not here."""
        try:
            with gemm.forced(self.dtype, kept):
                self.about["gemm"] = kept
                return kept
        except NotAvailableError as error:
            warn(f"{shown(self.path)} is gone on from, but not bit by bit: {error}")
            return {}


@torch.no_grad()
def load_state(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Write a kept state over a network's own, in place."""
    for name, own in net.state_dict().items():
        own.copy_(state[name])
