"""One image by networks of different input mappings, and which bins of its DFT they can reach: figures 2, 6, 7 and 8.

On the grid [-1, 1)^2 of N x N points a period is 2: a frequency of f cycles per unit falls into bin 2 f. Harmonics of
one cycle per unit are even bins, and a function of them alone repeats itself after half the picture.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.analysis.harmonics import energies, energy_outside, input_mapping, support_mask
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Work, uninterrupted
from inrfast.experiments.pictures import Pictures, pictures
from inrfast.grids import grid
from inrfast.memory import chunks
from inrfast.metrics import psnr, to_8bit
from inrfast.nn import INR
from inrfast.signals.image import LUMA
from inrfast.training.fit import fit

HIDDEN_LAYERS = 3
POINTS = 2**14

CROP = 32
"""Bins of the third row of a drawing, around the mean."""

EMPTY = 1e-12
"""Share of energy below which bins are called empty: the rounding of fp64 is far below it."""

RANGE = 100.0
"""Of the colours of a spectrum, in dB below its largest bin."""


@dataclass(frozen=True)
class Sizes:
    """Side of the image, width of the networks, steps of a fit and its learning rate."""

    side: int
    width: int
    steps: int
    lr: float


SIZES = {"quick": Sizes(64, 128, 500, 1e-3), "paper": Sizes(512, 256, 2000, 1e-4)}


@dataclass(frozen=True)
class Variant:
    """A network: its name in files, its label, how it is made of (width, seed, device), and its settings in words.

    ``lr`` is a learning rate other than the preset's.
    """

    key: str
    label: str
    network: Callable[[int, int, torch.device], INR]
    told: str
    lr: float | None = None


class Recovery(Figure):
    """Three networks and the image itself."""

    takes = ("images",)
    variants: ClassVar[Sequence[Variant]]

    @abstractmethod
    def claims(self, found: Mapping[str, Mapping[str, Any]], image: Mapping[str, float]) -> Sequence[str]:
        """Return what the numbers say to the paper's statements; ``found`` is by the variants' keys."""

    @abstractmethod
    def said(self, variant: Variant) -> str:
        """Return what the paper says of a variant's odd bins."""

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        return [_cell(variant, request) for variant in self.variants]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        given, sizes = _picture(request), SIZES[request.preset]
        image = given.values[0].double()
        numbers = {variant.key: found[variant.key].numbers for variant in self.variants}
        own = of_image(image)
        how = (
            f"{given.names[0]}, {sizes.side}x{sizes.side} pixels on [-1, 1)^2, {HIDDEN_LAYERS} hidden layers of "
            f"{sizes.width}, {sizes.steps} steps of Adam with full batches, constant lr"
        )
        rows = [Row("share of the image's energy at odd bins", "—", f"{own['odd']:.2f}", f"{given.names[0]}, no mean")]
        for variant in self.variants:
            mine, settings = numbers[variant.key], f"{how} {variant.lr or sizes.lr:g}; {variant.told}"
            rows += [
                Row(
                    f"share of energy at odd bins, {variant.label}", self.said(variant), f"{mine['odd']:.2g}", settings
                ),
                Row(f"of the image's odd bins recovered, {variant.label}", "—", f"{mine['recovered']:.2f}", settings),
                Row(f"energy above N/8, of the image's, {variant.label}", "—", f"{mine['fine']:.2f}", settings),
                Row(f"PSNR (dB), {variant.label}", "—", f"{mine['psnr']:.2f}", settings),
            ]
        text = [
            *self.claims(numbers, own),
            f"Even bins alone hold the image, averaged over its four copies moved by half its side, with a PSNR of "
            f"{own['even_psnr']:.2f} dB: no network of one cycle per unit comes nearer. The paper does not name its "
            "image, and gives no numbers.",
            "Spectra are of the network in fp64. Energies leave the mean out; a bin is odd if its number is odd on an "
            "axis.",
        ]
        return Outcome(rows, {self.name: self._drawing(found, image)}, text, (), {"image": own, "networks": numbers})

    def _drawing(self, found: Mapping[str, Found], image: Tensor) -> Drawing:
        columns = [(variant.label, found[variant.key].arrays) for variant in self.variants]
        for label, picture in (("even bins of the image", even(image)), ("image", image)):
            columns.append((label, {"picture": _bytes(picture), "spectrum": spectrum(picture)}))
        drawing = Drawing(figsize=(2.3 * len(columns), 6.9), layout="constrained")
        panels = drawing.subplots(3, len(columns))
        largest = float(columns[-1][1]["spectrum"].max())
        for (label, arrays), (top, middle, bottom) in zip(columns, panels.T, strict=True):
            top.imshow(arrays["picture"], interpolation="nearest")
            top.set_title(label, fontsize=9)
            levels = arrays["spectrum"] - largest
            start = (len(levels) - CROP) // 2
            cropped = levels[start : start + CROP, start : start + CROP] if start > 0 else levels
            for axes, part in ((middle, levels), (bottom, cropped)):
                shown = axes.imshow(part, cmap="viridis", vmin=-RANGE, vmax=0, interpolation="nearest")
            for axes in (top, middle, bottom):
                axes.set_xticks([])
                axes.set_yticks([])
        for axes, label in zip(panels[:, 0], ("", "DFT, grey values", f"its {CROP}x{CROP} bins\naround the mean"),
                               strict=True):  # fmt: skip
            axes.set_ylabel(label, fontsize=9)
        drawing.colorbar(shown, ax=panels[1:, -1], label="dB", extend="min")
        return drawing


