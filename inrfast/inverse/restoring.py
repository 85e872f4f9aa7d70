"""Pictures restored by a network: missing pixels filled in, and pictures enlarged.

Both are inverse problems ``A u = y`` with a classical answer ``B y`` that is linear in ``y`` and has ``A B y = y``:
biharmonic interpolation of the known pixels, and the back-projected bicubic enlargement. A network f is fitted to
``y`` through A, and the picture is

    u = B y + s (f - B A f),    A u = y,

so that what is known stays as it is, without a seam, whatever the network leaves of it, and the network adds what the
classical picture cannot have. Known pixels that are held out say how large its share s may be; where there are none, in
an enlarged picture, s was chosen by measurement (``bench/restore.py``). Values are clipped to the
range of the known pixels around a hole. Those of an enlarged picture are brought into [0, 1] without a change of its
means, and the network adds no more there than the picture varies nearby, so that what is constant stays so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inrfast import notebook, plots
from inrfast.arrays import ArrayLike, as_tensor
from inrfast.encodings import RandomFourier
from inrfast.errors import check_device, check_float, check_int, check_seed, check_tensor
from inrfast.grids import axes
from inrfast.inverse.biharmonic import biharmonic
from inrfast.inverse.enlarging import area_means, back_projected, contrast, within
from inrfast.inverse.held_out import best_share, held_out
from inrfast.inverse.holes import Ranges
from inrfast.memory import budget_bytes, require
from inrfast.metrics import mse_to_psnr
from inrfast.nn import INR
from inrfast.pixels import as_values
from inrfast.records import Record, brief, in_a_line
from inrfast.signals.render import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from inrfast.training.data import check_net
from inrfast.training.fit import fit
from inrfast.training.objective import Regularizers
from inrfast.training.result import FitResult

WIDTH, HIDDEN_LAYERS, SIGMA, LR = 128, 3, 2.0, 5e-3
"""The network, a ReLU network on random Fourier features, and its learning rate, which falls to a tenth."""

BATCH, PASSES, LEAST_STEPS = 4096, 30, 500
"""Evaluations of the network per step, and how often the fit goes over the picture where no steps are given."""

PULL = 0.1
"""Weight of the classical picture at a missing pixel, where a known pixel has 1."""

SHARE = 0.75
"""Of the network in an enlarged picture; the rest is the classical one's."""

MID_GREY = 0.5

MOST_SIDE = 2**24
"""Pixels per axis of an enlarged picture, at most: fp32 coordinates tell no more apart."""


@dataclass(frozen=True)
class Restored(Record):
    """A restored picture, and what made it.

    Attributes
    ----------
    image
        The picture, (H, W) or (H, W, C) as it was given, fp32 or fp64, in [0, 1]: known pixels are bit for bit those
        given; the area means of an enlarged picture are the picture given, to ``mean_difference``.
    own
        The values of the network alone, of the same shape, not clipped.
    classical
        The picture without a network: biharmonic interpolation, or the back-projected bicubic enlargement, clipped.
    net
        The network, on the coordinates of :func:`coordinates`.
    psnr
        Of the network alone where something is known (dB): on known pixels, or of its area means.
    held_out_psnr
        Of a picture made in the same way, at known pixels that were held out, which lie as the missing ones do: what to
        expect of those (dB). None of an enlarged picture, or where nothing could be held out.
    share
        Of the network in what is not known, s; 0 where a picture to enlarge is constant.
    mean_difference
        The largest difference of the area means of an enlarged ``image`` from the picture given; None of an inpainted
        one.
    steps, seconds, interrupted, stopped
        Of the fit: see :class:`inrfast.FitResult`; ``seconds`` are those of all.
    settings
        What was asked for and chosen.
    """

    left_out = ("image", "own", "classical", "net")

    image: Tensor
    own: Tensor
    classical: Tensor
    net: nn.Module
    psnr: float
    held_out_psnr: float | None
    share: float
    mean_difference: float | None
    steps: int
    seconds: float
    interrupted: bool
    stopped: str
    settings: dict[str, Any]

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        rows = [("quantity", "value"), ("PSNR where known", f"{self.psnr:.2f} dB")]
        rows += [] if self.held_out_psnr is None else [("PSNR at held-out pixels", f"{self.held_out_psnr:.2f} dB")]
        rows += [("share of the network", f"{self.share:.3g}"), ("steps", f"{self.steps:,} ({self.stopped})")]
        rows += [("time", f"{self.seconds:.3g} s")]

        def figure() -> Figure:
            drawn = plots.new_figure(7, 3.6)
            plots.pictures({"restored": self.image, "without a network": self.classical}, drawn)
            return drawn

        size = " x ".join(map(str, self.image.shape[:2]))
        return notebook.Page(f"Restored picture, {size} pixels", rows, figure=figure)

    def __repr__(self) -> str:
        parts = [f"image={brief(self.image)}", f"psnr={self.psnr:.2f} dB where known"]
        parts += [] if self.held_out_psnr is None else [f"held_out_psnr={self.held_out_psnr:.2f} dB"]
        parts += [f"share={self.share:.3g}", f"steps={self.steps}", f"{self.seconds:.3g} s"]
        return in_a_line("Restored", [*parts, f"stopped={self.stopped!r}"])


