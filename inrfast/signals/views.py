"""Signals beside what a network makes of them, for a page: images, waveforms, slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast import plots
from inrfast.pages import Block, Picture, Pictures, Text, drawn, figure_picture, image_picture
from inrfast.pages.pictures import MOST_PIXELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from inrfast.signals.kinds import Signal

QUANTILE = 0.995
"""Share of the errors that the colours of an error image tell apart."""

COLUMNS = 1200
"""Of a waveform: each shows the smallest and the largest sample of its part."""

WINDOW, QUIET = 512, -80.0
"""Samples of a spectrogram's window at most, and decibels below the loudest that are black."""

SLAB, DOTS = 0.03, 1500
"""Half the thickness of the slab whose sampled points are drawn on a slice, and how many of them."""


def of_image(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return the image, its reconstruction and the error, and what was known of it where not all was."""
    about = signal.about
    fitted = signal.target.reshape(predictions.shape)
    target, made = (_smaller(values) * about["scale"] + about["offset"] for values in (fitted, predictions))
    error = torch.stack([(one - other).abs().mean(-1) for one, other in zip(predictions, fitted, strict=True)])
    note = "" if error.shape == target.shape[:2] else f" Shown at {_size(target)} of {_size(error)} pixels."
    pictures = [
        image_picture(_coloured(target), "The image as it was fitted", f"Original, as it was fitted.{note}"),
        image_picture(_coloured(made), "What the network makes of it", "Reconstruction by the network."),
        _error_picture(_smaller(error[..., None]), "Mean absolute error of the colours at each pixel"),
    ]
    if signal.weight is not None:
        known = _smaller((signal.weight.reshape(error.shape) > 0).float()[..., None])
        seen = target * known + 0.5 * (1 - known)
        pictures.insert(1, image_picture(_coloured(seen), "What the fit was given", "Pixels that the fit was given."))
    return [Pictures(pictures)]


def of_audio(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return waveforms and spectrograms of the first channel."""
    target, made = signal.target[:, 0].numpy(), predictions[:, 0].numpy()
    channels = signal.target.shape[1]
    said = [] if channels == 1 else [Text(f"The first of {channels} channels is shown; all are fitted.")]
    return [*said, drawn(lambda: _waveforms(target, made, signal.about["rate"]))]


def of_volume(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return the middle slice along each axis: the volume, its reconstruction, the error."""
    fitted = signal.target.reshape(predictions.shape)
    pictures = []
    for axis in range(3):
        place = fitted.shape[axis] // 2
        where = f"slice {place} along axis {axis}"
        one, two = (_smaller(values.select(axis, place)) + 0.5 for values in (fitted, predictions))
        pictures += [
            image_picture(_coloured(one), f"The volume, {where}", f"Original, {where}."),
            image_picture(_coloured(two), f"The network's volume, {where}", f"Reconstruction, {where}."),
            _error_picture((two - one).abs().mean(-1, keepdim=True), f"Mean absolute error, {where}"),
        ]
    channels = fitted.shape[-1]
    shown = "" if channels in (1, 3) else f" The first of {channels} channels is shown."
    return [Text(f"Black is the least value of the volume, white the largest.{shown}"), Pictures(pictures)]


def of_video(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return the first, the middle and the last frame: as fitted, as the network makes it, and the error."""
    fitted, about = signal.target.reshape(predictions.shape), signal.about
    pictures = []
    for frame in dict.fromkeys([0, len(fitted) // 2, len(fitted) - 1]):
        one, two = (_smaller(values[frame]) * about["scale"] + about["offset"] for values in (fitted, predictions))
        where = f"frame {frame + 1} of {len(fitted)}"
        pictures += [
            image_picture(_coloured(one), f"The video, {where}", f"Original, {where}."),
            image_picture(_coloured(two), f"The network's video, {where}", f"Reconstruction, {where}."),
            _error_picture((two - one).abs().mean(-1, keepdim=True), f"Mean absolute error, {where}"),
        ]
    return [Pictures(pictures)]


def of_distances(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return slices as :func:`of_mesh` does, of distances, which are negative inside."""
    return of_mesh(replace(signal, target=-signal.target), -predictions)


def of_mesh(signal: Signal, predictions: Tensor) -> Sequence[Block]:
    """Return slices of the network's values, with its surface and the sampled points near them."""
    return [drawn(lambda: _slices(signal, predictions[..., 0].numpy()))]


# ---- images ------------------------------------------------------------------------------------------------------


def _smaller(image: Tensor) -> Tensor:
    """Return an image (H, W, C), averaged over areas where it has a side that no page shows."""
    height, width = image.shape[:2]
    if max(height, width) <= MOST_PIXELS:
        return image
    sides = [max(1, round(side * MOST_PIXELS / max(height, width))) for side in (height, width)]
    return F.interpolate(image.permute(2, 0, 1)[None], size=sides, mode="area")[0].permute(1, 2, 0)


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[:2]))


def _coloured(image: Tensor) -> Tensor:
    """Return an image of one, three or four channels: grey ones, or the first channel, where it has another number."""
    channels = image.shape[-1]
    if channels == 2:  # grey and opacity
        return torch.cat([image[..., :1]] * 3 + [image[..., 1:]], -1)
    return image if channels in (1, 3, 4) else image[..., :1]


def _error_picture(error: Tensor, alt: str) -> Picture:
    """Return errors (H, W, 1) as a picture, white where there is none, dark where they are large."""
    most = float(np.quantile(error.numpy(), QUANTILE))
    share = (error / most).clip(0, 1) if most > 0 else torch.zeros_like(error)
    # From white over the accent of the pages to black: light falls evenly with the error.
    low, middle, high = (torch.tensor(colour) / 255 for colour in ((255, 255, 255), (0, 114, 178), (0, 0, 0)))
    colours = torch.where(share < 0.5, low + 2 * share * (middle - low), middle + (2 * share - 1) * (high - middle))
    return image_picture(colours, alt, f"{alt}: white is 0, black {most:.3g} of the range or more.")


# ---- sounds ------------------------------------------------------------------------------------------------------


def _waveforms(target: np.ndarray, made: np.ndarray, rate: int) -> list[Picture]:
    figure = plots.new_figure(10.5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    _wave(above, target, rate, "original", "#0072B2")
    _wave(above, made, rate, "reconstruction", "#D55E00")
    _wave(below, made - target, rate, "error", "#000000")
    above.legend(loc="upper right", frameon=False, ncols=2)
    above.set_ylabel("amplitude")
    below.set_ylabel("error")
    below.set_xlabel("time (s)")
    alt = "Waveforms of the original and of its reconstruction, and their difference, over time"
    pictures = [figure_picture(figure, alt, "Waveforms, and their difference below on its own scale.", wide=True)]
    if len(target) >= 32:
        loudest = max(float(np.abs(_spectrum(target)).max()), np.finfo(float).tiny)
        for values, what in ((target, "Original"), (made, "Reconstruction")):
            pictures.append(_spectrogram(values, rate, loudest, what))
    return pictures


def _wave(axes: Axes, values: np.ndarray, rate: int, label: str, colour: str) -> None:
    """Draw a waveform; of a long one the range of each part."""
    parts = np.array_split(values, min(len(values), COLUMNS))
    starts = np.cumsum([0, *map(len, parts[:-1])]) / rate
    if len(values) <= COLUMNS:
        axes.plot(starts, values, color=colour, linewidth=0.9, label=label)
        return
    lows, highs = [part.min() for part in parts], [part.max() for part in parts]
    axes.fill_between(starts, lows, highs, color=colour, alpha=0.6, linewidth=0, label=label)


def _spectrum(values: np.ndarray) -> np.ndarray:
    """Return the short-time Fourier transform, frequencies along the first axis."""
    size = min(WINDOW, len(values))
    signal = torch.from_numpy(values)
    window = torch.hann_window(size, dtype=signal.dtype)
    hop = max(size // 4, len(values) // COLUMNS, 1)
    return torch.stft(signal, size, hop, window=window, center=True, pad_mode="constant", return_complex=True).numpy()


def _spectrogram(values: np.ndarray, rate: int, loudest: float, what: str) -> Picture:
    """Return a spectrogram, in decibels below the loudest part of the original."""
    figure = plots.new_figure(5.4, 3.6)
    axes = figure.subplots()
    level = 20 * np.log10(np.abs(_spectrum(values)) / loudest + 10 ** (QUIET / 20))
    seconds = len(values) / rate
    shown = axes.imshow(
        level, origin="lower", aspect="auto", extent=(0, seconds, 0, rate / 2), vmin=QUIET, vmax=0, cmap="magma"
    )
    figure.colorbar(shown, label="dB below the original's loudest")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (Hz)")
    return figure_picture(figure, f"{what}: level of each frequency over time", f"{what}: spectrogram.")


# ---- surfaces ----------------------------------------------------------------------------------------------------


def _slices(signal: Signal, values: np.ndarray) -> list[Picture]:
    """Draw the middle slice along each axis."""
    middles = [np.take(values, side // 2, axis) for axis, side in enumerate(values.shape)]
    most = float(np.quantile(np.abs(np.concatenate([middle.ravel() for middle in middles])), QUANTILE))
    points, told = signal.coords.numpy(), signal.target.reshape(-1).numpy()
    pictures = []
    for axis, name in enumerate("xyz"):
        figure = plots.new_figure(4.6, 4.4)
        axes = figure.subplots()
        place = values.shape[axis] // 2
        height = float(np.linspace(-1, 1, values.shape[axis])[place])
        one, two = (other for other in range(3) if other != axis)
        _slice(axes, middles[axis], most or 1.0)
        near = np.flatnonzero(np.abs(points[:, axis] - height) < SLAB)[:DOTS]
        for chosen, colour, label in ((told > 0, "#000000", "inside"), (told < 0, "#ffffff", "outside")):
            own = near[chosen[near]]
            axes.scatter(
                points[own, one], points[own, two], s=7, color=colour, edgecolor="0.4", linewidth=0.3, label=label
            )
        axes.set_xlabel("xyz"[one])
        axes.set_ylabel("xyz"[two])
        axes.set_aspect("equal")
        axes.set_xlim(-1, 1)
        axes.set_ylim(-1, 1)
        pictures.append(
            figure_picture(
                figure,
                f"Slice of the network's values at {name} = {height:.2f} with sampled points of the mesh near it",
                f"{name} = {height:.2f}: the black line is the network's surface, orange its inside. Dots are sampled "
                "points near the slice, black inside the mesh and white outside.",
            )
        )
    return pictures


def _slice(axes: Axes, values: np.ndarray, most: float) -> None:
    """Draw one slice (first axis to the right) and the line where it is zero."""
    axes.imshow(
        values.T, origin="lower", extent=(-1, 1, -1, 1), cmap="PuOr_r", vmin=-most, vmax=most, interpolation="bilinear"
    )
    if min(values.shape) >= 2 and np.nanmin(values) < 0 < np.nanmax(values):
        axes.contour(
            np.linspace(-1, 1, values.shape[0]),
            np.linspace(-1, 1, values.shape[1]),
            values.T,
            levels=[0.0],
            colors="black",
            linewidths=1.5,
        )
