"""The fit of a radiance field to posed images: a fit whose points are pixels, and whose coordinates are rays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrfast.errors import check_int, check_seed
from inrfast.memory import counted, require_free
from inrfast.metrics import psnr
from inrfast.records import Record, in_a_line
from inrfast.scenes.cameras import through_box
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.renderer import Renderer, render
from inrfast.scenes.views import WHITE, Views
from inrfast.training.fit import fit
from inrfast.training.objective import Regularizers
from inrfast.training.result import FitResult

PIXEL_BYTES = 4 * (6 + 3) * 4
"""Of a pixel: ray and colour in fp32, kept four times over while a fit begins."""

MEASURED = 4096
"""Pixels of the fitted views on which progress is measured where no view is held out."""

EVALUATIONS = 10
"""Of a fit, beside that of its start."""


@dataclass(frozen=True)
class SceneResult(Record):
    """A fitted scene.

    Attributes
    ----------
    renderer
        Holds the field, ``renderer.field``; :func:`render` makes pictures.
    psnr
        Mean over the held-out views of :attr:`psnrs`; of the fit's measured pixels where none is held out.
    psnrs
        PSNR (dB, range 1) of every held-out view.
    fit
        What :func:`inrfast.fit` returned: losses, PSNRs on the way (of all held-out pixels together), seconds.
    """

    left_out = ("renderer",)

    renderer: Renderer
    psnr: float
    psnrs: tuple[float, ...]
    fit: FitResult

    def __repr__(self) -> str:
        views = f"{len(self.psnrs)} held-out views"
        return in_a_line("SceneResult", [f"psnr={self.psnr:.2f} dB", views, f"fit={self.fit!r}"])

    @property
    def field(self) -> RadianceField:
        """The radiance field."""
        return self.renderer.field


def fit_scene(
    views: Views,
    steps: int = 1000,
    lr: float = 1e-2,
    schedule: str | Callable[[int], float] = "exponential",
    *,
    field: RadianceField | None = None,
    held_out: Views | None = None,
    rays: int = 1024,
    samples: int = 64,
    background: Sequence[float] = WHITE,
    cells: int = 32,
    regularizers: Regularizers = (),
    callbacks: Sequence[Any] = (),
    eval_every: int | None = None,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> SceneResult:
    """Train a radiance field so that its pictures are the views, and measure it on those held out.

    It is a fit like any other: Ctrl-C keeps what was learned, a checkpoint is gone on from bit by bit, regularisers and
    callbacks are those of :func:`inrfast.fit`, with rays (n, 6) as ``coords`` and a :class:`Renderer` as ``net``.

    Parameters
    ----------
    views
        Images and cameras; their pixels, before the background, are what is fitted.
    steps, lr, schedule, regularizers, callbacks, checkpoint, checkpoint_seconds, resume, progress
        As in :func:`inrfast.fit`; the optimiser is Adam, the loss the mean squared error.
    field
        What is trained, in place; None: ``RadianceField(seed=seed)``. The scene must lie in its box.
    held_out
        Views that are measured and not fitted.
    rays
        Pixels per step, at random from all views.
    samples
        Intervals per ray.
    background
        Colour behind the scene, in the images too where they are transparent.
    cells
        See :class:`Renderer`.
    eval_every
        Steps between two evaluations; None: ten in all.
    seed
        Of the pixels and the intervals, and of a field that is not given.

    Raises
    ------
    ValueError, TypeError
        No views; sizes below 1; no ray of the views meets the field's box; and as :func:`inrfast.fit`.
    MemoryBudgetError
        The rays would take more than half of what is free.

    Examples
    --------
    >>> import inrfast.scenes as scenes
    >>> cameras = scenes.sphere_of_cameras(4, height=8, width=8)
    >>> views = scenes.Views(torch.zeros(4, 8, 8, 4), cameras)
    >>> fit_scene(views, steps=2, samples=8, progress=False).fit.steps
    2
    """
    for name, own in (("views", views), ("held_out", held_out)):
        if not isinstance(own, Views) and not (name == "held_out" and own is None):
            raise TypeError(f"{name} must be Views, images with their cameras, got {type(own).__name__}")
    if field is not None and not isinstance(field, RadianceField):
        raise TypeError(f"field must be a RadianceField, got {type(field).__name__}")
    steps, seed = check_int("steps", steps, minimum=1), check_seed("seed", seed)
    pixels = sum(own.images[..., 0].numel() for own in (views, held_out) if own is not None)
    require_free(pixels * PIXEL_BYTES, f"the rays of {counted(pixels)} pixels", "take smaller images, or fewer")
    renderer = Renderer(field or RadianceField(seed=seed), samples, background, cells)
    coords, target = _pixels(views, renderer)
    _check_seen(coords, renderer)
    measured = _pixels(held_out, renderer) if held_out is not None else _some(coords, target, seed)
    result = fit(
        renderer, coords, target, steps, lr, schedule, batch_size=min(check_int("rays", rays, minimum=1), len(coords)),
        eval_coords=measured[0], eval_target=measured[1], data_range=1.0, regularizers=regularizers,
        callbacks=callbacks, eval_every=eval_every or max(steps // EVALUATIONS, 1), checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds, resume=resume, seed=seed, progress=progress,
    )  # fmt: skip
    psnrs = () if held_out is None else score(renderer, held_out)
    return SceneResult(renderer, sum(psnrs) / len(psnrs) if psnrs else result.psnr, psnrs, result)


def score(renderer: Renderer, views: Views) -> tuple[float, ...]:
    """Return the PSNR (dB, range 1) of every view, of pictures clipped to [0, 1] as files hold them."""
    wanted = views.colours(renderer.background.tolist())
    pictures = (render(renderer, camera).colours.clamp(0, 1).cpu() for camera in views.cameras)
    return tuple(psnr(picture, target.to(picture)) for picture, target in zip(pictures, wanted, strict=True))


def _pixels(views: Views, renderer: Renderer) -> tuple[Tensor, Tensor]:
    """Return the rays of all pixels (n, 6), and their colours (n, 3)."""
    colours = views.colours(renderer.background.tolist()).reshape(-1, 3)
    return views.rays().to(renderer.background), colours.to(renderer.background)


def _some(coords: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return some of the pixels."""
    index = torch.randperm(len(coords), generator=torch.Generator().manual_seed(seed))[:MEASURED].to(coords.device)
    return coords[index], target[index]


def _check_seen(coords: Tensor, renderer: Renderer) -> None:
    """Refuse views that look past the field's box: nothing would ever be learned."""
    low, high = renderer.field.low, renderer.field.high
    near, far = through_box(coords, low, high)
    if not bool((far > near).any()):
        raise ValueError(
            f"no ray of the views meets the field's box, from {low.tolist()} to {high.tolist()}; give a field with the "
            "bounds of the scene: RadianceField(bounds=(low, high))"
        )
