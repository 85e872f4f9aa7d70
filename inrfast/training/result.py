"""What a fit returns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from inrfast import notebook
from inrfast.arrays import ArrayLike
from inrfast.errors import DivergedError, check_int, check_tensor
from inrfast.pixels import as_values
from inrfast.records import Record, in_a_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture
else:
    Picture = Any  # Pillow is not imported for it

PAGES = (".html", ".htm")
"""Suffixes of pages."""


@dataclass(frozen=True)
class FitResult(Record):
    """What a fit did; the network itself holds the last weights.

    Attributes
    ----------
    steps
        Updates done: fewer than asked for where it stopped early.
    losses
        The training loss of every update, taken on its batch with the weights before the update.
    eval_steps, psnrs
        PSNR (dB, for ``data_range``, all points of the evaluation, eval mode) after that many updates; the first is of
        the start, the last of the end.
    psnr
        PSNR of the last weights.
    best_psnr, best_step, best_state
        The best of ``psnrs``, its step, and a copy of the ``state_dict`` that had it. With a loss of your own and a
        target that only stands in (zeros), they mean nothing.
    seconds
        Wall-clock time of the whole call; after a resume, of this call alone.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete update.
    config
        The settings and ``"gradient"``: ``"fused"``, ``"layerwise"``, ``"folded"``, ``"normed"``, ``"chunked"`` or
        ``"whole"``, the way gradients were taken, with the ``"reason"`` why it was no faster one (None: no other of
        the backend is faster).
    stopped
        Why it ended: ``"steps"`` (all done), ``"target_psnr"``, ``"patience"``, ``"callback"``, ``"interrupted"``, and
        in ``fit_many`` ``"diverged"``.
    error
        In ``fit_many``, what a diverged network's own fit would have raised.
    data_range
        The range of the signal for which the PSNRs are stated: see ``data_range`` of :func:`inrfast.fit`.
    grid
        Where no coordinates were given, the points per axis of the :func:`inrfast.grid` that was made of the target's
        shape; ``inrfast.signals.render.render(net, result.grid)`` is the reconstruction. None: they were given.
    """

    left_out = ("best_state",)

    steps: int
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...]
    psnrs: tuple[float, ...]
    psnr: float
    best_psnr: float
    best_step: int
    best_state: dict[str, Tensor]
    seconds: float
    interrupted: bool
    config: dict[str, Any]
    stopped: str = "steps"
    error: DivergedError | None = None
    data_range: float = 1.0
    grid: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        parts = [f"psnr={self.psnr:.2f} dB", f"best_psnr={self.best_psnr:.2f} dB at step {self.best_step:,}"]
        parts += [f"steps={self.steps}", f"{self.seconds:.3g} s", f"stopped={self.stopped!r}"]
        return in_a_line("FitResult", [*parts, f"gradient={self.config.get('gradient')!r}"])

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        gradient, reason = self.config.get("gradient"), self.config.get("reason")
        rows = [
            ("quantity", "value"),
            ("PSNR", f"{self.psnr:.2f} dB"),
            ("best PSNR", f"{self.best_psnr:.2f} dB at step {self.best_step:,}"),
            ("steps", f"{self.steps:,} ({self.stopped})"),
            ("time", f"{self.seconds:.3g} s"),
            ("gradients", f"{gradient}" + (f" ({reason})" if reason else "")),
        ]
        lines = [] if self.error is None else [f"It diverged: {self.error}"]
        return notebook.Page(f"Fit: {self.psnr:.2f} dB", rows, lines, figure=self.plot)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        target: ArrayLike | Picture | None = None,
        reconstruction: ArrayLike | Picture | None = None,
        shape: Sequence[int] | None = None,
    ) -> Figure:
        """Return a figure of the loss and the PSNR over the steps, and below them of the signal and its reconstruction.

        ``result.plot(target=image, reconstruction=net(coords), shape=(H, W))`` also shows where the two differ, as a
        mean over colours. Pictures are shown from the target's least value to its largest, or from 0 to 1.

        Parameters
        ----------
        path
            Of a .png, .pdf or .svg to write it to, whole or not at all; None: none is written.
        target, reconstruction
            The signal and what the network returns for it: pictures (H, W), (H, W, 1) or (H, W, 3), or curves (N,) or
            (N, 1); or rows (N,) or (N, C), C = 1 or 3, of a picture of ``shape``. Pixels of whole numbers and Pillow's
            images are taken as by :func:`inrfast.fit`. None: not drawn.
        shape
            (H, W) of pictures given as rows, row after row; None: ``grid`` for rows of its number, others have their
            own shape.

        Raises
        ------
        ValueError, TypeError
            Other shapes, two that differ, values that are not finite; another suffix.
        """
        from inrfast.training.result_figure import draw  # most draw nothing

        sizes = None if shape is None else tuple(check_int("shape", size, minimum=1) for size in shape)
        if sizes is not None and len(sizes) != 2:
            raise ValueError(f"shape must be (H, W), got {sizes}")
        given = {"target": target, "reconstruction": reconstruction}
        drawn = {name: _drawable(name, own, sizes, self.grid) for name, own in given.items() if own is not None}
        if len({picture.shape for picture in drawn.values()}) > 1:
            shapes = " and ".join(str(picture.shape) for picture in drawn.values())
            raise ValueError(f"reconstruction must have the shape of target, got {shapes}")
        return draw(self, list(drawn.values()), target is None, path)

    def to_html(
        self, path: str | os.PathLike[str] | None = None, images: Mapping[str, ArrayLike | Picture] | None = None
    ) -> str:
        """Return the fit as one self-contained HTML page: PSNR and loss over the steps, network, settings, warnings.

        Parameters
        ----------
        path
            Of a .html or .htm to write it to as well, whole or not at all; None writes nothing.
        images
            What the page shows first, such as the target and the reconstruction, by their names: (H, W), (H, W, 1) or
            (H, W, 3), in [0, 1], clipped to it; pixels of whole numbers and Pillow's images as by :func:`inrfast.fit`.

        Raises
        ------
        TypeError, ValueError
            ``images`` is no mapping, or one of them has another shape or is not finite; another suffix.
        OSError
            The folder does not exist or cannot be written.
        """
        from inrfast.training.result_page import page, pictures

        if path is not None and Path(path).suffix.lower() not in PAGES:
            raise ValueError(f"path must end in one of {', '.join(PAGES)}, got {os.fspath(path)!r}")
        made = page(self, pictures({} if images is None else images))
        if path is not None:
            made.write(path)
        return made.html()


def _drawable(
    argument: str, given: ArrayLike | Picture, sizes: tuple[int, ...] | None, grid: tuple[int, ...] | None
) -> np.ndarray:
    """Return a curve (N,) or a picture (H, W) or (H, W, 3), in fp64; rows of a grid (H, W) are a picture."""
    values = check_tensor(argument, as_values(argument, given, told=False)[0]).detach().cpu().double()
    if sizes is None and grid is not None and len(grid) == 2 and values.shape[0] == math.prod(grid):
        sizes = grid if values.shape[1:] in ((), (1,), (3,)) else None
    if sizes is not None:
        rows, channels = math.prod(sizes), values.shape[-1] if values.ndim > 1 and values.shape[-1] in (1, 3) else 1
        if values.numel() != rows * channels or values.ndim > 3:
            raise ValueError(f"{argument} must have {rows} values, or rows of 1 or 3, got {tuple(values.shape)}")
        values = values.reshape(*sizes, channels)
    if values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.numel() == 0 or not (values.ndim < 3 or (values.ndim == 3 and values.shape[2] == 3)) or values.ndim == 0:
        accepted = "a picture (H, W), (H, W, 1) or (H, W, 3) or a curve (N,); rows need shape=(H, W)"
        raise ValueError(f"{argument} must be {accepted}, got {tuple(values.shape)}")
    return values.numpy()
