"""The samples of a signal that a network is to be chosen for, from a file, a ``Signal`` or tensors, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor, is_array
from inrfast.errors import check_coords, check_float, check_tensor
from inrfast.grids import grid
from inrfast.memory import chunks
from inrfast.metrics import data_range_of
from inrfast.pixels import as_values, is_picture, range_of_pixels
from inrfast.signals.kinds import Signal, kind_of, load_signal

LEAST = 64
"""Samples at least: of fewer, the halves say too little of each other."""


MOST_CHANNELS = 16
"""Values per sample at most of a tensor without points: more are an axis of a grid, as of an image without channels."""


@dataclass(frozen=True)
class Samples:
    """A signal's samples, on the CPU.

    Attributes
    ----------
    coords
        Shape (N, d).
    values
        Shape (N, M).
    shape
        Points per axis where the samples are a regular grid, row-major; None: points anywhere.
    known
        Shape (N,), False where the signal is not known; None: known everywhere.
    data_range
        Of its PSNR.
    """

    coords: Tensor
    values: Tensor
    shape: tuple[int, ...] | None
    known: Tensor | None
    data_range: float

    @property
    def judged(self) -> Tensor:
        """The values (n, M) that are known."""
        return self.values if self.known is None else self.values[self.known]

    @property
    def count(self) -> int:
        """Number of samples that are known."""
        return len(self.values) if self.known is None else int(self.known.sum())


def samples_of(
    signal: Any,
    coords: ArrayLike | None = None,
    data_range: float | None = None,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Samples:
    """Return the samples of a file, a ``Signal``, or values with their points; arguments and errors of ``choose``."""
    if isinstance(signal, (str, os.PathLike)):
        _no_coords(coords, "a file")
        path = Path(signal)
        signal = load_signal(kind_of(path), path, seed=0, memory_budget=memory_budget, progress=progress)
    weight = None
    if isinstance(signal, Signal):
        _no_coords(coords, "a Signal")
        weight, data_range = signal.weight, signal.data_range if data_range is None else data_range
        signal, coords = _gridded(signal), signal.coords
    if is_picture(signal) or is_array(signal):
        picture = is_picture(signal)
        values, white = as_values("signal", signal)
        signal = values if values.is_floating_point() else signal  # others are refused
        data_range = range_of_pixels(data_range, white)
        if coords is None:
            signal = _with_channels(signal, picture)
    values = _floating(signal).detach().cpu()
    if coords is None:
        _check_channels(values)
        check_tensor("signal", values)
        coords = grid(values.shape[:-1])
    else:
        coords = check_coords("coords", coords).detach().cpu()
        values = _at(coords, values)
    shape = tuple(values.shape[:-1])
    on_grid = len(shape) == coords.shape[1] and _is_grid(coords, shape)
    known = None if weight is None or bool((weight > 0).all()) else weight > 0
    values = values.reshape(-1, values.shape[-1])
    check_tensor("signal", values if known is None else values[known])
    found = Samples(coords, values, shape if on_grid else None, known, _range(values, known, data_range))
    _check_worth(found)
    return found


def _floating(signal: Any) -> Tensor:
    """Return the signal if it is a floating tensor, or say how it becomes one."""
    values = as_tensor("signal", signal)
    if not values.is_floating_point() and not values.is_complex():
        cure = "signal.float()" if isinstance(signal, Tensor) else 'signal.astype("float32")'
        raise TypeError(
            f"signal must have a floating-point dtype, got {values.dtype}; give {cure} / 255 for 8-bit values, {cure} "
            "for others"
        )
    return check_tensor("signal", values, finite=False)


def _with_channels(signal: Any, picture: bool) -> Any:
    """Return an image (H, W) without channels as (H, W, 1), whatever it came as; narrow ones are values of a line."""
    shape = tuple(signal.shape)
    if len(shape) != 2:
        return signal
    if shape[1] > MOST_CHANNELS:
        return signal[..., None]
    if picture:
        raise ValueError(
            f"signal must be wider than {MOST_CHANNELS} pixels as an image of one channel, got {shape}: as a tensor it "
            f"would be {shape[0]} samples of {shape[1]} values; give numpy.asarray(image)[..., None]"
        )
    return signal


def _check_channels(values: Tensor) -> None:
    """Refuse a tensor without points whose last axis is one of its grid."""
    shape = tuple(values.shape)
    if values.ndim < 2:
        raise ValueError(f"signal must be (*grid, M), the values last, got shape {shape}; give signal[..., None]")
    if shape[-1] > MOST_CHANNELS:
        raise ValueError(
            f"signal must be (*grid, M) with at most {MOST_CHANNELS} values per sample, got shape {shape}: the last "
            "axis counts values per sample; give an image without channels as signal[..., None], and more values "
            "with their coords"
        )


def _at(coords: Tensor, values: Tensor) -> Tensor:
    """Return the values (*grid, M) at points, of which a single one per point may come without an axis of its own."""
    shape = tuple(values.shape)
    if values.ndim > 1 and values.shape[:-1].numel() == len(coords):
        return values
    if values.numel() == len(coords):
        return values[..., None]
    raise ValueError(
        f"coords must be one point a value, (N, d) for a signal (N,), (N, M), (*grid) or (*grid, M), got "
        f"{tuple(coords.shape)} for a signal of shape {shape}"
    )


def _no_coords(coords: Any, what: str) -> None:
    if coords is not None:
        raise ValueError(f"coords must be left out with {what}, which has its own")


def _gridded(signal: Signal) -> Tensor:
    """Return the values (*grid, M) of a signal on a grid, or as they are."""
    shape = tuple(signal.about.get("shape", ()))
    on_grid = len(shape) == signal.coords.shape[1] and torch.Size(shape).numel() == len(signal.coords)
    return signal.target.reshape(*shape, -1) if on_grid and signal.target.ndim == 2 else signal.target


def _is_grid(coords: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether points are those of a regular grid of this shape, row-major, with any bounds."""
    points = coords.reshape(*shape, -1)
    for axis, size in enumerate(shape):
        if size < 2:
            continue
        step = points.diff(dim=axis)
        other = [k for k in range(coords.shape[1]) if k != axis]
        own = step[..., axis]
        if bool((step[..., other] != 0).any()) or float(own.min()) < 0.5 * float(own.max()) or float(own.max()) <= 0:
            return False
    return True


