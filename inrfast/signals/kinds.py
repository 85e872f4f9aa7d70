"""Kinds of signals: what the command line must know to fit a network to a file and to write a file from a network."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inrfast import spelling
from inrfast.encodings.hash_grid import MOST_CELLS, MOST_TABLE, PRIMES, HashGrid
from inrfast.errors import check_choice, check_float, check_int, check_tensor
from inrfast.pages import Block
from inrfast.registry import Registry

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Signal:
    """What a network is fitted to, on the CPU, and what its model file has to remember.

    Attributes
    ----------
    coords, target
        Points (N, d) and values (N, M) or (*grid, M), floating.
    about
        Plain values for the ``write`` of its kind. Every kind states ``shape``, the points per axis of the grid that is
        written, and ``scale`` and ``offset``: the signal is ``prediction * scale + offset``.
    weight
        Shape (N,), 0 where the signal is not known; None weighs all points alike.
    held_out
        Points (n, d) and occupancies (n, 1) that the fit does not see, for an IoU; None for kinds without one.
    data_range
        Of the PSNR; None takes it from the target.
    stored
        Points per axis that the file has of it, where the target was resampled from them; None: as the target.
    loss, batch_size
        Of a fit, where the caller names none.
    regularizers
        ``(module, factor)`` pairs for :func:`inrfast.fit`, without which the signal is not defined.
    judged
        At how many points, drawn at random, the PSNR is measured during a fit; None: at all.
    measure
        ``measure(net, predictions)``: further numbers for the report, by name, of a fitted network and its values
        (*grid, M); None for kinds without any.
    """

    coords: Tensor
    target: Tensor
    about: dict[str, Any]
    weight: Tensor | None = None
    held_out: tuple[Tensor, Tensor] | None = None
    data_range: float | None = None
    stored: tuple[int, ...] | None = None
    loss: str = "mse"
    batch_size: int | None = None
    regularizers: tuple[tuple[nn.Module, float], ...] = ()
    judged: int | None = None
    measure: Callable[[nn.Module, Tensor], dict[str, float]] | None = None

    @property
    def enlarged(self) -> bool:
        """Whether the target has more points along an axis than the file has, which lie between those."""
        return self.stored is not None and any(
            side > own for side, own in zip(self.about["shape"], self.stored, strict=True)
        )


BATCH = 4096
"""Points per update of a fit by default."""

STEPS = 2000
"""Updates of a fit by default, where the network is described."""

PASSES, LEAST_STEPS, MOST_STEPS = 30, 1000, 4000
"""How often a fit of a hash grid sees every point, and the bounds of its updates."""


@dataclass(frozen=True)
class Recipe:
    """How ``inrfast fit`` fits a signal where its options describe no network (``bench/fit_defaults.py`` measures).

    Attributes
    ----------
    network
        Arguments of :class:`inrfast.INR`, but its inputs and outputs.
    lr
        Learning rate, which falls to a tenth.
    steps
        Updates.
    """

    network: Mapping[str, Any]
    lr: float
    steps: int = STEPS


def by_hash_grid(signal: Signal) -> Recipe:
    """Return the recipe of a small ReLU network on a hash grid with about a cell per point along the longest axis.

    A level has as many rows as a quarter of the points at most, which makes about as many numbers in all as a picture
    in three colours has. Hash grids take four axes at most; of more, the recipe is :func:`smooth`.
    """
    if signal.coords.shape[1] > len(PRIMES):
        return smooth(signal)
    points, finest = len(signal.coords), max(signal.about["shape"])
    rows = 2 ** max(int(math.log2(max(points / 4, 1))), 4)
    encoding = HashGrid(12, 2, min(rows, MOST_TABLE), min(16, finest), min(finest, MOST_CELLS))
    steps = min(max(PASSES * points // BATCH, LEAST_STEPS), MOST_STEPS)
    return Recipe({"encoding": encoding, "width": 64, "hidden_layers": 2}, 2e-2, steps)


def smooth(signal: Signal) -> Recipe:
    """Return the recipe of a FINER network, which is smooth between the points: for signals that points sample."""
    return Recipe({"activation": "finer", "omega": 10.0, "init": "siren"}, 1e-3)


@dataclass(frozen=True)
class Option:
    """An option of ``inrfast fit`` or ``inrfast render`` that a kind of signal takes.

    ``type`` reads its text, as those of :mod:`inrfast.spelling` do; None makes it a switch, whose value is True.
    """

    help: str
    type: Callable[[str], Any] | None = None


def fitted_grid(about: dict[str, Any], size: Sequence[int] | None = None, least: int = 1) -> tuple[list[int], Bounds]:
    """Return the points per axis, as fitted or by ``size`` (at least ``least`` each), and the bounds of all axes."""
    fitted = list(about["shape"])
    if size is None:
        return fitted, (-1.0, 1.0)
    sizes = list(size) * (len(fitted) if len(size) == 1 else 1)
    if len(sizes) != len(fitted) or min(sizes) < least:
        raise ValueError(
            f"--size must be one size or {len(fitted)} of them, each at least {least}, got {'x'.join(map(str, size))}"
        )
    return sizes, (-1.0, 1.0)


def frame_sides(sides: Sequence[int], size: Sequence[int] | None) -> list[int]:
    """Return the height and width of a picture to render: one size is that of the longer side, the shape is kept.

    Parameters
    ----------
    sides
        As fitted.
    size
        Of ``--size``; None: as fitted.

    Raises
    ------
    ValueError
        It is neither one size nor two, each at least 1.
    """
    if size is None:
        return list(sides)
    if len(size) > 2 or min(size) < 1:
        got = "x".join(map(str, size))
        raise ValueError(
            "--size must be one size, that of the longer side, or 2 of them, height x width, each at least 1, "
            f"got {got}"
        )
    if len(size) == 2:
        return list(size)
    return [max(round(side * size[0] / max(sides)), 1) for side in sides]


def picture_grid(about: dict[str, Any], size: Sequence[int] | None = None) -> tuple[list[int], Bounds]:
    """Return the points per axis of a picture to render, as :func:`frame_sides`, and the bounds of both axes."""
    return frame_sides(about["shape"], size), (-1.0, 1.0)


def _nothing_more(about: dict[str, Any]) -> None:
    """Check nothing: the kind states what every kind states."""


def _claims_nothing(path: Path) -> bool:
    """Leave files of other kinds to them."""
    return False


SIZE = Option("points per axis, such as 64x64x64, or 64 for all axes alike (default: as fitted)", spelling.shape)

FRAME_SIZE = Option(
    "height x width in pixels, such as 1024x768, or 1024 for the longer side (default: as fitted)", spelling.shape
)


@dataclass(frozen=True)
class SignalKind:
    """A kind of signal, in the registry :data:`SIGNALS`.

    Attributes
    ----------
    called
        What a file of it is, with an article, for messages: ``"an image"``.
    summary
        One line for ``inrfast fit --help``: formats, and what to know of them.
    ending
        Suffix of the file that ``inrfast fit`` writes if none is named.
    axes
        Coordinates of a point: the axes of the grid that is written.
    readable
        ``readable()``: the suffixes that make a file one of this kind, in lower case.
    writable
        ``writable(outputs)``: the suffixes of files that ``write`` takes for a network of so many outputs.
    load
        ``load(path, seed=, memory_budget=, progress=, **options) -> Signal``, with the options of ``fit`` that were
        given; ``seed`` is for what is drawn at random, ``progress`` as in :func:`inrfast.fit`.
    write
        ``write(predictions, about, path)``: predictions (*grid, M), and what ``load`` said, in which options of
        ``render`` replace what has their name. It raises ValueError where the predictions hold no such signal;
        ``inrfast fit`` then keeps the network and says so.
    options, render_options
        Options of ``inrfast fit`` and ``inrfast render``, by their names without ``--``. Kinds may share a name.
    grid
        ``grid(about, **options)``: the points per axis to render, and the bounds of all axes, with the options of
        ``render`` that were given.
    check
        ``check(about)`` raises KeyError, TypeError or ValueError if a file lacks what this kind alone states.
    view
        ``view(signal, predictions)``: blocks of :mod:`inrfast.pages` that show the signal beside the predictions
        (*grid, M), for the page that ``inrfast fit`` writes. None: the page has numbers alone.
    shared
        ``shared()``: further suffixes, of files that belong to another kind unless this one is asked for (``--as``) or
        ``claims`` them.
    claims
        ``claims(path)``: whether the content of an existing file with a shared suffix, or a folder, is of this kind.
    folders
        Whether ``load`` takes folders too. A ``writable`` suffix of ``""`` is a folder that ``write`` makes.
    recipe
        ``recipe(signal)``: how ``inrfast fit`` fits it by default.
    """

    called: str
    summary: str
    ending: str
    axes: int
    readable: Callable[[], Collection[str]]
    writable: Callable[[int], Collection[str]]
    load: Callable[..., Signal]
    write: Callable[[Tensor, dict[str, Any], Path], None]
    options: Mapping[str, Option] = field(default_factory=dict)
    render_options: Mapping[str, Option] = field(default_factory=lambda: {"size": SIZE})
    grid: Callable[..., tuple[list[int], Bounds]] = fitted_grid
    check: Callable[[dict[str, Any]], None] = _nothing_more
    view: Callable[[Signal, Tensor], Sequence[Block]] | None = None
    shared: Callable[[], Collection[str]] = tuple
    claims: Callable[[Path], bool] = _claims_nothing
    folders: bool = False
    recipe: Callable[[Signal], Recipe] = by_hash_grid


def _check_suffixes(name: str, kind: SignalKind) -> None:
    """Refuse a kind whose suffixes are none, or belong to another kind."""
    suffixes, every = kind.readable(), [*kind.readable(), *kind.shared()]
    if isinstance(suffixes, str) or not every or not all(_is_suffix(suffix) for suffix in (*every, kind.ending)):
        raise ValueError(
            f"ending and readable() of the signal {name!r} must be suffixes in lower case, such as '.txt' and "
            f"['.txt'], got {kind.ending!r} and {suffixes!r}"
        )
    for other, known in SIGNALS.items():
        taken = sorted(set(suffixes).intersection(known.readable()))
        if taken and other != name:
            raise ValueError(
                f"{', '.join(taken)} of the signal {name!r} belongs to {other!r} already; take another one"
            )


def _is_suffix(given: Any) -> bool:
    return isinstance(given, str) and given == Path(f"signal{given}").suffix == given.lower() != ""


SIGNALS: Registry[SignalKind] = Registry("signal", "inrfast.signals", SignalKind, check=_check_suffixes)
"""All kinds of signals. To add one, write a file like ``volume.py`` beside it."""

ANY = "image"
"""The kind of a file without a suffix, of which the content must decide."""


def kind_of(path: Path, asked: str | None = None) -> str:
    """Return the name of the kind of a file's signal: the one ``asked`` for, or by its suffix, or by its content.

    Raises
    ------
    ValueError
        No kind has such a suffix; the kind that is asked for does not read it.
    """
    suffix = "" if os.path.isdir(path) else path.suffix.lower()
    if asked is not None:
        kind = SIGNALS[check_choice("--as", asked, SIGNALS)]
        suffixes = [*kind.readable(), *kind.shared()]
        if suffix and suffix not in suffixes:
            raise ValueError(f"--as {asked} reads {listed(suffixes)}, got {path}")
        return asked
    claims = [name for name, kind in SIGNALS.items() if not suffix or suffix in kind.shared()]
    for name in claims if os.path.exists(path) else []:
        if SIGNALS[name].claims(path):
            return name
    owners = [name for name, kind in SIGNALS.items() if suffix in kind.readable()]
    if owners:
        return owners[-1]
    if suffix:
        known = ", ".join(f"{name} ({_first(kind)})" for name, kind in SIGNALS.items() if kind.readable())
        asking = "".join(f"; --as {name}: {listed(SIGNALS[name].shared())}" for name in claims)
        raise ValueError(f"no kind of signal ends in {suffix}: {known}{asking}; got {path}")
    return ANY


def listed(suffixes: Collection[str]) -> str:
    """Return suffixes in words, for a message: of an image's many, the usual ones."""
    usual = [suffix for suffix in (".png", ".jpg", ".tiff", ".webp") if suffix in suffixes]
    if ".jpg" in usual:
        return f"{', '.join(usual)} (or another image)"
    return " or ".join(suffix or "folder without a suffix" for suffix in suffixes)


