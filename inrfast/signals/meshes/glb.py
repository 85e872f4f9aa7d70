"""Binary glTF 2.0: the triangles of a file's scene, each mesh where its nodes place it."""

from __future__ import annotations

import base64
import json
import re
import reprlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from inrfast.memory import budget_bytes, require

Kind = TypeVar("Kind")

JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942

NUMBERS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
"""The format's names of types, and NumPy's."""

WITHOUT_SURFACE, TRIANGLES, STRIP, FAN = frozenset(range(4)), 4, 5, 6
"""Modes of a primitive: points and lines, which are left out, and three ways to state triangles."""

HARMLESS = re.compile(r"(KHR_(materials|texture|lights)|EXT_texture)_.*|KHR_(mesh_quantization|xmp_json_ld|xmp)")
"""Extensions that a file may require: they change no place of a surface, or are read."""

BYTES = 24
"""Of a vertex, and of a triangle: three numbers of 64 bits."""

JSON_BYTES, JSON_MARKS = 8, {b"[": 88, b",": 88, b"{": 200}
"""Bytes of memory that JSON takes for each of its own, and for each of these: no less than measured for any text, with
lists of nothing, objects in objects and letters of four bytes, which take up to 48 times their size."""


def read_glb(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices, fp64 (n, 3), and triangles, int64 (m, 3), of a file's content.

    Triangles of nodes that mirror them are turned over, so that they look where the file says. What the scene does not
    show is left out: other scenes, and meshes in no node.

    Raises
    ------
    ValueError
        Other sizes than stated; a part that is missing, in another file, or stated in a way that is not read: sparse,
        compressed, instanced, skinned or morphed; or no mesh in a node of the scene.
    MemoryBudgetError
        The file places a mesh so often that all of them do not fit half of the free memory.
    """
    document = _Document(content)
    vertices, triangles = [np.empty((0, 3))], [np.empty((0, 3), dtype=np.int64)]
    placed = list(document.placed())
    shown = {mesh for mesh, _ in placed}
    if not shown and document.items("meshes"):
        raise ValueError(f"it holds {len(document.items('meshes'))} meshes, and none is in a node of its scene")
    sizes = {mesh: document.size(mesh) for mesh in shown}
    needed = sum(sizes[mesh] for mesh, _ in placed)
    require(needed, budget_bytes(None), "the mesh with all its copies", "take a file with fewer")
    surfaces = {mesh: document.surface(mesh) for mesh in shown}
    count = 0
    for mesh, matrix in placed:
        points, faces = surfaces[mesh]
        with np.errstate(over="ignore", invalid="ignore"):  # vertices that no triangle has may be NaN
            vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
        triangles.append((faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else faces) + count)
        count += len(points)
    return np.concatenate(vertices), np.concatenate(triangles)


class _Document:
    """The JSON of a file and its buffers; whatever is asked of it and not there, or of another type, is an error."""

    def __init__(self, content: bytes) -> None:
        chunks = dict(reversed(list(_chunks(content))))  # the first of each kind
        if JSON_CHUNK not in chunks:
            raise ValueError("it has no JSON")
        text = chunks[JSON_CHUNK]
        needed = JSON_BYTES * len(text) + sum(size * text.count(mark) for mark, size in JSON_MARKS.items())
        require(needed, budget_bytes(None), f"its JSON of {len(text)} bytes", "take a file with less of it")
        try:
            self._tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its JSON cannot be read: {error}") from None
        if not isinstance(self._tree, dict):
            raise ValueError("its JSON is no object")
        self._binary = chunks.get(BINARY_CHUNK)
        self._buffers: dict[int, bytes] = {}
        for name in self.get(self._tree, "extensionsRequired", list, []):
            if not HARMLESS.fullmatch(str(name)):
                raise ValueError(f"it requires the extension {reprlib.repr(name)}, which is not read")

    @staticmethod
    def get(tree: dict[str, Any], name: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        """Return a value of an object, of that type; without ``default`` it must be there."""
        value = tree.get(name, default)
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):  # type: ignore[operator]
            raise ValueError(f"its JSON has {reprlib.repr(value)} for {name!r}")
        return value

    def items(self, name: str) -> list[Any]:
        """Return one of the lists at the top."""
        return self.get(self._tree, name, list, [])

    def item(self, name: str, index: Any) -> dict[str, Any]:
        """Return an object of one of the lists at the top."""
        items = self.items(name)
        if type(index) is not int or not 0 <= index < len(items) or not isinstance(items[index], dict):
            raise ValueError(f"its JSON has no {name} {reprlib.repr(index)}")
        return items[index]

    # ---- where meshes are ----

    def placed(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each mesh that the scene shows and the matrix (4, 4) that places it."""
        scene = self.item("scenes", self._tree.get("scene", 0))
        waiting = [(root, np.eye(4)) for root in self.get(scene, "nodes", list, [])]
        seen = set()
        while waiting:
            index, above = waiting.pop()
            node = self.item("nodes", index)
            if index in seen:
                raise ValueError(f"its node {index} is in two places of the tree")
            seen.add(index)
            matrix = above @ self._matrix(node)
            waiting += [(child, matrix) for child in self.get(node, "children", list, [])]
            if "mesh" not in node:
                continue
            mesh = self.get(node, "mesh", int)
            weights = node.get("weights", self.item("meshes", mesh).get("weights", []))
            if "skin" in node or (isinstance(weights, list) and any(weight != 0 for weight in weights)):
                raise ValueError(f"its node {index} bends its mesh (skin, weights), which is not read")
            if "EXT_mesh_gpu_instancing" in self.get(node, "extensions", dict, {}):
                raise ValueError(f"its node {index} repeats its mesh (EXT_mesh_gpu_instancing), which is not read")
            yield mesh, matrix

    def _matrix(self, node: dict[str, Any]) -> np.ndarray:
        """Return what a node does to points below it, (4, 4)."""
        given = {name for name in ("matrix", "translation", "rotation", "scale") if name in node}
        matrix = np.eye(4)
        if "matrix" in given:
            matrix = self._vector(node, "matrix", 16).reshape(4, 4).T
            others: dict[str, Any] = {name: node[name] for name in given - {"matrix"}}
            if not np.allclose(matrix[3], (0, 0, 0, 1)) or not np.array_equal(self._matrix(others), np.eye(4)):
                raise ValueError("one of its nodes has a matrix that does not place it, or another place beside it")
            return matrix
        if "rotation" in given:
            matrix[:3, :3] = _rotation(self._vector(node, "rotation", 4))
        if "scale" in given:
            matrix[:3, :3] *= self._vector(node, "scale", 3)
        if "translation" in given:
            matrix[:3, 3] = self._vector(node, "translation", 3)
        return matrix

    def _vector(self, node: dict[str, Any], name: str, count: int) -> np.ndarray:
        values = self.get(node, name, list)
        if len(values) != count or not all(type(value) in (int, float) and abs(value) < 1e300 for value in values):
            raise ValueError(f"its JSON has {reprlib.repr(values)} for {name!r} in place of {count} numbers")
        return np.array(values, dtype=np.float64)

    # ---- what meshes are ----

    def size(self, mesh: int) -> int:
        """Return the bytes that one copy of a mesh takes at most."""
        corners, points = 0, {}
        for index, table, stated, _ in self._parts(mesh):
            points[index] = len(table)
            corners += len(table if stated is None else stated)
        return BYTES * (corners + sum(points.values()))

    def surface(self, mesh: int) -> tuple[np.ndarray, np.ndarray]:
        """Return vertices, fp64 (n, 3), and triangles, int64 (m, 3), of all parts of a mesh that have triangles."""
        vertices, triangles, count = [np.empty((0, 3))], [np.empty((0, 3), dtype=np.int64)], 0
        starts: dict[int, int] = {}  # of the points that parts have in common, by accessor
        for index, table, stated, mode in self._parts(mesh):
            corners = np.arange(len(table)) if stated is None else stated.reshape(-1).astype(np.int64)
            if index not in starts:
                starts[index] = count
                vertices.append(self._values(index, table))
                count += len(table)
            triangles.append(_triangles(corners, mode, len(table)) + starts[index])
        return np.concatenate(vertices), np.concatenate(triangles)

    def _parts(self, mesh: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None, int]]:
        """Yield the accessor of the points, its table (n, 3), the corners (k, 1), if they are stated, and the mode."""
        for part in self.get(self.item("meshes", mesh), "primitives", list):
            if not isinstance(part, dict):
                raise ValueError(f"its JSON has {reprlib.repr(part)} for a part of mesh {mesh}")
            mode = self.get(part, "mode", int, TRIANGLES)
            if mode in WITHOUT_SURFACE:
                continue
            index: Any = self.get(part, "attributes", dict).get("POSITION")
            points = self._table(index, "VEC3")
            corners = self._table(part["indices"], "SCALAR") if "indices" in part else None
            if corners is not None and corners.dtype.kind == "f":
                raise ValueError(f"its mesh {mesh} numbers vertices with fractions")
            yield index, points, corners, mode

    def _values(self, index: int, table: np.ndarray) -> np.ndarray:
        """Return the points that an accessor's numbers stand for, fp64."""
        if self.item("accessors", index).get("normalized", False) and table.dtype.kind != "f":
            return np.maximum(table / float(np.iinfo(table.dtype).max), -1.0)
        return table.astype(np.float64)

    def _table(self, index: Any, kind: str) -> np.ndarray:
        """Return the numbers of an accessor where they are in the file, (count, 1 or 3)."""
        accessor = self.item("accessors", index)
        code = self.get(accessor, "componentType", int)
        if accessor.get("type") != kind or code not in NUMBERS:
            raise ValueError(f"its accessor {index} has other numbers than surfaces have")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError(f"the numbers of its accessor {index} are sparse or compressed, which is not read")
        count, dtype = self.get(accessor, "count", int), np.dtype(NUMBERS[code])
        row = dtype.itemsize * (3 if kind == "VEC3" else 1)
        view = self.item("bufferViews", accessor["bufferView"])
        data = self._view(view)
        stride = self.get(view, "byteStride", int, row) if count > 1 else row
        start = self.get(accessor, "byteOffset", int, 0)
        if stride < row or start + (count - 1) * stride + row > len(data):
            raise ValueError(f"its accessor {index} states {count} rows, more than its {len(data)} bytes hold")
        columns = row // dtype.itemsize
        if count == 0:
            return np.empty((0, columns), dtype)
        return np.ndarray((count, columns), dtype, data, start, (stride, dtype.itemsize))

    def _view(self, view: dict[str, Any]) -> memoryview:
        buffer = self.get(view, "buffer", int)
        stated = self.item("buffers", buffer)
        uri = self.get(stated, "uri", str, "")
        if uri.startswith("data:"):
            data = self._decoded(buffer, uri)
        elif uri:
            raise ValueError(f"it names another file, {uri[:40]!r}, and a mesh is read from one")
        elif buffer or self._binary is None:
            raise ValueError(f"its buffer {buffer} is not in it")
        else:
            data = self._binary
        length, start = self.get(stated, "byteLength", int), self.get(view, "byteOffset", int, 0)
        end = start + self.get(view, "byteLength", int)
        if not end <= length <= len(data):
            raise ValueError(f"it states a buffer of {length} bytes, of which it uses {end} and has {len(data)}")
        return memoryview(data)[start:end]

    def _decoded(self, buffer: int, uri: str) -> bytes:
        """Return a buffer that is in the JSON; many views may ask for it."""
        if buffer not in self._buffers:
            try:
                self._buffers[buffer] = base64.b64decode(uri.partition(";base64,")[2], validate=True)
            except ValueError:
                raise ValueError(f"its buffer {buffer} is in the JSON, and not in base64") from None
        return self._buffers[buffer]


