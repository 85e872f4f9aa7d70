"""What a choice of a network returns: the candidates in their order, each with its prediction and a ready line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from inrfast import notebook
from inrfast.activations import bind, shown
from inrfast.encodings import described, from_config
from inrfast.nn import DEFAULT_OMEGA, INR
from inrfast.records import Record, in_a_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "inrfast.choice/1"

SIZES = ("in_features", "out_features", "width", "hidden_layers")

USUAL: Mapping[str, Any] = {"norm": None, "norm_position": "post", "init": "default", "bias": True, "encoding": None}
"""Defaults of :class:`inrfast.INR` that a line leaves out."""


@dataclass(frozen=True)
class Candidate(Record):
    """A network that was considered, and what its kernel predicts.

    Attributes
    ----------
    name
        In a few words: ``"sine(omega=30), siren"``, ``"relu on RandomFourier(n=128, sigma=4.0)"``.
    arguments
        Keyword arguments of :class:`inrfast.INR` without ``seed``, as plain values; ``encoding`` is its ``config()``.
    psnr
        Predicted PSNR (dB) between the samples, for ``Choice.data_range``.
    error
        Standard error of ``psnr`` (dB), from the spread over the parts of the sample.
    lr
        Learning rate to fit it with.
    steps
        Steps of the predicted fit at which it is best; beyond them it fits what does not continue between the samples.
    seconds
        That the prediction took.
    fitted
        PSNR (dB) on the same held-out points after a short real fit (``choose(check=...)``); None: not fitted.
    """

    name: str
    arguments: Mapping[str, Any]
    psnr: float
    error: float
    lr: float
    steps: int
    seconds: float = 0.0
    fitted: float | None = None

    def network(
        self, seed: int | None = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> INR:
        """Return the network itself, untrained."""
        given = dict(self.arguments)
        if given.get("encoding") is not None:
            given["encoding"] = from_config(given["encoding"])
        return INR(**given, seed=seed, device=device, dtype=dtype)

    @property
    def line(self) -> str:
        """The line of Python, after ``import inrfast as inr``, that makes ``network()``."""
        sizes = [str(self.arguments[name]) for name in SIZES[:2]] + [f"{n}={self.arguments[n]}" for n in SIZES[2:]]
        others = [f"{name}={_written(name, value)}" for name, value in self.arguments.items() if name not in SIZES]
        return f"inr.INR({', '.join([*sizes, *others])})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ``line`` included."""
        return {**super().to_dict(), "line": self.line}