def _first(kind: SignalKind) -> str:
    """Return the usual suffixes of a kind, for a message that names all kinds."""
    usual = [kind.ending, *(suffix for suffix in kind.readable() if suffix != kind.ending)]
    return ", ".join(usual[:3]) + (", ..." if len(usual) > 3 else "")


def load_signal(name: str, path: Path, **given: Any) -> Signal:
    """Return what the kind called ``name`` loads from a file, if it is a signal.

    Raises
    ------
    ValueError
        It is none, or its parts do not belong together.
    """
    signal = SIGNALS[name].load(path, **given)
    try:
        return _checked(signal, SIGNALS[name], f"load of the signal {name!r}")
    except TypeError as error:  # of what was loaded, not of what a command was given
        raise ValueError(str(error)) from error


def _checked(signal: Any, kind: SignalKind, what: str) -> Signal:
    """Return a signal whose parts belong together."""
    if not isinstance(signal, Signal):
        raise TypeError(f"{what} must return a Signal(coords, target, about), got {type(signal).__name__}")
    coords, target = check_tensor(f"coords of {what}", signal.coords, ndim=2), signal.target
    check_tensor(f"target of {what}", target, finite=False)
    if coords.shape[1] != kind.axes:
        raise ValueError(f"coords of {what} must be (N, {kind.axes}) for its axes, got {tuple(coords.shape)}")
    if target.ndim < 2 or target.shape[:-1].numel() != len(coords):
        raise ValueError(
            f"target of {what} must be (N, M) or (*grid, M) for its N = {len(coords)} coords, got {tuple(target.shape)}"
        )
    try:
        _check_stated(kind, signal.about, kind.axes)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"about of {what} is wrong or lacks something: {error}") from error
    return signal


