"""Options that subcommands share, and the network that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import ACTIVATIONS, bind
from inrfast.calibration import calibrate_batchnorm_
from inrfast.cli.commands import Parser
from inrfast.cli.papers import PAPERS
from inrfast.cli.shell import at_work
from inrfast.encodings import spelling as encoding_spelling
from inrfast.errors import check_device
from inrfast.initialisers import INITIALISERS
from inrfast.modulations import MODULATIONS, modulation_config
from inrfast.nn import INR, NORM_POSITIONS
from inrfast.norms import NORMS, Norm
from inrfast.spelling import choice, number, size_in_bytes, spec, spellings, whole

WIDTH = 256
"""Units of a hidden layer by default."""

HIDDEN_LAYERS = 3
"""Hidden layers by default."""

STARTS = {"sine": "siren", "finer": "siren"}
"""Initialisations that take the place of the default one for some activations, which hardly learn from it."""


def start_of(activation: str | Mapping[str, Any]) -> str:
    """Return the name of the initialisation of a layer of this activation, where the command line names none."""
    return STARTS.get(activation if isinstance(activation, str) else activation["name"], "default")


def common_options(device_option: bool = True) -> Parser:
    """Return the options of every subcommand that computes something."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    if device_option:
        common.add_argument("--device", type=device, default=torch.device("cpu"), help="cpu, cuda, ... (default: cpu)")
    return common


def seed_option() -> Parser:
    """Return the option of every subcommand that draws something."""
    seeded = Parser(add_help=False)
    seeded.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of everything drawn at random (0)")
    return seeded


class _Noted(argparse.Action):
    """Store a value, and note in ``noted`` that the option was given, whatever its value."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.noted = (*namespace.noted, self.option_strings[0])


def size_options(group: argparse._ActionsContainer, measured: bool = False) -> None:
    """Add the options of a network's size; ``measured``: they are None where nothing is given."""
    sizes = (("--width", WIDTH, "units of a hidden layer"), ("--hidden-layers", HIDDEN_LAYERS, "activated layers"))
    for option, usual, told in sizes:
        group.add_argument(option, type=whole(), default=None if measured else usual, help=f"{told} ({usual})")


def network_options(automatic: bool = False) -> Parser:
    """Return the options that describe a network; ``automatic``: also ``--network auto``, which chooses one.

    The options that are given, but for those of the size, are listed in ``noted``.
    """
    options = Parser(add_help=False)
    options.set_defaults(noted=())
    group = options.add_argument_group("network")
    if automatic:
        _automatic_options(group)
    size_options(group, measured=automatic)
    add = partial(group.add_argument, action=_Noted)
    numbers, with_omega = attrgetter("numbers"), [name for name, a in ACTIVATIONS.items() if "omega" in a.numbers]
    activation = spec("activation", ACTIVATIONS, numbers, bind)
    add(
        "--activation",
        type=activation,
        default="relu",
        help=f"{spellings(ACTIVATIONS, numbers)}; numbers in this order, or as sine:omega=30 (%(default)s)",
    )
    add(
        "--first-activation",
        type=spec("activation", ACTIVATIONS, numbers, bind),
        help="of the first layer, where it differs",
    )
    add("--omega", type=number, help=f"frequency of {', '.join(with_omega)} (each has its own default)")
    init = choice("initialisation", INITIALISERS)
    add("--init", type=init, help=f"{', '.join(INITIALISERS)} (siren for {' and '.join(STARTS)}, else default)")
    add("--hidden-init", type=init, help="of the layers after the first, where it differs")
    norms = spellings(NORMS, _norm_numbers)
    add("--norm", type=_norm, default="none", help=f"{norms} (none); batch norms are calibrated on the grid")
    add("--first-norm", type=_norm, help="of the first layer, where it differs")
    add(
        "--norm-position",
        type=choice("norm position", NORM_POSITIONS),
        help="post or pre: after the activation or before it (post)",
    )
    filters = spellings(MODULATIONS, numbers)
    add(
        "--modulation",
        type=_modulation,
        default="none",
        help=f"{filters}: filters that layers are multiplied by (none)",
    )
    add("--first-modulation", type=_modulation, help="of the first layer, where it differs")
    add(
        "--encoding",
        type=encoding_spelling.spelled,
        help=f"{encoding_spelling.spellings()}; side by side with +, one after the other with a comma, as in "
        "identity+fourier:64:3; "
        ":trainable after one whose numbers are to be trained",
    )
    return options


