"""Mesh files: what was written comes back from every spelling, and what is cut or damaged is refused or read alike."""

import itertools
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_meshes import WRITERS, Solid, glb, glb_parts, joined, write_obj

from inrfast.errors import MemoryBudgetError
from inrfast.signals.mesh import load_mesh, save_mesh
from inrfast.signals.meshes.files import SUFFIXES

QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

SEEDS = st.integers(0, 2**32 - 1)

FORMATS = pytest.mark.parametrize("kind", WRITERS)

NORMAL = 1e-12
"""Least area, by the square of the longest side, of the triangles that two readers must agree on."""


@pytest.fixture(autouse=True)
def no_guess_of_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the module that trimesh asks for bytes that are not UTF-8, which is no dependency."""
    monkeypatch.setitem(__import__("sys").modules, "charset_normalizer", None)


def drawn(seed: int, most: int = 3) -> tuple[list[Solid], random.Random]:
    draw = random.Random(seed)
    return [Solid(draw) for _ in range(draw.randint(1, most))], draw


def sorted_triangles(triangles: Any) -> np.ndarray:
    """Return triangles (m, 9), turned to their least corner, in order: equal if and only if the surfaces are."""
    triangles = np.array(triangles, dtype=np.float64).reshape(-1, 3, 3) + 0.0
    rows = []
    for triangle in triangles.tolist():
        start = triangle.index(min(triangle))
        rows.append(triangle[start] + triangle[(start + 1) % 3] + triangle[(start + 2) % 3])
    return np.array(sorted(rows)).reshape(-1, 9)


def all_triangles(solids: list[Solid]) -> np.ndarray:
    return sorted_triangles(np.concatenate([solid.triangles() for solid in solids]))


def loaded(folder: Path, suffix: str, content: bytes) -> np.ndarray:
    """Return the triangles of a file with that content."""
    file = folder / f"mesh{suffix}"
    file.write_bytes(content)
    return sorted_triangles(load_mesh(file).triangles)


def loaded_or_none(folder: Path, suffix: str, content: bytes) -> np.ndarray | None:
    """Return the same, or None if the file is refused, by one sentence that names it."""
    try:
        return loaded(folder, suffix, content)
    except ValueError as error:
        message = str(error)
    assert str(folder / f"mesh{suffix}") in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(folder))
    return None


# ---- what was written comes back ---------------------------------------------------------------------------------


@FORMATS
@given(seed=SEEDS)
@settings(max_examples=100, **QUICK)
def test_the_written_triangles_come_back_from_every_spelling(kind: str, seed: int, tmp_path: Path) -> None:
    suffix, write = WRITERS[kind]
    solids, draw = drawn(seed)
    np.testing.assert_array_equal(loaded(tmp_path, suffix, write(solids, draw)), all_triangles(solids))


@FORMATS
@given(seed=SEEDS)
@settings(max_examples=5, **QUICK)
def test_every_cut_is_refused_or_loses_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    """But for OBJ, which states no sizes: all from a corner or its last digits on, and ASCII STL: whole solids."""
    suffix, write = WRITERS[kind]
    solids, draw = drawn(seed, most=2)
    content = write(solids, draw)
    allowed = [all_triangles(solids)]
    if kind == "obj":
        allowed += list(cut_within_faces(solids))
    if kind == "ascii stl":
        allowed += [all_triangles(solids[:count]) for count in range(1, len(solids))]
    for end in draw.sample(range(1, len(content)), min(len(content) - 1, 100)):
        got = loaded_or_none(tmp_path, suffix, content[:end])
        assert got is None or any(np.array_equal(got, one) for one in allowed), content[:end]


@FORMATS
@given(seed=SEEDS)
@settings(max_examples=5, **QUICK)
def test_bytes_after_the_end_are_refused(kind: str, seed: int, tmp_path: Path) -> None:
    suffix, write = WRITERS[kind]
    solids, draw = drawn(seed)
    content = write(solids, draw)
    for tail in (b"\0", b"x", b"\0" * 50, b"endsolid", b"x" + bytes(draw.choices(range(1, 256), k=9))):
        assert loaded_or_none(tmp_path, suffix, content + tail) is None


def cut_within_faces(solids: list[Solid]) -> Iterator[np.ndarray]:
    """Yield what is left of faces that end after a corner, or within the digits of one, counted from 1 or back."""
    vertices, polygons = joined(solids)
    ends = np.repeat(np.cumsum([len(one.vertices) for one in solids]), [len(one.polygons) for one in solids]).tolist()
    before: list[np.ndarray] = []
    for polygon, end in zip(polygons, ends, strict=True):
        for count in range(3, len(polygon) + 1):
            *first, last = polygon[:count]
            shorter = {last}
            for word, origin in ((f"{last + 1}", -1), (f"{end - last}", None)):
                for cut in range(1, len(word)):
                    shorter.add(int(word[:cut]) + origin if origin else end - int(word[:cut]))
            for one in shorter:
                yield sorted_triangles([*before, *fan(vertices, [*first, one])])
        before += fan(vertices, polygon)


def fan(vertices: np.ndarray, polygon: list[int]) -> list[np.ndarray]:
    """Return the triangles of a polygon that have an area."""
    corners = [vertices[[polygon[0], *pair]] for pair in pairwise(polygon[1:])]
    return [three for three in corners if np.cross(three[1] - three[0], three[2] - three[0]).any()]


@pytest.mark.parametrize("suffix", [".obj", ".off"])
@given(seed=SEEDS)
@settings(max_examples=25, **QUICK)
def test_a_text_without_its_last_line_end_is_whole_or_refused_by_that(suffix: str, seed: int, tmp_path: Path) -> None:
    """Where sizes are stated, the number that ends it is taken if no vertex has a further digit."""
    draw = random.Random(seed)
    count = draw.randint(3, 40)
    points = "".join(f"{'v ' * (suffix == '.obj')}{i} {i * i} {i * i * i}\n" for i in range(count))
    first = int(suffix == ".obj")
    head = "" if first else f"OFF\n{count} {count - 2} 0\n"
    fan = [(0, i, i + 1) for i in range(1, count - 1)]
    draw.shuffle(fan)
    faces = "\n".join(("f" if first else "3") + "".join(f" {i + first}" for i in face) for face in fan)
    got = loaded_or_none(tmp_path, suffix, (head + points + faces).encode())
    last = fan[-1][-1] + first
    assert (got is None) == (suffix == ".off" and last > 0 and 10 * last <= count - 1)


@given(seed=SEEDS)
@settings(max_examples=100, **QUICK)
def test_an_obj_by_hand_may_end_without_a_line_end(seed: int, tmp_path: Path) -> None:
    """After a polygon, or after a line without a surface."""
    solids, draw = drawn(seed)
    ends = [b"g", b"s off", b"usemtl a", b"vn 0 0 1", b"vt 0 0", b"l 1 2", b"p 1", b"o f 1 2 3", b"# f 1 2 3"]
    if len(solids[-1].polygons[-1]) > 2:
        ends.append(b"")
    content = (write_obj(solids, draw) + draw.choice(ends)).rstrip()
    np.testing.assert_array_equal(loaded(tmp_path, ".obj", content), all_triangles(solids))


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if "stl" not in kind])
@given(seed=SEEDS)
@settings(max_examples=25, **QUICK)
def test_a_vertex_of_no_face_may_be_no_number_and_one_of_a_face_may_not(kind: str, seed: int, tmp_path: Path) -> None:
    suffix, write = WRITERS[kind]
    solids, draw = drawn(seed)
    want, some = all_triangles(solids), draw.choice(solids)
    broken = np.full((draw.randint(1, 3), 3), draw.choice([np.nan, np.inf, -np.inf]))
    broken[:, draw.randrange(3)] = draw.choice([0, np.nan])
    some.vertices = np.concatenate([some.vertices, broken])
    np.testing.assert_array_equal(loaded(tmp_path, suffix, write(solids, draw)), want)
    some.polygons.append([0, 1, len(some.vertices) - 1])
    assert loaded_or_none(tmp_path, suffix, write(solids, draw)) is None


# ---- what is damaged is read as others read it -------------------------------------------------------------------


def as_one(solids: list[Solid]) -> trimesh.Trimesh:
    triangles = np.concatenate([solid.triangles() for solid in solids])
    return trimesh.Trimesh(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3), process=False)


def exported(mesh: trimesh.Trimesh, kind: str, **options: Any) -> bytes:
    content = mesh.export(file_type=kind, **options)
    return content if isinstance(content, bytes) else content.encode()


PLAIN: dict[str, Callable[[trimesh.Trimesh], bytes]] = {
    "obj": lambda mesh: exported(mesh, "obj"),
    "off": lambda mesh: exported(mesh, "off"),
    "ascii ply": lambda mesh: exported(mesh, "ply", encoding="ascii"),
    "binary ply": lambda mesh: exported(mesh, "ply"),
    "ascii stl": lambda mesh: exported(mesh, "stl_ascii"),
    "binary stl": lambda mesh: exported(mesh, "stl"),
    "glb": lambda mesh: exported(mesh, "glb"),
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return the content with a few bytes changed, taken out, put in, repeated or moved."""
    changed = bytearray(content)
    letters = b"0123456789 \n\r\t-+.e/#fv\\"
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        start, other = draw.randrange(len(changed)), draw.randrange(len(changed))
        stop = start + draw.choice([1, 1, 2, 8, 40])
        how = draw.randrange(6)
        if how == 0:
            changed[start] = draw.randrange(256)
        elif how == 1:
            changed[start] = draw.choice(letters)
        elif how == 2:
            del changed[start:stop]
        elif how == 3:
            changed[start:start] = changed[start:stop]
        elif how == 4:
            changed[start:start] = changed[other : other + draw.choice([1, 4, 30])]
        else:
            changed[start:start] = bytes([draw.choice(letters)])
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.parametrize("kind", PLAIN)
@given(seed=SEEDS)
@settings(max_examples=5, **QUICK)
def test_every_cut_of_what_another_program_wrote_is_refused_or_loses_nothing(
    kind: str, seed: int, tmp_path: Path
) -> None:
    """But for OBJ, whose last triangles may be missing, and the last one's last vertex be another."""
    solids, draw = drawn(seed)
    suffix = f".{kind.split()[-1]}"
    content = PLAIN[kind](as_one(solids))
    (tmp_path / f"mesh{suffix}").write_bytes(content)
    whole = np.array(load_mesh(tmp_path / f"mesh{suffix}").triangles)
    for end in draw.sample(range(1, len(content)), 100):
        got = loaded_or_none(tmp_path, suffix, content[:end])
        if got is None:
            continue
        if kind == "obj" and not np.array_equal(got, sorted_triangles(whole[: len(got)])):
            before, cut = sorted_triangles(whole[: len(got) - 1]), whole[len(got) - 1]
            (other,) = {tuple(row) for row in got.tolist()} - {tuple(row) for row in before.tolist()}
            assert {tuple(corner) for corner in cut[:2].tolist()} < {other[:3], other[3:6], other[6:]}
            continue
        np.testing.assert_array_equal(got, sorted_triangles(whole[: len(got)] if kind == "obj" else whole))


