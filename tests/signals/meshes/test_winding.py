"""Winding numbers: 1 inside, 0 outside what is closed, the sum of the solid angles for everything."""

import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from inrfast.errors import MemoryBudgetError
from inrfast.signals.meshes.winding import POINTS, winding_numbers

BOUND = 0.01
"""Of the error at the default accuracy."""


def exact_winding_numbers(triangles: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the winding numbers from every triangle's solid angle, fp64 (n,).

    Source: Van Oosterom, Strackee, The solid angle of a plane triangle, IEEE Transactions on Biomedical Engineering
    BME-30(2), 1983, equation 8; in a triangle's plane, where the angle jumps, it is the mean of both sides.
    """
    if len(points) > 16:  # what lies in between stays in cache
        return torch.cat([exact_winding_numbers(triangles, part) for part in points.split(16)])
    a, b, c = (triangles.unsqueeze(1) - points[None, :, None]).unbind(2)
    normal = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]).unsqueeze(1)
    aa, bb, cc = (corner.norm(dim=2) for corner in (a, b, c))
    determinant = (a * normal).sum(2)
    denominator = aa * bb * cc + (a * b).sum(2) * cc + (b * c).sum(2) * aa + (c * a).sum(2) * bb
    return torch.where(determinant == 0, 0.0, torch.atan2(determinant, denominator)).sum(0) / (2 * math.pi)


def corners(mesh: trimesh.Trimesh) -> torch.Tensor:
    return torch.from_numpy(np.array(mesh.triangles, dtype=np.float64))


def cloud(n: int, reach: float = 1.5, seed: int = 0) -> torch.Tensor:
    return reach * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


def sphere(points: torch.Tensor) -> torch.Tensor:
    return 1 - points.norm(dim=1)


def cube(points: torch.Tensor) -> torch.Tensor:
    return 0.5 - points.abs().amax(1)


def torus(points: torch.Tensor) -> torch.Tensor:
    ring = points[:, :2].norm(dim=1) - 1
    return 0.4 - (ring.square() + points[:, 2].square()).sqrt()


@pytest.mark.parametrize(
    ("mesh", "depth"),
    [
        (trimesh.creation.icosphere(5), sphere),
        (trimesh.creation.box((1, 1, 1)).subdivide().subdivide().subdivide().subdivide(), cube),
        (trimesh.creation.torus(1.0, 0.4, 200, 100), torus),
    ],
    ids=["sphere", "cube", "torus"],
)
def test_closed_surfaces_are_once_round_their_inside(mesh: trimesh.Trimesh, depth) -> None:
    points = cloud(3000)
    points = points[depth(points).abs() > 2e-3]  # facets lie that far from the smooth surface
    inside = (depth(points) > 0).double()
    assert 0 < inside.mean() < 1
    triangles = corners(mesh)
    assert torch.allclose(exact_winding_numbers(triangles, points[:100]), inside[:100], atol=1e-12, rtol=0)
    assert torch.allclose(winding_numbers(triangles, points), inside, atol=BOUND, rtol=0)
    assert torch.allclose(winding_numbers(triangles.flip(1), points), -inside, atol=BOUND, rtol=0)


def test_parts_are_counted_as_often_as_they_go_round() -> None:
    parts = [trimesh.creation.icosphere(4, r).apply_translation((x, 0, 0)) for r, x in ((1.0, 0), (0.5, 0), (0.3, 1.2))]
    points = cloud(2000)
    expected = torch.zeros(len(points), dtype=torch.float64)
    far = torch.ones(len(points), dtype=torch.bool)
    for radius, x in ((1.0, 0), (0.5, 0), (0.3, 1.2)):
        depth = radius - (points - points.new_tensor([x, 0, 0])).norm(dim=1)
        expected += depth > 0
        far &= depth.abs() > 5e-3
    got = winding_numbers(torch.cat([corners(part) for part in parts]), points)
    assert set(expected[far].tolist()) == {0, 1, 2}
    assert torch.allclose(got[far], expected[far], atol=3 * BOUND, rtol=0)


@pytest.mark.parametrize(("accuracy", "bound"), [(1.5, 2 * BOUND), (2.0, BOUND), (4.0, BOUND / 8)])
def test_open_surfaces_agree_with_the_exact_sum_within_the_bound(accuracy: float, bound: float) -> None:
    triangles = corners(trimesh.creation.icosphere(5))
    half = triangles[triangles[..., 2].mean(1) > 0]
    near = half[::37].mean(1) + 0.05 * cloud(len(half[::37]), seed=1)
    points = torch.cat([cloud(500), near])
    exact = exact_winding_numbers(half, points)
    assert 0.6 < float(exact.max()) < 0.95  # it is open
    assert torch.allclose(winding_numbers(half, points, accuracy), exact, atol=bound, rtol=0)


def test_solid_angles_are_those_of_an_octant_and_of_a_plane() -> None:
    octant = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    centre = torch.zeros(1, 3, dtype=torch.float64)
    assert float(exact_winding_numbers(octant, centre)) == pytest.approx(1 / 8, rel=1e-14)
    half_plane = torch.tensor([[[-1e6, -1e6, 0], [3e6, -1e6, 0], [-1e6, 3e6, 0]]], dtype=torch.float64)
    below = torch.tensor([[0, 0, -1e-3], [0, 0, 0], [0, 0, 1e-3]], dtype=torch.float64)
    expected = torch.tensor([0.5, 0, -0.5], dtype=torch.float64)
    assert torch.allclose(exact_winding_numbers(half_plane, below), expected, atol=1e-8)


def test_on_the_surface_it_is_the_mean_of_both_sides() -> None:
    box = trimesh.creation.box((1, 1, 1))
    on_face = torch.tensor([[0.5, 0.1, 0.2], [-0.3, 0.5, 0.1]], dtype=torch.float64)
    assert torch.allclose(exact_winding_numbers(corners(box), on_face), torch.full((2,), 0.5, dtype=torch.float64))


@given(st.integers(1, 300), st.integers(0, 400), st.integers(0, 10**6), st.floats(1e-8, 1e8), st.floats(-10, 10))
def test_soups_of_any_size_place_and_scale(faces: int, n: int, seed: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    soup = torch.randn(faces, 3, 3, generator=generator, dtype=torch.float64)
    soup[::7, 2] = soup[::7, 1]  # without area
    points = 2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    exact = exact_winding_numbers(soup, points)
    got = winding_numbers(scale * (soup + shift), scale * (points + shift), accuracy=4.0)
    assert got.shape == (n,)
    assert torch.allclose(got, exact, atol=BOUND, rtol=0)


def test_points_far_away_and_many_calls_give_what_one_point_does() -> None:
    """fp32 holds no seventh power of a large distance; calls are split by the number of points."""
    triangles = corners(trimesh.creation.icosphere(2))
    directions = torch.nn.functional.normalize(cloud(POINTS + 9), dim=1)
    points = directions * torch.logspace(-2, 30, len(directions), dtype=torch.float64).unsqueeze(1)
    got = winding_numbers(triangles, points, progress=False)
    apart = (points.norm(dim=1) - 1).abs() > 0.03  # of the facets
    assert torch.allclose(got[apart], (points.norm(dim=1) < 1).double()[apart], atol=BOUND)
    picked = [0, POINTS - 1, POINTS, POINTS + 8]
    assert torch.equal(torch.cat([winding_numbers(triangles, points[n : n + 1]) for n in picked]), got[picked])


def test_bad_input_is_refused_by_name() -> None:
    triangles, points = corners(trimesh.creation.box()), cloud(5)
    for bad in (torch.zeros(0, 3, 3), torch.zeros(4, 3), torch.full((1, 3, 3), math.nan)):
        with pytest.raises(ValueError, match="triangles"):
            winding_numbers(bad, points)
    for bad in (torch.zeros(4, 2), torch.full((1, 3), math.inf)):
        with pytest.raises(ValueError, match="points"):
            winding_numbers(triangles, bad)
    with pytest.raises(TypeError, match="points"):
        winding_numbers(triangles, torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="accuracy must be above 1"):
        winding_numbers(triangles, points, 1.0)
    with pytest.raises(MemoryBudgetError, match="12 triangles with 5 points"):
        winding_numbers(triangles, points, memory_budget=1000)
