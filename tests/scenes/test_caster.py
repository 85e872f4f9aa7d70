"""The ray caster against a sphere in closed form and against every triangle by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from inrfast.scenes.cameras import Camera, look_at, sphere_of_cameras
from inrfast.scenes.caster import AMBIENT, DIFFUSE, LIGHT, Caster, patches, render_mesh


def brute_force(vertices: np.ndarray, faces: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first face (-1: none) and its distance, by a linear system for each ray and triangle."""
    first, nearest = np.full(len(rays), -1), np.full(len(rays), np.inf)
    for number, (a, b, c) in enumerate(vertices[faces]):
        for ray, (origin, direction) in enumerate(zip(rays[:, :3], rays[:, 3:], strict=True)):
            matrix = np.stack([b - a, c - a, -direction], axis=1)
            if abs(np.linalg.det(matrix)) < 1e-14:
                continue
            u, v, t = np.linalg.solve(matrix, origin - a)
            if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < nearest[ray]:
                first[ray], nearest[ray] = number, t
    return first, nearest


def test_hits_are_those_of_every_triangle():
    generator = np.random.default_rng(0)
    faces = generator.permuted(np.tile(np.arange(40), (30, 1)), axis=1)[:, :3]
    mesh = trimesh.Trimesh(generator.uniform(-1, 1, (40, 3)), faces, process=False)
    caster = Caster(mesh)
    rays = torch.cat([camera.rays(torch.float64).reshape(-1, 6) for camera in sphere_of_cameras(3, 8, 8, 2.5)])
    faces, distances, places = caster.hits(rays)
    wanted, nearest = brute_force(caster.vertices, caster.faces, rays.numpy())
    assert (wanted >= 0).sum() > 30 and (wanted < 0).sum() > 30
    np.testing.assert_array_equal(faces.numpy(), wanted)
    there = wanted >= 0
    # libigl returns distances and places in fp32
    np.testing.assert_allclose(distances.numpy()[there], nearest[there], rtol=2e-7)
    points = (caster.vertices[caster.faces[wanted[there]]] * places.numpy()[there][..., None]).sum(1)
    np.testing.assert_allclose(points, (rays[:, :3] + rays[:, 3:] * distances[:, None]).numpy()[there], atol=2e-6)


def test_a_fine_sphere_is_seen_as_a_sphere():
    """Outline, shading and highlight of a sphere of radius 0.9 in closed form; a mesh of 80 k faces is within 1e-3."""
    mesh = trimesh.creation.icosphere(subdivisions=6)
    tone = lambda points: torch.full((len(points), 3), 0.5, dtype=torch.float64)  # noqa: E731
    caster = Caster(mesh, tone, highlight=0.25)
    camera = Camera(look_at((2.0, -2.0, 1.5)), 24, 24, 0.7)
    rays = camera.rays(torch.float64).reshape(-1, 6)
    seen = caster.seen(rays).numpy()
    origin, direction = rays[:, :3].numpy(), rays[:, 3:].numpy()
    along = (origin * direction).sum(1)
    root = along**2 - (origin**2).sum(1) + 0.9**2
    clear = np.abs(root) > 2e-3  # a polygon's outline is inside the circle's
    np.testing.assert_array_equal(seen[clear, 3], (root > 0)[clear])
    inside = root > 2e-3
    normals = (origin - (along + np.sqrt(np.maximum(root, 0)))[:, None] * direction)[inside] / 0.9
    light = np.array(LIGHT) / np.linalg.norm(LIGHT)
    halfway = light - direction[inside]
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    lit = np.maximum(normals @ light, 0)
    shine = np.maximum((normals * halfway).sum(1), 0) ** 30 * (lit > 0)
    wanted = np.clip(0.5 * (AMBIENT + DIFFUSE * lit) + 0.25 * shine, 0, 1)
    assert np.abs(seen[inside, 0] - wanted).max() < 5e-3
    assert shine.max() > 0.3, "the camera sees no highlight: another place for it"


def test_edges_are_averages_and_the_opacity_is_a_share():
    mesh = trimesh.creation.box((1, 1, 1))
    camera = Camera(look_at((0.0, -4.0, 0.0)), 9, 9, 0.9)
    image = Caster(mesh).image(camera, supersampling=4)
    shares = image[..., 3].double() * 16
    torch.testing.assert_close(shares, shares.round())
    assert set(image[..., 3].unique().tolist()) > {0.0, 1.0}
    assert bool((image[..., :3][image[..., 3] > 0].amax(-1) > 0.05).all()), "edges are not darkened by the background"


def test_the_axis_that_points_upwards_is_turned_there_without_mirroring():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 0.5]], [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]],
                           process=False)  # fmt: skip
    volumes = []
    for upward in range(3):
        caster = Caster(mesh, upward=upward)
        longest = np.ptp(caster.vertices, axis=0)
        assert longest[2] == pytest.approx(np.ptp(mesh.vertices, axis=0)[upward] * 0.9)
        volumes.append(trimesh.Trimesh(caster.vertices, caster.faces, process=False).volume)
    np.testing.assert_allclose(volumes, volumes[0])
    assert volumes[0] * trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume > 0


def test_pictures_have_8_bits_and_colours_in_range():
    views = render_mesh(trimesh.creation.icosphere(), sphere_of_cameras(2, 6, 8), progress=False)
    assert views.images.shape == (2, 6, 8, 4)
    levels = views.images.double() * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    tones = patches(torch.rand(1000, 3, dtype=torch.float64) * 2 - 1)
    assert float(tones.min()) >= 0 and float(tones.max()) <= 1


def test_what_is_no_mesh_or_no_camera_is_refused():
    mesh = trimesh.creation.box()
    with pytest.raises(ValueError, match="at least one"):
        render_mesh(mesh, [])
    several = [*sphere_of_cameras(2, 4, 4), *sphere_of_cameras(1, 4, 5)]
    with pytest.raises(ValueError, match=r"cameras\[2\] is of 4x5 pixels, cameras\[0\] of 4x4"):
        render_mesh(mesh, several)
    with pytest.raises(TypeError, match=r"cameras\[1\] must be a Camera"):
        render_mesh(mesh, [several[0], several[0].pose])
    with pytest.raises(TypeError, match="trimesh"):
        Caster("spot.obj")
    with pytest.raises(ValueError, match="upward"):
        Caster(mesh, upward=3)
    with pytest.raises(ValueError, match="supersampling"):
        render_mesh(mesh, sphere_of_cameras(1, 4, 4), supersampling=0)
