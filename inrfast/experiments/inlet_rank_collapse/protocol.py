"""Fits of the paper's images: one setting in full, a cell that fits several of them, and what is kept of each fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inrfast.calibration import calibrate_batchnorm_
from inrfast.experiments.inlet_rank_collapse.methods import METHODS, Method
from inrfast.experiments.paper import Cell, Found, Request, Work, uninterrupted
from inrfast.experiments.pictures import BUNDLED, Pictures
from inrfast.grids import grid
from inrfast.memory import chunks
from inrfast.metrics import mse_to_psnr, psnr, ssim, to_8bit
from inrfast.nn import INR
from inrfast.signals.image import MID_GREY
from inrfast.training.fit import fit_many
from inrfast.training.result import FitResult

WEIGHT_DECAY = 1e-8
"""Of the first author's earlier public code, as the learning rate 5e-3 and the 2000 steps with full batches are."""

POINTS = 2**16
"""Points that a network is evaluated at in one go."""

MARKS = 8
"""A fit's PSNR is kept after 1/8, 2/8, ... of its steps."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a preset.

    Attributes
    ----------
    images, side
        How many images, of ``side`` x ``side`` pixels.
    width, steps
        Of every network; of every fit that is scored.
    short
        Steps of the fits by which settings of a method are compared with each other (Table 1, each at its best).
    few
        Images of figures that need no more (Fig. 1, Fig. 3).
    """

    images: int
    side: int
    width: int
    steps: int
    short: int
    few: int


SIZES = {"quick": Sizes(4, 32, 64, 160, 80, 3), "paper": Sizes(16, 256, 256, 2000, 500, 4)}


