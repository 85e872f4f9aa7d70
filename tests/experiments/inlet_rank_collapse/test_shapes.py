"""Shapes as arrays: the points and their occupancies agree with a ball's own, and what encloses nothing is refused."""

import pytest
import torch
import trimesh

from inrfast.experiments.inlet_rank_collapse.shapes import SETS, SIGMA, Sizes, on_grid, points, sampled, shapes
from inrfast.experiments.paper import Request, Work
from inrfast.grids import grid

SIZES = Sizes((400, 200, 600, 300), 20)
CPU = torch.device("cpu")


def drawn(path, tmp_path):
    (shape,) = shapes(Request(meshes=(path,)))
    cell = shape.cell(SIZES, 0)
    return cell.run(Work(CPU, tmp_path / "fit", False))


def test_a_mesh_gives_its_occupancy_at_points_and_on_the_grid(tmp_path):
    ball = trimesh.creation.icosphere(4, radius=3.0)
    ball.export(tmp_path / "a ball.obj")
    found = drawn(tmp_path / "a ball.obj", tmp_path)
    radius = 0.9
    truth = grid((20,) * 3, endpoint="center").norm(dim=1)
    clear = (truth - radius).abs() > 0.01  # of the icosphere's flat faces
    inside = torch.from_numpy(on_grid(found, 20)).view(-1)
    assert (inside == (truth < radius))[clear].all()
    seen = []
    for name, count in zip(SETS, SIZES.points, strict=True):
        coords, values = points(found, name, CPU)
        assert coords.shape == (count, 3) and values.shape == (count, 1)
        clear = (coords.norm(dim=1) - radius).abs() > 0.01
        assert (values[:, 0].bool() == (coords.norm(dim=1) < radius))[clear].all()
        seen.append(coords)
    assert len(torch.cat(seen).unique(dim=0)) == sum(SIZES.points)
    assert found.numbers["open edges"] == 0


def test_an_open_mesh_is_told_and_a_sheet_is_refused(tmp_path):
    ball = trimesh.creation.icosphere(2)
    ball.update_faces([index != 0 for index in range(len(ball.faces))])
    ball.export(tmp_path / "open.obj")
    assert drawn(tmp_path / "open.obj", tmp_path).numbers["open edges"] == 3
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]).export(tmp_path / "sheet.obj")
    with pytest.raises(ValueError, match=r"sheet\.obj encloses"):
        drawn(tmp_path / "sheet.obj", tmp_path)


def test_points_near_a_surface_by_formula_are_near_it_and_seeds_decide():
    def ball(at):
        return at.norm(dim=1) < 0.5

    coords, values = sampled(ball, 1000, torch.Generator().manual_seed(1))
    again, _ = sampled(ball, 1000, torch.Generator().manual_seed(1))
    assert torch.equal(coords, again) and torch.equal(values[:, 0] > 0, ball(coords.double()))
    distance = (coords[:500].norm(dim=1) - 0.5).abs()
    assert distance.max() < 6 * SIGMA
    assert 0.3 < values[:500].mean() < 0.7
