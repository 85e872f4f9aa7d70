"""Aliasing: what a network that was fitted at one sampling rate does at a higher one, above half the first rate.

Samples at a rate fs cannot tell a frequency from those that differ from it by a multiple of fs. So a network that fits
them may hold frequencies above fs / 2 in place of, or beside, the one below that they fold to.

Source: section 4.2 of Yüce, Ortiz-Jiménez, Besbinar and Frossard, A structured dictionary perspective on implicit
neural representations, CVPR 2022.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast import plots
from inrfast.analysis.harmonics import energies
from inrfast.errors import InrfastError, check_choice, check_float, check_module, warn
from inrfast.grids import check_bounds, grid
from inrfast.memory import DEVICE_ROWS, budget_bytes, chunks, counted, is_refusal, require
from inrfast.mlp import is_pointwise
from inrfast.modes import in_own_modes, modes_kept
from inrfast.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOWS = ("none", "hann")

NUMBERS = 12
"""Numbers of 8 bytes that are held per point and output of the finer grid."""

RATES = 1e-9
"""Relative rounding that is allowed of products of rates and bounds."""

JUMP = 8
"""How many times the root mean square of neighbours' differences the ends of an axis may differ without a warning."""

NOISE = 16
"""Roundoffs of the network's dtype, relative to its largest value, below which there is no signal."""

PEAK, HALF = "peak above fs / 2", "fs / 2: half of the coarser rate"
"""What stands in the legends of drawings."""

SILENT = -200.0
"""What stands for the level of no energy in drawings, in dB."""


@dataclass(frozen=True)
class Peak(Record):
    """A frequency above half the sampling rate at which the spectrum has a local maximum.

    Attributes
    ----------
    frequency
        One number per axis, in cycles per unit of the coordinates; of a frequency and its negative, the positive one.
    amplitude
        Of the sinusoid; with several outputs the root of the sum of squares.
    level
        In dB, relative to the strongest frequency of the finer spectrum (the mean left out).
    folded
        The frequency, at most fs / 2 on every axis, from which the samples at fs cannot tell it.
    """

    frequency: tuple[float, ...]
    amplitude: float
    level: float
    folded: tuple[float, ...]