def by_meshio(file: Path) -> np.ndarray:
    mesh = meshio.read(file)
    fans = [(f[0], f[i], f[i + 1]) for block in mesh.cells for f in block.data for i in range(1, len(f) - 1)]
    return np.asarray(mesh.points)[np.array(fans, dtype=np.int64).reshape(-1, 3)]


def by_trimesh(file: Path) -> np.ndarray:
    return np.asarray(trimesh.load_scene(file, process=False).to_mesh().triangles)


def with_area(triangles: np.ndarray) -> np.ndarray:
    """Return the triangles that every reader keeps, whatever its rounding."""
    triangles = np.asarray(triangles, dtype=np.float64).reshape(-1, 3, 3)
    with np.errstate(all="ignore"):
        sides = triangles[:, 1:] - triangles[:, :1]
        sides = sides / np.abs(sides).max(axis=(1, 2), keepdims=True)
        return sorted_triangles(triangles[np.abs(np.cross(sides[:, 0], sides[:, 1])).max(axis=1) > NORMAL])


@pytest.mark.filterwarnings("ignore")  # of the other readers
@pytest.mark.parametrize("kind", PLAIN)
@given(seed=SEEDS)
@settings(max_examples=150, **QUICK)
def test_a_damaged_file_is_refused_or_read_as_another_program_reads_it(kind: str, seed: int, tmp_path: Path) -> None:
    solids, draw = drawn(seed)
    suffix = f".{kind.split()[-1]}"
    content = damaged(PLAIN[kind](as_one(solids)), draw)
    got = loaded_or_none(tmp_path, suffix, content)
    if got is None:
        return
    got = with_area(got.astype(np.float32) if kind == "ascii ply" else got)
    file = tmp_path / f"mesh{suffix}"
    file.write_bytes(for_others(content, kind))
    others = [other for read in (by_trimesh, by_meshio) if (other := of_other(read, file)) is not None]
    assert any(other.shape == got.shape and np.allclose(other, got, 1e-6, 0) for other in others), content