@dataclass(frozen=True)
class Choice(Record):
    """What :func:`inrfast.choose` found: the candidates, the best prediction first.

    Attributes
    ----------
    candidates
        In the order of what they will reconstruct, best first: those that were fitted by ``fitted``, then the others by
        ``psnr``.
    data_range
        Of the PSNRs.
    sample
        How the signal was sampled: ``"signal"`` (samples that it has), ``"points"`` (of kernels, in all), ``"train"``
        and ``"held_out"`` (in its patches), ``"patches"`` (their number; 0: the signal is taken whole), ``"patch"``
        (their shape, or number of points, or None), ``"cells"`` (points of each coarser scale), ``"channels"``.
    seconds
        Of the whole call.
    stopped
        ``"done"``, ``"interrupted"`` (Ctrl-C: candidates are missing) or ``"time"`` (``seconds`` were over).
    refused
        Candidates that could not be predicted, with the reason: pairs of texts.
    mean_psnr
        PSNR (dB) of a reconstruction by the mean of each output alone; NaN: not known.
    offset
        The mean of the largest size, if it is larger than ``data_range``: predictions are for the signal without it.
        Else 0.
    """

    candidates: tuple[Candidate, ...]
    data_range: float
    sample: Mapping[str, Any]
    seconds: float
    stopped: str = "done"
    refused: Sequence[tuple[str, str]] = field(default_factory=tuple)
    mean_psnr: float = math.nan
    offset: float = 0.0

    def __repr__(self) -> str:
        best = f"best {self.best.name}: {self.best.psnr:.2f} dB predicted, lr={self.best.lr:g}"
        count = f"{len(self.candidates)} candidate{'s' * (len(self.candidates) != 1)}"
        return in_a_line("Choice", [best, count, f"{self.seconds:.3g} s", f"stopped={self.stopped!r}"])

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        from inrfast.choosing.text import rows_of, sampled

        code = f"net = {self.line}  # lr={self.lr:g}"
        return notebook.Page(f"Best: {self.best.name}", rows_of(self), [sampled(self.sample)], code, self.plot)

    @property
    def best(self) -> Candidate:
        """The first of the candidates."""
        return self.candidates[0]

    @property
    def line(self) -> str:
        """The line of Python that makes the best network."""
        return self.best.line

    @property
    def lr(self) -> float:
        """The learning rate to fit the best network with."""
        return self.best.lr

    def network(
        self, seed: int | None = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> INR:
        """Return the best network, untrained."""
        return self.best.network(seed, device, dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {"schema": SCHEMA, **super().to_dict()}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a figure of the predictions: over omega, sigma or octaves for each family, others as points.

        Bars are standard errors, diamonds what short fits reached, the star is the best. With ``path`` the figure is
        also written there (.png, .pdf, .svg), whole or not at all; errors as :func:`inrfast.plots.save`.
        """
        from inrfast.choosing.figure import draw

        return draw(self, path)

    def __str__(self) -> str:
        """Return what was sampled, the table of all candidates, and the line that makes the best."""
        from inrfast.choosing.text import told

        return told(self)


def arguments_of(net: INR) -> dict[str, Any]:
    """Return the arguments that make a network, without its seed, those with their default values left out."""
    config = net.config()
    activations, omegas = config["activation"], config["omega"]
    found: dict[str, Any] = {name: config[name] for name in SIZES}
    found["activation"] = _single(activations)
    if any(omega != DEFAULT_OMEGA for omega in omegas) or any("omega" in own.named for own in net.bound_activations):
        found["omega"] = _single(omegas)
    for name, usual in USUAL.items():
        value = _single(config[name]) if name == "norm" else config[name]
        if value != usual:
            found[name] = value
    if "modulation" in config:
        found["modulation"] = _single(config["modulation"])
    return found


def _single(values: list[Any]) -> Any:
    """Return the one value of all layers, or all of them."""
    return values[0] if all(value == values[0] for value in values) else values


def name_of(arguments: Mapping[str, Any]) -> str:
    """Return a candidate's name from its arguments."""
    activation, omega = arguments["activation"], arguments.get("omega")
    layers = activation if isinstance(activation, list) else [activation]
    rates = omega if isinstance(omega, list) else [omega] * len(layers)
    words = [
        f"{own}(omega={rate:g})" if isinstance(own, str) and "omega" in bind(own).named else shown(own)
        for own, rate in zip(layers, rates if len(layers) > 1 else rates[:1], strict=True)
    ]
    encoding = arguments.get("encoding")
    rest = [
        f"{key}={value}" for key, value in arguments.items() if key in ("norm", "norm_position", "bias", "modulation")
    ]
    init = arguments.get("init")
    told = "/".join(dict.fromkeys(words)) + (f" on {described(encoding)}" if encoding else "")
    return ", ".join([told, *([init if isinstance(init, str) else f"init={init}"] if init else []), *rest])


def _written(name: str, value: Any) -> str:
    """Return the Python of one argument."""
    return _encoding(value) if name == "encoding" else repr(value)


def _encoding(config: Mapping[str, Any]) -> str:
    """Return the Python that makes an encoding."""
    parts = [_encoding(part) for part in config.get("encodings", ())]
    named = [f"{key}={value!r}" for key, value in config.items() if key not in ("name", "encodings")]
    return f"inr.encodings.{config['name']}({', '.join([*parts, *named])})"