def write_signal(name: str, predictions: Tensor, about: dict[str, Any], path: Path) -> None:
    """Write predictions as the kind called ``name`` does; ``ValueError`` if no file comes of it."""
    before = _state_of(path)
    SIGNALS[name].write(predictions, about, path)
    if not path.exists() or (path.is_file() and _state_of(path) == before):
        raise ValueError(f"write of the signal {name!r} wrote no file {path}")


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from the same one before it was written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def unscaled(predictions: Tensor, about: dict[str, Any]) -> Tensor:
    """Return the values of the signal from a network's predictions."""
    return predictions * about["scale"] + about["offset"]


def check_about(about: Any, inputs: int, source: Path) -> tuple[SignalKind, dict[str, Any]]:
    """Return the kind of a model file's signal and what the file says about it, if that fits the network.

    Parameters
    ----------
    about
        What the file says.
    inputs
        Coordinates that its network takes.
    source
        The file, for messages.

    Raises
    ------
    ValueError
        It says nothing of a signal, or something that the kind cannot write.
    """
    if not isinstance(about, dict) or not isinstance(about.get("kind"), str):
        raise ValueError(f"{source} does not say what its network stands for; render takes models of inrfast fit")
    kind = SIGNALS[check_choice(f"the kind of signal of {source}", about["kind"], SIGNALS)]
    try:
        _check_stated(kind, about, inputs)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: what it says about its signal is wrong or missing: {error}") from error
    return kind, about


def _check_stated(kind: SignalKind, about: Any, inputs: int) -> None:
    """Check what every kind states, and what this one alone does."""
    if not isinstance(about, dict):
        raise TypeError(f"a dict is needed, got {type(about).__name__}")
    for entry in ("shape", "offset", "scale"):
        if entry not in about:
            raise ValueError(f"the entry {entry!r} is missing")
    sides = [check_int("shape", side, minimum=1) for side in about["shape"]]
    if len(sides) != inputs or len(sides) != kind.axes:
        raise ValueError(f"shape {sides} for a network of {inputs} coordinates")
    check_float("offset", about["offset"])
    check_float("scale", about["scale"], minimum=0.0, exclusive=True)
    kind.check(about)