@dataclass(frozen=True)
class Setup:
    """Everything that a fit's result depends on, beside its image, its seed and the width.

    Attributes
    ----------
    method
        Name of one of :data:`METHODS`.
    lr, schedule, steps
        As in :func:`inrfast.fit`.
    hidden_layers
        Of the network.
    variant
        One of the method's :data:`VARIANTS`, or empty.
    """

    method: str
    lr: float
    schedule: str
    steps: int
    hidden_layers: int = 3
    variant: str = ""

    @property
    def key(self) -> str:
        """A name for files."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.method}{variant}-{self.hidden_layers}x-{self.schedule}-{self.lr:g}-{self.steps}"

    @property
    def told(self) -> str:
        """The setting in words."""
        method = varied(METHODS[self.method], self.variant)
        return f"{self.hidden_layers} hidden layers, lr {self.lr:g} {self.schedule}, {self.steps} steps; {method.told}"

    def network(self, seed: int, width: int, device: torch.device) -> INR:
        """Return the network at its start."""
        method = varied(METHODS[self.method], self.variant)
        norm = method.options.get("norm")
        if isinstance(norm, Sequence) and not isinstance(norm, str):
            method = method.but(norm=[*norm, *[None] * self.hidden_layers][: self.hidden_layers])
        return method.network(2, 3, seed, width, self.hidden_layers, device)


VARIANTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "default": {"he": {"init": "kaiming"}, "first=he": {"init": {"first": "kaiming", "hidden": "default"}}},
    "ours": {
        "he": {"init": {"first": "rank_expanding", "hidden": "kaiming"}},
        "gain=3": {"init": {"first": {"name": "rank_expanding", "gain": 3.0}, "hidden": "default"}},
    },
    "pe": {
        "sigma=5": {"encoding": {"kind": "random_fourier", "count": 128, "sigma": 5.0}},
        "octaves=10": {"encoding": {"kind": "positional", "count": 10}},
    },
    "siren": {"omega=15": {"omega": 15.0}, "omega=60": {"omega": 60.0}},
    "siren-first": {"omega=15": {"omega": 15.0}, "omega=60": {"omega": 60.0}},
    "bn": {"he": {"init": "kaiming"}, "xavier": {"init": "xavier"}},
    "bn-first": {"he": {"init": "kaiming"}, "xavier": {"init": "xavier"}},
}
"""What is tried of each method beside its learning rate: two variants of each, by name."""


def varied(method: Method, variant: str) -> Method:
    """Return a method in one of its variants; empty: as it is."""
    return method.but(**VARIANTS[method.name][variant]) if variant else method


STACKS = (
    "A fit's number belongs to the stack of networks that it ran in: in another stack the same setting is summed in "
    "another order, and after some tens of steps the two part; 0.1 to 0.5 dB were seen. So the figures and tables of a "
    "report may give two numbers for one setting."
)
"""Why one setting may have two numbers."""


def size_told(pictures: Pictures) -> str:
    """Return the images' size in words, for a line beside the paper's number."""
    side, full = pictures.values.shape[1], SIZES["paper"].side
    told = f"{side}x{side} pixels"
    return told if side == full else f"{told}, not the {full}x{full} of the paper preset"


def images_told(pictures: Pictures, request: Request) -> str:
    """Return a sentence on how many images are used, of how many, and on their size."""
    side, there, full = pictures.values.shape[1], len(request.images) or len(BUNDLED), SIZES["paper"].side
    first = f"the first {len(pictures)}" if len(pictures) > 1 else "the first"
    given = f"{first} of {there} images" if len(pictures) < there else f"all {there} images"
    given = "one image, the only one," if there == 1 else given
    told = (
        f"The {request.preset} preset fits {given} at {side}x{side} pixels. The paper does not state its images' size"
    )
    if side == full:
        return f"{told}; {full}x{full} is that of the first author's code."
    return f"{told}; its code's is {full}x{full}, as in the paper preset, and dB of another size cannot be compared."


def tuning(pictures: Pictures) -> list[int]:
    """Return the numbers of the images on which settings are chosen: the first quarter, at least one."""
    return list(range(max(1, len(pictures) // 4)))


def scoring(pictures: Pictures) -> list[int]:
    """Return the numbers of the other images; of a single image, that one."""
    return list(range(len(tuning(pictures)), len(pictures))) or tuning(pictures)


def fits_cell(
    name: str, setups: Sequence[Setup], pictures: Pictures, images: Sequence[int], request: Request,
    shown: Sequence[int] = (), networks: Mapping[str, Method] | None = None,
) -> Cell:  # fmt: skip
    """Return the cell that fits every image with every setting, all side by side.

    Parameters
    ----------
    name
        Of the cell.
    setups
        Of one schedule, one number of steps and one shape of network.
    pictures, images
        All images, and the numbers of those that are fitted; the cell holds no other.
    request
        Its preset gives the width, its seed that of the first image's network; image i has ``seed + i``.
    shown
        Numbers of images whose reconstructions are kept, in 8 bits: array ``<setup's key>.<image's name>``.
    networks
        Methods by name that :data:`METHODS` does not know.
    """
    first, width = setups[0], SIZES[request.preset].width
    assert all((one.schedule, one.steps) == (first.schedule, first.steps) for one in setups)
    values, names = pictures.values[list(images)].clone(), [pictures.names[i] for i in images]
    between = None if pictures.between is None else pictures.between[list(images)].clone()
    settings = {
        "setups": [asdict(one) for one in setups],
        "options": [_options(one, networks) for one in setups],
        **pictures.settings,
        "images": names,
        "width": width,
        "seed": request.seed,
        "weight_decay": WEIGHT_DECAY,
        "target": "minus 0.5",
        "shown": [pictures.names[i] for i in shown],
    }

    def run(work: Work) -> Found:
        places = [(one, place) for one in setups for place in range(len(images))]
        seeds = [request.seed + images[place] for _, place in places]
        nets = [
            _network(one, networks, seed, width, work.device)
            for (one, _), seed in zip(places, seeds, strict=True)
        ]  # fmt: skip
        targets = torch.stack([values[place].reshape(-1, 3) for _, place in places]).to(work.device) - MID_GREY
        side = values.shape[1]
        coords = grid((side, side), device=work.device)
        results = fitted(nets, coords, targets, [one.lr for one, _ in places], first, work)
        fits, arrays = [], {}
        for (one, place), net, result in zip(places, nets, results, strict=True):
            picture = reconstruction(net, coords, result).reshape(side, side, 3)
            numbers = kept(picture, values[place], result)
            if between is not None:
                numbers["psnr_between"] = between_points(net, between[place])
            fits.append({"setup": asdict(one), "image": names[place], **numbers})
            if images[place] in shown:
                arrays[f"{one.key}.{names[place]}"] = in_bytes(picture).numpy()
        return Found({"fits": fits, "gradient": results[0].config["gradient"], "precision": _precision(work)}, arrays)

    cost = sum(one.steps * one.hidden_layers * (SLOW if _slow(one, networks) else 1) for one in setups) * len(images)
    return Cell(name, settings, run, cost * values.shape[1] ** 2 * 1e-9)


SLOW = 4.0
"""How much longer a step takes with batch norm, or with a sine first and ReLU after it, than one by fused kernels."""


def _slow(setup: Setup, networks: Mapping[str, Method] | None) -> bool:
    options = _options(setup, networks)
    return options.get("norm") is not None or isinstance(options.get("activation"), Mapping)


def _options(setup: Setup, networks: Mapping[str, Method] | None) -> dict[str, Any]:
    """Return the options of a setting's network, as JSON holds them: a result is not mixed with one of others."""
    if networks and setup.method in networks:
        return dict(networks[setup.method].options)
    return dict(varied(METHODS[setup.method], setup.variant).options)


