"""Clouds of points: every file comes whole or is refused, normals against formulas, and surfaces of clouds."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inrfast.cli import main
from inrfast.signals.kinds import SIGNALS, kind_of
from inrfast.signals.mesh import load_mesh
from inrfast.signals.points import PointCloud, estimate_normals, load_points, sample_cloud

QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def sphere(n: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def write_xyz(points: np.ndarray, normals: np.ndarray | None, draw: np.random.Generator) -> bytes:
    table = points if normals is None else np.hstack([points, normals])
    space, end = draw.choice([" ", "\t", "  "]), draw.choice(["\n", "\r\n"])
    lines = [space.join(map(repr, row)) for row in table.tolist()]
    comments = (["# x y z"], [], [""])[draw.integers(3)]
    return (end.join([*comments, *lines]) + end).encode()


def write_npy(points: np.ndarray, normals: np.ndarray | None, draw: np.random.Generator) -> bytes:
    import io

    stream = io.BytesIO()
    table = points if normals is None else np.hstack([points, normals])
    np.save(stream, (np.asfortranarray, np.ascontiguousarray)[draw.integers(2)](table))
    return stream.getvalue()


def write_ply(points: np.ndarray, normals: np.ndarray | None, draw: np.random.Generator) -> bytes:
    """Every form, with colours before, between or behind, and with or without an element of faces."""
    names = [*"xyz", *(["nx", "ny", "nz"] if normals is not None else [])]
    table = points if normals is None else np.hstack([points, normals])
    order = [*range(len(names))]
    draw.shuffle(order)
    kind = draw.choice(["ascii", "binary_little_endian", "binary_big_endian"])
    empty = ["element face 0", "property list uchar int vertex_indices"] if draw.random() < 0.5 else []
    header = ["ply", f"format {kind} 1.0", f"element vertex {len(points)}", "property uchar red"]
    header += [f"property double {names[i]}" for i in order] + empty + ["end_header", ""]
    head = "\n".join(header).encode()
    if kind == "ascii":
        return head + "".join(" ".join(["7", *map(repr, row[order].tolist())]) + "\n" for row in table).encode()
    mark = "<" if "little" in kind else ">"
    rows = np.zeros(len(points), dtype=[("red", "u1"), *((f"{i}", f"{mark}f8") for i in order)])
    for i in order:
        rows[f"{i}"] = table[:, i]
    return head + rows.tobytes()


WRITERS = {".xyz": write_xyz, ".npy": write_npy, ".ply": write_ply}


@settings(max_examples=60, **QUICK)
@given(st.sampled_from(sorted(WRITERS)), st.integers(2, 9), st.booleans(), st.integers(0, 2**31))
def test_what_is_written_comes_back(tmp_path: Path, suffix: str, n: int, oriented: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    points = draw.standard_normal((n, 3)) * 10.0 ** draw.integers(-3, 4)
    normals = sphere(n, seed) if oriented else None
    path = tmp_path / f"a{suffix}"
    path.write_bytes(WRITERS[suffix](points, normals, draw))
    found = load_points(path)
    np.testing.assert_array_equal(found.points.numpy(), points)
    assert (found.normals is None) == (normals is None)
    if normals is not None:
        np.testing.assert_allclose(found.normals.numpy(), normals, atol=1e-12)


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_a_cut_file_is_refused_or_ends_a_line(tmp_path: Path, suffix: str) -> None:
    draw = np.random.default_rng(1)
    points = np.round(draw.standard_normal((5, 3)), 3)
    content, path = WRITERS[suffix](points, None, draw), tmp_path / f"a{suffix}"
    whole = 0
    for kept in range(1, len(content)):
        path.write_bytes(content[:kept])
        try:
            found = load_points(path).points.numpy()
        except ValueError:
            continue
        whole += 1
        np.testing.assert_array_equal(found, points[: len(found)])
    assert whole <= (5 if suffix == ".xyz" else 2)


BAD = {
    "colours.xyz": ("0 0 0 255 0 0\n1 1 1 0 0 255\n", "length 255, and a normal has 1"),
    "empty.xyz": ("# nothing\n", "no point"),
    "nan.xyz": ("0 0 0\nnan 1 1\n", "finite"),
    "one.xyz": ("1 2 3\n1 2 3\n", "more than one place"),
    "mixed.xyz": ("0 0 0\n1 1 1 0 0 1\n", "line 2 has 6 numbers where others have 3"),
    "four.xyz": ("0 0 0 1\n1 1 1 1\n", "4 numbers, not 3"),
    "words.xyz": ("0 0 0\n1 1 one\n", "line 2 has 'one' in place of a number"),
    "open.xyz": ("0 0 0\n1 1 1", "no line end"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_cloud_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*{words}"):
        load_points(tmp_path / name)


def test_arrays_that_are_no_clouds_are_refused() -> None:
    points = torch.from_numpy(sphere(20))
    for bad, words in (
        ((points[:0],), "empty"),
        ((points[:, :2],), r"shape \(n, 3\)"),
        ((points.log(),), "finite"),
        ((points[:1].expand(5, 3),), "more than one place"),
        ((points, points[:3]), "shape of points"),
        ((points, points * torch.arange(20)[:, None]), "length 0 in row 0"),
    ):
        with pytest.raises(ValueError, match=words):
            PointCloud(*bad)
    with pytest.raises(ValueError, match="17 different places"):
        estimate_normals(points[:10].repeat(3, 1))
    with pytest.raises(ValueError, match="neighbours"):
        estimate_normals(points, 2)


@pytest.mark.parametrize("turned", [False, True])
def test_normals_are_those_of_the_surface_and_look_outward(turned: bool) -> None:
    """Of two bodies apart: a ball, and a torus that a plane through the middle would get wrong."""
    n = 4000
    ball = sphere(n) * 0.7 + [0, 0, 5]
    u, v = np.random.default_rng(1).random((2, n)) * 2 * np.pi
    ring = np.stack([np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v)], 1)
    torus = np.stack([np.cos(u), np.sin(u), 0 * u], 1) + 0.3 * ring
    points, truth = np.concatenate([ball, torus]), np.concatenate([sphere(n), ring])
    if turned:
        rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
        points, truth = points @ rotation * 1e-4 + 7, truth @ rotation
    found = estimate_normals(torch.from_numpy(np.repeat(points, 2, axis=0))).numpy()[::2]  # duplicates do not matter
    cosine = (found * truth).sum(1)
    assert (cosine > 0.9).mean() > 0.99
    assert cosine.min() > 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_the_suffix_and_the_content_tell_what_a_file_is(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "cloud.ply").write_bytes(write_ply(sphere(5), None, draw))
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    (tmp_path / "bad.ply").write_bytes(b"ply of nothing")
    names = {"cloud.ply": "points", "mesh.ply": "mesh", "bad.ply": "mesh", "none.ply": "mesh", "a.xyz": "points"}
    assert {name: kind_of(tmp_path / name) for name in names} == names
    assert kind_of(tmp_path / "a.npy", "points") == "points"
    assert len(load_points(tmp_path / "mesh.ply").points) == 8


def test_samples_are_the_points_and_true_distances_around_them() -> None:
    """A ball is its own hull: outside of it the distance to many points is nearly that of the surface."""
    count = 1500
    normals = torch.from_numpy(sphere(count))
    cloud = PointCloud(3 * normals + 7, 2 * normals)
    coords, distances, terms = sample_cloud(cloud, seed=3)
    assert coords.dtype == distances.dtype == torch.float32
    torch.testing.assert_close(cloud.placement.to_world(coords[:count].double()), cloud.points, atol=1e-5, rtol=0)
    assert float(distances[:count].abs().max()) == 0
    radius = 3 / cloud.placement.scale
    truth = coords[count:].double().norm(dim=1) - radius
    assert len(truth) > 1000
    assert float((distances[count:, 0] - truth).abs().max()) < 0.06
    assert float((distances[count:, 0] - truth).abs().mean()) < 0.01
    net = _Ball(radius)
    found = [float(term(net, 0).detach()) for term, _ in terms]
    assert max(found[:2]) < 1e-3  # the true distance keeps the eikonal equation and the normals
    assert found[2] < 0.2
    again = sample_cloud(cloud, seed=3)
    assert torch.equal(coords, again[0])
    flat = PointCloud(torch.cat([torch.rand(30, 2), torch.zeros(30, 1)], 1), torch.tensor([0.0, 0, 1]).expand(30, 3))
    assert len(sample_cloud(flat)[0]) == 30  # no hull


class _Ball(torch.nn.Module):
    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(radius, dtype=torch.float32))

    def forward(self, x):
        return x.norm(dim=1, keepdim=True) - self.radius


def test_a_cloud_becomes_a_surface(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    points = 3 * sphere(800) + [10, -20, 5]
    np.save("ball.npy", points)
    words = ["--activation", "sine", "--init", "siren", "--omega", "5", "--width", "16", "--hidden-layers", "2"]
    more = ["--steps", "70", "--lr", "5e-3", "--batch-size", "512", "--size", "24", "--json"]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert main(["fit", "ball.npy", "--as", "points", *words, *more, "--out", "ball.obj"]) == 0
    said = capsys.readouterr()
    assert "estimated from neighbouring points" in said.err
    found = json.loads(said.out)
    assert found["kind"] == "points"
    assert found["eikonal_residual"] < 0.3
    assert found["distance_error"] < 0.15
    assert found["chamfer"] < 0.2
    mesh = load_mesh("ball.obj")
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 27, rel=0.1)
    np.testing.assert_allclose(mesh.bounds.mean(0), [10, -20, 5], atol=0.2)


# ---- what is no closed surface -----------------------------------------------------------------------------------


@settings(max_examples=20, **QUICK)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 3), dtype=st.sampled_from([np.float32, np.float64]))
def test_lines_are_refused_and_planes_told_of_however_they_are_turned(tmp_path_factory, seed, rank, dtype) -> None:
    draw, path = np.random.default_rng(seed), tmp_path_factory.mktemp("cloud") / "a.npy"
    axes = np.linalg.qr(draw.standard_normal((3, 3)))[0][:rank]
    points = (draw.uniform(-1, 1, (200, rank)) @ axes * 10.0 ** draw.integers(-4, 5)).astype(dtype)
    load = lambda: SIGNALS["points"].load(path, seed=0, memory_budget=None, progress=False)  # noqa: E731
    for columns in (points, np.hstack([points, np.tile([[0, 0, 1]], (200, 1))]).astype(dtype)):
        np.save(path, columns)
        if rank == 1:
            with pytest.raises(ValueError, match=r"a\.npy.*200 on one line"):
                load()
            continue
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            signal = load()
        assert any("in one plane" in str(one.message) for one in told) == (rank == 2)
        around = len(signal.coords) > 180  # a tenth is held out
        assert around == (rank == 3)


def test_too_few_points_for_normals_are_refused_with_the_file_and_the_way_out(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "few.xyz", sphere(16))
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(ValueError, match=r"few\.xyz.*17 different.*normals too"),
    ):
        SIGNALS["points"].load(tmp_path / "few.xyz", seed=0, memory_budget=None, progress=False)


def test_whole_numbers_are_points_too(tmp_path: Path) -> None:
    points = np.random.default_rng(0).integers(-100, 100, (50, 3))
    for dtype in ("<i8", ">i2", "u1"):
        np.save(tmp_path / "a.npy", points.astype(dtype))
        assert torch.equal(load_points(tmp_path / "a.npy").points, torch.from_numpy(points.astype(dtype).astype(float)))
    np.save(tmp_path / "a.npy", points > 0)
    with pytest.raises(ValueError, match="bool"):
        load_points(tmp_path / "a.npy")
