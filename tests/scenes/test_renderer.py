"""Pictures of fields whose pictures are known, and what passing over empty space leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from inrfast.encodings.hash_grid import HashGrid
from inrfast.scenes.cameras import Camera, look_at, sphere_of_cameras
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.renderer import FIRST_LOOK, Renderer, render

SMALL = HashGrid(levels=3, table_size=2**8, coarsest=4, finest=16)


class Ball(nn.Module):
    """A homogeneous ball with one colour, which counts the points at which it is asked."""

    def __init__(self, radius: float, density: float) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((3,), -1.0))
        self.register_buffer("high", torch.full((3,), 1.0))
        self.scale = nn.Parameter(torch.ones(()))
        self.radius, self.value, self.asked = radius, density, 0

    def density(self, points):
        return self.scale * self.value * (points.norm(dim=1) < self.radius)

    def forward(self, points, directions):
        self.asked += len(points)
        return self.density(points), torch.tensor([0.9, 0.4, 0.1]).expand(len(points), 3)


def test_a_ball_is_seen_as_its_chords_say():
    """c (1 - exp(-s L)) + exp(-s L) with the chord L; an interval of 2/512 leaves the ends of a chord open."""
    renderer = Renderer(Ball(0.7, 2.0), samples=512, cells=0)
    camera = Camera(look_at((1.5, -2.0, 1.0)), 16, 16, 0.7)
    found = render(renderer, camera)
    rays = camera.rays().view(-1, 6)
    along = (rays[:, :3] * rays[:, 3:]).sum(1)
    root = along**2 - rays[:, :3].square().sum(1) + 0.49
    passes = torch.exp(-2.0 * 2 * root.clamp_min(0).sqrt()).unsqueeze(1)
    wanted = torch.tensor([0.9, 0.4, 0.1]) * (1 - passes) + passes
    length = 2 * math.sqrt(3) / 512  # of an interval at most
    assert float((found.colours.view(-1, 3) - wanted).abs().max()) < 2.0 * length
    assert float((found.opacity.view(-1, 1) - (1 - passes)).abs().max()) < 2.0 * length
    there = root > 0.1
    # of an even ball the middle of the light that it keeps back lies before the middle of the chord
    depth = (found.depth.view(-1) / found.opacity.view(-1))[there]
    assert bool((depth < -along[there]).all() and (depth > (-along - root.clamp_min(0).sqrt())[there]).all())


def test_empty_space_is_passed_over_without_a_change():
    full, empty = (Renderer(Ball(0.5, 30.0), samples=64, cells=cells) for cells in (0, 16))
    empty.train()
    empty.calls.fill_(FIRST_LOOK)
    rays = torch.cat([camera.rays().view(-1, 6) for camera in sphere_of_cameras(2, 12, 12)])
    for _ in range(4 * 16):  # four looks: a random point of a cell that the surface cuts may be outside
        empty(rays[:8])
    share = float(empty.full().float().mean())
    assert 0.06 < share < 0.15, "a ball of radius 1/2 is 6.5% of the box, and its surface cuts as many cells again"
    for renderer in (full, empty):
        renderer.field.asked = 0
        renderer.eval()
    difference = (full(rays) - empty(rays)).detach().abs()
    assert float(difference.mean()) < 2e-3 and empty.field.asked < full.field.asked / 4


def test_nothing_is_empty_before_the_first_look_and_cells_fade():
    renderer = Renderer(Ball(0.5, 30.0), samples=16, cells=8).train()
    rays = sphere_of_cameras(1, 2, 2)[0].rays().view(-1, 6)
    for _ in range(FIRST_LOOK):
        renderer(rays)
    assert bool(renderer.full().all())
    renderer.field.scale.data.mul_(1e-3)
    renderer.look()
    assert int(renderer.full().sum()) > 0, "what is densest is not taken for empty, however clear it is"
    renderer.field.scale.data.mul_(1e3)
    renderer.densities.fill_(torch.inf)
    renderer(rays)
    before = renderer.densities.clone()
    assert 0 < int(renderer.full().sum()) < 8**3
    renderer.field.scale.data.zero_()
    renderer.look()
    torch.testing.assert_close(renderer.densities, 0.95 * before)


def test_pictures_leave_the_mode_alone_and_are_the_same_twice():
    renderer = Renderer(RadianceField(encoding=SMALL), samples=8).train()
    camera = sphere_of_cameras(1, 5, 4)[0]
    first, second = render(renderer, camera), render(renderer, camera)
    assert renderer.training and int(renderer.calls) == 0
    assert first.colours.shape == (5, 4, 3) and first.depth.shape == first.opacity.shape == (5, 4)
    assert torch.equal(first.colours, second.colours)
    assert not first.colours.requires_grad


def test_rays_that_miss_the_box_see_the_background():
    renderer = Renderer(RadianceField(encoding=SMALL), samples=8, background=(0.2, 0.5, 1.0))
    away = torch.tensor([[5.0, 0, 0, 1, 0, 0], [0, 3.0, 0, 1, 0, 0]])
    torch.testing.assert_close(renderer(away), torch.tensor([0.2, 0.5, 1.0]).expand(2, 3))


def test_what_is_no_renderer_and_no_background_is_refused():
    field = RadianceField(encoding=SMALL)
    with pytest.raises(TypeError, match="renderer must be a Renderer"):
        render(field, sphere_of_cameras(1, 2, 2)[0])
    with pytest.raises(TypeError, match="camera must be a Camera"):
        render(Renderer(field), torch.eye(4))
    for background in ((1, 1), (0, 0, 2.0)):
        with pytest.raises(ValueError, match="background"):
            Renderer(field, background=background)
    with pytest.raises(ValueError, match="samples"):
        Renderer(field, samples=0)
