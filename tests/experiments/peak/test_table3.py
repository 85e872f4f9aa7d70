"""Table 3 at a tiny size: scenes of three kinds, what is measured, and what the numbers are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh

from inrfast.experiments.paper import Request, Work
from inrfast.experiments.peak import table3
from inrfast.experiments.peak.scenes import FORMULA, gyroid_ball, scenes
from inrfast.experiments.peak.table3 import HASH, LABELS, LONGER, PAPER, PEAK, Sizes, Table3, gains, verdict
from inrfast.experiments.reproduce import reproduce
from inrfast.scenes.blender import save_blender
from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.caster import render_mesh

TINY = Sizes((4, 3), 3, 10, 60, 64, 12, 2, 2**7, 8, 8, 16, 1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(table3.SIZES, "quick", TINY)
    monkeypatch.setattr(table3, "TRIAL_STEPS", 8)
    monkeypatch.setattr(table3.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest


def folder(root: Path, name: str, count: int) -> Path:
    made = root / name
    made.mkdir()
    mesh = trimesh.creation.icosphere(subdivisions=2)
    train, test = (render_mesh(mesh, sphere_of_cameras(n, 12, 12, 4.0, seed=n), progress=False) for n in (count, 5))
    save_blender(made, {"train": train, "test": test})
    return made


def test_the_surface_by_formula_is_one_and_closed():
    mesh = gyroid_ball()
    assert mesh.is_watertight and mesh.volume > 0
    assert float(abs(mesh.vertices).max()) < 0.9


def test_scenes_are_folders_or_meshes_or_the_formula(tmp_path):
    (own,) = scenes(Request())
    assert own.name == FORMULA and own.source is None
    trimesh.creation.box().export(tmp_path / "a box.obj")
    (mesh,) = scenes(Request(meshes=(tmp_path / "a box.obj",)))
    assert mesh.name == "a_20_box" and not mesh.folder
    (lego,) = scenes(Request(scenes=(folder(tmp_path, "lego", 6),), meshes=(tmp_path / "a box.obj",)))
    assert lego.name == "lego" and lego.folder and lego.bounds == (-1.5, 1.5)
    for scene in (own, mesh, lego):
        seen, unseen = scene.views(10, 4, 3)
        assert seen.images.shape == (4, 10, 10, 4) and unseen.images.shape == (3, 10, 10, 4)
        apart = torch.cdist(*(torch.stack([c.position for c in part.cameras]) for part in (seen, unseen)))
        assert float(apart.min()) > 1e-3, "no view is fitted and measured"
    with pytest.raises(ValueError, match="scene lego: count must be at most"):
        lego.views(10, 7, 3)
    lego.check(10, 6, 5)
    for size, train, test in ((10, 7, 3), (10, 6, 6), (13, 6, 5)):
        with pytest.raises(ValueError, match="scene lego: "):
            lego.check(size, train, test)


def test_methods_differ_in_the_polynomial_and_the_regulariser_alone():
    (scene,) = scenes(Request())
    plain, peak = (table3.field(scene, method, TINY, 3, CPU) for method in (HASH, PEAK))
    assert plain.scale is None and peak.scale == pytest.approx(1)
    points = 2 * torch.rand(20, 3) - 1
    torch.testing.assert_close(plain.density(points), peak.density(points))
    assert table3.regularizers(HASH, TINY, 3, CPU) == table3.regularizers(LONGER, TINY, 3, CPU) == []
    assert len(table3.regularizers(PEAK, TINY, 3, CPU)) == 1


def test_the_table_is_made_with_the_papers_numbers_beside_those_of_its_scenes(tmp_path):
    lego = folder(tmp_path, "lego", 6)
    table3.SIZES["quick"] = Sizes(**{**table3.asdict(TINY), "views": (4,), "steps": 20})
    with pytest.MonkeyPatch.context() as patch:
        for name in PAPER:
            patch.setitem(table3.PAPER, name, {**PAPER[name], 4: (3.0, 5.0)})
        made = reproduce("peak", "table3", tmp_path / "out", scene=lego, runs=2, progress=False)["table3"]
    rows = {row[0]: row[1:] for row in made["rows"]}
    assert rows[f"lego, 4 views, {LABELS[HASH]}"][0] == "3.00" and rows[f"lego, 4 views, {LABELS[PEAK]}"][0] == "5.00"
    assert rows[f"lego, 4 views, {LABELS[LONGER]}"][0] == "—"
    psnrs = made["numbers"]["psnr"]
    assert {len(own) for own in psnrs.values()} == {2} and all(5 < v < 60 for own in psnrs.values() for v in own)
    assert made["numbers"]["time ratio"] > 0
    assert rows["PEAK's gain (dB), 4 views, equal steps"][0] == "+2.00 (+2.00 to +2.00)"


def test_cells_keep_their_pictures_and_equal_time_is_as_many_steps_more(tmp_path):
    figure, request = Table3(), Request()
    (trial,) = figure.cells(request, {})
    found = {trial.name: trial.run(Work(CPU, tmp_path / "fit", False))}
    found[trial.name].numbers["ratio"] = 1.5
    cells = {cell.name: cell for cell in figure.cells(request, found)}
    assert cells[f"{FORMULA}.3.{LONGER}.0"].settings["steps"] == 90
    assert cells[f"{FORMULA}.3.{PEAK}.0"].settings["steps"] == cells[f"{FORMULA}.3.{HASH}.0"].settings["steps"] == 60
    own = cells[f"{FORMULA}.3.{PEAK}.0"].run(Work(CPU, tmp_path / "fit", False))
    assert own.arrays["found"].shape == own.arrays["truth"].shape == (3, 10, 10, 3)
    assert own.numbers["a1"] != 1.0 and len(own.numbers["psnrs"]) == 3


def test_gains_are_paired_and_called_what_they_are():
    (scene,) = scenes(Request())
    psnrs = {(FORMULA, 25, PEAK): [3.0, 5.0, 4.0], (FORMULA, 25, HASH): [2.0, 3.5, 2.9]}
    own = gains(psnrs, [scene], 25, HASH)
    assert own == pytest.approx([1.0, 1.5, 1.1]) and "confirmed" in verdict(own)
    assert "refuted" in verdict([-gain for gain in own])
    assert "no difference" in verdict([1.0, -1.2, 0.1]) and "decides nothing" in verdict([2.0])
