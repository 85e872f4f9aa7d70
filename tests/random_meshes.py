"""Meshes written in every format and in many spellings, by random draws: what readers are tested with."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence

import numpy as np

Polygon = list[int]

NAMES = (b"part", b"f 1 2 3", b"v 1 2 3", b"F\xe4cher An f Two", b"\xff\xfe", "f\u2028f 1 2 3".encode())
"""Of groups and solids: words that other lines begin with, and no UTF-8."""


class Solid:
    """Random polygons over points of a moment curve: no three lie on a line, so that every triangle has an area."""

    def __init__(self, draw: random.Random, scales: Sequence[float] = (1, 2**-10, 2**10)) -> None:
        count = draw.randint(3, 12)
        t = np.array(draw.sample(range(-20, 21), count)) / 16
        # Fit fp32, as everything drawn here does: binary formats hold no more.
        self.vertices = np.stack([t, t**2, t**3], axis=1) * draw.choice(scales)
        self.polygons = [
            draw.sample(range(count), min(draw.choice([3, 3, 4, 5]), count)) for _ in range(draw.randint(1, 6))
        ]
        for size in draw.choices([1, 2], k=draw.choice([0, 0, 1, 3])):  # points and lines, stated as faces
            self.polygons.insert(draw.randint(0, len(self.polygons)), draw.sample(range(count), size))

    def triangles(self) -> np.ndarray:
        """Return the fans of all polygons, (m, 3, 3)."""
        fans = [(p[0], p[i], p[i + 1]) for p in self.polygons for i in range(1, len(p) - 1)]
        return self.vertices[np.array(fans)]


def number(value: float, draw: random.Random) -> str:
    """Return a spelling of a number that gives it back."""
    spelled = draw.choice([repr, "{:.17g}".format, "{:.16e}".format, "{:+.17g}".format, "{:.16E}".format])(float(value))
    return spelled.removesuffix(".0") if draw.random() < 0.2 else spelled


def point(values: np.ndarray, draw: random.Random, extra: int = 0) -> list[str]:
    """Return the words of a vertex, and that many of a colour or the like."""
    return [number(v, draw) for v in values] + [number(draw.randint(0, 8) / 8, draw) for _ in range(extra)]


def lines(rows: list[list[str] | bytes], draw: random.Random, comments: bool, blank: bool = True) -> bytes:
    """Return words as lines, with random white space, line ends and comments; bytes stay as they are."""
    tabs, indented, commented = (draw.random() < 0.5 for _ in range(3))
    end = draw.choice([b"\n", b"\r\n", b"\r"])
    out = []
    for row in rows:
        if isinstance(row, bytes):
            line = row
        else:
            line = draw.choice([" ", "\t", "  "] if tabs else [" "]).join(row).encode()
            line = draw.choice([b"", b" ", b"\t "]) * indented + line + draw.choice([b"", b" ", b"\t"])
            line += b" # f 1 2 3 \xe4" * (comments and commented and draw.random() < 0.5)
        out.append(line)
        if blank and draw.random() < 0.1:
            out.append(draw.choice([b"", b"  ", b"# f 1 2 3" * comments]))
    return end.join(out) + end


def write_obj(solids: list[Solid], draw: random.Random) -> bytes:
    """Several objects, absolute and relative indices, colours, and indices of textures and normals."""
    rows: list[list[str] | bytes] = []
    found = 0
    relative, extra, after = draw.random() < 0.5, draw.choice([0, 0, 1, 3, 4]), draw.choice(["", "/1", "//1", "/1/-1"])
    for solid in solids:
        rows.append(draw.choice([b"g ", b"o ", b"usemtl ", b"mtllib ", b"s "]) + draw.choice(NAMES))
        rows += [["v", *point(vertex, draw, extra)] for vertex in solid.vertices]
        rows += [["vt", "0", "0"], ["vn", "0", "0", "1"]]
        last = found + len(solid.vertices)
        for polygon in solid.polygons:
            corners = [found + i - (last if relative else -1) for i in polygon]
            rows.append(["f", *(f"{corner}{after}" for corner in corners)])
        found = last
    content = lines(rows, draw, comments=True)
    if b"#" not in content and b"\r" not in content and draw.random() < 0.5:
        content = content.replace(b" 1", b" \\\n 1") if b"\\" not in content else content
    return draw.choice([b"", b"\xef\xbb\xbf"]) + content


def joined(solids: list[Solid]) -> tuple[np.ndarray, list[Polygon]]:
    """Return the vertices and polygons of all solids together."""
    vertices = np.concatenate([solid.vertices for solid in solids])
    starts = np.cumsum([0] + [len(solid.vertices) for solid in solids])
    return vertices, [
        [int(start) + i for i in p] for solid, start in zip(solids, starts, strict=False) for p in solid.polygons
    ]


def write_off(solids: list[Solid], draw: random.Random) -> bytes:
    """Headers with and without colours, normals and texture coordinates, glued to the sizes or not."""
    vertices, polygons = joined(solids)
    texture, colour, normal = (draw.choice(["", letters]) for letters in ("ST", "C", "N"))
    extra = 2 * bool(texture) + 3 * bool(normal) + (draw.choice([3, 4]) if colour else 0)
    sizes = [str(len(vertices)), str(len(polygons)), *draw.choice([[], ["0"]])]
    head = f"{texture}{colour}{normal}OFF"
    rows: list[list[str] | bytes] = draw.choice([[[head], sizes], [[head, *sizes]], [[head + sizes[0], *sizes[1:]]]])
    rows = draw.choice([[], [b"# OFF of a box"]]) + rows
    rows += [point(vertex, draw, extra) for vertex in vertices]
    colours = draw.choice([[], ["7"], ["255", "0", "0"], ["0.5", "0.25", "1", "1"]])
    rows += [[str(len(polygon)), *map(str, polygon), *colours] for polygon in polygons]
    return draw.choice([b"", b"\xef\xbb\xbf"]) + lines(rows, draw, comments=True)


def write_ply(solids: list[Solid], draw: random.Random, kind: str) -> bytes:
    """Other properties before, between and behind, elements in any order, lists of several types of length."""
    vertices, polygons = joined(solids)
    order = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
    real, length, index = draw.choice("fd"), draw.choice("BHi"), draw.choice("Hi")
    names = {"f": "float", "d": "float64", "B": "uchar", "H": "ushort", "i": draw.choice(["int", "int32"]), "b": "int8"}
    before, behind = (draw.random() < 0.3 for _ in range(2))
    lists = f"property list {names[length]} {names[index]} {draw.choice(['vertex_index', 'vertex_indices'])}"
    colour = f"property {names['B']} red"
    more = f"property list {names['B']} {names['f']} texcoord"
    vertex = [f"element vertex {len(vertices)}"] + [colour] * before + [f"property {names[real]} {a}" for a in "xyz"]
    face = [f"element face {len(polygons)}"] + [colour] * before + [lists] + [more] * behind
    table: list[list[tuple[str, float]]] = []
    points = [[("B", 7)] * before + [(real, value) for value in row] for row in vertices.tolist()]
    for polygon in polygons:
        size = draw.randint(0, 3)
        tail: list[tuple[str, float]] = [("B", size)] + [("f", 0.5)] * size
        row = [(length, len(polygon))] + [(index, i) for i in polygon] + tail * behind
        table.append([("B", 7.0)] * before + row)
    edges = [f"element edge {1}", f"property {names['b']} vertex1"]
    parts = [(vertex, points), (face, table), (edges, [[("b", -1.0)]])]
    draw.shuffle(parts)
    end = draw.choice([b"\n", b"\r\n", b"\r"])
    head = ["ply", f"format {kind} 1.0", "comment end_header f 1 2 3", "obj_info made up"]
    header = (
        end.join(line.encode() for line in head + [line for part, _ in parts for line in part] + ["end_header"]) + end
    )
    if kind == "ascii":
        rows = [
            [number(v, draw) if kind in "fd" else str(int(v)) for kind, v in row]
            for _, values in parts
            for row in values
        ]
        return header + lines(rows, draw, comments=False)
    pack = [
        struct.pack(order + kind, v if kind in "fd" else int(v)) for _, rows in parts for row in rows for kind, v in row
    ]
    return header + b"".join(pack)


def write_ascii_stl(solids: list[Solid], draw: random.Random) -> bytes:
    """Several solids, in upper and lower case, with names of any bytes."""
    rows: list[list[str] | bytes] = []
    for solid in solids:
        name = draw.choice(NAMES)
        rows.append(b"solid " + name)
        for triangle in solid.triangles():
            normal = draw.choice([["0", "0", "1"], ["nan", "-nan(ind)", "0"]])
            rows += [["facet", "normal", *normal], ["outer", "loop"]]
            rows += [["vertex", *point(corner, draw)] for corner in triangle]
            rows += [["endloop"], ["endfacet"]]
        rows.append(draw.choice([b"endsolid " + name, b"endsolid"]))
    content = lines(rows, draw, comments=False)
    return draw.choice([b"", b"\xef\xbb\xbf"]) + draw.choice([bytes, bytes.upper])(content)


def write_binary_stl(solids: list[Solid], draw: random.Random) -> bytes:
    """A header of any words."""
    triangles = np.concatenate([solid.triangles() for solid in solids])
    head = draw.choice([b"", b"solid facet normal 0 0 1", b"SOLID \xe4", b"COLOR=\xff\0\0\xff"]).ljust(
        80, draw.choice([b"\0", b" "])
    )
    body = [struct.pack("<3f9fH", 0, 0, 1, *triangle.ravel(), draw.randint(0, 65535)) for triangle in triangles]
    return head + struct.pack("<I", len(triangles)) + b"".join(body)


def write_glb(solids: list[Solid], draw: random.Random) -> bytes:
    """A mesh for each solid, of triangles with indices of any width, or without."""
    return glb(*glb_parts(solids, draw))


def glb_parts(solids: list[Solid], draw: random.Random) -> tuple[dict, bytes]:
    """Return the JSON and the buffer of a file."""
    data = b""
    tree: dict = {name: [] for name in ("accessors", "bufferViews", "meshes", "nodes")}

    def add(values: np.ndarray, code: int, kind: str) -> int:
        nonlocal data
        data += bytes(-len(data) % 4) + bytes(4 * draw.randint(0, 1))
        view = {"buffer": 0, "byteOffset": len(data)}
        accessor = {"componentType": code, "count": len(values), "type": kind}
        rows = values.reshape(len(values), -1).view(np.uint8)
        if kind == "VEC3" and draw.random() < 0.5:  # between other numbers, which are not zero
            before, stride = draw.choice([(0, 16), (8, 20), (4, 24)])
            rows = np.pad(rows, ((0, 0), (before, stride - before - rows.shape[1])), constant_values=63)
            view["byteStride"] = stride
            accessor["byteOffset"] = before
        tree["bufferViews"].append(view | {"byteLength": rows.nbytes})
        tree["accessors"].append(accessor | {"bufferView": len(tree["bufferViews"]) - 1})
        data += rows.tobytes()
        return len(tree["accessors"]) - 1

    for solid in solids:
        part: dict = {}
        if draw.random() < 0.5:
            part["attributes"] = {"POSITION": add(solid.triangles().reshape(-1, 3).astype("<f4"), 5126, "VEC3")}
        else:
            fans = [i for p in solid.polygons for k in range(1, len(p) - 1) for i in (p[0], p[k], p[k + 1])]
            code, dtype = draw.choice([(5121, "u1"), (5123, "<u2"), (5125, "<u4")])
            part["attributes"] = {"POSITION": add(solid.vertices.astype("<f4"), 5126, "VEC3")}
            part["indices"] = add(np.array(fans).astype(dtype), code, "SCALAR")
        tree["meshes"].append({"primitives": [part]})
        tree["nodes"].append({"mesh": len(tree["meshes"]) - 1})
    tree["buffers"] = [{"byteLength": len(data)}]
    tree["asset"] = {"version": "2.0"}
    tree["scenes"] = [{"nodes": list(range(len(tree["nodes"])))}]
    return tree, data


def glb(tree: dict, data: bytes) -> bytes:
    """Return the file of a JSON and a buffer."""
    head = json.dumps(tree).encode()
    head += b" " * (-len(head) % 4)
    data += bytes(-len(data) % 4)
    body = struct.pack("<I4s", len(head), b"JSON") + head + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


WRITERS: dict[str, tuple[str, Callable[[list[Solid], random.Random], bytes]]] = {
    "obj": (".obj", write_obj),
    "off": (".off", write_off),
    "ascii ply": (".ply", lambda solids, draw: write_ply(solids, draw, "ascii")),
    "little-endian ply": (".ply", lambda solids, draw: write_ply(solids, draw, "binary_little_endian")),
    "big-endian ply": (".ply", lambda solids, draw: write_ply(solids, draw, "binary_big_endian")),
    "ascii stl": (".stl", write_ascii_stl),
    "binary stl": (".stl", write_binary_stl),
    "glb": (".glb", write_glb),
}