def for_others(content: bytes, kind: str) -> bytes:
    """Return the same mesh in the spelling that others ask for: UTF-8, no comments and empty lines, a vertex a line."""
    if kind in ("binary stl", "glb"):
        return content
    if kind in ("obj", "off"):
        content = re.sub(rb"(?<!\S)#[^\r\n]*", b"", content)
    head, end, data = content.partition(b"end_header\n" if kind == "binary ply" else b"no such word")
    text = b"\n".join(line for line in head.translate(ASCII).split(b"\n") if line.strip()) + b"\n"
    return (re.sub(rb"\n(?=\s*[-+.\d])", b" ", text) if kind == "ascii stl" else text) + end + data


ASCII = bytes(i if i < 128 else ord("x") for i in range(256))


def of_other(read: Callable[[Path], np.ndarray], file: Path) -> np.ndarray | None:
    try:
        return with_area(read(file))
    except (Exception, SystemExit):  # meshio leaves by either
        return None


# ---- sizes that are stated ---------------------------------------------------------------------------------------


def ply_of(vertices: int, faces: int, order: str = "binary_little_endian") -> bytes:
    return (
        f"ply\nformat {order} 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {faces}\nproperty list uint int vertex_indices\nend_header\n"
    ).encode()


def glb_of(**changes: int) -> bytes:
    tree, data = glb_parts([Solid(random.Random(0))], random.Random(0))
    for name, value in changes.items():
        for one in tree["accessors" if name == "count" else "bufferViews"]:
            one[name] = value
    return glb(tree, data)