def _chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the content of each part of a file."""
    magic, (version, length) = content[:4], _integers(content, 4)
    if magic != b"glTF" or version != 2:
        raise ValueError("it does not begin as a binary glTF file of version 2 does")
    if length != len(content):
        raise ValueError(f"it states {length} bytes and has {len(content)}")
    start = 12
    while start < length:
        size, kind = _integers(content, start)
        start += 8
        if start + size > length:
            raise ValueError(f"it states a part of {size} bytes and has {max(length - start, 0)} bytes for it")
        yield kind, content[start : start + size]
        start += size


def _integers(content: bytes, start: int) -> list[int]:
    """Return the two integers of 32 bits at a place, zeros beyond the end."""
    return np.frombuffer(content[start : start + 8].ljust(8, b"\0"), "<u4").tolist()


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of a quaternion (x, y, z, w)."""
    length = np.linalg.norm(quaternion)
    if not length > 0:
        raise ValueError("one of its nodes has a rotation of zeros")
    x, y, z, w = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _triangles(corners: np.ndarray, mode: int, vertices: int) -> np.ndarray:
    """Return the triangles (m, 3) that corners (n,) make in one of the three modes."""
    if len(corners) and (corners.min() < 0 or corners.max() >= vertices):
        raise ValueError(f"a triangle names vertex {corners.max()}, and its part's {vertices} vertices count from 0")
    if mode == TRIANGLES:
        if len(corners) % 3:
            raise ValueError(f"it has triangles of {len(corners)} corners, which is no multiple of 3")
        return corners.reshape(-1, 3)
    if len(corners) < 3 or mode not in (STRIP, FAN):
        raise ValueError(f"it has {len(corners)} corners of triangles in mode {mode}, which is not read")
    first, second, third = corners[:-2], corners[1:-1], corners[2:]
    if mode == FAN:
        return np.stack([second, third, np.full_like(third, corners[0])], axis=1)
    odd = np.arange(len(first)) % 2 == 1
    return np.stack([first, np.where(odd, third, second), np.where(odd, second, third)], axis=1)
