"""What subcommands share on the way in: options, their types, and the network that they describe."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from inrfast.cli.shell import EXIT_CODES, UsageError, at_work, print_out
from inrfast.encodings import Encoding, Polynomial, PositionalEncoding, RandomFourier
from inrfast.errors import check_choice
from inrfast.nn import INR, calibrate_batchnorm_

ENCODINGS: dict[str, tuple[type[Encoding], tuple[int | float, ...]]] = {
    "fourier": (RandomFourier, (256, 10.0)),
    "positional": (PositionalEncoding, (10,)),
    "polynomial": (Polynomial, (8,)),
}
"""Encodings by their name on the command line, with the numbers that follow it and their defaults."""

MOST_WHOLE = 2**63 - 1
"""The largest number of anything: what 64 bits hold."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are those of :mod:`inrfast.cli.shell`."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, as an exception."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help as results are printed: argparse itself would not tell of a stdout that is full."""
        print_out(self.format_help().rstrip())


def parsed(words: list[str], names: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line of one of the subcommands ``names``.

    Raises
    ------
    UsageError, ValueError
        It cannot be understood.
    SystemExit
        It asked for help, which has been printed.
    """
    if words and not words[0].startswith("-"):
        check_choice("command", words[0], names)
    for word in words:
        if word.startswith("--") and word.endswith("=--"):  # argparse takes the -- away and has no value left
            raise UsageError(f"{word.removesuffix('=--')} takes a value, got '--'")
    parser = Parser(
        prog="inrfast",
        description="See where an implicit neural representation loses rank, cure it, and fit it fast.",
        epilog="Try:  inrfast demo\n      inrfast fit --help\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(names) + "}")
    for name in names:
        importlib.import_module(f"inrfast.cli.{name}").add(commands)
    return parser.parse_args(words)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    parents: list[Parser],
    summary: str,
    examples: str,
) -> Parser:
    """Add a subcommand with its help, examples and exit codes."""
    added: Parser = commands.add_parser(
        name,
        parents=parents,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added


def common_options() -> Parser:
    """Return the options of every subcommand that computes something."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_argument("--device", type=device, default=torch.device("cpu"), help="cpu, cuda, ... (default: cpu)")
    return common


def seed_option() -> Parser:
    """Return the option of every subcommand that draws something."""
    seeded = Parser(add_help=False)
    seeded.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of everything drawn at random (0)")
    return seeded


def network_options() -> Parser:
    """Return the options that describe a network."""
    options = Parser(add_help=False)
    group = options.add_argument_group("network")
    group.add_argument("--width", type=whole(), default=256, help="units of a hidden layer (%(default)s)")
    group.add_argument("--hidden-layers", type=whole(), default=3, help="activated layers (%(default)s)")
    group.add_argument("--activation", default="relu", help="relu, sine, gaussian, finer, tanh, ... (%(default)s)")
    group.add_argument("--omega", type=number, default=30.0, help="frequency of sine, gaussian, finer (%(default)s)")
    group.add_argument("--init", default="default", help="rank_expanding, siren, kaiming, xavier or %(default)s")
    group.add_argument("--hidden-init", help="initialisation of the layers after the first, where it differs")
    group.add_argument("--norm", help="batch (calibrated on the grid) or sphere (default: none)")
    group.add_argument("--encoding", type=encoding, help="fourier:256:10, positional:10 or polynomial:8")
    return options


def network(arguments: argparse.Namespace, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> INR:
    """Return the network of the options in eval mode, batch norms as they start."""
    hidden = arguments.hidden_init
    with at_work("building the network", arguments.quiet):
        return INR(
            inputs,
            outputs,
            width=arguments.width,
            hidden_layers=arguments.hidden_layers,
            activation=arguments.activation,
            omega=arguments.omega,
            encoding=arguments.encoding,
            norm=arguments.norm,
            init=arguments.init if hidden is None else {"first": arguments.init, "hidden": hidden},
            seed=arguments.seed,
            device=arguments.device,
            dtype=dtype,
        ).eval()


def calibrated_network(arguments: argparse.Namespace, coords: Tensor, outputs: int) -> INR:
    """Return the network of the options in eval mode, batch norms calibrated on ``coords``."""
    net = network(arguments, coords.shape[1], outputs)
    if arguments.norm != "batch":
        return net
    with at_work("calibrating the batch norms", arguments.quiet):
        return calibrate_batchnorm_(net, coords)


def whole(least: int = 1, most: int = MOST_WHOLE) -> Callable[[str], int]:
    """Return a type of options: whole numbers in a range."""
    upper = f" and at most {most}" if most < MOST_WHOLE else ""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if least <= (number := int(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"takes a whole number, at least {least}{upper}, got {text!r}")

    return parse


def number(text: str) -> float:
    """Return a finite number."""
    with suppress(ValueError):
        if math.isfinite(found := float(text)):
            return found
    raise argparse.ArgumentTypeError(f"takes a finite number, got {text!r}")


def share(text: str) -> float:
    """Return a number above 0 and below 1."""
    with suppress(ValueError):
        if 0 < (found := float(text)) < 1:
            return found
    raise argparse.ArgumentTypeError(f"takes numbers above 0 and below 1, such as 1e-4, got {text!r}")


def path(text: str) -> Path:
    """Return a path; an empty one, which would be the current folder, is a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("takes a path, got ''")
    return Path(text)


def shape(text: str) -> tuple[int, ...]:
    """Return the sizes in ``256x256``; one size alone is a one-dimensional grid, or a square image."""
    sizes: tuple[int, ...] = ()
    with suppress(ValueError):
        sizes = tuple(int(size) for size in text.lower().split("x"))
    if not sizes or not 1 <= min(sizes) <= max(sizes) <= MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"takes sizes of at least 1 joined by x, such as 256x256, got {text!r}")
    return sizes


def size_in_bytes(text: str) -> int:
    """Return the bytes in ``512M`` or ``2G`` (powers of 1024), or in a bare number."""
    count, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = int(float(count) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        found = 0
    if not 1 <= found <= MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"takes bytes above 0, such as 512M or 2G, got {text!r}")
    return found


def memory_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--memory-budget``."""
    parser.add_argument(
        "--memory-budget", type=size_in_bytes, help="such as 512M or 2G (default: half of what is free)"
    )


def device(text: str) -> torch.device:
    """Return a device that holds numbers (meta does not)."""
    try:
        one = torch.ones(1, device=text)
        one.item()
        return one.device
    except Exception as error:  # each kind of device has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise argparse.ArgumentTypeError(f"takes a device of this machine, got {text!r}: {reason}") from None


def _number(kind: type[int | float], text: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"takes {'a whole number' if kind is int else 'a number'} in place of {text!r}") from None


def encoding(text: str) -> Encoding:
    """Return the encoding in ``name:number:...``; numbers left out have their defaults."""
    name, *given = text.split(":")
    try:
        make, defaults = ENCODINGS[check_choice("the encoding's name", name, ENCODINGS)]
        if len(given) > len(defaults):
            raise ValueError(f"{name} takes {len(defaults)} number(s), as in {':'.join(map(str, (name, *defaults)))}")
        numbers = [_number(type(default), text) for default, text in zip(defaults, given, strict=False)]
        return make(*numbers, *defaults[len(numbers) :])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; got {text!r}") from None
