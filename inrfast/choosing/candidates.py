"""The networks that are considered: the families that are searched, or the user's own, and how each is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inrfast.choosing.samples import Samples
from inrfast.encodings import PositionalEncoding, RandomFourier, from_config
from inrfast.errors import check_entries
from inrfast.nn import INR

Make = Callable[[int], INR]
"""Returns a network for a seed."""

PERIODIC = ("sine", "finer")

RATE, PERIODIC_RATE, CAREFUL_RATE = 5e-3, 0.03, 0.01
"""Learning rates of Adam for fits of some 500 steps; those of sine layers, whose weights have a size of ``1 / omega``,
over their largest omega: the higher one, and that for signals which are fitted far, when its steps become too large.

Measured on photographs, two sounds and a volume at widths of 128. For sine layers 0.03 beat 0.01 by 1 to 4 dB, and 0.1
by 1 to 9 dB on photographs and 15 to 21 dB on the volume. On the volume, fitted to 35 dB and more, 0.01 was 3 to 4 dB
better than 0.03; on sounds, fitted as far, 0.03 was."""

FAR = 35.0
"""Predicted PSNR (dB) from which on the careful rate is taken, for signals of more than one axis."""

SPEED, PERIODIC_SPEED = 0.3, 100.0
"""How much faster a fit learns than its linearisation: networks of sine layers change their kernel most while they
are fitted, and come near to what the linearisation reaches in many more steps. Tuned on a photograph, a volume and a
sound."""

GROWTH, GROWTH_OF_ONE_AXIS = 2.0, 7.0
"""How much higher the frequencies of sine layers are after a fit than at initialisation, in the kernel's prediction: a
fit raises them, most those of a function of one coordinate. On the photographs that it was tuned on, rank
correlations with real fits were 0.95 and 0.93 without it (1), and 0.96 and 0.95 with it. On two synthetic sounds, tuned
on as well, they were 0.68 and 0.46 without it, 0.90 and 0.87 at 3.5, 0.93 and 0.87 at 5, 0.90 and 0.88 at 7; the first
choice was 19 and 4 dB behind the best one without it, 1.5 and 2.0 dB at 3.5 and 5, and 1.5 and 0 dB at 7."""

COARSE = 4
"""Ratio of neighbouring frequencies of the coarse search."""


@dataclass(frozen=True)
class Family:
    """Networks that differ in one number.

    Attributes
    ----------
    make
        Returns the arguments of :class:`inrfast.INR` for a number.
    numbers
        Those of the coarse search, ascending.
    whole
        Whether they are whole numbers, in even steps; else in even ratios.
    """

    make: Callable[[float], dict[str, Any]]
    numbers: tuple[float, ...]
    whole: bool = False

    def between(self, low: float, high: float) -> float | None:
        """Return a number halfway between two, or None where there is none that differs enough."""
        if self.whole:
            middle = round((low + high) / 2)
            return None if middle in (low, high) else float(middle)
        return float(f"{math.sqrt(low * high):.2g}") if high / low > 1.3 else None


def families(samples: Samples, width: int) -> list[Family]:
    """Return the families that are searched for a signal; frequencies end where its samples end (Nyquist)."""
    axes = samples.coords.shape[1]
    box = (samples.coords.amax(0) - samples.coords.amin(0)).double()
    spacing = float(box.mean()) / max(samples.count ** (1 / axes) - 1, 1)
    top = 1 / (2 * spacing)  # cycles per unit
    sigmas = _ratios(top)
    omegas = _ratios(2 * math.pi * top)
    octaves = max(1, round(math.log2(2 * top)))
    return [
        Family(lambda omega: {"activation": "sine", "omega": omega, "init": "siren"}, omegas),
        Family(lambda sigma: {"encoding": RandomFourier(max(width // 2, 1), sigma)}, sigmas),
        Family(
            lambda n: {"encoding": PositionalEncoding(int(n))},
            tuple(float(n) for n in sorted({max(1, octaves - 3 * k) for k in range(3)})),
            whole=True,
        ),
        Family(lambda omega: {"activation": "finer", "omega": omega, "init": "siren"}, omegas[:-1]),
        Family(lambda omega: {"activation": "gaussian", "omega": omega}, (3.0, 10.0, 30.0)),
        Family(lambda omega: {"activation": {"name": "wire", "omega": omega, "sigma": omega / 2}}, (5.0, 20.0)),
    ]


def _ratios(top: float) -> tuple[float, ...]:
    """Return four frequencies in even ratios, the last one the signal's own highest."""
    return tuple(float(f"{top / COARSE**k:.2g}") for k in (3, 2, 1, 0))


