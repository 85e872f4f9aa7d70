"""Meshes: placement, occupancy against analytic truth, and the way back to a surface."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import inrfast as inr
from inrfast.signals.kinds import SIGNALS
from inrfast.signals.mesh import Placement, isosurface, occupancy, sample_occupancy, save_mesh, turned_edges


@pytest.fixture
def ball() -> trimesh.Trimesh:
    """A ball of radius 3 about (10, -20, 5)."""
    return trimesh.creation.icosphere(4, 3.0).apply_translation((10, -20, 5))


# ---- occupancy ---------------------------------------------------------------------------------------------------


def test_placement_brings_the_box_into_the_cube_and_back(ball: trimesh.Trimesh) -> None:
    ball.apply_scale((1, 2, 0.5))
    placement = Placement.of(ball)
    corners = torch.from_numpy(ball.bounds.copy())
    unit = placement.to_unit(corners)
    assert unit.abs().max() == pytest.approx(0.9, rel=1e-12)
    assert torch.allclose(unit.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    sides = corners[1] - corners[0]
    assert torch.allclose(unit[1] - unit[0], sides * 1.8 / sides.max())
    assert torch.allclose(placement.to_world(unit), corners)


def test_occupancy_is_the_inside_whichever_way_the_faces_look(ball: trimesh.Trimesh) -> None:
    points = 8 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 4
    depth = 3 - points.norm(dim=1)
    points, inside = points[depth.abs() > 0.02], (depth > 0)[depth.abs() > 0.02]
    points = points + points.new_tensor([10, -20, 5])
    assert torch.equal(occupancy(ball, points), inside)
    ball.invert()
    assert torch.equal(occupancy(ball, points), inside)


def test_a_hole_is_closed(ball: trimesh.Trimesh) -> None:
    holed = trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] > 5 - 2.8], process=False)
    assert not holed.is_watertight
    centre = torch.tensor([[10.0, -20.0, 5.0], [10.0, -20.0, 1.0]])
    assert occupancy(holed, centre).tolist() == [True, False]


def test_samples_are_those_of_the_placed_mesh(ball: trimesh.Trimesh) -> None:
    coords, values = sample_occupancy(ball, 4001, near_surface=0.25, sigma=0.01, seed=3)
    assert (coords.shape, values.shape) == ((4001, 3), (4001, 1))
    assert coords.dtype == values.dtype == torch.float32
    assert coords.abs().max() <= 1
    depth = 0.9 - coords.norm(dim=1)
    clear = depth.abs() > 5e-3
    assert torch.equal(values[clear, 0] > 0.5, depth[clear] > 0)
    near, uniform = depth[:1000], coords[1000:]
    assert float(near.square().mean().sqrt()) == pytest.approx(0.01, rel=0.15)
    assert torch.allclose(uniform.mean(0), torch.zeros(3), atol=0.05)
    assert torch.allclose(uniform.var(0), torch.full((3,), 1 / 3), atol=0.03)
    before = torch.get_rng_state()
    again = sample_occupancy(ball, 4001, near_surface=0.25, sigma=0.01, seed=3)
    assert torch.equal(coords, again[0]) and torch.equal(values, again[1])
    assert not torch.equal(coords, sample_occupancy(ball, 4001, 0.25, 0.01, seed=4)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_surface_points_are_uniform_by_area() -> None:
    box = trimesh.creation.box((4, 2, 1))
    coords, _ = sample_occupancy(box, 20000, near_surface=1.0, sigma=0.0)
    half = torch.tensor([0.9, 0.45, 0.225])
    on = [float(((coords[:, axis].abs() - half[axis]).abs() < 1e-6).float().mean()) for axis in range(3)]
    areas = np.array([2 * 1, 4 * 1, 4 * 2])
    np.testing.assert_allclose(on, areas / areas.sum(), atol=0.02)


def test_bad_samplings_are_refused_by_name(ball: trimesh.Trimesh) -> None:
    for arguments, word in (({"n": 0}, "n must"), ({"near_surface": 1.5}, "near_surface"), ({"sigma": -1}, "sigma")):
        with pytest.raises(ValueError, match=word):
            sample_occupancy(ball, **{"n": 10, **arguments})
    with pytest.raises(ValueError, match="at least one face"):
        occupancy(trimesh.Trimesh(), torch.zeros(1, 3))


# ---- surfaces of values ------------------------------------------------------------------------------------------


def test_the_surface_of_a_ball_is_a_ball_with_faces_outward(ball: trimesh.Trimesh) -> None:
    coords = inr.grid((40, 44, 48), endpoint="inclusive")
    values = (0.9 - coords.norm(dim=1)).view(40, 44, 48)
    unit = isosurface(values, 0.0)
    assert unit.is_watertight
    assert unit.volume == pytest.approx(4 / 3 * np.pi * 0.9**3, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(unit.vertices, axis=1), 0.9, atol=2e-3)
    world = isosurface(values, 0.0, Placement.of(ball))
    assert world.volume == pytest.approx(ball.volume, rel=0.02)
    np.testing.assert_allclose(world.bounds, ball.bounds, atol=0.01)
    shifted = isosurface(values, 0.0, bounds=((0, 1), (0, 2), (5, 6)))
    np.testing.assert_allclose(shifted.bounds, [[0.05, 0.1, 5.05], [0.95, 1.9, 5.95]], atol=2e-3)


def test_occupancy_and_its_surface_agree(ball: trimesh.Trimesh) -> None:
    placement = Placement.of(ball)
    inside = occupancy(ball, placement.to_world(inr.grid((32, 32, 32), dtype=torch.float64)))
    again = isosurface(inside.double().view(32, 32, 32), 0.5, placement)
    assert again.is_watertight
    assert again.volume == pytest.approx(ball.volume, rel=0.05)


def test_values_without_a_surface_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no surface.*between 0 and 1 and do not cross 2"):
        isosurface(inr.grid((2, 3, 4)).mean(1).view(2, 3, 4).clamp(0, 1), 2.0)
    with pytest.raises(ValueError, match="no surface"):
        isosurface(torch.zeros(3, 3, 3), 0.0)
    for bad in (torch.zeros(3, 3), torch.zeros(1, 3, 3), torch.full((3, 3, 3), float("nan"))):
        with pytest.raises(ValueError, match="values"):
            isosurface(bad, 0.5)


# ---- what has no inside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mesh", "sdf"])
def test_meshes_without_an_inside_are_refused_or_told_of(tmp_path: Path, kind: str) -> None:
    body = trimesh.creation.torus(1.0, 0.4, major_sections=24, minor_sections=12)
    turned = np.random.default_rng(0).random(len(body.faces)) < 0.5
    at_random = np.where(turned[:, None], body.faces[:, ::-1], body.faces)
    load = SIGNALS[kind].load
    given = {"seed": 0, "memory_budget": None, "progress": False, "samples": 4000}
    for name, faces in (("both", np.vstack([body.faces, body.faces[:, ::-1]])), ("one", body.faces[:1])):
        save_mesh(trimesh.Trimesh(body.vertices, faces, process=False), tmp_path / f"{name}.ply")
        with pytest.raises(ValueError, match=rf"{name}\.ply: no sampled point is inside"):
            load(tmp_path / f"{name}.ply", **given)
    save_mesh(trimesh.Trimesh(body.vertices, at_random, process=False), tmp_path / "random.ply")
    with pytest.warns(RuntimeWarning, match=r"random\.ply: the two faces of .* % of its edges"):
        load(tmp_path / "random.ply", **given)
    with warnings.catch_warnings(action="error"):
        for name, faces in (
            ("whole", body.faces),
            ("inverted", body.faces[:, ::-1]),
            ("open", body.faces[30:]),
            ("twice", body.faces.repeat(2, 0)),
        ):
            save_mesh(trimesh.Trimesh(body.vertices, faces, process=False), tmp_path / f"{name}.ply")
            load(tmp_path / f"{name}.ply", **given)


def test_turned_edges_are_those_of_turned_faces() -> None:
    body = trimesh.creation.icosphere(3)
    apart = trimesh.Trimesh(
        body.vertices[body.faces].reshape(-1, 3), np.arange(3 * len(body.faces)).reshape(-1, 3), process=False
    )
    for mesh in (body, apart):
        assert turned_edges(mesh) == 0
        faces = mesh.faces.copy()
        faces[:10] = faces[:10, ::-1]
        single = {tuple(sorted(pair)) for face in body.faces[:10] for pair in (face[:2], face[1:], face[::2])}
        inner = 30 - len(single)  # edges between two of the ten stay in order
        own = trimesh.Trimesh(mesh.vertices, faces, process=False)
        assert turned_edges(own) == pytest.approx((30 - 2 * inner) / len(body.edges_unique))