def _automatic_options(group: argparse._ArgumentGroup) -> None:
    """Add what takes the place of a description of the network, and say what stands without one."""
    group.description = (
        "With none of these, the network and the learning rate that were measured to reconstruct this kind of\n"
        "signal; --width and --hidden-layers change its size. With one of the others, all that are left out have\n"
        "the values in brackets."
    )
    group.add_argument(
        "--network",
        type=choice("network", ("auto",)),
        help="auto: choose the network and the learning rate for the signal first, as inrfast choose does; takes "
        "the place of all options below but --width and --hidden-layers",
    )
    group.add_argument(
        "--like",
        type=choice("paper", PAPERS),
        help="a paper's network and optimiser, in place of all options below but the sizes: "
        + "; ".join(f"{name}: {paper.told}" for name, paper in PAPERS.items()),
    )


def network(arguments: argparse.Namespace, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> INR:
    """Return the network of the options in eval mode; batch norms keep their initial statistics."""
    return made(network_arguments(arguments), arguments, inputs, outputs, dtype)


def made(
    described: Mapping[str, Any], arguments: argparse.Namespace, inputs: int, outputs: int, dtype: torch.dtype
) -> INR:
    """Return the network of these arguments in eval mode, with the seed and on the device of a command line."""
    with at_work("building the network", arguments.quiet):
        return INR(inputs, outputs, **described, seed=arguments.seed, device=arguments.device, dtype=dtype).eval()


def network_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`inrfast.INR` that the options describe, but those of one signal and machine."""
    first = arguments.first_activation
    starts = [start_of(own) for own in (arguments.activation if first is None else first, arguments.activation)]
    inits = [own if arguments.init is None else arguments.init for own in starts]
    inits[1] = inits[1] if arguments.hidden_init is None else arguments.hidden_init
    norms = [arguments.norm if arguments.first_norm is None else arguments.first_norm]
    norms += [arguments.norm] * (arguments.hidden_layers - 1)
    if arguments.norm_position is not None and all(norm == "none" for norm in norms):
        raise ValueError(
            f"--norm-position is that of norms, and there are none, got {arguments.norm_position}; take --norm batch"
        )
    filters = [arguments.modulation if arguments.first_modulation is None else arguments.first_modulation]
    filters += [arguments.modulation] * (arguments.hidden_layers - 1)
    _check_omega(arguments.omega, [arguments.activation, arguments.activation if first is None else first])
    return {
        "width": arguments.width,
        "hidden_layers": arguments.hidden_layers,
        "activation": arguments.activation if first is None else {"first": first, "hidden": arguments.activation},
        "omega": arguments.omega,
        "encoding": arguments.encoding,
        "norm": [None if norm == "none" else norm for norm in norms],
        "norm_position": arguments.norm_position or NORM_POSITIONS[0],
        "init": inits[0] if inits[0] == inits[1] else {"first": inits[0], "hidden": inits[1]},
        "modulation": [None if own == "none" else own for own in filters],
    }


def _norm(text: str) -> str | dict[str, Any]:
    """Return a norm as :class:`inrfast.INR` takes it, or none; which numbers are in range, depends on the width."""
    name = text.partition(":")[0]
    if name in NORMS:
        return spec("norm", NORMS, _norm_numbers)(text)
    return choice("norm", [*NORMS, "none"])(text if name == "none" else name)


def _modulation(text: str) -> str | dict[str, Any]:
    """Return a filter as :class:`inrfast.INR` takes it, or none."""
    name = text.partition(":")[0]
    if name in MODULATIONS:
        return spec("modulation", MODULATIONS, attrgetter("numbers"), modulation_config)(text)
    return choice("modulation", [*MODULATIONS, "none"])(text if name == "none" else name)


def _norm_numbers(kind: type[Norm]) -> Mapping[str, int | float]:
    """Return the numbers of a norm, with the defaults of the usual width."""
    return kind.numbers(WIDTH)


def _check_omega(omega: float | None, activations: Sequence[str | dict[str, Any]]) -> None:
    """Refuse a frequency that no layer would have."""
    given = [own if isinstance(own, dict) else {"name": own} for own in activations]
    if omega is None or any("omega" not in own and "omega" in ACTIVATIONS[own["name"]].numbers for own in given):
        return
    raise ValueError(
        f"--omega is the number omega of activations that do not say it themselves, and there are none, got "
        f"{omega:g}; leave it out, or take --activation sine"
    )


def calibrated_network(arguments: argparse.Namespace, coords: Tensor, outputs: int) -> INR:
    """Return the network of the options in eval mode, batch norms calibrated on ``coords``."""
    net = network(arguments, coords.shape[1], outputs)
    if "batch" not in net.norm_names:
        return net
    with at_work("calibrating the batch norms", arguments.quiet):
        return calibrate_batchnorm_(net, coords)


def memory_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--memory-budget``."""
    parser.add_argument(
        "--memory-budget", type=size_in_bytes, help="such as 512M or 2G (default: half of what is free)"
    )


def device(text: str) -> torch.device:
    """Return a device of this machine."""
    try:
        return check_device("the device", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