@dataclass(frozen=True)
class Aliasing(Record):
    """Spectra of a network sampled at two rates, and what the finer one shows above half the coarser rate.

    Attributes
    ----------
    fs, fs_test
        Samples per unit of the coordinates, one number per axis.
    frequencies, frequencies_test
        Of the bins of each axis, ascending from the negative ones, in cycles per unit.
    amplitudes, amplitudes_test
        One axis per coordinate: the amplitude of the sinusoid, said at its frequency and at the negative one; over
        outputs the root of the sum of squares. At the frequency 0 the mean.
    peaks
        Above fs / 2, strongest first.
    share
        Of the energy at the finer rate, the mean left out, that lies above fs / 2 on any axis. 0 where there is none.
    """

    fs: tuple[float, ...]
    fs_test: tuple[float, ...]
    frequencies: tuple[np.ndarray, ...]
    frequencies_test: tuple[np.ndarray, ...]
    amplitudes: np.ndarray
    amplitudes_test: np.ndarray
    peaks: tuple[Peak, ...]
    share: float

    def __repr__(self) -> str:
        rates = f"fs={_words(self.fs)}, fs_test={_words(self.fs_test)}"
        return f"Aliasing({rates}, peaks={len(self.peaks)}, share={self.share:.3g})"

    def __str__(self) -> str:
        half = _words([rate / 2 for rate in self.fs])
        energy = f"{100 * self.share:.3g} % of the energy (without the mean) lies above fs / 2 = {half}"
        if not self.peaks:
            return f"no peak above fs / 2; {energy}"
        first = self.peaks[0]
        more = f", and {len(self.peaks) - 1} more" if len(self.peaks) > 1 else ""
        level = round(first.level, 1) + 0.0  # no negative zero
        folded = f"which folds to {_words(first.folded)}"
        return f"a peak at {_words(first.frequency)}, {level:.1f} dB, {folded}{more}; {energy}"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw both spectra in dB, of one or two coordinates, and write the drawing to ``path`` (.png, .pdf, .svg).

        Dotted is half of ``fs``; triangles mark the peaks above it, on one coordinate.

        Raises
        ------
        ValueError
            More coordinates; another suffix.
        """
        if len(self.fs) > 2:
            raise ValueError(f"spectra of one or two coordinates can be drawn, got {len(self.fs)}")
        figure = plots.new_figure(9, 3.4 if len(self.fs) == 1 else 4.2)
        spectra = (
            (self.fs, self.frequencies, self.amplitudes),
            (self.fs_test, self.frequencies_test, self.amplitudes_test),
        )
        whole = _strongest(self.amplitudes_test)
        for axes, (rate, frequencies, amplitudes) in zip(figure.subplots(1, 2), spectra, strict=True):
            levels = _levels(amplitudes, whole)
            if len(self.fs) == 1:
                self._curve(axes, frequencies[0], levels)
            else:
                self._image(axes, frequencies, levels)
            axes.set_title(f"sampled at {_words(rate)} per unit", fontsize=10)
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # the finer one has them all
        colours: dict[str, Any] = {"facecolor": "0.35", "labelcolor": "white"} if len(self.fs) == 2 else {}
        figure.legend(
            named.values(), named, loc="outside lower center", ncols=2, fontsize=9, frameon=bool(colours), **colours
        )
        if path is not None:
            plots.save(figure, path)
        return figure

    def _curve(self, axes: Axes, frequencies: np.ndarray, levels: np.ndarray) -> None:
        axes.plot(frequencies, levels, color=plots.PALETTE[0], linewidth=1)
        for sign, peak in itertools.product((1, -1), self.peaks):
            if abs(peak.frequency[0]) <= frequencies.max():
                axes.plot(sign * peak.frequency[0], peak.level, "v", color=plots.PALETTE[1], markersize=5, label=PEAK)
        for half in (-self.fs[0] / 2, self.fs[0] / 2):
            axes.axvline(half, color="0.6", linestyle=":", linewidth=1, label=HALF)
        axes.set_ylim(max(levels.min(), -120) - 5, 10)
        axes.set_xlabel("frequency (cycles per unit)")
        axes.set_ylabel("level (dB)")
        axes.spines[["top", "right"]].set_visible(False)

    def _image(self, axes: Axes, frequencies: Sequence[np.ndarray], levels: np.ndarray) -> None:
        # A pixel's middle is its frequency.
        ends = [(own[0] - (own[1] - own[0]) / 2, own[-1] + (own[1] - own[0]) / 2) for own in frequencies]
        shown = axes.imshow(levels, origin="lower", extent=(*ends[1], *ends[0]), vmin=-80, vmax=0, cmap="viridis",
                            interpolation="nearest", aspect="auto")  # fmt: skip
        axes.figure.colorbar(shown, ax=axes, label="level (dB)", extend="min")
        up, across = np.array(self.fs) / 2
        axes.plot(
            across * np.array([-1, 1, 1, -1, -1]), up * np.array([-1, -1, 1, 1, -1]), "w:", linewidth=1, label=HALF
        )
        axes.set_xlim(*ends[1])
        axes.set_ylim(*ends[0])
        axes.set_xlabel("frequency on axis 1")
        axes.set_ylabel("frequency on axis 0")


@in_own_modes
def aliasing(
    net: nn.Module,
    fs: float | Sequence[float],
    fs_test: float | Sequence[float],
    bounds: Any = (0, 1),
    floor: float = -40.0,
    window: str = "none",
    memory_budget: int | None = None,
) -> Aliasing:
    """Return the spectra of a network at two sampling rates, and the peaks above half the first rate.

    :attr:`Aliasing.share` is the share of the energy above that half, the mean left out: a picture's brightness would
    hide all the rest.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64; it is evaluated in eval mode.
    fs, fs_test
        Samples per unit of the coordinates: those that the network was fitted to, and more; one number, or one per
        axis. Of a module without ``in_features``, the number of coordinates is that of the rates (or of the bounds):
        on two coordinates give two. Times ``high - low`` they must be whole numbers.
    bounds
        ``(low, high)``, or one such pair per axis: the grids are ``inrfast.grid(..., "exclusive", bounds)``.
    floor
        Level in dB, relative to the strongest frequency, below which nothing counts as a peak.
    window
        ``"none"``: the DFT of the samples as they are. It takes the function as one period, so a jump between its ends
        spreads over all frequencies, above fs / 2 too. ``"hann"`` fades the ends out: frequencies become two bins wide,
        and what lies far from them is theirs no more. Amplitudes are of a sinusoid in a bin's middle, both ways.
    memory_budget
        Bytes; None takes half of what is free.

    Warns
    -----
    RuntimeWarning
        Without a window, where the ends jump by far more than neighbours differ.

    Raises
    ------
    ValueError, TypeError
        Rates that are not positive, do not rise or give no whole number of samples; bad bounds, an unknown window; a
        module that does not take the coordinates, or returns NaN or Inf.
    MemoryBudgetError
        The finer grid does not fit.

    Examples
    --------
    >>> from inrfast import INR, RandomFourier
    >>> net = INR(1, 1, width=16, encoding=RandomFourier(frequencies=[[23.0], [105.0]]), dtype=torch.float64)
    >>> found = aliasing(net, fs=128, fs_test=512)
    >>> found.peaks[0].frequency, found.peaks[0].folded
    ((105.0,), (23.0,))
    """
    check_module("net", net)
    check_choice("window", window, WINDOWS)
    floor = check_float("floor", floor)
    axes = _coordinates(net, fs, fs_test, bounds)
    pairs = check_bounds(bounds, axes)
    rates, rates_test = _rates("fs", fs, axes), _rates("fs_test", fs_test, axes)
    sizes, sizes_test = _samples("fs", rates, pairs), _samples("fs_test", rates_test, pairs)
    if any(many <= few for few, many in zip(sizes, sizes_test, strict=True)):
        raise ValueError(f"fs_test must be above fs on every axis, got {_words(rates_test)} and {_words(rates)}")
    budget = budget_bytes(memory_budget)
    with modes_kept(net):
        net.eval()
        values, finer = (_sampled(net, points, pairs, budget) for points in (sizes, sizes_test))
    if window == "none":
        _warn_of_jumps(finer, axes)
    amplitudes, _ = _spectrum(values, sizes, window)
    amplitudes_test, energy = _spectrum(finer, sizes_test, window)
    bins, bins_test = _bins(sizes, pairs), _bins(sizes_test, pairs)
    mesh = np.stack(np.meshgrid(*bins_test, indexing="ij"), -1)
    above = (np.abs(mesh) > np.array(rates) / 2 * (1 + RATES)).any(-1)
    noise = NOISE * torch.finfo(finer.dtype).eps * float(finer.abs().max())
    share, peaks = 0.0, tuple[Peak, ...]()
    if math.sqrt(energy.sum()) > noise:
        share = float(energy[above].sum() / energy.sum())
        found = _peaks(amplitudes_test, energy, floor, noise)
        peaks = tuple(
            Peak(_one(mesh[place]), float(amplitudes_test[place]), float(level), _one(_folded(mesh[place], rates)))
            for place, level in found
            if above[place] and _one(mesh[place]) == tuple(mesh[place].tolist())
        )
    return Aliasing(rates, rates_test, bins, bins_test, amplitudes, amplitudes_test, peaks, share)


def _coordinates(net: nn.Module, fs: Any, fs_test: Any, bounds: Any) -> int:
    """Return the number of coordinates: the network's own, or as many as anything is given for."""
    own = getattr(net, "in_features", None)
    if isinstance(own, int):
        return own
    several = [rate for rate in (fs, fs_test) if isinstance(rate, Sequence)]
    pairs = [bounds] if isinstance(bounds, Sequence) and bounds and isinstance(bounds[0], Sequence) else []
    return max((len(one) for one in (*several, *pairs)), default=1)


