"""Views: images before a background, some of them, and what is refused."""

from __future__ import annotations

import pytest
import torch

from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.views import Views


def some(count: int = 5, channels: int = 4) -> Views:
    images = torch.rand(count, 4, 6, channels, generator=torch.Generator().manual_seed(0))
    return Views(images, sphere_of_cameras(count, 4, 6))


def test_colours_lie_between_the_image_and_the_background():
    views = some()
    black, white = views.colours((0, 0, 0)), views.colours()
    torch.testing.assert_close(white - black, (1 - views.images[..., 3:]).expand_as(white))
    torch.testing.assert_close(some(channels=3).colours((0, 1, 0)), some(channels=3).images[..., :3])


@pytest.mark.parametrize("channels", [3, 4])
def test_images_and_places_are_copied(channels):
    images = torch.ones(2, 4, 6, channels)
    views = Views(images, sphere_of_cameras(2, 4, 6))
    images.zero_()
    assert bool((views.images == 1).all())
    before = views.cameras[0].position.clone()
    views.cameras[0].position.zero_()
    assert torch.equal(views.cameras[0].position, before)


def test_rays_follow_the_pixels():
    views = some()
    rays = views.rays().view(5, 4, 6, 6)
    for index, camera in enumerate(views.cameras):
        assert torch.equal(rays[index], camera.rays())


def test_some_are_evenly_spaced_and_keep_their_cameras():
    views = some(8).some(4)
    assert views.names == ("0", "2", "4", "6") and len(views) == 4
    assert torch.equal(views.images, some(8).images[::2])
    assert torch.equal(views.cameras[1].pose, some(8).cameras[2].pose)
    with pytest.raises(ValueError, match="at most the number of views, 5"):
        some().some(6)


def test_views_that_do_not_belong_together_are_refused():
    images, cameras = torch.rand(2, 4, 6, 4), sphere_of_cameras(2, 4, 6)
    with pytest.raises(ValueError, match="one per image"):
        Views(images, cameras[:1])
    with pytest.raises(ValueError, match="of 4x6 pixels and its image of 6x4"):
        Views(images.transpose(1, 2), cameras)
    with pytest.raises(ValueError, match="shape"):
        Views(images[..., :2], cameras)
    for wrong in (images * 255, images - 0.1):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
            Views(wrong, cameras)
    with pytest.raises(ValueError, match="finite"):
        Views(images * torch.nan, cameras)
    with pytest.raises(TypeError, match=r"cameras\[1\] must be a Camera"):
        Views(images, [cameras[0], None])
