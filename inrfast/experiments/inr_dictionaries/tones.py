"""Networks fitted to a pure tone, seen on the samples they were fitted to and on twice as many: figures 3 and 9."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.analysis.aliasing import aliasing
from inrfast.experiments.drawing import finish
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table, Work, uninterrupted
from inrfast.experiments.runs import runs_told, seeds, spread
from inrfast.grids import grid
from inrfast.metrics import psnr
from inrfast.nn import INR
from inrfast.plots import PALETTE
from inrfast.training.fit import fit_many

TONE, FS, FS_TEST = 23, 128, 256
"""Frequency of the tone, and of the samples that are fitted and looked at, in Hz."""

ALIAS = FS - TONE
"""What the samples at FS cannot tell from the tone, below half of FS_TEST."""

WIDTH, HIDDEN_LAYERS, STEPS, LR = 128, 2, 2000, 1e-4
RUNS = {True: 5, False: 20}

FLOOR = -30.0
"""Level, relative to the strongest frequency, from which on a peak counts."""

LOWEST = -40.0
"""Lower end of the drawings, in the paper's dB."""


class Tone(Figure):
    """A small and a large number of one kind of network, each over several random networks."""

    symbol: ClassVar[str]
    values: ClassVar[tuple[float, float]]
    told: ClassVar[str]

    @abstractmethod
    def network(self, value: float, seed: int, device: torch.device) -> INR:
        """Return the network of one number at its start."""

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return [self._cell(value, seeds(request, RUNS[request.quick])) for value in self.values]

    def _cell(self, value: float, runs: Sequence[int]) -> Cell:
        settings = {
            self.symbol: value, "seeds": list(runs), "steps": STEPS, "lr": LR, "width": WIDTH, "tone": TONE,
            "fs": [FS, FS_TEST], "floor": FLOOR, "network": self.told,
        }  # fmt: skip

        def run(work: Work) -> Found:
            coords, finer = samples(FS, work.device), samples(FS_TEST, work.device)
            nets = [self.network(value, seed, work.device) for seed in runs]
            uninterrupted(
                fit_many(nets, coords, tone(coords), STEPS, LR, "constant", data_range=2.0,
                         checkpoint=work.checkpoint, resume=True, progress=work.progress, seed=0)
            )  # fmt: skip
            spectra = [aliasing(net, FS, FS_TEST, floor=FLOOR) for net in nets]
            fits = [
                {
                    "seed": seed, "share": one.share, "peaks": [asdict(peak) for peak in one.peaks],
                    "alias": level(one.amplitudes_test), "psnr": compared(net, coords),
                    "psnr_test": compared(net, finer),
                }
                for seed, net, one in zip(runs, nets, spectra, strict=True)
            ]  # fmt: skip
            arrays = {
                "fitted": np.stack([one.amplitudes for one in spectra]),
                "finer": np.stack([one.amplitudes_test for one in spectra]),
            }
            return Found({"fits": fits}, arrays)

        return Cell(f"{self.symbol}={value:g}", settings, run)

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        fits = {value: found[f"{self.symbol}={value:g}"].numbers["fits"] for value in self.values}
        runs = len(fits[self.values[0]])
        settings = (
            f"{self.told}, {STEPS} steps of Adam with full batches, lr {LR:g} constant, {FS} samples on [0, 1), seen "
            f"on {FS_TEST}, {runs_told(runs)}"
        )
        rows = []
        for value, said in zip(self.values, ("present (one run shown)", "absent (one run shown)"), strict=True):
            name, own = f"{self.symbol} {value:g}", fits[value]
            shown = f"{sum(map(shows, own))} of {runs} runs"
            rows += [
                Row(f"a peak at {ALIAS} Hz, {name}", said, shown,
                    f"{settings}; a peak is a local maximum at most {-FLOOR:g} dB below the strongest"),
                Row(f"level at {ALIAS} Hz over {TONE} Hz (dB), {name}", "curve only",
                    spread([fit["alias"] for fit in own], ".1f"), settings),
                Row(f"share of energy above {FS // 2} Hz, {name}", "—", spread([fit["share"] for fit in own], ".1e"),
                    settings),
                Row(f"PSNR of the fitted samples (dB), {name}", "zero loss" if value == self.values[0] else "—",
                    spread([fit["psnr"] for fit in own], ".1f"), settings),
                Row(f"PSNR at {FS_TEST} Hz (dB), {name}", "—", spread([fit["psnr_test"] for fit in own], ".1f"),
                    settings),
            ]  # fmt: skip
        return Outcome(
            rows, {self.name: self._drawing(found)}, [self._claim(fits), *self.notes()],
            [self._table(fits)], {"runs": {f"{self.symbol}={value:g}": own for value, own in fits.items()}},
        )  # fmt: skip

    def notes(self) -> Sequence[str]:
        """Return what else is to be said of the figure."""
        return ()

    def _claim(self, fits: Mapping[float, Sequence[Mapping[str, Any]]]) -> str:
        high, low = (sum(map(shows, fits[value])) for value in self.values)
        many = len(fits[self.values[0]])
        names = [f"{self.symbol} {value:g}" for value in self.values]
        if high == many and low == 0:
            said = f"as the paper says: every run with {names[0]} has the spurious tone, and none with {names[1]}"
        elif high > low:
            said = f"mostly as the paper says: {high} of {many} runs with {names[0]} have it, {low} with {names[1]}"
        else:
            said = f"not as the paper says: {high} of {many} runs with {names[0]} have it, {low} with {names[1]}"
        strongest = [fit["peaks"][0]["frequency"][0] == ALIAS for fit in fits[self.values[0]] if fit["peaks"]]
        return (
            f"A tone of {TONE} Hz sampled at {FS} Hz has the samples of one at {ALIAS} Hz. It is {said}. With "
            f"{names[0]} it is the strongest peak above {FS // 2} Hz in {sum(strongest)} of {many} runs."
        )

    def _table(self, fits: Mapping[float, Sequence[Mapping[str, Any]]]) -> Table:
        rows = [
            [f"{value:g}", str(fit["seed"]), f"{fit['psnr']:.1f}", f"{fit['psnr_test']:.1f}", f"{fit['alias']:.1f}",
             f"{fit['share']:.1e}", ", ".join(f"{peak['frequency'][0]:g} ({peak['level']:.1f} dB)"
                                              for peak in fit["peaks"][:4]) or "none"]
            for value, own in fits.items() for fit in own
        ]  # fmt: skip
        head = [self.symbol, "seed", f"PSNR at {FS} Hz (dB)", f"PSNR at {FS_TEST} Hz (dB)", f"level at {ALIAS} Hz (dB)",
                f"energy above {FS // 2} Hz", "strongest peaks above (Hz)"]  # fmt: skip
        return Table("Every run", head, rows)

    def _drawing(self, found: Mapping[str, Found]) -> Drawing:
        drawing = Drawing(figsize=(10, 5.6), layout="constrained")
        panels = drawing.subplots(2, 2, sharex="col", sharey=True)
        for value, row in zip(self.values, panels, strict=True):
            arrays = found[f"{self.symbol}={value:g}"].arrays
            for axes, name, rate in zip(row, ("fitted", "finer"), (FS, FS_TEST), strict=True):
                draw(axes, arrays[name], rate)
                title = f"{self.symbol} {value:g}, sampled at {rate} Hz"
                finish(axes, title, "frequency (Hz)" if value == self.values[1] else "", "")
            row[0].set_ylabel("magnitude (dB)")
        handles, labels = panels[0, 1].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return drawing


