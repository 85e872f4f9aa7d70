"""Singular values of representations: what enters the linear layers at all points, streamed in chunks of points.

Chunks of rows of one matrix or of many go by once, in fp64: their Gram matrices are added up, and a matrix whose Gram
matrix does not resolve the smallest tolerance takes a second pass by TSQR (:mod:`inrfast.linalg.tsqr`). The stated
bounds take in what rounding does to the matrices themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inrfast.analysis.report import Representation, matrix_spectrum
from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import UnsupportedModuleError, check_choice, check_coords
from inrfast.linalg.spectrum import check_tolerance
from inrfast.linalg.tsqr import CHUNK_ROWS, GRAM_RTOL, SingularValues, StreamedGram, StreamedQR
from inrfast.memory import DEVICE_ROWS, budget_bytes, chunks, require
from inrfast.modes import in_own_modes
from inrfast.ops.factors import Room
from inrfast.progress import progress_bar
from inrfast.rounding import SAFETY, pass_errors
from inrfast.tangent.capture import UNCOUNTED, Capture
from inrfast.tangent.store import HOOKED_BUFFERS
from inrfast.wrapped import unwrapped

RTOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The verdict depends on the tolerance, so ranks are given at five."""

PASS_BUFFERS, SQUARES = 6, 5
"""Numbers in fp64 that a forward pass and a sum hold for one of the widest layer's, and matrices of order D + 1."""

Key = tuple[str, str]
"""``"features"`` or ``"sensitivities"``, and the parameter layer's name."""

Passes = Callable[[bool], Iterator[Iterable[tuple[Key, Tensor]]]]
"""One pass over all points: what every chunk of them adds to which matrix. Called with True first, with False again."""


