"""The fit of a scene: it learns what held-out views show, and behaves as every other fit."""

from __future__ import annotations

import json

import pytest
import torch
import trimesh

from inrfast.encodings.hash_grid import HashGrid
from inrfast.metrics import psnr
from inrfast.scenes.alignment import FieldKAR
from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.caster import render_mesh
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.fit import fit_scene, score
from inrfast.scenes.renderer import render
from inrfast.scenes.views import Views

TINY = {"samples": 24, "cells": 16, "rays": 256, "progress": False}


def field(seed: int = 0) -> RadianceField:
    return RadianceField(encoding=HashGrid(levels=4, table_size=2**11, coarsest=4, finest=32), width=32, seed=seed)


@pytest.fixture(scope="module")
def scene() -> tuple[Views, Views]:
    mesh = trimesh.creation.box((1.0, 1.0, 1.6))
    return tuple(render_mesh(mesh, sphere_of_cameras(n, 24, 24, 3.0, seed=n), progress=False) for n in (12, 4))  # type: ignore[return-value]


def test_held_out_views_are_learned(scene):
    """Far better than the mean colour, and than the best single picture, for every view."""
    seen, unseen = scene
    result = fit_scene(seen, 250, field=field(), held_out=unseen, **TINY)
    mean = seen.colours().mean((0, 1, 2))
    baseline = [psnr(mean.expand_as(own), own) for own in unseen.colours()]
    assert min(own - base for own, base in zip(result.psnrs, baseline, strict=True)) > 6, (result.psnrs, baseline)
    assert result.psnr == pytest.approx(sum(result.psnrs) / 4)
    assert result.psnrs == score(result.renderer, unseen)
    # the depth of a surface pixel lies where the box is; cameras stand 3 away
    picture = render(result.renderer, unseen.cameras[0])
    solid = unseen.images[0, ..., 3] == 1
    assert float(picture.opacity[solid].mean()) > 0.7
    depth = (picture.depth / picture.opacity)[solid]
    assert float(depth.min()) > 2.0 and float(depth.max()) < 4.0


def test_a_checkpoint_is_gone_on_from_bit_by_bit(scene, tmp_path):
    seen, _ = scene
    options = {**TINY, "rays": 64, "seed": 5, "schedule": "constant"}
    whole, halved = field(), field()
    fit_scene(seen, 130, field=whole, **options)  # beyond the first look at the cells

    class Stop:
        at = 110

        def on_step(self, state):
            if state.step == self.at:
                raise KeyboardInterrupt

    stop = Stop()
    options |= {"checkpoint": tmp_path / "scene", "callbacks": [stop]}
    first = fit_scene(seen, 130, field=halved, **options)
    assert first.fit.interrupted and first.fit.steps == 110
    stop.at = 0
    again = fit_scene(seen, 130, field=field(), resume=True, **options)
    for own, wanted in zip(again.field.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, wanted)


def test_seeds_decide_and_a_field_of_ones_own_is_trained_in_place(scene):
    seen, _ = scene
    own = field()
    before = own.geometry.encoding.table.detach().clone()
    first = fit_scene(seen, 5, field=own, seed=1, **TINY)
    assert first.field is own and not torch.equal(own.geometry.encoding.table, before)
    second, other = (fit_scene(seen, 5, field=field(), seed=seed, **TINY) for seed in (1, 2))
    assert first.fit.losses == second.fit.losses != other.fit.losses
    held = first.to_dict()
    assert json.loads(json.dumps(held))["psnr"] == first.psnr and "renderer" not in held


def test_a_regulariser_trains_with_the_field(scene):
    seen, _ = scene
    for of in ("opacity", "radiance", "outputs"):
        kar = FieldKAR(of, rows=32, keys=32, r=8, width=16, hidden_layers=1)
        before = kar.kar.attention.layers[0].weight.detach().clone()
        fit_scene(seen, 3, field=field(), regularizers=[(kar, 1.0)], **TINY)
        assert not torch.equal(kar.kar.attention.layers[0].weight, before), of


def test_what_cannot_be_fitted_is_refused(scene):
    seen, _ = scene
    with pytest.raises(TypeError, match="views must be Views"):
        fit_scene(seen.images)
    with pytest.raises(TypeError, match="field must be a RadianceField"):
        fit_scene(seen, field=torch.nn.Linear(3, 4))
    with pytest.raises(ValueError, match="no ray of the views meets the field's box"):
        fit_scene(seen, field=RadianceField(bounds=(50.0, 60.0)))
    with pytest.raises(ValueError, match="rays must be at least 1"):
        fit_scene(seen, rays=0)
    with pytest.raises(ValueError, match="steps"):
        fit_scene(seen, steps=0)