SINGLE: tuple[dict[str, Any], ...] = ({}, {"init": "rank_expanding"}, {"activation": "tanh"})
"""Networks without such a number."""


def maker(given: Any, sizes: Mapping[str, int], index: int) -> Make:
    """Return what makes a candidate of the user's, if it makes one.

    Raises
    ------
    ValueError, TypeError
        It is neither a dict of arguments nor a function of a seed, cannot be built, or has other coordinates or
        outputs than the signal; the message says which one.
    """
    argument = f"candidates[{index}]"
    if isinstance(given, Mapping):
        make = from_arguments(given, sizes, argument)
    elif callable(given):
        make = given
    else:
        raise TypeError(f"{argument} must be a dict of arguments of INR or a function of a seed, got {given!r:.80}")
    try:
        net = make(0)
    except Exception as error:
        raise type(error)(f"{argument} cannot be built: {error}") from error
    if not isinstance(net, INR):
        raise TypeError(f"{argument} must make an inrfast.INR, got {type(net).__name__}")
    wanted, got = (sizes["in_features"], sizes["out_features"]), (net.in_features, net.out_features)
    if got != wanted:
        raise ValueError(
            f"{argument} must have {wanted[0]} coordinates and {wanted[1]} outputs, got {got[0]}, {got[1]}"
        )
    if net.bounds is not None:
        raise ValueError(
            f"{argument} must state no bounds, got {net.bounds}: candidates are compared at the points of coords, "
            "which may lie in any box; state them in the network that you fit"
        )
    if any(norm is not None for norm in net.norm_names):
        raise ValueError(f"{argument} must have no norm, whose kernel depends on the batch, got {net.norm_names}")
    return make


def from_arguments(given: Mapping[str, Any], sizes: Mapping[str, int], argument: str = "candidate") -> Make:
    """Return what makes the network of some arguments; sizes are filled in, an ``encoding`` may be its config."""
    check_entries(argument, {**sizes, **given}, INR)
    arguments = {**sizes, **given}
    if isinstance(arguments.get("encoding"), Mapping):
        arguments["encoding"] = from_config(arguments["encoding"])
    return lambda seed: INR(**{**arguments, "seed": seed})


def makers(given: Sequence[Any], sizes: Mapping[str, int]) -> list[Make]:
    """Return the makers of all candidates of the user's."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"candidates must be a sequence of dicts or functions, got {type(given).__name__}")
    if not given:
        raise ValueError("candidates must not be empty; leave it out for the search")
    return [maker(one, sizes, index) for index, one in enumerate(given)]


def is_periodic(net: INR) -> bool:
    """Return whether a network has layers of sines."""
    return any(name in PERIODIC for name in net.activations)


def rate_of(net: INR, psnr: float = -math.inf) -> float:
    """Return the learning rate to fit a network with, of which this PSNR (dB) is predicted."""
    if not is_periodic(net):
        return RATE
    careful = psnr > FAR and net.in_features > 1
    return (CAREFUL_RATE if careful else PERIODIC_RATE) / max(net.omegas)


def growth_of(net: INR) -> float:
    """Return how much higher the frequencies of a network are after a fit."""
    if not is_periodic(net) or net.encoding is not None:
        return 1.0
    return GROWTH_OF_ONE_AXIS if net.in_features == 1 else GROWTH


def speed_of(net: INR) -> float:
    """Return how much faster a fit learns than its linearisation."""
    return PERIODIC_SPEED if is_periodic(net) else SPEED