def _picture(request: Request) -> Pictures:
    return pictures(request, 1, SIZES[request.preset].side)


def _cell(variant: Variant, request: Request) -> Cell:
    given, sizes = _picture(request), SIZES[request.preset]
    if variant.lr is not None:
        sizes = replace(sizes, lr=variant.lr)
    settings = {**given.settings, **asdict(sizes), "seed": request.seed, "network": variant.told}

    def run(work: Work) -> Found:
        net = variant.network(sizes.width, request.seed, work.device)
        start = input_mapping(net).frequencies
        coords = grid((sizes.side, sizes.side), "exclusive", device=work.device)
        target = given.values[0].reshape(-1, 3).to(work.device)
        uninterrupted([
            fit(net, coords, target, sizes.steps, sizes.lr, "constant", data_range=1.0, checkpoint=work.checkpoint,
                resume=True, progress=work.progress, seed=0)
        ])  # fmt: skip
        image, picture = given.values[0].double(), values(net, sizes.side)
        frequencies = input_mapping(net).frequencies
        mask = support_mask(frequencies, None, HIDDEN_LAYERS + 1, (sizes.side, sizes.side))
        numbers = {
            "psnr": psnr(picture, image), **shares(picture, image), "outside": energy_outside(picture, mask),
            "bins": float(mask.double().mean()), "moved": float((frequencies - start).abs().max()),
        }  # fmt: skip
        return Found(numbers, {"picture": _bytes(picture), "spectrum": spectrum(picture)})

    return Cell(variant.key, settings, run, cost=sizes.steps * sizes.side**2 * sizes.width**2 * 1e-12)


@torch.no_grad()
def values(net: INR, side: int) -> Tensor:
    """Return a network's picture (side, side, 3), computed in fp64: rounding to fp32 would fill empty bins."""
    exact, coords = copy.deepcopy(net).double(), grid((side, side), "exclusive", dtype=torch.float64)
    parts = [exact(coords[rows].to(next(exact.parameters()).device)).cpu() for rows in chunks(len(coords), POINTS)]
    return torch.cat(parts).reshape(side, side, 3)


def even(image: Tensor) -> Tensor:
    """Return what even bins hold of an image (N, N, C): the mean of four copies, moved by 0 or N/2 on each axis."""
    half = len(image) // 2
    return (image + image.roll(half, 0) + image.roll(half, 1) + image.roll((half, half), (0, 1))) / 4


def _without_mean(picture: Tensor) -> Tensor:
    energy = energies(picture, 2)
    energy[0, 0] = 0.0
    return energy


def shares(picture: Tensor, image: Tensor) -> dict[str, float]:
    """Return the share of a picture's energy at odd bins, how much of the image's it has there, and above N/8.

    ``odd`` is the share of energy at odd bins; ``recovered`` is ``1 - |error|^2 / |image|^2`` over them, 1 where they
    are the image's and 0 where they are empty; ``fine`` is the energy above N/8 relative to the image's.
    """
    energy, own = _without_mean(picture), _without_mean(image)
    odd = torch.ones(energy.shape, dtype=torch.bool)
    odd[::2, ::2] = False
    numbers = torch.fft.fftfreq(len(picture), 1 / len(picture))
    fine = torch.maximum(numbers.abs()[:, None], numbers.abs()[None]) > len(picture) / 8
    missed = energies(picture.double() - image.double(), 2)[odd].sum() / own[odd].sum()
    return {
        "odd": float(energy[odd].sum() / energy.sum()),
        "recovered": float(1 - missed),
        "fine": float(energy[fine].sum() / own[fine].sum()),
    }


def of_image(image: Tensor) -> dict[str, float]:
    """Return the image's own share at odd bins, and the PSNR of what even bins hold of it."""
    return {"odd": shares(image, image)["odd"], "even_psnr": psnr(even(image), image)}


def spectrum(picture: Tensor) -> np.ndarray:
    """Return the magnitudes of the DFT of a picture's grey values in dB, fp32 (N, N), the mean in the middle."""
    grey = picture.double() @ torch.tensor(LUMA, dtype=torch.float64)
    levels = 20 * torch.log10(torch.fft.fftshift(torch.fft.fft2(grey)).abs().clamp_min(1e-30))
    return levels.float().numpy()


def _bytes(picture: Tensor) -> np.ndarray:
    return (255 * to_8bit(picture)).round().to(torch.uint8).numpy()