@pytest.mark.parametrize("huge", [2**31, 2**32 - 1, 10**12, 10**30])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".ply", lambda huge: ply_of(huge, 1) + bytes(200)),
        (".ply", lambda huge: ply_of(1, huge) + bytes(200)),
        (".ply", lambda huge: ply_of(3, 1) + bytes(36) + struct.pack("<I", min(huge, 2**32 - 1)) + bytes(99)),
        (".ply", lambda huge: ply_of(huge, 1, "ascii") + b"0 0 0\n" * 9),
        (".ply", lambda huge: ply_of(3, 1, "ascii") + b"0 0 0\n" * 3 + b"%d 1 2 3\n" % huge),
        (".off", lambda huge: b"OFF %d 1 0\n" % huge + b"0 0 0\n" * 9),
        (".off", lambda huge: b"OFF 3 %d 0\n" % huge + b"0 0 0\n" * 9),
        (".off", lambda huge: b"OFF 3 1 0\n" + b"0 0 0\n" * 3 + b"%d 0 1 2\n" % huge),
        (".obj", lambda huge: b"v 0 0 0\n" * 3 + b"f 1 2 %d\n" % huge),
        (".stl", lambda huge: bytes(80) + struct.pack("<I", min(huge, 2**32 - 1)) + bytes(200)),
        (".glb", lambda huge: glb_of(count=huge)),
        (".glb", lambda huge: glb_of(byteLength=huge)),
        (".glb", lambda huge: glb_of(byteStride=huge)),
        (".glb", lambda huge: glb_of(byteOffset=huge)),
    ],
)
def test_sizes_are_compared_with_the_file_before_anything_of_them_is_made(
    suffix: str, content: Callable[[int], bytes], huge: int, tmp_path: Path
) -> None:
    (tmp_path / f"huge{suffix}").write_bytes(content(huge))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"huge\{suffix} is .*damaged: "):
        load_mesh(tmp_path / f"huge{suffix}")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@FORMATS
def test_memory_is_a_few_times_the_file(kind: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    suffix, write = WRITERS[kind]
    solids = [Solid(draw) for _ in range(1000)]
    file = tmp_path / f"large{suffix}"
    file.write_bytes(write(solids, draw))
    tracemalloc.start()
    load_mesh(file)
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20 + 8 * file.stat().st_size
    tracemalloc.stop()


# ---- time that grows as the file does ----------------------------------------------------------------------------

PLY_HEAD = (
    "ply\nformat {} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\n{}end_header\n"
)


def ply_with(more: str, count: int, size: int, ascii: bool) -> bytes:
    """Return a triangle and zeros of ``size`` bytes, or one word, for each of ``count`` times more of a header."""
    head = PLY_HEAD.format("ascii" if ascii else "binary_little_endian", more).encode()
    if ascii:
        return head + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n" + (b"0\n" if more.startswith("element e0 ") else b"0 ") * count
    return head + struct.pack("<9fB3i", 0, 0, 0, 1, 0, 0, 0, 1, 0, 3, 0, 1, 2) + bytes(size * count)


def glb_of_parts(count: int, shown: bool) -> bytes:
    """Return a mesh whose many parts have one large table of quantised points in common, beside a triangle."""
    rows = 4 * count
    data = np.eye(3, dtype="<f4").tobytes() + bytes([0, 1, 2, 0]) + bytes(3 * rows)
    views = [(0, 36), (36, 3), (40, 3 * rows)]
    table = {"componentType": 5120, "count": rows, "type": "VEC3", "normalized": True, "bufferView": 2}
    part = {"attributes": {"POSITION": 2}, "indices": 1}
    tree = {
        "buffers": [{"byteLength": len(data)}],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": size} for start, size in views],
        "accessors": [
            {"componentType": 5126, "count": 3, "type": "VEC3", "bufferView": 0},
            {"componentType": 5121, "count": 3, "type": "SCALAR", "bufferView": 1},
            table,
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}, {"primitives": [part] * count}],
        "nodes": [{"mesh": 0}, {"mesh": 1}],
        "scenes": [{"nodes": [0, 1] if shown else [0]}],
    }
    return glb(tree, data)


def properties(kind: str, count: int) -> str:
    return "element e 1\n" + "".join(f"property {kind} p{i}\n" for i in range(count))


def elements(count: int) -> str:
    return "".join(f"element e{i} 1\nproperty int x\n" for i in range(count))


