"""Pictures of a radiance field: colours along rays, with empty space passed over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inrfast.errors import check_float, check_int
from inrfast.memory import chunks
from inrfast.scenes.cameras import Camera, through_box
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.views import WHITE
from inrfast.scenes.volume import Composited, composite, stratified

DECAY = 0.95
"""By which a cell's density is multiplied at every look, as in the source: what is empty is found out in the end."""

LOOK_EVERY = 16
"""Steps from one look at all cells to the next, as in the source."""

FIRST_LOOK = 48
"""Steps before the first look: until then every cell counts as full, since a field starts nearly clear everywhere."""

EMPTY = 0.01
"""Opacity of one interval below which a cell counts as empty, as in the source."""

RAYS = 4096
"""Per piece of a picture."""


class Renderer(nn.Module):
    """Colours (n, 3) along rays (n, 6): a network like any other, which :func:`inrfast.fit` trains on pixels.

    Intervals lie between the ends of a ray in the field's box, evenly spaced, in train mode with edges moved at random.
    Those in cells that hold nothing are passed over: a grid keeps the largest density that was lately seen in each cell
    (times 0.95 per look). From the 48th call in train mode on, every 16th looks at a random point of all cells.

    Parameters
    ----------
    field
        A :class:`RadianceField`, or a module with ``low``, ``high``, ``density(points)`` and ``forward(points,
        directions)`` like one.
    samples
        Intervals per ray.
    background
        Red, green and blue behind everything.
    cells
        Cells of the grid per axis; 0: no grid, every interval is computed.

    Source: Mueller et al., Instant neural graphics primitives, SIGGRAPH 2022, section 5.4 and appendix C.
    """

    background: Tensor
    densities: Tensor
    calls: Tensor

    def __init__(
        self,
        field: RadianceField,
        samples: int = 64,
        background: Sequence[float] = WHITE,
        cells: int = 32,
    ) -> None:
        super().__init__()
        self.field = field
        self.samples = check_int("samples", samples, minimum=1)
        self.cells = check_int("cells", cells, minimum=0)
        tones = [check_float("background", own, minimum=0.0) for own in background]
        if len(tones) != 3 or max(tones) > 1:
            raise ValueError(f"background must be three numbers from 0 to 1, got {background!r}")
        self.register_buffer("background", field.low.new_tensor(tones))
        # Nothing is known to be empty before the first look.
        self.register_buffer("densities", torch.full((self.cells**3,), torch.inf).to(field.low))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=field.low.device))

    def forward(self, rays: Tensor) -> Tensor:
        """Return colours (n, 3) along rays (n, 6), origins and unit directions."""
        if self.training and self.cells:
            calls = int(self.calls)
            if calls >= FIRST_LOOK and calls % LOOK_EVERY == 0:
                self.look()
            self.calls += 1
        return self.composited(rays).colours

    def composited(self, rays: Tensor) -> Composited:
        """Return colours, opacity and depth along rays (n, 6)."""
        with torch.no_grad():
            near, far = through_box(rays, self.field.low, self.field.high)
            edges = stratified(near, far, self.samples, jitter=self.training)
            middles = (edges[:, 1:] + edges[:, :-1]) / 2
            points = rays[:, None, :3] + rays[:, None, 3:] * middles.unsqueeze(-1)
            there = self.occupied(points.reshape(-1, 3)).view(middles.shape) & (far > near).unsqueeze(1)
            ray, sample = there.nonzero(as_tuple=True)
        densities = rays.new_zeros(middles.shape)
        colours = rays.new_zeros(*middles.shape, 3)
        if len(ray):
            found, seen = self.field(points[ray, sample], rays[ray, 3:])
            densities = densities.index_put((ray, sample), found)
            colours = colours.index_put((ray, sample), seen)
        return composite(densities, colours, edges, self.background)

    def occupied(self, points: Tensor) -> Tensor:
        """Return which points (n, 3) lie in cells that may hold something, bool (n,)."""
        if not self.cells:
            return torch.ones(len(points), dtype=torch.bool, device=points.device)
        low, high = self.field.low, self.field.high
        place = ((points - low) / (high - low) * self.cells).long().clamp_(0, self.cells - 1)
        index = (place[:, 0] * self.cells + place[:, 1]) * self.cells + place[:, 2]
        return self.full().index_select(0, index)

    def full(self) -> Tensor:
        """Return which cells may hold something, bool (cells^3,).

        Those above the mean always do, as in the source: a field that is still nearly clear is not taken for empty.
        """
        step = float((self.field.high - self.field.low).max()) / self.samples
        opacities = -torch.expm1(-self.densities * step)
        return opacities >= opacities.mean().clamp_max(EMPTY)

    @torch.no_grad()
    def look(self) -> None:
        """Look at a random point of every cell."""
        places = torch.arange(self.cells, dtype=self.field.low.dtype, device=self.field.low.device)
        corners = torch.cartesian_prod(places, places, places)
        unit = (corners + torch.rand_like(corners)) / self.cells
        points = self.field.low + (self.field.high - self.field.low) * unit
        seen = torch.cat([self.field.density(points[rows]) for rows in chunks(len(points), 2**14)])
        faded = torch.where(self.densities.isinf(), torch.zeros_like(seen), DECAY * self.densities)
        self.densities.copy_(torch.maximum(faded, seen))


@torch.no_grad()
def render(renderer: Renderer, camera: Camera) -> Composited:
    """Return what a camera sees: colours (H, W, 3), opacity (H, W) and depth (H, W), in eval mode.

    Parameters
    ----------
    renderer
        The scene.
    camera
        Where from, and how many pixels.

    Raises
    ------
    TypeError
        No camera, or no renderer.
    """
    if not isinstance(renderer, Renderer):
        raise TypeError(f"renderer must be a Renderer, got {type(renderer).__name__}")
    if not isinstance(camera, Camera):
        raise TypeError(f"camera must be a Camera, got {type(camera).__name__}")
    mode = renderer.training
    renderer.eval()
    try:
        rays = camera.rays().to(renderer.background).reshape(-1, 6)
        parts = [renderer.composited(rays[rows]) for rows in chunks(len(rays), RAYS)]
    finally:
        renderer.train(mode)
    sides = (camera.height, camera.width)
    return Composited(
        torch.cat([part.colours for part in parts]).view(*sides, 3),
        torch.cat([part.opacity for part in parts]).view(sides),
        torch.cat([part.depth for part in parts]).view(sides),
    )
