"""The Kernel Alignment Regulariser on a radiance field, whose values no pixel shows directly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import check_choice, check_seed
from inrfast.scenes.cameras import through_box
from inrfast.scenes.renderer import Renderer
from inrfast.scenes.volume import stratified
from inrfast.training.regularizers.drawing import Part, check_part
from inrfast.training.regularizers.kar import KAR

PLACES = ("box", "full")
"""Where the points x lie: anywhere in the box, or in cells that may hold something."""

VALUES = ("opacity", "radiance", "outputs")
"""What f is."""

CLOUD = 2**16
"""Points of the box among which each step draws its own."""


class FieldKAR(nn.Module):
    """``R = |f(x) - A(x, X) f(X)|`` of a radiance field: points x of space, and the samples X of the step's rays.

    ``inrfast.scenes.fit_scene(views, regularizers=[(FieldKAR(), 1e-4)])`` adds 1e-4 times its mean over x to the loss.
    The paper does not say what f is in a scene: see ``of``. Of the choices tried on one scene (see
    ``experiments/peak/table3.py``) the defaults were best.

    Parameters
    ----------
    of
        What f is: ``"opacity"``, of an interval of the renderer with the density there, ``1 - exp(-density * length)``,
        in [0, 1]; ``"radiance"``, the opacity and the colour times the opacity, seen along one random direction per
        step; ``"outputs"``, the outputs of ``field.geometry``, the logarithm of the density and the features.
    where
        Points x: ``"box"``, uniform in the field's box, or ``"full"``, as X in cells that may hold something.
    rows, keys
        Points x, and samples X, per step; in steps whose rays have fewer samples, which grow fewer as cells are found
        to be empty, all of them. ``"all"`` takes all in every step.
    options
        ``r``, ``width``, ``hidden_layers``, ``omega`` ... of :class:`inrfast.KAR`, on coordinates in [-1, 1]^3;
        ``norm`` is ``"squared"`` here.

    Raises
    ------
    ValueError, TypeError
        Unknown names; see :class:`inrfast.KAR`.

    Source: PEAK (Li et al.), equations 10 to 12; section 4.5 has no more on scenes.
    """

    def __init__(
        self,
        of: str = "outputs",
        where: str = "full",
        rows: Part = 512,
        keys: Part = 512,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.of = check_choice("of", of, VALUES)
        self.where = check_choice("where", where, PLACES)
        check_seed("seed", seed)
        drawn = torch.rand(CLOUD, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        points = 2 * drawn - 1 if where == "box" else None
        options = {"norm": "squared", **options}
        own_rows, own_keys = check_part("rows", rows), check_part("keys", keys, minimum=2)
        self.kar = KAR(points, rows=_every(own_rows), keys=_every(own_keys), seed=seed, in_features=3, **options)
        # A step has as many samples as its rays meet, which the caller cannot know beforehand: all, if there are fewer.
        if isinstance(own_rows, int):
            self.kar.usual_rows = own_rows
        if isinstance(own_keys, int):
            self.kar.usual_keys = own_keys

    def forward(self, net: nn.Module, coords: Tensor, step: int | None = None) -> Tensor:
        """Return R, a tensor of one element, for a renderer and the rays (n, 6) of a step; 0 where no sample counts."""
        renderer = net
        if not isinstance(renderer, Renderer):
            raise TypeError(f"net must be a Renderer, got {type(net).__name__}")
        samples = self._samples(renderer, coords)
        if len(samples) < 2:
            return coords.new_zeros(())
        return self.kar(_Values(renderer, self.of), samples, step)

    @torch.no_grad()
    def _samples(self, renderer: Renderer, rays: Tensor) -> Tensor:
        """Return samples of rays in cells that may hold something, in the coordinates of ``field.geometry``."""
        low, high = renderer.field.low, renderer.field.high
        near, far = through_box(rays, low, high)
        rays, near, far = rays[far > near], near[far > near], far[far > near]
        edges = stratified(near, far, renderer.samples)
        points = rays[:, None, :3] + rays[:, None, 3:] * ((edges[:, 1:] + edges[:, :-1]) / 2).unsqueeze(-1)
        points = points.reshape(-1, 3)
        return renderer.field.unit(points[renderer.occupied(points)])


def _every(part: Part | None) -> Part | None:
    """Return a part that no step has too few points for."""
    return part if part == "all" else None


class _Values(nn.Module):
    """f of a radiance field at points in the coordinates of ``field.geometry``."""

    def __init__(self, renderer: Renderer, of: str) -> None:
        super().__init__()
        self.renderer, self.of = renderer, of

    def forward(self, points: Tensor) -> Tensor:
        field = self.renderer.field
        if self.of == "outputs":
            return field.geometry(points)
        world = field.low + (points + 1) / 2 * (field.high - field.low)
        length = (field.high - field.low).max() / self.renderer.samples
        if self.of == "opacity":
            return -torch.expm1(-field.density(world) * length).unsqueeze(1)
        direction = torch.nn.functional.normalize(torch.randn(1, 3, device=points.device, dtype=points.dtype), dim=1)
        density, colours = field(world, direction.expand_as(world))
        opacity = -torch.expm1(-density * length).unsqueeze(1)
        return torch.cat([opacity, opacity * colours], dim=1)
