"""Settings of a fit: those of the command line, of a paper, of a choice, or those measured for the kind of signal."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from inrfast.cli.options import HIDDEN_LAYERS, WIDTH, network_arguments
from inrfast.cli.papers import PAPERS
from inrfast.errors import warn
from inrfast.signals.kinds import BATCH, STEPS, Recipe, Signal
from inrfast.training.options import EVALUATIONS

NEUTRAL: Mapping[str, Any] = {
    "lr": 1e-3,
    "steps": STEPS,
    "batch_size": BATCH,
    "schedule": "exponential",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "checkpoint_seconds": 60.0,
    "width": WIDTH,
    "hidden_layers": HIDDEN_LAYERS,
}
"""Settings of a fit whose network the options describe; batches are no larger than the signal."""


ALL = "all"
"""What ``--batch-size`` takes for all points."""

SIZES = ("width", "hidden_layers")

SIDES = ("activation", "norm", "modulation")
"""Options that say something of every layer, where ``--first-`` may say something else of the first one."""


def describes(arguments: argparse.Namespace) -> bool:
    """Return whether a command line says what the network is, beside its size."""
    return bool(arguments.network or arguments.like or arguments.noted)


def described(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of :class:`inrfast.INR`, but its inputs, outputs, seed, device and dtype."""
    if arguments.like is None and describes(arguments):
        return network_arguments(arguments)
    network = recipe.network if arguments.like is None else PAPERS[arguments.like].network
    return {**network, "width": arguments.width, "hidden_layers": arguments.hidden_layers}


def settled(arguments: argparse.Namespace, signal: Signal, recipe: Recipe) -> argparse.Namespace:
    """Return the command line with every setting of the fit, ``batch_size`` None for all points; tell idle options.

    What is given stands. What is not is that of the paper of ``--like``, or, where nothing is said of the network, the
    recipe's, or neutral.
    """
    usual = {**NEUTRAL, "batch_size": signal.batch_size or BATCH}
    if arguments.like is not None:
        usual |= PAPERS[arguments.like].settings
    elif not describes(arguments):
        usual |= {"lr": recipe.lr, "steps": recipe.steps} | {
            name: recipe.network[name] for name in SIZES if name in recipe.network
        }
    given = {name: value for name in usual if (value := getattr(arguments, name)) is not None}
    found = argparse.Namespace(**{**vars(arguments), **usual, **given})
    points = len(signal.coords) if signal.weight is None else int((signal.weight > 0).sum())
    _tell_idle(arguments, found, points)
    if found.batch_size == ALL or found.batch_size is None or found.batch_size >= points:
        found.batch_size = None
    return found


def _tell_idle(arguments: argparse.Namespace, found: argparse.Namespace, points: int) -> None:
    """Warn of options of a command line that change nothing of what it was ``found`` to mean."""
    if isinstance(arguments.batch_size, int) and arguments.batch_size > points:
        warn(f"--batch-size {arguments.batch_size} is more than the {points} points: every update takes all of them")
    if arguments.checkpoint_seconds is not None and arguments.checkpoint is None:
        warn("--checkpoint-seconds changes nothing without --checkpoint, the file to write")
    evaluations = math.ceil(found.steps / max(1, found.steps // EVALUATIONS))
    if arguments.patience is not None and arguments.patience >= evaluations:
        warn(f"--patience {arguments.patience} never ends this fit, whose quality is measured {evaluations} times")
    for side in SIDES if found.hidden_layers == 1 else ():
        if {f"--{side}", f"--first-{side}"} <= set(arguments.noted):
            warn(f"--{side} changes nothing: the one hidden layer is the first, which --first-{side} describes")
