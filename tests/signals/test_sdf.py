"""Signed distances against formulas: boxes exactly, balls and tori by fine meshes; and networks of them back."""

import json

import numpy as np
import pytest
import torch
import trimesh

import inrfast as inr
from inrfast.cli import main
from inrfast.errors import MemoryBudgetError
from inrfast.signals.kinds import SIGNALS, kind_of
from inrfast.signals.mesh import Placement, load_mesh
from inrfast.signals.sdf import sample_sdf, signed_distance

SIDES = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
SHIFT = (10.0, -20.0, 5.0)


def box_distance(points: torch.Tensor, sides: torch.Tensor = SIDES) -> torch.Tensor:
    """The signed distance of a box about the origin, by its formula."""
    outside = points.abs() - sides / 2
    return outside.clamp_min(0).norm(dim=1) + outside.amax(1).clamp_max(0)


def torus_distance(points: torch.Tensor, major: float, minor: float) -> torch.Tensor:
    return torch.hypot(points[:, :2].norm(dim=1) - major, points[:, 2]) - minor


def around(n: int, extent: float = 3.0) -> torch.Tensor:
    return extent * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_distances_of_a_box_are_exact_at_any_place_and_size(scale: float) -> None:
    box = trimesh.creation.box(SIDES.numpy()).apply_translation(SHIFT).apply_scale(scale)
    points = around(3000)
    truth = scale * box_distance(points)
    moved = scale * (points + points.new_tensor(SHIFT))
    found = signed_distance(box, moved)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, atol=1e-12 * 20 * scale, rtol=1e-9)
    box.invert()
    torch.testing.assert_close(signed_distance(box, moved), found)


def test_distances_of_fine_meshes_are_those_of_what_they_stand_for() -> None:
    points = around(2000, 1.5)
    ball = trimesh.creation.icosphere(5)
    assert float((signed_distance(ball, points) - (points.norm(dim=1) - 1)).abs().max()) < 1e-3
    torus = trimesh.creation.torus(1.0, 0.3, major_sections=256, minor_sections=128)
    assert float((signed_distance(torus, points) - torus_distance(points, 1.0, 0.3)).abs().max()) < 1e-3


def test_an_open_mesh_has_the_sign_of_the_closed_one() -> None:
    ball = trimesh.creation.icosphere(4)
    holed = trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] > -0.9], process=False)
    assert not holed.is_watertight
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -0.7], [0.0, 0.0, -1.3], [0.0, 0.9, 0.0]], dtype=torch.float64)
    assert (signed_distance(holed, points) < 0).tolist() == [True, True, False, True]


def test_samples_are_on_near_and_away_from_the_surface() -> None:
    box = trimesh.creation.box(SIDES.numpy()).apply_translation(SHIFT)
    coords, distances = sample_sdf(box, 4001, on_surface=0.25, near_surface=0.5, sigma=0.02, seed=3)
    assert (coords.shape, distances.shape) == ((4001, 3), (4001, 1))
    assert coords.dtype == distances.dtype == torch.float32
    assert coords.abs().max() <= 1
    placed = SIDES / Placement.of(box).scale
    torch.testing.assert_close(distances[:, 0].double(), box_distance(coords.double(), placed), atol=1e-6, rtol=1e-6)
    assert float(distances[:1000].abs().max()) < 1e-6
    near = distances[1000:3000].abs()
    assert 0.003 < float(near.mean()) < 0.02
    assert torch.allclose(coords[3000:].var(0), torch.full((3,), 1 / 3), atol=0.04)
    before = torch.get_rng_state()
    again = sample_sdf(box, 4001, on_surface=0.25, near_surface=0.5, sigma=0.02, seed=3)
    assert torch.equal(coords, again[0]) and torch.equal(distances, again[1])
    assert not torch.equal(coords, sample_sdf(box, 4001, 0.25, 0.5, 0.02, seed=4)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_refused_by_name() -> None:
    ball = trimesh.creation.icosphere(1)
    for arguments, word in (
        ({"n": 0}, "n must"),
        ({"on_surface": 0.7, "near_surface": 0.5}, "on_surface and near_surface"),
        ({"near_surface": -1}, "near_surface"),
        ({"sigma": -1}, "sigma"),
    ):
        with pytest.raises(ValueError, match=word):
            sample_sdf(ball, **{"n": 10, **arguments})
    with pytest.raises(ValueError, match="at least one face"):
        signed_distance(trimesh.Trimesh(), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="mesh must be"):
        signed_distance("ball.obj", torch.zeros(1, 3))
    for bad in (torch.zeros(2, 2), torch.full((2, 3), float("nan"))):
        with pytest.raises(ValueError, match="points"):
            signed_distance(ball, bad)
    with pytest.raises(MemoryBudgetError):
        signed_distance(ball, torch.zeros(10**4, 3), memory_budget=10**5)
    assert signed_distance(ball, torch.zeros(0, 3)).shape == (0,)


def test_a_fitted_distance_is_measured_and_comes_back_as_the_mesh(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ball = trimesh.creation.icosphere(4, 3.0).apply_translation(SHIFT)
    ball.export("ball.ply")
    words = ["--activation", "sine", "--init", "siren", "--omega", "5", "--width", "24", "--hidden-layers", "2"]
    size = [
        "--eikonal",
        "0.02",
        "--steps",
        "250",
        "--lr",
        "3e-3",
        "--samples",
        "6000",
        "--size",
        "32",
        "--json",
        "--quiet",
    ]
    assert main(["fit", "ball.ply", "--as", "sdf", *words, *size, "--json", "--quiet", "--out", "again.obj"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["settings"]["loss"]) == ("sdf", "l1")
    again = load_mesh("again.obj")
    assert again.volume == pytest.approx(4 / 3 * np.pi * 27, rel=0.05)
    np.testing.assert_allclose(again.bounds, ball.bounds, atol=0.1)
    assert found["iou"] > 0.8  # at points of which half are near the surface
    assert found["eikonal_residual"] < 0.15
    # lengths are in the units of the file
    assert 0 < found["distance_error"] < 0.1
    assert 0 < found["chamfer"] < 0.15
    assert main(["render", "again.safetensors", "fine.stl", "--size", "40"]) == 0
    assert load_mesh("fine.stl").volume == pytest.approx(again.volume, rel=0.02)


def test_the_kind_is_asked_for_by_name(tmp_path) -> None:
    path = tmp_path / "a.ply"
    trimesh.creation.icosphere(1).export(path)
    assert (kind_of(path), kind_of(path, "sdf")) == ("mesh", "sdf")
    with pytest.raises(ValueError, match=r"--as sdf reads .*obj or .*, got .*a\.wav"):
        kind_of(tmp_path / "a.wav", "sdf")
    with pytest.raises(ValueError, match="Did you mean 'sdf'"):
        kind_of(path, "sdff")
    signal = SIGNALS["sdf"].load(path, seed=0, memory_budget=None, progress=False, samples=50)
    held = signal.measure(inr.INR(3, 1, width=8), torch.ones(4, 4, 4, 1))
    assert "chamfer" not in held  # no surface