def samples(rate: int, device: torch.device) -> Tensor:
    """Return as many points of [0, 1), (rate, 1)."""
    return grid(rate, "exclusive", (0, 1), device=device)


def tone(coords: Tensor) -> Tensor:
    """Return the tone at points (N, 1), computed in fp64."""
    return (2 * math.pi * TONE * coords.double()).sin().to(coords.dtype)


@torch.no_grad()
def compared(net: INR, coords: Tensor) -> float:
    """Return the PSNR (dB) of a network at some points, for the tone's range of 2."""
    return psnr(net(coords), tone(coords), data_range=2.0)


def level(amplitudes: np.ndarray) -> float:
    """Return the alias's amplitude over the tone's, in dB, of amplitudes from -FS_TEST / 2 on."""
    middle = len(amplitudes) // 2
    return float(20 * np.log10(amplitudes[middle + ALIAS] / amplitudes[middle + TONE]))


def shows(fit: Mapping[str, Any]) -> bool:
    """Return whether the alias is among a run's peaks."""
    return any(peak["frequency"][0] == ALIAS for peak in fit["peaks"])


def draw(axes: Axes, amplitudes: np.ndarray, rate: int) -> None:
    """Draw magnitudes of the DFT, scaled as the paper does, of all runs, the first in front, and of the tone."""
    frequencies = np.arange(rate) - rate // 2
    with np.errstate(divide="ignore"):
        levels = np.maximum(20 * np.log10(amplitudes * rate / 2), LOWEST - 20)
    for number, own in enumerate(levels[1:]):
        axes.plot(frequencies, own, color="0.75", linewidth=0.6, label=None if number else "the other runs")
    axes.plot(frequencies, levels[0], color=PALETTE[0], linewidth=1.4, label=r"first run, $f_\theta(r)$")
    for number, place in enumerate((-TONE, TONE)):
        axes.plot([place, place], [LOWEST, 20 * math.log10(rate / 2)], "--", color=PALETTE[1], linewidth=1.4,
                  label=None if number else f"$g(r)$: {TONE} Hz")  # fmt: skip
    if rate / 2 > ALIAS:
        for number, place in enumerate((-ALIAS, ALIAS)):
            axes.axvline(place, color=PALETTE[2], linestyle=":", linewidth=1.2, label=None if number else f"{ALIAS} Hz")
    axes.set_ylim(LOWEST, 60)
    axes.set_xlim(-rate / 2, rate / 2)