@in_own_modes
def representation(
    net: nn.Module,
    coords: ArrayLike,
    layer: str | None = None,
    rtols: Sequence[float] = RTOLS,
    select: Select = None,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Representation:
    """Return the singular values and numerical ranks of one layer's output Z (N, D) at all points.

    That is one entry of :attr:`inrfast.DiagnosisReport.representations` without the rest of a diagnosis. Of an
    :class:`inrfast.INR` by a forward pass that stops at the layer.

    Parameters
    ----------
    net
        As in :func:`inrfast.ntk`; not changed.
    coords
        The points (N, d), or (..., d) as in :func:`inrfast.ntk`, a full grid for instance.
    layer
        ``"input"``, the coordinates as the encoding makes them, or the name of a hidden linear layer, ``"layers.0"``:
        its output behind activation and norm. Of other modules than INRs those that have trainable weights. None: the
        first layer's output, ``"layers.0"`` of an INR, or the input of a network that has a single one.
    rtols
        Relative tolerances in (0, 1), in any order. Below 1e-7, or what the Gram matrix resolves, TSQR takes a second
        pass.
    select
        As in :func:`inrfast.ntk`.
    memory_budget
        Bytes; None: half of what is free.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.

    Returns
    -------
    Representation
        With the spectrum of Z and that of [Z, 1]: singular values, one rank a tolerance as an interval that holds the
        exact one, stable and effective rank; and with the numbers of dead units and points.

    Raises
    ------
    UnsupportedModuleError
        As in :func:`inrfast.diagnose`; a network without any linear layer that is observed.
    ResolutionError
        A tolerance below what fp64 resolves for this layer.
    MemoryBudgetError
        The budget is too small for a Gram matrix of order D + 1.
    ValueError, TypeError
        Bad arguments, a layer that the network does not have.

    Examples
    --------
    >>> from inrfast import INR, grid
    >>> z = representation(INR(2, 1, width=64, init="rank_expanding"), grid((32, 32)), "layers.0", rtols=(1e-3,))
    >>> z.spectrum.rows, z.spectrum.columns, z.spectrum.ranks[0].upper > 40
    (1024, 64, True)
    """
    rtols = check_tolerances(rtols)
    capture = Capture(net, coords, None, select, "highest", memory_budget)
    net = unwrapped(net)
    coords = check_coords("coords", coords, capture.in_features, capture.device).detach()
    with torch.no_grad():
        names = capture.representations(coords[:2]) if capture.mlp is None else capture.input_names([]).values()
    layer = _chosen(capture, layer, tuple(names))
    rows = _chunk_rows(capture, coords, layer, budget_bytes(memory_budget, capture.device))
    activity, room, key = Activity(coords.device), Room(), ("features", layer)

    def passes(first: bool) -> Iterator[list[tuple[Key, Tensor]]]:
        bar.set_description(layer if first else f"{layer}, TSQR")
        for part in chunks(len(coords), rows):
            features = capture.representation(coords[part], layer, room)
            if first:
                activity.add(features[:, :-1])
                bar.update()
            yield [(key, features)]

    def errors() -> dict[Key, float]:
        tables = capture.mlp is None or capture.mlp.encoding is not None
        found = pass_errors(lambda points: [(capture.representation(points, layer), None)], coords, 1, None, tables)
        return {key: SAFETY * math.sqrt(float(found.features[0]))}

    steps = len(range(0, len(coords), rows))
    with progress_bar(total=steps, progress=progress, leave=False) as bar:
        values = streamed(passes, rtols[-1], errors)[key]
    return described(layer, values, rtols, *activity.read())


def _chosen(capture: Capture, layer: str | None, names: tuple[str, ...]) -> str:
    """Return the layer that is asked for, by default the first one's output, or refuse networks without any."""
    if not names:
        ways = "; ".join(f"{own.name!r}: {capture.way(index)}" for index, own in enumerate(capture.layers[:8]))
        raise UnsupportedModuleError(
            f"net has no linear layer that is observed, so what enters its layers is not known ({ways})"
        )
    return check_choice("layer", names[min(1, len(names) - 1)] if layer is None else layer, names)


def described(
    name: str, values: tuple[SingularValues, ...], rtols: Sequence[float], dead_units: int, dead_points: int
) -> Representation:
    """Return the report's entry of a representation from the singular values of Z and of [Z, 1]."""
    plain, with_ones = (matrix_spectrum(own, rtols) for own in values)
    return Representation(name, plain, with_ones, dead_units, dead_points)


def check_tolerances(rtols: Sequence[float]) -> tuple[float, ...]:
    """Return the tolerances, largest first, without repetition."""
    if isinstance(rtols, (str, float, int)) or not isinstance(rtols, Iterable):
        raise TypeError(f"rtols must be a sequence of numbers in (0, 1), got {rtols!r}")
    checked = {check_tolerance("rtols", rtol) for rtol in rtols}
    if not checked:
        raise ValueError("rtols must hold at least one tolerance, got none")
    return tuple(sorted(checked, reverse=True))


def _chunk_rows(capture: Capture, coords: Tensor, layer: str, budget: int) -> int:
    """Return the points per chunk: as many as the products like, unless a pass and its sums exceed the budget."""
    order = capture.representation(coords[:2], layer).shape[1]
    if capture.mlp is None:
        each = 8 * (capture.numbers_per_point * HOOKED_BUFFERS + 2 * order)
    else:
        each = 8 * PASS_BUFFERS * (max(capture.mlp.columns, *capture.mlp.widths) + 1)
    squares = 8 * SQUARES * order**2
    require(max(0, squares + each - UNCOUNTED), budget, f"the Gram matrix of {layer}", "take a narrower layer")
    liked = max(CHUNK_ROWS, order) if capture.device.type == "cpu" else DEVICE_ROWS
    return max(1, min(liked, (budget - squares) // each))


class Activity:
    """Which units and points of a representation are dead, counted while its rows stream by, on their device.

    Attributes
    ----------
    units
        Whether each unit (D,) is not zero somewhere; None before the first rows.
    dead_points
        The number of points where all units are zero, in fp64, which holds it exactly.
    """

    def __init__(self, device: torch.device) -> None:
        self.units: Tensor | None = None
        self.dead_points = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Count some rows of Z, without its column of ones."""
        alive = features != 0
        units = alive.any(0)
        self.units = units if self.units is None else self.units | units
        self.dead_points += (~alive.any(1)).sum()

    @property
    def dead_units(self) -> Tensor:
        """The number of units that are zero at every point, (1,); 0 before the first rows."""
        return torch.zeros_like(self.dead_points) if self.units is None else (~self.units).sum().double().view(1)

    def read(self) -> tuple[int, int]:
        """Return the numbers of dead units and of dead points."""
        units, points = torch.cat([self.dead_units, self.dead_points]).tolist()
        return int(units), int(points)


# ---- many matrices at once ---------------------------------------------------------------------------------------


def streamed(
    passes: Passes, rtol: float, errors: Callable[[], Mapping[Key, float]]
) -> dict[Key, tuple[SingularValues, ...]]:
    """Return the singular values of matrices whose rows stream by, resolved down to ``rtol`` times each one's sigma_1.

    Of features, which end with a column of ones, those of Z and of [Z, 1]; of sensitivities those of S alone.

    Parameters
    ----------
    passes
        Passes over all points; a second one is taken for those matrices whose Gram matrix does not resolve ``rtol``.
    rtol
        The smallest tolerance.
    errors
        Called after the first pass: what rounding does to every matrix, a bound on its spectral norm.
    """
    kind = StreamedGram if rtol >= GRAM_RTOL else StreamedQR
    streams: dict[Key, StreamedGram | StreamedQR] = {}
    for matrices in passes(True):
        for key, rows in matrices:
            if key not in streams:
                streams[key] = kind(rows.shape[1], rows.device)
            streams[key].add(rows)
    off = errors()
    spectra = {key: _singular_values(key, stream, off[key]) for key, stream in streams.items()}
    failed = {key for key, values in spectra.items() if any(v.floor > rtol for v in values)}
    if kind is StreamedQR or not failed:
        return spectra
    again: dict[Key, StreamedQR] = {}
    for matrices in passes(False):
        for key, rows in matrices:
            if key in failed:
                if key not in again:
                    again[key] = StreamedQR(rows.shape[1], rows.device)
                again[key].add(rows)
    return spectra | {key: _singular_values(key, stream, off[key]) for key, stream in again.items()}


def _singular_values(key: Key, stream: StreamedGram | StreamedQR, error: float) -> tuple[SingularValues, ...]:
    """Return the spectra of Z and [Z, 1], or of S, which are off by so much."""
    values = replace(stream.singular_values(), matrix_error=error)
    if key[0] != "features":
        return (values,)
    return replace(stream.singular_values(values.shape[1] - 1), matrix_error=error), values