GROWING: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "joined lines": (".obj", lambda n: CORNER.encode() + b"f 1 2 3\n" + b"g \\\nx\n" * n),
    "one joined line": (".obj", lambda n: CORNER.encode() + b"f 1 2 3\ng " + b"\\\nx " * n + b"\n"),
    "backslashes": (".obj", lambda n: CORNER.encode() + b"f 1 2 3\ng " + b"\\" * n + b"\n"),
    "solids": (".stl", lambda n: b"solid\nendsolid\n" * n + f"solid a\n{FACET}endsolid\n".encode()),
    "parts": (".glb", lambda n: glb_of_parts(n // 2, shown=True)),
    "parts in no node": (".glb", lambda n: glb_of_parts(n // 2, shown=False)),
    **{
        f"{what}, {'ascii' if text else 'binary'}": (
            ".ply",
            lambda n, of=of, size=size, text=text: ply_with(of(n), n, size, text),  # type: ignore[misc]
        )
        for what, of, size in (
            ("properties", lambda n: properties("int", n), 4),
            ("lists", lambda n: properties("list uchar int", n), 1),
            ("elements", elements, 4),
        )
        for text in (False, True)
    },
}
"""Files of one triangle and so many of something else."""


@pytest.mark.parametrize("what", GROWING)
def test_time_grows_as_the_file_does(what: str, tmp_path: Path) -> None:
    """16 times the size takes far less than 256 times the processor time: no more than 100, where it can be told."""
    suffix, content = GROWING[what]
    times = []
    for count in (1500, 24000):
        file = tmp_path / f"{count}{suffix}"
        file.write_bytes(content(count))
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            mesh = load_mesh(file)
            best = min(best, time.process_time() - start)
        assert mesh.area > 0
        times.append(best)
    assert times[1] < max(100 * times[0], 0.3), times


# ---- what a scene holds ------------------------------------------------------------------------------------------


def random_tree(draw: random.Random) -> tuple[dict, bytes]:
    """Meshes at several places under nodes that turn, move, stretch and mirror them, some as strips."""
    # Large, since the other program does not see how triangles of less than 1e-8 are turned.
    tree, data = glb_parts([Solid(draw, scales=[2**10]) for _ in range(draw.randint(1, 3))], draw)
    for mesh in tree["meshes"]:
        part = mesh["primitives"][0]
        if draw.random() < 0.3:
            part["mode"] = 5
    meshes = range(len(tree["meshes"]))
    tree["nodes"] = []
    for mesh in [*meshes, *meshes, *[None] * 3]:
        node: dict = {} if mesh is None else {"mesh": mesh}
        if draw.random() < 0.3:
            matrix = np.eye(4)
            matrix[:3] += [[draw.randint(-2, 2) / 8 for _ in range(4)] for _ in range(3)]
            node["matrix"] = matrix.T.ravel().tolist()
        else:
            for name, count in (("translation", 3), ("rotation", 4), ("scale", 3)):
                if draw.random() < 0.5:
                    node[name] = [draw.choice([-1, 1]) * draw.randint(1, 8) / 4 for _ in range(count)]
        tree["nodes"].append(node)
    draw.shuffle(tree["nodes"])
    roots = [0]
    for child in range(1, len(tree["nodes"])):
        parent = draw.choice([None, *range(child)])
        if parent is None:
            roots.append(child)
        else:
            tree["nodes"][parent].setdefault("children", []).append(child)
    tree["scenes"] = [{"nodes": roots}]
    return tree, data


@given(seed=SEEDS)
@settings(max_examples=60, **QUICK)
def test_a_scene_is_placed_as_another_program_places_it(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "scene.glb"
    file.write_bytes(glb(*random_tree(random.Random(seed))))
    want = with_area(by_trimesh(file)).reshape(-1, 3, 3)
    got = with_area(load_mesh(file).triangles).reshape(-1, 3, 3)
    assert got.shape == want.shape
    # Sums over the surface that fix where it is and how it is turned, in any order of triangles and corners.
    edges = lambda t: np.roll(t, -1, axis=1) - t  # noqa: E731
    for moment in (lambda t: t, lambda t: t**2, lambda t: np.cross(t, edges(t)), lambda t: np.cross(t, edges(t)) * t):
        terms = moment(want)
        assert np.allclose(moment(got).sum((0, 1)), terms.sum((0, 1)), 0, 1e-9 * np.abs(terms).sum())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["buffers"][0].update(uri="other.bin"), "another file"),
        (lambda tree: tree["buffers"][0].update(byteLength=10**9), "buffer of 1000000000 bytes"),
        (lambda tree: tree["accessors"][0].update(sparse={"count": 1}), "sparse"),
        (lambda tree: tree["accessors"][0].pop("bufferView"), "compressed"),
        (lambda tree: tree["accessors"][0].update(componentType=5), "other numbers"),
        (lambda tree: tree.update(extensionsRequired=["KHR_draco_mesh_compression"]), "KHR_draco_mesh_compression"),
        (lambda tree: tree["nodes"][0].update(extensions={"EXT_mesh_gpu_instancing": {}}), "repeats its mesh"),
        (lambda tree: tree["nodes"][0].update(skin=0), "skin"),
        (lambda tree: tree["nodes"][0].update(weights=[0, 0.5]), "weights"),
        (lambda tree: tree["nodes"][0].update(children=[0]), "two places"),
        (lambda tree: tree["nodes"][0].update(children=[7]), "no nodes 7"),
        (lambda tree: tree["nodes"][0].update(scale=[1, float("nan"), 1]), "scale"),
        (lambda tree: tree["nodes"][0].update(scale="1"), "scale"),
        (lambda tree: tree["scenes"][0].update(nodes=[]), "none is in a node"),
        (lambda tree: tree["nodes"][0].update(matrix=np.eye(4).ravel().tolist(), scale=[1, 1, 2]), "place beside it"),
        (lambda tree: tree.update(scenes=[]), "no scenes 0"),
        (lambda tree: tree.update(scene=-1), "no scenes -1"),
        (lambda tree: tree["meshes"][0]["primitives"][0].update(mode=7), "mode 7"),
        (lambda tree: tree["meshes"][0].update(primitives=3), "primitives"),
        (lambda tree: tree["meshes"][0]["primitives"][0]["attributes"].clear(), "accessors"),
    ],
)
def test_what_a_scene_states_in_another_way_is_refused_by_name(
    change: Callable[[dict], Any], words: str, tmp_path: Path
) -> None:
    tree, data = glb_parts([Solid(random.Random(0))], random.Random(0))
    change(tree)
    (tmp_path / "scene.glb").write_bytes(glb(tree, data))
    with pytest.raises(ValueError, match=rf"scene\.glb is .*{words}"):
        load_mesh(tmp_path / "scene.glb")


@given(seed=SEEDS)
@settings(max_examples=300, **QUICK)
def test_whatever_stands_in_the_json_the_file_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    tree, data = random_tree(draw)
    nested: Any = 0
    for _ in range(draw.choice([1, 3, 900, 2000])):
        nested = [nested] if draw.random() < 0.5 else {"mesh": nested}
    place, key = None, None
    at: Any = tree
    while isinstance(at, (dict, list)) and at and draw.random() < 0.9:
        place, key = at, draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        at = place[key]
    if place is not None:
        place[key] = draw.choice(
            [None, True, -1, 0, 1, 2.5, 10**9, 10**30, 1e300, float("inf"), "", "a", [], {}, [0], nested]
        )
    try:
        content = glb(tree, data)
    except RecursionError:  # of the writer
        return
    loaded_or_none(tmp_path, ".glb", content)


@pytest.mark.parametrize(("code", "dtype"), [(5120, np.int8), (5121, np.uint8), (5122, np.int16), (5123, np.uint16)])
def test_quantised_vertices_are_read(code: int, dtype: type, tmp_path: Path) -> None:
    info = np.iinfo(dtype)
    values = np.array([[info.min, 0, 0], [info.max, 0, 1], [0, info.max, 2]], dtype=dtype)
    tree, _ = glb_parts([Solid(random.Random(0))], random.Random(0))
    tree |= {"extensionsRequired": ["KHR_mesh_quantization"], "buffers": [{"byteLength": values.nbytes}]}
    tree["bufferViews"] = [{"buffer": 0, "byteLength": values.nbytes}]
    tree["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0}}]}]
    for normalized in (False, True):
        accessor = {"bufferView": 0, "componentType": code, "count": 3, "type": "VEC3", "normalized": normalized}
        content = glb(tree | {"accessors": [accessor]}, values.tobytes())
        want = np.maximum(values / info.max, -1.0) if normalized else values  # as the format's specification says
        np.testing.assert_array_equal(loaded(tmp_path, ".glb", content), sorted_triangles(want))


def test_no_small_file_repeats_a_mesh_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, data = glb_parts([Solid(random.Random(0))], random.Random(0))
    tree["meshes"][0]["primitives"] *= 20
    tree["nodes"] *= 2000
    tree["scenes"][0]["nodes"] = list(range(2000))
    (tmp_path / "repeated.glb").write_bytes(glb(tree, data))
    assert len(load_mesh(tmp_path / "repeated.glb").faces) % 2000 == 0
    monkeypatch.setattr("inrfast.signals.meshes.glb.budget_bytes", lambda asked: 2 * 10**6)
    tracemalloc.start()
    with pytest.raises(MemoryBudgetError, match="all its copies needs"):
        load_mesh(tmp_path / "repeated.glb")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_json_takes_no_more_memory_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of nothing and objects in objects take up to 48 times their text."""
    asked = []
    monkeypatch.setattr("inrfast.signals.meshes.glb.require", lambda needed, *_: asked.append(needed))
    for item in (
        "[]",
        "{}",
        "[[]]",
        '{"":1}',
        "1.5",
        '"\U0001f600"',
        "[" * 800 + "]" * 800,
        '{"":' * 800 + "1" + "}" * 800,
    ):
        for other in ("1", '"\U0001f600"'):
            text = f"[{','.join([item] * (2 * 10**5 // len(item)))},{other}]".encode()
            body = struct.pack("<I4s", len(text), b"JSON") + text
            (tmp_path / "a.glb").write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
            tracemalloc.start()
            with pytest.raises(ValueError, match="no object"):
                load_mesh(tmp_path / "a.glb")
            assert tracemalloc.get_traced_memory()[1] < 2**15 + 3 * len(body) + asked[-1]
            tracemalloc.stop()


@given(seed=SEEDS)
@settings(max_examples=30, **QUICK)
def test_what_the_scene_does_not_show_changes_nothing(seed: int, tmp_path: Path) -> None:
    """Meshes in no node or in another scene, and moves by nothing beside a matrix."""
    draw = random.Random(seed)
    tree, data = random_tree(draw)
    want = loaded(tmp_path, ".glb", glb(tree, data))
    for _ in range(draw.randint(1, 3)):
        tree["meshes"].append({"primitives": [draw.choice([tree["meshes"][0]["primitives"][0], {"extras": 1}])]})
        if draw.random() < 0.5:
            tree["nodes"].append({"mesh": len(tree["meshes"]) - 1})
            tree["scenes"].append({"nodes": [len(tree["nodes"]) - 1]})
    for node in tree["nodes"]:
        if "matrix" in node:
            still = [("translation", [0, 0, 0]), ("rotation", [0, 0, 0, 1]), ("scale", [1.0, 1, 1])]
            node |= dict(draw.sample(still, draw.randint(0, 3)))
    np.testing.assert_array_equal(loaded(tmp_path, ".glb", glb(tree, data)), want)


# ---- what is saved comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(seed=SEEDS, power=st.integers(-280, 280), far=st.integers(0, 24))
@settings(max_examples=30, **QUICK)
def test_what_is_saved_comes_back_or_is_refused(suffix: str, seed: int, power: int, far: int, tmp_path: Path) -> None:
    """At any size and place: text to the rounding of fp64, numbers of 32 bits to 2^-20 of the mesh's size."""
    rng = np.random.default_rng(seed)
    vertices = np.ldexp(rng.normal((0, 2.0**far, 0), size=(12, 3)), power)
    mesh = trimesh.Trimesh(vertices, rng.permuted(np.tile(np.arange(12), (8, 1)), axis=1)[:, :3], process=False)
    file = tmp_path / f"saved{suffix}"
    file.unlink(missing_ok=True)
    text = suffix in (".obj", ".off")
    bound = 2.0**-52 * np.abs(vertices).max() if text else 2.0**-20 * np.ptp(vertices, axis=0).max()
    try:
        save_mesh(mesh, file)
    except ValueError as error:
        message = str(error)
    else:
        assert np.abs(load_mesh(file).triangles - mesh.triangles).max() <= bound
        return
    assert "32 bits" in message
    assert not text and (abs(power) > 100 or far > 2)
    assert not list(tmp_path.iterdir())


def test_colours_are_saved_and_left_out(tmp_path: Path) -> None:
    mesh = trimesh.creation.icosphere(2)
    mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(mesh.vertices), 4), dtype=np.uint8)
    for suffix in (".obj", ".ply", ".glb"):
        save_mesh(mesh, tmp_path / f"coloured{suffix}")
        colours = trimesh.load_mesh(tmp_path / f"coloured{suffix}", process=False).visual.vertex_colors
        assert np.array_equal(colours[:, :3], mesh.visual.vertex_colors[:, :3])
        assert load_mesh(tmp_path / f"coloured{suffix}").volume == pytest.approx(mesh.volume, rel=1e-5)