def _rates(argument: str, given: Any, axes: int) -> tuple[float, ...]:
    """Return one positive rate per axis."""
    rates = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * axes
    if len(rates) != axes:
        several = f"{axes} numbers, one per coordinate" if axes > 1 else "a list of one, for the one coordinate"
        raise ValueError(f"{argument} must be one number, or {several}, got {given!r:.80}")
    return tuple(check_float(argument, rate, minimum=0.0, exclusive=True) for rate in rates)


def _samples(argument: str, rates: Sequence[float], pairs: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the whole numbers of samples between the bounds."""
    counts = [rate * (high - low) for rate, (low, high) in zip(rates, pairs, strict=True)]
    if any(round(count) < 2 or abs(count - round(count)) > RATES * count for count in counts):
        raise ValueError(
            f"{argument} must give a whole number of samples, 2 or more, between the bounds, got {_words(counts)}"
        )
    return tuple(round(count) for count in counts)


def _sampled(net: nn.Module, sizes: tuple[int, ...], pairs: Any, budget: int) -> Tensor:
    """Return the network's values on a grid, (*sizes, M), on the CPU in its own dtype."""
    like = next((parameter for parameter in net.parameters() if parameter.is_floating_point()), None)
    if like is None:
        raise ValueError("net must have parameters, which tell its dtype and device")
    points = math.prod(sizes)
    require(8 * NUMBERS * points, budget, f"a grid of {counted(points)} points", "take a lower fs_test")
    coords = grid(sizes, "exclusive", pairs, like.dtype, like.device)
    parts = chunks(points, DEVICE_ROWS if is_pointwise(net) else points)
    with torch.no_grad():
        whole = torch.cat([_called(net, coords[rows]) for rows in parts])
    if not bool(torch.isfinite(whole).all()):
        raise ValueError(f"net must return {points} rows without NaN or Inf, got {tuple(whole.shape)} with some")
    return whole.reshape(*sizes, -1).cpu()


def _called(net: nn.Module, coords: Tensor) -> Tensor:
    """Return a network's values (n, M) at points (n, d); what it does not take, or returns otherwise, is told."""
    n, axes = coords.shape
    try:
        values = net(coords)
    except Exception as error:  # a module of the user's raises what it likes
        if isinstance(error, InrfastError) or is_refusal(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"net must take points (N, {axes}), as many coordinates as fs, fs_test and bounds have, or the net's "
            f"in_features; give fs as one number per coordinate, such as (64, 64) on two. It raised "
            f"{type(error).__name__}: {reason:.200}"
        ) from error
    if not isinstance(values, Tensor) or not values.is_floating_point():
        what = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"net must return real values (N, M), a tensor, got {what}")
    if values.ndim != 2 or len(values) != n or values.shape[1] == 0:
        raise ValueError(
            f"net must return values (N, M), at least one for each point, got {tuple(values.shape)} for points "
            f"{tuple(coords.shape)}"
        )
    return values