def _network(
    setup: Setup, networks: Mapping[str, Method] | None, seed: int, width: int, device: torch.device
) -> INR:  # fmt: skip
    if networks and setup.method in networks:
        return networks[setup.method].network(2, 3, seed, width, setup.hidden_layers, device)
    return setup.network(seed, width, device)


def _precision(work: Work) -> str:
    """On a GPU products in 16 bits, where weights, sums, updates and PSNRs stay in fp32; elsewhere fp32."""
    return "medium" if work.device.type == "cuda" else "high"


def fitted(
    nets: Sequence[INR], coords: Tensor, targets: Tensor, rates: Sequence[float], setup: Setup, work: Work
) -> Sequence[FitResult]:  # fmt: skip
    """Fit networks to their targets (B, N, 3): full batches, Adam; a loss that grows is a result, and not warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*(fused|triton|Triton)")
        return uninterrupted(
            fit_many(
                list(nets), coords, targets, setup.steps, list(rates), setup.schedule,
                weight_decay=WEIGHT_DECAY, precision=_precision(work), data_range=1.0,
                eval_every=max(1, setup.steps // 4), checkpoint=work.checkpoint, resume=True, progress=work.progress,
                seed=0,
            )
        )  # fmt: skip


@torch.no_grad()
def reconstruction(net: INR, coords: Tensor, result: FitResult) -> Tensor:
    """Return what a network makes of its image, (N, 3) on the CPU, in the image's own range.

    Batch norm takes its statistics over all points, as it did in every step. A network that diverged is shown at the
    best of its evaluations.
    """
    if result.error is not None:
        net.load_state_dict(result.best_state)
    elif any(isinstance(norm, torch.nn.BatchNorm1d) for norm in net.norms):
        calibrate_batchnorm_(net, coords)
    return (net.eval()(coords) + MID_GREY).cpu()


@torch.no_grad()
def between_points(net: INR, image: Tensor) -> float:
    """Return the PSNR (dB) at the pixels between those that were fitted, of an image (2 side - 1, 2 side - 1, 3).

    The network is as :func:`reconstruction` left it.
    """
    height, width = image.shape[:2]
    coords = grid((height, width), device=next(net.parameters()).device)
    picture = torch.cat([net(coords[rows]) for rows in chunks(len(coords), POINTS)]).cpu().reshape(image.shape)
    unseen = torch.ones(height, width, dtype=torch.bool)
    unseen[::2, ::2] = False
    return psnr((picture + MID_GREY)[unseen], image[unseen])


def in_bytes(picture: Tensor) -> Tensor:
    """Return an image as bytes, for the drawings."""
    return (255 * to_8bit(picture)).round().to(torch.uint8)


def kept(picture: Tensor, image: Tensor, result: FitResult) -> dict[str, Any]:
    """Return the numbers of one fit; the PSNR on the way is that of the loss, over all points with its own statistics.

    ``psnr`` compares predictions as they are, ``psnr_8bit`` and ``ssim_8bit`` images that are clamped and rounded.
    """
    steps = len(result.losses)
    marks = [step for mark in range(1, MARKS) if 0 < (step := result.config["steps"] * mark // MARKS) < steps]
    rounded, truth = to_8bit(picture), to_8bit(image)
    return {
        "psnr": psnr(picture, image),
        "psnr_8bit": psnr(rounded, truth),
        "ssim_8bit": ssim(rounded, truth),
        "path": {str(step): mse_to_psnr(result.losses[step]) for step in marks},
        "stopped": result.stopped,
    }


def all_fits(found: Iterable[Found]) -> dict[tuple[Setup, str], dict[str, Any]]:
    """Return every fit of some cells by its setting and its image's name."""
    return {(Setup(**fit["setup"]), fit["image"]): fit for cell in found for fit in cell.numbers["fits"]}


def at_step(setup: Setup, fit: Mapping[str, Any], steps: int) -> float:
    """Return a fit's PSNR after some of its steps, or after all."""
    return float(fit["psnr"] if steps == setup.steps else fit["path"][str(steps)])


def shorter(setup: Setup, steps: int) -> Setup:
    """Return the setting with other steps."""
    return replace(setup, steps=steps)