def inpaint(
    image: ArrayLike,
    mask: ArrayLike,
    *,
    net: nn.Module | None = None,
    steps: int | None = None,
    lr: float | None = None,
    regularizers: Regularizers = (),
    seconds: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Restored:
    """Return an image whose missing pixels are filled in.

    The network is fitted to nine tenths of the known pixels and, with a small weight, to their biharmonic interpolation
    elsewhere. The other tenth judges it.

    Parameters
    ----------
    image
        (H, W) or (H, W, C), floating, in [0, 1] where it is known; elsewhere anything, NaN too. Or an image of
        Pillow's, or pixels of 8 or 16 bits, which count as their share of white.
    mask
        (H, W), True or 1 where the image is known, False or 0 where it is missing.
    net
        A network of your own, (n, 2) to (n, C), which is trained in place; None: ReLU layers on random Fourier
        features, the best of those measured.
    steps
        Updates; None: 500, or as many as see every pixel 30 times.
    lr
        Learning rate; None: 5e-3.
    regularizers
        As in :func:`inrfast.fit`.
    seconds
        Time for the fit, at most; the learning rate falls as fast as it passes. None: no limit.
    seed, device, memory_budget, progress
        As in :func:`inrfast.fit`, the seed 0 unless given.

    Returns
    -------
    Restored
        After Ctrl-C during the fit that of the network as far as it came, with ``interrupted``.

    Raises
    ------
    ValueError, TypeError
        A mask of another size, or with nothing known or nothing missing; values outside [0, 1], NaN or Inf at known
        pixels.
    MemoryBudgetError
        The image does not fit.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    >>> known = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    >>> restored = inr.inpaint(rows * columns, known, steps=20, progress=False)
    >>> float((restored.image - rows * columns).abs().max()) < 0.05
    True
    """
    begun = time.perf_counter()
    given, _ = as_values("image", image)
    known = _check_mask(mask, given)
    values = _check_image(given, known)
    setting = _Setting(net, steps, lr, regularizers, seconds, seed, device, memory_budget, progress)
    height, width, channels = values.shape
    setting.require(height * width, channels)
    held = held_out(known, setting.seed)
    fitted_to = known & ~held
    ranges = Ranges(values, known)
    guide = biharmonic(values, fitted_to, memory_budget).clamp(0, 1)
    weight = torch.where(fitted_to, 1.0, PULL).reshape(-1, 1)
    coords = coordinates((height, width))
    result, fitted = setting.fitted(coords, guide.reshape(-1, channels), height * width, weight)
    own = setting.rendered(fitted, (height, width)).view(height, width, channels)
    judged = (own - biharmonic(own, fitted_to, memory_budget))[held]
    left = values.double()[held] - guide[held]
    share = best_share(left, judged)
    classical = ranges.clipped(biharmonic(values, known, memory_budget))
    filled = ranges.clipped(classical + share * (own - biharmonic(own, known, memory_budget)))
    found = torch.where(known.unsqueeze(-1), values, filled.to(values))
    mse = float((own - values.double())[known].square().mean())
    held_mse = float((left - share * judged).square().mean()) if len(left) else math.nan
    return setting.restored(given, found, own, classical, fitted, result, mse, share, None, held_mse, begun)


def upscale(
    image: ArrayLike,
    factor: float,
    *,
    net: nn.Module | None = None,
    steps: int | None = None,
    lr: float | None = None,
    regularizers: Regularizers = (),
    seconds: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Restored:
    """Return an image enlarged by a factor, whose means over areas are the image.

    The network is fitted through those means: a pixel of the image is the mean of the network over its area.

    Parameters
    ----------
    image
        (H, W) or (H, W, C), floating, in [0, 1], or as in :func:`inpaint`.
    factor
        Above 1, whole or not; the sizes are rounded.
    net, steps, lr, regularizers, seconds, seed, device, memory_budget, progress
        As in :func:`inpaint`; regularisers see the pixels of the image as their points.

    Returns
    -------
    Restored
        As of :func:`inpaint`; ``image`` and ``own`` have the new size. The means of the result over areas are ``image``
        to 1e-6 where ``factor`` is whole. Where it is not, a pixel may lie in two areas of which one is black and one
        white, and no picture has these means in [0, 1]: ``mean_difference`` says what remains. Where ``image`` is
        constant, the result is.

    Raises
    ------
    ValueError, TypeError
        A factor that makes no larger picture; values outside [0, 1], NaN or Inf.
    MemoryBudgetError
        The enlarged image does not fit.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> inr.upscale(torch.rand(8, 6), 2, steps=5, progress=False).image.shape
    torch.Size([16, 12])
    """
    begun = time.perf_counter()
    given, _ = as_values("image", image)
    values = _check_image(given, None)
    setting = _Setting(net, steps, lr, regularizers, seconds, seed, device, memory_budget, progress)
    small, channels = (values.shape[0], values.shape[1]), values.shape[2]
    large, samples = enlarged(small, factor), math.ceil(factor)
    setting.require(large[0] * large[1], channels)
    means = values.double().cpu()
    classical = back_projected(means, large)
    coords, sides = coordinates(small), 2 / max(small)

    def averaged(net: nn.Module) -> nn.Module:
        return Averaged(net, sides, samples)

    result, fitted = setting.fitted(
        coords, means.reshape(-1, channels), samples**2 * small[0] * small[1], wrapped=averaged, per_point=samples**2
    )
    own = setting.rendered(fitted, large).view(*large, channels)
    of_own = area_means(own, small)
    most = contrast(means, large)
    adds = (own - back_projected(of_own, large)).clamp(-most, most)
    share = setting.share(result) if bool(most.any()) else 0.0
    found, difference = within(classical + share * adds, means)
    found = found.to(values)
    mse = float((of_own - means).square().mean())
    classical = classical.clamp(0, 1)
    return setting.restored(given, found, own, classical, fitted, result, mse, share, difference, math.nan, begun)


def enlarged(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return the sizes (H, W) of a picture after :func:`upscale`.

    Raises
    ------
    ValueError, TypeError
        A factor of 1 or less, or so near to it that the sizes stay, or beyond all sizes.
    """
    factor = check_float("factor", factor, minimum=1.0, exclusive=True)
    sides = [side * factor for side in shape]
    if max(sides) > MOST_SIDE:
        raise ValueError(f"factor must leave sides of at most {MOST_SIDE} pixels, got {factor:g} for {shape}")
    found = (round(sides[0]), round(sides[1]))
    if found == tuple(shape):
        raise ValueError(f"factor must make the picture larger, got {factor:g}, which leaves {shape[0]}x{shape[1]}")
    return found


class Averaged(nn.Module):
    """The means of a network over squares of a side around points, by the midpoint rule with ``samples`` per axis."""

    def __init__(self, net: nn.Module, side: float, samples: int) -> None:
        super().__init__()
        self.net = net
        step = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples - 0.5
        self.register_buffer("offsets", (side * torch.cartesian_prod(step, step)).view(-1, 2))

    def forward(self, coords: Tensor) -> Tensor:
        """Return the means (n, M) at points (n, 2)."""
        points = coords.unsqueeze(1) + self.get_buffer("offsets").to(coords)
        return self.net(points.flatten(0, 1)).unflatten(0, points.shape[:2]).mean(1)


def bounds_of(shape: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the bounds of a picture (H, W) on both axes: [-1, 1] for the longer one, pixels being squares."""
    return [(-side / max(shape), side / max(shape)) for side in shape]


def coordinates(shape: tuple[int, int]) -> Tensor:
    """Return the centres of the pixels of a picture (H, W), fp32 (H W, 2), within :func:`bounds_of` it."""
    rows, columns = axes(shape, "center", bounds_of(shape))
    return torch.cartesian_prod(rows, columns)


class _Pace:
    """A schedule of the learning rate by steps and by time, and a callback that ends the fit when time is over."""

    def __init__(self, steps: int, seconds: float | None) -> None:
        self.steps, self.seconds, self.begun = steps, seconds, time.perf_counter()

    def passed(self) -> float:
        """Return the share of the time that is over."""
        return 0.0 if self.seconds is None else (time.perf_counter() - self.begun) / self.seconds

    def factor(self, step: int) -> float:
        return float(0.1 ** min(max(step / self.steps, self.passed()), 1.0))

    def on_step(self, state: Any) -> None:
        if self.passed() >= 1:
            state.stop()


class _Setting:
    """The arguments of both functions, checked, and the steps that both take."""

    def __init__(
        self,
        net: nn.Module | None,
        steps: int | None,
        lr: float | None,
        regularizers: Regularizers,
        seconds: float | None,
        seed: int,
        device: torch.device | str,
        memory_budget: int | None,
        progress: bool | None,
    ) -> None:
        if net is not None:
            check_net(net)
        self.net, self.regularizers, self.progress = net, regularizers, progress
        self.steps = None if steps is None else check_int("steps", steps, minimum=1)
        self.lr = LR if lr is None else check_float("lr", lr, minimum=0.0, exclusive=True)
        self.seconds = None if seconds is None else check_float("seconds", seconds, minimum=0.0, exclusive=True)
        self.seed, self.device = check_seed("seed", seed), check_device("device", device)
        self.memory_budget = memory_budget
        budget_bytes(memory_budget)

    def require(self, pixels: int, channels: int) -> None:
        """Refuse a picture whose coordinates, values and results do not fit."""
        needed = (40 + 64 * channels) * pixels
        what = f"restoring a picture of {pixels:,} pixels"
        require(needed, budget_bytes(self.memory_budget), what, "take a smaller picture, or parts of it")

    def fitted(
        self,
        coords: Tensor,
        target: Tensor,
        evaluations: int,
        weight: Tensor | None = None,
        wrapped: Callable[[nn.Module], nn.Module] = lambda net: net,
        per_point: int = 1,
    ) -> tuple[FitResult, nn.Module]:
        """Fit the network, or one of the usual kind, and return it; ``evaluations`` of it see every point once."""
        channels = target.shape[1]
        net = self.net
        if net is None:
            encoding = RandomFourier(WIDTH, SIGMA)
            net = INR(2, channels, width=WIDTH, hidden_layers=HIDDEN_LAYERS, encoding=encoding, seed=self.seed).to(
                self.device
            )
        like = next(net.parameters())
        steps = self.steps or max(LEAST_STEPS, math.ceil(PASSES * evaluations / BATCH))
        pace = _Pace(steps, self.seconds)
        result = fit(
            wrapped(net).to(like.device),
            coords.to(like),
            (target - MID_GREY).to(like),
            steps=steps,
            lr=self.lr,
            schedule="exponential" if self.seconds is None else pace.factor,
            callbacks=[] if self.seconds is None else [pace],
            batch_size=max(1, min(BATCH // per_point, len(coords))),
            weight=None if weight is None else weight.to(like),
            eval_every=steps,
            regularizers=self.regularizers,
            seed=self.seed,
            memory_budget=self.memory_budget,
            progress=self.progress,
            data_range=1.0,
        )
        return result, net

    def share(self, result: FitResult) -> float:
        """Return the share of the network; less of one that had few steps, which still adds noise."""
        return SHARE * min(1.0, 2 * result.steps / LEAST_STEPS)

    def rendered(self, net: nn.Module, shape: tuple[int, int]) -> Tensor:
        """Return the network's picture (H, W, C), fp64, on the CPU."""
        values = render(net, shape, bounds_of(shape), "center", self.memory_budget, progress=False)
        return values.double() + MID_GREY

    def restored(
        self,
        given: Tensor,
        found: Tensor,
        own: Tensor,
        classical: Tensor,
        net: nn.Module,
        result: FitResult,
        mse: float,
        share: float,
        difference: float | None,
        held_mse: float,
        begun: float,
    ) -> Restored:
        """Return the result, its pictures of the form of the one given."""
        pictures = [(each[..., 0] if given.ndim == 2 else each).to(found.dtype) for each in (found, own, classical)]
        settings: dict[str, Any] = {name: result.config.get(name) for name in ("steps", "lr", "batch_size")}
        settings |= {
            "seed": self.seed,
            "net": net.config() if isinstance(net, INR) else None,
        }
        return Restored(
            pictures[0],
            pictures[1],
            pictures[2],
            net,
            mse_to_psnr(mse),
            None if math.isnan(held_mse) else mse_to_psnr(held_mse),
            share,
            difference,
            result.steps,
            time.perf_counter() - begun,
            result.interrupted,
            result.stopped if result.stopped != "callback" else "seconds",
            settings,
        )


def _check_mask(mask: ArrayLike, image: Tensor) -> Tensor:
    """Return where pixels are known, booleans (H, W)."""
    given = as_tensor("mask", mask)
    if image.ndim not in (2, 3):
        raise ValueError(f"image must have shape (H, W) or (H, W, C), got {tuple(image.shape)}")
    if given.shape != image.shape[:2]:
        raise ValueError(
            f"mask must have the size of the image, {tuple(image.shape[:2])}, got shape {tuple(given.shape)}"
        )
    known = given.detach().cpu()
    if known.dtype != torch.bool:
        if not bool(((known == 0) | (known == 1)).all()):
            raise ValueError("mask must be boolean, or hold 1 (known) and 0 (missing) alone; take mask > 0.5")
        known = known == 1
    if not bool(known.any()):
        raise ValueError("mask says that every pixel is missing, so that there is nothing to go by")
    if bool(known.all()):
        raise ValueError("mask says that no pixel is missing, so that there is nothing to fill in")
    return known


def _check_image(given: Tensor, known: Tensor | None) -> Tensor:
    """Return the picture (H, W, C) of at least fp32, on the CPU, if it lies in [0, 1] where it is known."""
    image = check_tensor("image", given, finite=False).detach().cpu()
    if image.ndim not in (2, 3):
        raise ValueError(f"image must have shape (H, W) or (H, W, C), got {tuple(image.shape)}")
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = image.unsqueeze(-1) if image.ndim == 2 else image
    seen = check_tensor("image", image if known is None else image[known])
    low, high = float(seen.min()), float(seen.max())
    if low < 0 or high > 1:
        where = "" if known is None else " at known pixels"
        raise ValueError(f"image must lie in [0, 1]{where}, got values from {low:.6g} to {high:.6g}; scale it")
    return image