def _warn_of_jumps(values: Tensor, axes: int) -> None:
    """Warn where the values at the two ends of an axis differ by far more than neighbours do."""
    for axis in range(axes):
        steps = values.double().diff(dim=axis).square().mean().sqrt()
        ends = (values.select(axis, 0) - values.select(axis, -1)).double().square().mean().sqrt()
        if ends > JUMP * steps:
            warn(
                f"the values at the ends of axis {axis} differ by {float(ends):.3g}, neighbours by {float(steps):.3g}; "
                "without a window this is a jump, whose energy lies at all frequencies, above fs / 2 too: "
                "window='hann' fades the ends out"
            )


def _spectrum(values: Tensor, sizes: tuple[int, ...], window: str) -> tuple[np.ndarray, np.ndarray]:
    """Return amplitudes, and energies without the mean (their sum is that of the squares' mean), from -fs/2 on."""
    axes = len(sizes)
    values = values.double()
    mean = values.mean(tuple(range(axes)))
    values, gain = values - mean, 1.0
    if window == "hann":
        for axis, n in enumerate(sizes):
            faded = torch.hann_window(n, periodic=True, dtype=torch.float64)
            values = values * faded.reshape(-1, *[1] * (axes - axis))
            gain *= 0.5
    energy = np.fft.fftshift(energies(values, axes).numpy()) / math.prod(sizes) ** 2
    amplitudes = 2 * np.sqrt(energy) / gain
    # At 0, and at half the rate of an even number of samples, a frequency is its own negative.
    own = np.stack(np.meshgrid(*[np.isin(np.arange(n), (n // 2, 0) if n % 2 == 0 else (n // 2,)) for n in sizes],
                               indexing="ij")).all(0)  # fmt: skip
    amplitudes[own] /= 2
    amplitudes[tuple(n // 2 for n in sizes)] = float(mean.norm())
    return amplitudes, energy


def _bins(sizes: Sequence[int], pairs: Sequence[tuple[float, float]]) -> tuple[np.ndarray, ...]:
    """Return the frequencies of the bins of each axis, ascending, in cycles per unit."""
    return tuple((np.arange(n) - n // 2) / (high - low) for n, (low, high) in zip(sizes, pairs, strict=True))


def _peaks(amplitudes: np.ndarray, energy: np.ndarray, floor: float, noise: float) -> list[tuple[Any, float]]:
    """Return places and levels of all local maxima down to the floor, strongest first."""
    from scipy.ndimage import maximum_filter  # slow to import

    levels = _levels(amplitudes, _strongest(amplitudes))
    found = (energy == maximum_filter(energy, size=3, mode="wrap")) & (levels >= floor) & (amplitudes > noise)
    places = [tuple(place) for place in np.argwhere(found).tolist()]
    return sorted(((place, float(levels[place])) for place in places), key=lambda one: -one[1])


def _strongest(amplitudes: np.ndarray) -> float:
    """Return the largest amplitude but that of the mean."""
    rest = np.delete(amplitudes.ravel(), np.ravel_multi_index([n // 2 for n in amplitudes.shape], amplitudes.shape))
    return float(rest.max())


def _levels(amplitudes: np.ndarray, whole: float) -> np.ndarray:
    """Return amplitudes in dB relative to one of them."""
    with np.errstate(divide="ignore"):
        levels: np.ndarray = 20 * np.log10(amplitudes / whole) if whole else np.full(amplitudes.shape, SILENT)
    return np.maximum(levels, SILENT)


def _folded(frequency: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Return the frequency, at most half the rate on every axis, that has the same samples."""
    folded: np.ndarray = frequency - np.array(rates) * np.round(frequency / np.array(rates))
    return folded


def _one(frequency: np.ndarray) -> tuple[float, ...]:
    """Return a frequency or its negative, the one whose first number that is not 0 is positive."""
    first = next((number for number in frequency if number), 0.0)
    return tuple(float(-number if first < 0 else number) + 0.0 for number in frequency)


def _words(numbers: Sequence[float]) -> str:
    """Return one number, or several in parentheses."""
    told = ", ".join(f"{number:g}" for number in numbers)
    return told if len(numbers) == 1 else f"({told})"