# ---- words -------------------------------------------------------------------------------------------------------

CORNER = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CORNER, "without faces"),
        ("nothing of a mesh", "line 1 is neither .* 'nothing of a mesh'"),
        ("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n", "NaN"),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no face with an area"),
        (CORNER + "f 1 2 9\n", "line 4 names vertex 9, and the file's 3 vertices count from 1"),
        (CORNER + "f 0 1 2\n", "line 4 names vertex 0"),
        (CORNER + "\n# a\nf -1 -2 -4\nv 5 5 5\n", "line 6 names vertex -4"),
        (CORNER + "f\n", "line 4 is a face without corners"),
        (CORNER + "f 1 2\n", "without faces"),
        (CORNER + "f 1 2 3\nf 1 2", "line 5 is the last, has no line end"),
        (CORNER + "f 1/1 2/1 3", "line 4 is the last, has no line end"),
        (CORNER + "f 1 2 3\nv 1 2 3", "line 5 is the last, has no line end"),
        (CORNER + "f 1 2 3.0\n", "line 4 has '3.0' in place of a whole number"),
        (CORNER + "f 1/1 2/2 3/a\n", "line 4 holds '3/a' in place of a vertex"),
        (CORNER + "f 1 2 1_0\n", "line 4 has '1_0' in place"),
        (CORNER + "f 1 2 3#\n", "line 4 has '3#' in place"),
        (CORNER + "f 1 2\\\n3\n", "line 4 ends in a backslash"),
        (CORNER + "# \\\nf 1 2 3\n", "line 4 is a comment that ends in a backslash"),
        (CORNER + "surf 0 1 0 1 1 2 3\n", "line 4 is neither"),
        (CORNER + "call other.obj\nf 1 2 3\n", "line 4 is neither"),
        ("v 1\n" + CORNER + "f 1 2 3\n", "line 1 is a vertex of 1 numbers"),
        (CORNER + "v 1 2 3 4\nf 1 2 3\n", "line 4 is a vertex of 4 numbers"),
        (CORNER + "v 1,5 2 3\nf 1 2 3\n", "line 4 has '1,5' in place of a number"),
        (CORNER + "v 1 2\f3 4\nf 1 2 3\n", "line 4 holds a form feed"),
        (CORNER + "f 1 2 3\n" + "\0" * 9, "line 5 holds a zero byte"),
    ],
)
def test_what_an_obj_should_not_hold_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.obj .*{words}"):
        load_mesh(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_bytes((CORNER + "f 1 2 3\n").encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        load_mesh(tmp_path / "a.obj")


PLY = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
FACET = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"


@pytest.mark.parametrize(
    ("suffix", "text", "words"),
    [
        (".off", "4OFF 3 1 0\n", "line 1: '4OFF 3 1 0' .* dimensions"),
        (".off", "OFF BINARY\n", "line 1: 'OFF BINARY' is binary"),
        (".off", "OFX 3 1\n", "line 1 does not begin with OFF"),
        (".off", "OFF 3\n", "line 1 does not state how many"),
        (".off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0 5\n3 0 1 2\n", "line 4 is a vertex of 4 numbers"),
        (".off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 3 4\n", "line 5 is a face of 3 corners with 5"),
        (".off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "line 5 names vertex 3"),
        (".off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "line 5 names vertex -1"),
        (".off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n\n3 0 1 2\n", "line 7 comes after the end"),
        (".ply", PLY.replace("1.0", "2.0") + FACE, "line 2 of the header"),
        (".ply", PLY.replace("ascii", "binary_middle_endian") + FACE, "line 2 of the header"),
        (".ply", PLY.replace("float y", "float x") + FACE, "line 5 of the header"),
        (".ply", PLY.replace("float y", "float w") + FACE, "no number 'y'"),
        (".ply", PLY.replace("element vertex 3\n", "") + FACE, "line 3 of the header .*before any element"),
        (".ply", PLY + FACE.replace("vertex_indices", "corners"), "no list of whole numbers 'vertex_indices'"),
        (".ply", PLY + FACE.replace("face", "tristrips"), "'tristrips' names vertices"),
        (".ply", PLY + FACE.replace("end_header", "end"), "no end"),
        (".ply", PLY + FACE.replace("3 0 1 2", "4 0 1 2"), "line 13 has 4 numbers .* takes 5"),
        (".ply", PLY + FACE.replace("3 0 1 2", "3 0 1 2 0"), "line 13 has 5 numbers .* takes 4"),
        (".ply", PLY + FACE.replace("1 0 0", "1 0 x"), "line 11 has 'x' in place of a number"),
        (".stl", "solid a\n" + FACET + "solid b\n" + FACET + "endsolid\n", "line 9 begins a solid before"),
        (".stl", "solid a\n" + FACET, "begins in line 1 has no end"),
        (".stl", "solid a\n" + FACET + "endsolid\n" + FACET, "line 10 is outside of a solid: 'facet'"),
        (".stl", "solid a\nendsolid\nendsolid\n", "line 3 ends a solid"),
        (".stl", "solid a " + FACET + FACET + "endsolid\n", "line 1 holds a triangle"),
        (
            ".stl",
            "solid a\n" + FACET.replace("0 1 0", "0 1") + "endsolid\n",
            "line 7 has 'endloop' in place of a number",
        ),
        (".stl", "solid a\n" + FACET + FACET[:55] + "\nendsolid\n", "before line 13 is not whole"),
        (".stl", "solid a\n" + FACET.replace("normal", "normals") + "endsolid\n", "line 2 has 'normals' in place of"),
        (".stl", "no solid", "8 bytes"),
    ],
)
def test_what_other_texts_should_not_hold_is_named_with_its_line(
    tmp_path: Path, suffix: str, text: str, words: str
) -> None:
    (tmp_path / f"a{suffix}").write_text(text)
    with pytest.raises(ValueError, match=rf"a\{suffix} .*{words}"):
        load_mesh(tmp_path / f"a{suffix}")


def test_a_file_larger_than_the_memory_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.obj").write_text(CORNER + "f 1 2 3\n")
    monkeypatch.setattr("inrfast.signals.meshes.files.budget_bytes", lambda asked: 100)
    with pytest.raises(MemoryBudgetError, match=r"a\.obj does not fit the memory: its mesh needs .* budget is 100 B"):
        load_mesh(tmp_path / "a.obj")


def test_paths_and_meshes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_mesh(tmp_path / "absent.obj")
    mesh = trimesh.creation.box()
    with pytest.raises(ValueError, match="suffix"):
        save_mesh(mesh, tmp_path / "a.txt")
    with pytest.raises(TypeError, match="mesh must be a trimesh"):
        save_mesh("box", tmp_path / "a.obj")
    with pytest.raises(ValueError, match="at least one face"):
        save_mesh(trimesh.Trimesh(), tmp_path / "a.obj")
    mesh.vertices[0] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf"):
        save_mesh(mesh, tmp_path / "a.obj")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("far", [1e-300, 1e-9, 1e9, 1e23, 1e140])
def test_a_triangle_with_a_corner_far_away_has_an_area(tmp_path: Path, far: float) -> None:
    file = tmp_path / "a.obj"
    for first, second, third in itertools.permutations((1, 2, 3)):
        file.write_text(f"v {far} 0 0\nv 0 1 0\nv 1 1 0\nv 2 2 0\nf {first} {second} {third}\nf 2 3 4\nf 2 2 4\n")
        assert len(load_mesh(file).faces) == 2
