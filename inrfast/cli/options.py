"""What subcommands share on the way in: options, their types, and the network that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from inrfast.encodings import Encoding, Polynomial, PositionalEncoding, RandomFourier
from inrfast.errors import check_choice
from inrfast.nn import INR, calibrate_batchnorm_

EXIT_CODES = """\
exit codes:
  0    done
  1    the computation failed: a fit diverged, or found no surface
  2    bad usage or bad input: one line on stderr says what was given and what is accepted
  130  interrupted (Ctrl-C); no file is left half-written
"""

ENCODINGS: dict[str, tuple[type[Encoding], tuple[int | float, ...]]] = {
    "fourier": (RandomFourier, (256, 10.0)),
    "positional": (PositionalEncoding, (10,)),
    "polynomial": (Polynomial, (8,)),
}
"""Encodings by their name on the command line, with the numbers that follow it and their defaults."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, and exit with the code of bad usage."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


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
    seeded.add_argument("--seed", type=int, default=0, help="of everything drawn at random (default: 0)")
    return seeded


def network_options() -> Parser:
    """Return the options that describe a network."""
    options = Parser(add_help=False)
    group = options.add_argument_group("network")
    group.add_argument("--width", type=int, default=256, help="units of a hidden layer (%(default)s)")
    group.add_argument("--hidden-layers", type=int, default=3, help="activated layers (%(default)s)")
    group.add_argument("--activation", default="relu", help="relu, sine, gaussian, finer, tanh, ... (%(default)s)")
    group.add_argument("--omega", type=float, default=30.0, help="frequency of sine, gaussian, finer (%(default)s)")
    group.add_argument("--init", default="default", help="rank_expanding, siren, kaiming, xavier or %(default)s")
    group.add_argument("--hidden-init", help="initialisation of the layers after the first, where it differs")
    group.add_argument("--norm", help="batch (calibrated on the grid) or sphere (default: none)")
    group.add_argument("--encoding", type=encoding, help="fourier:256:10, positional:10 or polynomial:8")
    return options


def network(arguments: argparse.Namespace, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> INR:
    """Return the network of the options in eval mode, batch norms as they start."""
    hidden = arguments.hidden_init
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
    return calibrate_batchnorm_(net, coords) if arguments.norm == "batch" else net


def shape(text: str) -> tuple[int, ...]:
    """Return the sizes in ``256x256``; one size alone is a one-dimensional grid, or a square image."""
    try:
        return tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes sizes joined by x, such as 256x256, got {text!r}") from None


def size_in_bytes(text: str) -> int:
    """Return the bytes in ``512M`` or ``2G`` (powers of 1024), or in a bare number."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"takes bytes above 0, such as 512M or 2G, got {text!r}")
    return found


def memory_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--memory-budget``."""
    parser.add_argument(
        "--memory-budget", type=size_in_bytes, help="such as 512M or 2G (default: half of what is free)"
    )


def device(text: str) -> torch.device:
    """Return a device that can hold a tensor."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"takes a device of this machine, got {text!r}: {reason}") from None


def encoding(text: str) -> Encoding:
    """Return the encoding in ``name:number:...``; numbers left out have their defaults."""
    name, *given = text.split(":")
    try:
        make, defaults = ENCODINGS[check_choice("the encoding's name", name, ENCODINGS)]
        if len(given) > len(defaults):
            raise ValueError(f"{name} takes {len(defaults)} number(s), as in {':'.join(map(str, (name, *defaults)))}")
        numbers = [type(default)(number) for default, number in zip(defaults, given, strict=False)]
        return make(*numbers, *defaults[len(numbers) :])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; got {text!r}") from None