def _range(values: Tensor, known: Tensor | None, given: float | None) -> float:
    if given is not None:
        return check_float("data_range", given, minimum=0.0, exclusive=True)
    return data_range_of(values if known is None else values[known])


def means_of(samples: Samples) -> tuple[list[float], float]:
    """Return the mean of each output, and the mean squared error of a signal of these means."""
    values = samples.judged
    parts = [values[rows] for rows in chunks(len(values), 2**16)]
    means = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(values)
    squares = sum(float((part.double() - means).square().sum()) for part in parts)
    return means.tolist(), squares / values.numel()


def _check_worth(samples: Samples) -> None:
    """Refuse signals of which nothing can be said."""
    if samples.count < LEAST:
        raise ValueError(f"signal must have at least {LEAST} samples to be halved, got {samples.count}")
    low, high = torch.aminmax(samples.judged, dim=0)
    if bool((low == high).all()):
        raise ValueError("signal must not be constant: every network reconstructs it, got one value everywhere")
    if samples.shape is None:
        _check_places(samples.coords if samples.known is None else samples.coords[samples.known])


def _check_places(coords: Tensor) -> None:
    """Refuse points of which too few differ."""
    toward = torch.rand(coords.shape[1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = len(torch.unique(coords.double() @ toward))
    if places < LEAST:
        raise ValueError(f"coords must hold at least {LEAST} different points, got {places} among {len(coords)}")
