"""What every encoding is: its base class, the registry of encodings, and their descriptions as plain values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from inrfast.errors import check_entries, nearest
from inrfast.registry import Registry

FEWER = "take a smaller one"

Shape = tuple[int, ...]


class Encoding(nn.Module):
    """Base of the encodings: a map of coordinates ``(..., d)`` to columns ``(..., out_features)``, point by point.

    An encoding is described without the number of coordinates; :class:`inrfast.INR` builds it with its own
    ``in_features`` and seed. What it trains are parameters, everything else it holds are buffers.

    An encoding of your own is a subclass with :meth:`build`, :meth:`config` and :meth:`forward`, decorated with
    :func:`register` where files and checkpoints shall hold it; :func:`inrfast.testing.check_encoding` checks it.

    Attributes
    ----------
    in_features, out_features
        Number of coordinates and of columns, once it is built.
    spelling, numbers
        Of the class: its name on the command line, empty for one that has none, and the arguments that may follow it,
        in their order, with their defaults: ``fourier:256:10``.
    """

    spelling: ClassVar[str] = ""
    numbers: ClassVar[Mapping[str, int | float]] = {}

    in_features: int
    out_features: int

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "in_features" in vars(self) or name == "in_features":
                raise
            raise AttributeError(
                f"this {type(self).__name__} has no {name!r} yet, since it is not built: INR(encoding=...) builds it, "
                "and so does .build(in_features, generator, device, dtype)"
            ) from None

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Encoding:
        """Return a new encoding, this one for ``in_features`` coordinates, drawing what is random from ``generator``.

        Draw on the CPU and move the result, so that a seed gives the same numbers on every device.
        """
        raise NotImplementedError

    def columns(self, in_features: int) -> int:
        """Return how many columns :meth:`build` would make; 0 where that is not known before."""
        return 0

    def config(self) -> dict[str, Any]:
        """Return the class's name and the arguments that make the same encoding, as plain values."""
        raise NotImplementedError

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Encoding:
        """Return the encoding of a :meth:`config`, whose entries beside the name are the arguments of the class."""
        check_entries("encoding", entries, cls)
        return cls(**entries)

    def shapes(self, in_features: int) -> dict[str, Shape] | None:
        """Return the shapes of the tensors in the state of what :meth:`build` would make; None: not known before.

        Files are compared with them before anything is built.

        Raises
        ------
        ValueError
            No file can hold as many numbers.
        """
        return None

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Check the numbers of a file, of the right shapes and dtypes: raise ``ValueError`` for what cannot be."""

    def _hold(self, name: str, numbers: Tensor, trainable: bool) -> None:
        """Register numbers as a parameter if they are trained, else as a buffer."""
        if trainable:
            self.register_parameter(name, nn.Parameter(numbers))
        else:
            self.register_buffer(name, numbers)


def _check_spelling(name: str, kind: type[Encoding]) -> None:
    """Refuse a spelling that the command line cannot read, or that another encoding has."""
    spelled = kind.spelling
    if spelled == "":
        return
    if not isinstance(spelled, str) or not spelled.isidentifier():
        raise ValueError(f"the spelling of {name} must be an identifier (or empty: it has none), got {spelled!r}")
    for known, other in ENCODINGS._items.items():  # without a look for more: the package may still be loading
        if other.spelling == spelled and known != name:
            raise ValueError(f"{known} has the spelling {spelled!r} already; take another one for {name}")


ENCODINGS: Registry[type[Encoding]] = Registry("encoding", "inrfast.encodings", _check_spelling)

Kind = TypeVar("Kind", bound=type[Encoding])


def register(kind: Kind) -> Kind:
    """Make a class of encodings known by its name, so that files, checkpoints and configs may name it; a decorator.

    A file never imports anything: register the class before loading a network with it.

    Raises
    ------
    TypeError
        No subclass of :class:`Encoding`.
    ValueError
        Another encoding has its name, or its spelling; the spelling is no identifier.
    """
    if not (isinstance(kind, type) and issubclass(kind, Encoding)):
        raise TypeError(f"register takes a subclass of inrfast.encodings.Encoding, got {kind!r}")
    ENCODINGS.add(kind.__name__, kind)
    return kind


def encoding_of(given: Any) -> Encoding | None:
    """Return a network's argument ``encoding`` if it is an encoding or None.

    Raises
    ------
    TypeError
        It is something else; the message says how an encoding is made.
    """
    if given is None or isinstance(given, Encoding):
        return given
    names = {kind.spelling: name for name, kind in ENCODINGS.items() if kind.spelling} | {n: n for n in ENCODINGS}
    close = difflib.get_close_matches(str(getattr(given, "__name__", given)), list(names), n=1, cutoff=0.5)
    example = f"{names[close[0]] if close else 'RandomFourier'}(...)"
    raise TypeError(
        f"encoding must be None or an encoding, as in inrfast.encodings.{example}, made of one of "
        f"{', '.join(sorted(ENCODINGS))}; got {given!r:.80}"
    )


def built(
    encoding: Encoding, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Encoding:
    """Return what :meth:`Encoding.build` makes, if it is what a network can be made with.

    Encodings that are not this library's are called on two points, without gradients.

    Raises
    ------
    ValueError, TypeError
        It is no encoding, or the one that was given, or has other columns than it says; it does not take two points.
    """
    kind = type(encoding).__name__
    found = encoding.build(in_features, generator, device, dtype)
    if not isinstance(found, Encoding):
        raise TypeError(f"build() of the encoding {kind} must return an Encoding, got {type(found).__name__}")
    shared = shares(encoding, found)
    if shared is not None:
        raise ValueError(f"build() of the encoding {kind} must return a new encoding, but {shared}")
    stated, columns = encoding.columns(in_features), getattr(found, "out_features", None)
    if not isinstance(columns, int) or columns < 1 or stated not in (0, columns):
        told = f", the {stated} of columns({in_features})," if stated else ""
        raise ValueError(f"build() of the encoding {kind} must set out_features to its columns{told} got {columns!r}")
    if not is_own(found) and dtype in (torch.float32, torch.float64):
        _try(found, torch.full((2, in_features), 0.5, device=device, dtype=dtype))
    return found


def shares(encoding: Encoding, found: Encoding) -> str | None:
    """Return in words what a built encoding has in common with the one it was built from; None if nothing trained."""
    if found is encoding:
        return "returns itself, so that two networks made with it would have one encoding"
    own = {id(parameter) for parameter in encoding.parameters()}
    for name, parameter in found.named_parameters():
        if parameter.requires_grad and id(parameter) in own:
            return f"shares the parameter {name!r} with it, so that two networks would train the same numbers; copy it"
    return None


def _try(encoding: Encoding, points: Tensor) -> None:
    """Refuse an encoding whose forward does not give its columns."""
    kind, wanted = type(encoding).__name__, (len(points), encoding.out_features)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            values = encoding(points)
        except Exception as error:
            raise ValueError(
                f"the encoding {kind} does not take coordinates {tuple(points.shape)}: {type(error).__name__}: {error}"
            ) from error
    got = f"{tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.shape != wanted:
        raise ValueError(
            f"the encoding {kind} must map coordinates {tuple(points.shape)} to (2, out_features) = {wanted}, got {got}"
        )


def is_own(encoding: nn.Module | None) -> bool:
    """Return whether an encoding, with all that it consists of, is this library's own: no probe need ask what it does.

    Encodings of this library map every point alone, and keep nothing from a call.
    """
    if encoding is None:
        return True
    own = {kind for kind in ENCODINGS.values() if kind.__module__.startswith("inrfast.")}
    parts = [module for module in encoding.modules() if not isinstance(module, nn.ModuleList)]
    return all(type(part) in own for part in parts)


def from_config(config: Mapping[str, Any]) -> Encoding:
    """Return the encoding that :meth:`Encoding.config` described.

    Raises
    ------
    ValueError, TypeError
        No dict; an unknown name; entries that its class does not take, or that it misses.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"encoding must be a dict that describes it, got {type(config).__name__}")
    entries = dict(config)
    name = entries.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(f"the name of encoding must be one of {sorted(ENCODINGS)}, got {type(name).__name__}")
    if name not in ENCODINGS:
        raise ValueError(
            f"encoding must be one of {sorted(ENCODINGS)}, got {name[:80]!r}.{nearest(name[:80], ENCODINGS)}"
            " One of your own is known after inrfast.encodings.register(YourEncoding)"
        )
    return ENCODINGS[name].from_entries(entries)


def described(config: Mapping[str, Any]) -> str:
    """Return a config for a reader: ``RandomFourier(n=256, sigma=10.0)``."""
    arguments = ", ".join(f"{name}={_told(value)}" for name, value in config.items() if name != "name")
    return f"{config['name']}({arguments})"


def _told(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return described(value)
    if isinstance(value, list) and any(isinstance(entry, (Mapping, list)) for entry in value):
        return f"[{', '.join(_told(entry) for entry in value)}]"
    return str(value)
