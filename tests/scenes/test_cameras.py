"""Cameras: rays are the inverse of projection; boxes are met where fp64 says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from inrfast.scenes.cameras import Camera, check_pose, look_at, sphere_of_cameras, through_box


def random_camera(seed: int, height: int = 5, width: int = 7) -> Camera:
    generator = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = generator.uniform(-3, 3, 3)
    return Camera(torch.from_numpy(pose), height, width, float(generator.uniform(0.2, 2.5)))


def projected(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Pixels (column, row) of points of the world, by homogeneous coordinates and the matrix of computer vision."""
    focal = camera.width / 2 / math.tan(camera.angle / 2)
    own_y = focal if camera.angle_y is None else camera.height / 2 / math.tan(camera.angle_y / 2)
    matrix = np.array([[focal, 0, camera.width / 2], [0, own_y, camera.height / 2], [0, 0, 1.0]])
    to_vision = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y down, looking along +z
    own = (to_vision @ np.linalg.inv(camera.pose.numpy()) @ np.c_[points, np.ones(len(points))].T)[:3]
    assert (own[2] > 0).all()
    image = matrix @ own
    return (image[:2] / image[2]).T


@given(seed=st.integers(0, 2**31), far=st.floats(0.1, 100), angle_y=st.none() | st.floats(0.2, 2.5))
@settings(max_examples=30, deadline=None)
def test_points_on_rays_project_to_the_middles_of_their_pixels(seed, far, angle_y):
    camera = replace(random_camera(seed), angle_y=angle_y)
    rays = camera.rays(torch.float64)
    assert rays.shape == (5, 7, 6)
    torch.testing.assert_close(rays[..., 3:].norm(dim=-1), torch.ones(5, 7, dtype=torch.float64))
    found = projected(camera, (rays[..., :3] + far * rays[..., 3:]).reshape(-1, 3).numpy())
    rows, columns = np.meshgrid(np.arange(5) + 0.5, np.arange(7) + 0.5, indexing="ij")
    # fp64 of points up to 100 away, times a focal length of up to 35 pixels
    np.testing.assert_allclose(found, np.stack([columns, rows], -1).reshape(-1, 2), atol=1e-9)


@given(seed=st.integers(0, 2**31), height=st.integers(1, 40), width=st.integers(1, 40), square=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_resized_camera_sees_the_same(seed, height, width, square):
    """A point of the world lies at the same share of the height and of the width, whatever the ratio of the sides."""
    camera = replace(random_camera(seed), angle_y=None if square else 1.1)
    small = camera.resized(height, width)
    points = (camera.position + camera.rays(torch.float64)[..., 3:].reshape(-1, 3)).numpy()
    shares = [projected(own, points) / [own.width, own.height] for own in (camera, small)]
    np.testing.assert_allclose(shares[1], shares[0], rtol=1e-9)
    assert camera.resized(10, 14).angle_y == camera.angle_y, "pixels of the same shape"


def test_rays_of_finer_pixels_lie_within_the_coarse_ones():
    camera = random_camera(3)
    fine = camera.rays(torch.float64, supersampling=3)[1::3, 1::3]
    torch.testing.assert_close(fine, camera.rays(torch.float64))


def test_look_at_shows_the_target_in_the_middle_and_up_above():
    camera = Camera(look_at((3.0, 1.0, 0.5), (0.2, 0.1, 0.0)), 6, 8)
    middle = projected(camera, np.array([[0.2, 0.1, 0.0]]))
    np.testing.assert_allclose(middle, [[4.0, 3.0]], atol=1e-12)
    above = projected(camera, np.array([[0.2, 0.1, 0.3]]))[0]
    assert above[1] < 3.0 and abs(above[0] - 4.0) < 1e-9
    with pytest.raises(ValueError, match="must differ"):
        look_at((0.0, 0.0, 1.0))


def test_cameras_on_a_sphere_look_at_the_origin_from_its_distance():
    cameras = sphere_of_cameras(9, 4, 4, distance=2.5)
    for camera in cameras:
        assert float(camera.position.norm()) == pytest.approx(2.5)
        np.testing.assert_allclose(projected(camera, np.zeros((1, 3))), [[2.0, 2.0]], atol=1e-9)
    other = sphere_of_cameras(9, 4, 4, distance=2.5, seed=1)
    apart = torch.cdist(torch.stack([c.position for c in cameras]), torch.stack([c.position for c in other]))
    assert float(apart.min()) > 1e-3


@given(seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_a_box_is_met_where_its_faces_are(seed):
    """Both ends lie on the surface or in the box, and what lies between is inside; rays that miss have no length."""
    generator = torch.Generator().manual_seed(seed)
    rays = torch.randn(64, 6, generator=generator, dtype=torch.float64) * 2
    rays[:, 3:] = torch.nn.functional.normalize(rays[:, 3:], dim=1)
    rays[:8, 3] = 0.0  # along a face
    low, high = torch.tensor([-1.0, -0.5, -2.0]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    near, far = through_box(rays, low, high)
    assert bool((near >= 0).all() and (far >= near).all())
    along = torch.linspace(0, 12, 2001, dtype=torch.float64)
    points = rays[:, None, :3] + rays[:, None, 3:] * along[:, None]
    inside = ((points > low) & (points < high)).all(-1)
    between = (along > near[:, None]) & (along < far[:, None])
    # within a rounding of the ends either answer is right
    ends = ((along - near[:, None]).abs() < 1e-9) | ((along - far[:, None]).abs() < 1e-9)
    assert bool((inside == between)[~ends].all())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda pose: pose[:3], "matrix"),
        (lambda pose: pose * 1.01, "last row"),
        (lambda pose: torch.cat([1.01 * pose[:3], pose[3:]]), "orthonormal"),
        (lambda pose: torch.cat([-pose[:3], pose[3:]]), "reflection"),
        (lambda pose: pose * torch.nan, "finite"),
        (
            lambda pose: pose.index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(-1e300, dtype=pose.dtype)),
            "at most",
        ),
    ],
)
def test_poses_that_are_no_rigid_motion_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        check_pose("pose", change(torch.eye(4, dtype=torch.float64)))


@pytest.mark.parametrize("angle", [0.0, 1e-7, -1.0, math.pi, 4.0, math.nan, "wide"])
def test_angles_out_of_range_are_refused(angle):
    with pytest.raises((ValueError, TypeError), match="angle"):
        Camera(torch.eye(4), 2, 2, angle)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="height must be at least 1"):
        Camera(torch.eye(4), 0, 2)
    with pytest.raises(ValueError, match="width must be at most"):
        Camera(torch.eye(4), 2, 10**30)
