"""KAR on a radiance field: where its points lie, what f is, and that it is the formula."""

from __future__ import annotations

import pytest
import torch

from inrfast.encodings.hash_grid import HashGrid
from inrfast.scenes.alignment import FieldKAR
from inrfast.scenes.cameras import sphere_of_cameras
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.fit import fit_scene
from inrfast.scenes.renderer import Renderer
from inrfast.scenes.views import Views


def renderer() -> Renderer:
    encoding = HashGrid(levels=3, table_size=2**8, coarsest=4, finest=16)
    field = RadianceField(bounds=(-2.0, 1.0), encoding=encoding, width=16, dtype=torch.float64)
    torch.nn.init.normal_(field.geometry.encoding.table, std=1.0, generator=torch.Generator().manual_seed(0))
    return Renderer(field, samples=12, cells=4).double().train()


RAYS = torch.cat([camera.rays(torch.float64).view(-1, 6) for camera in sphere_of_cameras(2, 6, 6, 5.0)])
SMALL = {"rows": 40, "keys": 50, "r": 6, "width": 12, "hidden_layers": 1, "dtype": torch.float64}


@pytest.mark.parametrize("where", ["box", "full"])
def test_it_is_the_formula_over_points_and_samples(where):
    """R = mean_x |f(x) - softmax(g(x) g(X)^T) f(X)| of the points that a step draws, in dense fp64."""
    own, scene = FieldKAR("opacity", where, norm="l2", **SMALL), renderer()
    drawn = []
    attention = own.kar.attention
    handle = attention.register_forward_pre_hook(lambda module, given: drawn.append(given[0]))
    value = own(scene, RAYS, step=4)
    handle.remove()
    assert len(drawn) == 1 and drawn[0].shape == (90, 3)
    rows, keys = drawn[0][:40], drawn[0][40:]
    assert bool((drawn[0].abs() <= 1 + 1e-9).all()), "points lie in the coordinates of the geometry"
    scores = attention(rows) @ attention(keys).T
    same = (rows[:, None] == keys[None]).all(-1)
    shares = torch.softmax(scores.masked_fill(same, -torch.inf), dim=1)

    def opacity(unit):
        world = -2 + 3 * (unit + 1) / 2
        return 1 - torch.exp(-scene.field.density(world) * 3 / 12)

    wanted = (opacity(rows) - shares @ opacity(keys)).abs().mean()
    torch.testing.assert_close(value, wanted)


def test_samples_lie_on_rays_and_in_cells_that_are_not_empty():
    scene, own = renderer(), FieldKAR(**SMALL)
    scene.densities.zero_()
    scene.densities.view(4, 4, 4)[2:] = 100.0
    samples = own._samples(scene, RAYS)
    assert len(samples) > 50 and bool((samples[:, 0] >= -1e-9).all())
    world = -2 + 3 * (samples + 1) / 2
    offsets = world[:, None] - RAYS[None, :, :3]
    across = torch.linalg.cross(offsets, RAYS[None, :, 3:].expand_as(offsets)).norm(dim=-1)
    assert float(across.amin(1).max()) < 1e-9
    away = RAYS * torch.tensor([1.0, 1, 1, -1, -1, -1])  # cameras that look away from the box
    assert own(scene, away).item() == 0.0


@pytest.mark.parametrize(("of", "columns"), [("opacity", 1), ("radiance", 4), ("outputs", 16)])
def test_gradients_reach_the_field_and_the_attention(of, columns):
    scene, own = renderer(), FieldKAR(of, **SMALL)
    own(scene, RAYS, step=0).backward()
    assert float(scene.field.geometry.encoding.table.grad.abs().sum()) > 0
    assert float(own.kar.attention.layers[0].weight.grad.abs().sum()) > 0
    coloured = scene.field.appearance.layers[0].weight.grad
    assert (coloured is not None) == (of == "radiance")


def test_buffers_of_a_scene_stay():
    scene = renderer()
    torch.nn.utils.parametrizations.spectral_norm(scene.field.geometry.layers[0])
    before = {name: own.clone() for name, own in scene.named_buffers()}
    FieldKAR(**SMALL)(scene, RAYS, step=0).backward()
    assert any("_u" in name for name in before)
    assert all(torch.equal(own, before[name]) for name, own in scene.named_buffers())


def test_unknown_names_and_other_networks_are_refused():
    with pytest.raises(ValueError, match="of must be one of"):
        FieldKAR("density")
    with pytest.raises(ValueError, match="where must be one of"):
        FieldKAR(where="everywhere")
    with pytest.raises(TypeError, match="net must be a Renderer"):
        FieldKAR(**SMALL)(torch.nn.Linear(6, 3), RAYS)


def test_the_default_dtype_changes_no_point_of_the_box():
    before = FieldKAR(where="box").kar.points
    torch.set_default_dtype(torch.float64)
    try:
        after = FieldKAR(where="box", dtype=torch.float32).kar.points
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(after, before)


@pytest.mark.parametrize("where", ["box", "full"])
def test_steps_with_fewer_samples_than_asked_for_take_all_of_them(where):
    scene, drawn = renderer(), []
    own = FieldKAR(where=where, **{**SMALL, "keys": 500})
    own.kar.attention.register_forward_pre_hook(lambda module, given: drawn.append(len(given[0])))
    for rays in (RAYS, RAYS[20:22]):
        own(scene, rays, step=0).backward()
    few = len(own._samples(scene, RAYS[20:22]))
    assert 2 <= few <= 24 and drawn == [40 + 500, few if where == "full" else 40 + few]
    with pytest.raises(ValueError, match="keys"):
        FieldKAR(**{**SMALL, "keys": 1})


def test_the_default_fits_scenes_with_few_samples_in_a_step():
    """Of 64 rays with 8 samples each, all in full cells, there are 512 at most, and fewer where rays miss the box."""
    views = Views(torch.rand(2, 8, 8, 4), sphere_of_cameras(2, 8, 8))
    assert fit_scene(views, 2, rays=64, samples=8, regularizers=[(FieldKAR(), 1e-4)], progress=False).fit.steps == 2
