"""``inrfast fit --network auto``: the network that :func:`inrfast.choose` prefers, or that of the fit that goes on."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

from inrfast.choosing.choose import choose
from inrfast.choosing.text import predicted
from inrfast.cli.choose import enlarged_told, told
from inrfast.cli.output import bar, progress
from inrfast.cli.shell import say
from inrfast.encodings import from_config
from inrfast.errors import warn
from inrfast.files import shown
from inrfast.nn import INR
from inrfast.signals.kinds import Signal
from inrfast.training.checkpoint import read_fit


def chosen(arguments: argparse.Namespace, signal: Signal, dtype: torch.dtype) -> tuple[INR, float, dict[str, Any]]:
    """Return the network in eval mode, its learning rate, and what the report says of the choice.

    A fit that goes on from its checkpoint takes the network that is there: choosing takes long, and another machine
    may choose another one.

    Raises
    ------
    KeyboardInterrupt
        It came while the networks were compared.
    ValueError
        The signal says nothing of networks, or the checkpoint is that of another fit.
    """
    if arguments.resume and arguments.checkpoint.exists():
        return _kept(arguments, signal, dtype)
    if signal.enlarged:
        if bool((signal.target == signal.target.flatten()[0]).all()):
            raise ValueError(f"the signal is constant: {enlarged_told(arguments.signal, signal)}")
        warn(enlarged_told(arguments.signal, signal))
    with bar(arguments, "the choice of a network"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "interrupted after")  # nothing is kept of it here
        choice = choose(
            signal,
            width=arguments.width,
            hidden_layers=arguments.hidden_layers,
            seed=arguments.seed,
            memory_budget=arguments.memory_budget,
            progress=progress(arguments),
        )
    if choice.stopped == "interrupted":
        raise KeyboardInterrupt
    best = choice.best
    _tell(arguments, f"chose {best.name}, learning rate {best.lr:g}: {predicted(best)} predicted between the samples")
    return choice.network(arguments.seed, arguments.device, dtype).eval(), choice.lr, told(choice)


def _kept(arguments: argparse.Namespace, signal: Signal, dtype: torch.dtype) -> tuple[INR, float, dict[str, Any]]:
    """Return what a checkpoint says of the network that is fitted."""
    _, about = read_fit(arguments.checkpoint)
    source, config, lr = shown(arguments.checkpoint), about["nets"][0], about["own"][0]["lr"]
    if not isinstance(config, dict):
        raise ValueError(f"--checkpoint: {source} does not describe its network; leave out --network auto")
    here = {"width": arguments.width, "hidden_layers": arguments.hidden_layers, "seed": arguments.seed}
    here |= {"in_features": signal.coords.shape[1], "out_features": signal.target.shape[-1]}
    for name, value in here.items():
        if config[name] != value:
            raise ValueError(f"--checkpoint: {source} is of another fit, with {name} {config[name]}, got {value}")
    encoding = None if config["encoding"] is None else from_config(config["encoding"])
    net = INR(**{**config, "encoding": encoding}, device=arguments.device, dtype=dtype).eval()
    _tell(arguments, f"the network and the learning rate {lr:g} are those of {source}")
    return net, lr, {"checkpoint": str(arguments.checkpoint), "lr": lr, "config": config}


def _tell(arguments: argparse.Namespace, what: str) -> None:
    """Say what was taken, before the fit begins."""
    if not arguments.quiet:
        say(f"inrfast: {what}")
