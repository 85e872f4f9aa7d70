"""Independent readers: what they refuse the product may not accept, and what they read it must read the same.

A reader takes the bytes of a file and raises where it refuses them. It returns what is to be compared, or None where it
only judges. Where other programs take what a format's specification forbids, the readers here are a few lines of it.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import meshio
import numpy as np
import png
import soundfile
import tifffile
from PIL import Image

Array = np.ndarray[Any, Any]
Reader = Callable[[bytes], Any]


class Refused(ValueError):
    """A reader of this file does not take it."""


@dataclass(frozen=True)
class Disagreement:
    """What a reader refuses, or reads otherwise, and the product rightly accepts."""

    target: str
    reader: str
    words: str
    """Regular expression that the reader's complaint matches."""
    reason: str

    def covers(self, target: str, reader: str, complaint: str) -> bool:
        """Return whether this is the known case."""
        return (self.target, self.reader) == (target, reader) and re.search(self.words, complaint) is not None


KNOWN: tuple[Disagreement, ...] = (
    Disagreement(
        "wav",
        "libsndfile",
        "No 'data' chunk marker",
        "libsndfile gives up at a chunk whose name has odd letters; RIFF has readers pass over every unknown chunk",
    ),
    Disagreement(
        "wav",
        "libsndfile",
        "Bad 'PEAK' chunk",
        "it says where the loudest samples are, nobody needs it, and libsndfile refuses a sound where it is odd",
    ),
    Disagreement(
        "wav",
        "wave",
        "fewer samples than stated|not a WAVE file",
        "wave stops at the size that the header states for the file, which recorders often leave too small",
    ),
)
"""All of them. A new line needs the sentence of the specification, or the fault of the other reader, as its reason."""


def demand(holds: bool, otherwise: str) -> None:
    """Refuse the file unless this holds."""
    if not holds:
        raise Refused(otherwise)


# ---- images ------------------------------------------------------------------------------------------------------


def pypng(data: bytes) -> Array:
    """Return red, green, blue and opacity (H, W, 4) in [0, 1] of a PNG."""
    width, height, rows, info = png.Reader(bytes=data).asDirect()
    values = np.array(list(rows), dtype=np.float64).reshape(height, width, info["planes"]) / (2 ** info["bitdepth"] - 1)
    colours = values[..., :-1] if info["alpha"] else values
    opacity = values[..., -1:] if info["alpha"] else np.ones((height, width, 1))
    return np.concatenate([np.broadcast_to(colours, (height, width, 3)), opacity], -1)


def png_chunks(data: bytes) -> None:
    """Check that a PNG is whole: chunks with right checksums from IHDR to IEND, nothing after it, all pixels there."""
    demand(data[:8] == b"\x89PNG\r\n\x1a\n", "no signature")
    at, pixels, kind = 8, b"", b""
    while kind != b"IEND":
        demand(at + 12 <= len(data), "it ends before IEND")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 4 : at + 8 + length]
        demand(len(body) == length + 4, f"{kind!r} is cut")
        demand(zlib.crc32(body).to_bytes(4, "big") == data[at + 8 + length : at + 12 + length], f"{kind!r}: checksum")
        pixels += body[4:] if kind == b"IDAT" else b""
        at += 12 + length
    unpacked = zlib.decompressobj()
    unpacked.decompress(pixels, 2**24)
    demand(unpacked.eof, "the compressed pixels do not end")


def pillow(data: bytes) -> None:
    """Decode every pixel with Pillow, from memory."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()


def tiff_pages(data: bytes) -> Array | None:
    """Return the only page's samples of a TIFF where their range is plain: unsigned grey or colours, (H, W, C)."""
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        demand(len(opened.pages) > 0, "no pages")
        page = opened.pages.first
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):  # which is not installed
                return None
            raise
        plain = page.photometric in (1, 2) and not page.extrasamples and values.dtype in (np.uint8, np.uint16)
        if len(opened.pages) != 1 or not plain or 274 in page.tags:
            return None
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if values.ndim not in (2, 3) or page.samplesperpixel not in (1, 3):
            return None
        return values.reshape(*values.shape[:2], -1) / np.iinfo(values.dtype).max


def jpeg_segments(data: bytes) -> None:
    """Check that a JPEG's segments lead from its start over a frame and a scan to its end."""
    demand(data[:2] == b"\xff\xd8", "no start")
    at, seen = 2, set()
    while True:
        demand(at + 2 <= len(data), "it ends before its end marker")
        if data[at] != 0xFF:  # decoders go on at the next marker
            at += 1
            continue
        marker = data[at + 1]
        seen.add(marker)
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF, *range(0xD0, 0xD9)):
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        while marker == 0xDA and at < len(data) and (data[at] != 0xFF or data[at + 1 : at + 2] in WITHIN_SCANS):
            at += 1
    demand(0xDA in seen, "no scan")


WITHIN_SCANS = tuple(bytes([code]) for code in (*range(0xC0), *range(0xD0, 0xD8), 0xFF))
"""What may follow 0xFF within a scan: a stuffed zero, a restart, or damage over which decoders go on."""


def gif_blocks(data: bytes) -> None:
    """Check that a GIF's blocks lead to its trailer, over at least one image."""
    demand(data[:6] in (b"GIF87a", b"GIF89a") and len(data) > 13, "no header")
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    images = 0
    while data[at : at + 1] != b"\x3b":
        demand(at + 10 < len(data), "it ends before its trailer")
        demand(data[at] in (0x21, 0x2C), f"no block at {at}")
        if data[at] == 0x2C:
            images += 1
            flags = data[at + 9]
            at += 9 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # the code size of the pixels comes before them
        at += 2
        while data[at : at + 1] != b"\0":
            demand(at < len(data), "a block is cut")
            at += data[at] + 1
        at += 1
    demand(images > 0, "no image")


def webp_chunks(data: bytes) -> None:
    """Check that a WebP file has the bytes that it states, and a picture; what follows them may be passed over."""
    demand(data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 20, "no header")
    stated = struct.unpack("<I", data[4:8])[0] + 8
    demand(stated <= len(data), f"it states {stated} bytes and has {len(data)}")
    at, chunks = 12, set()
    while at + 8 <= stated:
        name, length = struct.unpack("<4sI", data[at : at + 8])
        demand(at + 8 + length <= stated, f"{name!r} is cut")
        chunks.add(name)
        at += 8 + length + length % 2
    demand(bool({b"VP8 ", b"VP8L", b"ANMF"} & chunks), "no picture")


def bmp_header(data: bytes) -> None:
    """Check that a BMP has the pixels that its header states."""
    demand(data[:2] == b"BM" and len(data) >= 54, "no header")
    offset, header, width, height, _, bits, packing = struct.unpack("<IIiiHHI", data[10:34])
    if header >= 40 and packing in (0, 3):
        row, last = (width * bits + 31) // 32 * 4, (width * bits + 7) // 8  # the last row may lack what fills it up
        needed = offset + row * (abs(height) - 1) + last
        demand(needed <= len(data), f"{needed} bytes needed, {len(data)} there")


# ---- sounds ------------------------------------------------------------------------------------------------------


def libsndfile(data: bytes) -> tuple[int, Array]:
    """Return rate and samples (T, C) of a sound."""
    values, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    return rate, values


def wav_chunks(data: bytes) -> None:
    """Check that a WAV file's sizes are right, and that its data is whole samples of what its format says."""
    demand(data[:4] == b"RIFF" and data[8:12] == b"WAVE", "no RIFF file of b'WAVE'")
    at, chunks = 12, {}
    while at + 8 <= len(data) and b"data" not in chunks:
        name, length = struct.unpack("<4sI", data[at : at + 8])
        if name == b"data" and length in (0, 2**32 - 1, 2**31 - 1, 2**31):
            length = len(data) - at - 8  # written into a pipe: up to the end
        chunks[name] = data[at + 8 : at + 8 + length]
        demand(len(chunks[name]) == length, f"{name!r} is cut")
        at += 8 + length + length % 2
    demand({b"fmt ", b"data"} <= set(chunks) and len(chunks[b"fmt "]) >= 16, "no format or no data")
    channels, rate, block, bits = struct.unpack("<HI4xHH", chunks[b"fmt "][2:16])
    demand(channels > 0 and rate > 0, "no channels or no rate")
    demand(block == channels * ((bits + 7) // 8), f"{block} bytes for {channels} samples of {bits} bits")
    rest = len(chunks[b"data"]) % (channels * ((bits + 7) // 8))
    counted = rest == 1 and len(chunks[b"data"]) % 2 == 0  # the byte that fills up an odd number
    demand(rest == 0 or counted, "the data ends within a sample")


def python_wave(data: bytes) -> Array | None:
    """Return the samples (T, C) of PCM, which is what Python's reader takes."""
    if len(data) < 36 or b"fmt " not in data or data[data.index(b"fmt ") + 8 :][:2] != b"\1\0":
        return None
    with wave.open(io.BytesIO(data)) as opened:
        width, channels = opened.getsampwidth(), opened.getnchannels()
        raw = opened.readframes(opened.getnframes())
        demand(len(raw) == opened.getnframes() * width * channels, "fewer samples than stated")
    if width not in (1, 2):
        return None
    values = np.frombuffer(raw, "u1" if width == 1 else "<i2").astype(np.float64).reshape(-1, channels)
    return (values - 128) / 128 if width == 1 else values / 32768


# ---- volumes -----------------------------------------------------------------------------------------------------


def numpy_array(data: bytes) -> Array:
    """Return the array (D, H, W, C) of a NumPy file, unsigned numbers in [0, 1]."""
    stream = io.BytesIO(data)
    values = np.lib.format.read_array(stream, allow_pickle=False)
    demand(not stream.read(1), "bytes after the array")
    return scaled(values)


def scaled(values: Array) -> Array:
    """Return a volume as the product does: unsigned integers divided by their largest."""
    divisor = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    values = (values.astype(np.float64) / divisor).astype(np.float32)
    return values if values.ndim == 4 else values[..., None]


def zipped_array(data: bytes) -> Array | None:
    """Return the array of a NumPy archive whose checksums are right; of several there is none to compare."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        demand(archive.testzip() is None, "a checksum of the archive is wrong")
        found = [numpy_array(archive.read(name)) for name in archive.namelist()]
    demand(bool(found), "no array")
    return found[0] if len(found) == 1 else None


# ---- meshes: triangles (n, 3, 3), in any order -----------------------------------------------------------------------


def corners(points: Any, faces: Iterator[list[int]]) -> Array:
    """Return the corners of faces cut into fans."""
    places = np.asarray(points, dtype=np.float64)[:, :3]
    found = []
    for face in faces:
        demand(len(face) >= 1, "a face without corners")  # one of two has no area, and gives none
        demand(min(face) >= 0 and max(face) < len(places), "a face names a vertex that is not there")
        found += [places[[face[0], b, c]] for b, c in itertools.pairwise(face[1:])]
    demand(bool(found), "no faces")
    return np.array(found)


def meshio_of(suffix: str) -> Reader:
    """Return a reader by meshio, which judges only: it reads less of each format than the product may."""

    def read(data: bytes) -> None:
        stream = io.BytesIO(data) if suffix != "off" else io.StringIO(data.decode())
        mesh = meshio.read(stream, file_format=suffix)
        demand(any(block.type in ("triangle", "quad", "polygon") for block in mesh.cells), "no faces")

    return read


def off_text(data: bytes) -> Array:
    """Return the triangles of an OFF file by its specification: as many lines as it states, indices in range."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    lines = [words for words in (line.partition("#")[0].split() for line in re.split(r"[\r\n]", text)) if words]
    first = re.fullmatch(r"((?:ST)?C?N?4?OFF)(\d*)", lines[0].pop(0)) if lines else None
    demand(first is not None, "no OFF")
    assert first is not None
    kind = first[1]
    lines[0] = [first[2]] * bool(first[2]) + lines[0]  # a number may be glued to it, as in the files of ModelNet
    lines = lines if lines[0] else lines[1:]
    demand("4" not in kind, "points of four coordinates")
    vertices, faces = (int(word) for word in lines[0][:2])
    demand(len(lines) == 1 + vertices + faces, f"{len(lines) - 1} lines for {vertices} vertices and {faces} faces")
    points = [[float(word) for word in words[:3]] for words in lines[1 : 1 + vertices]]
    demand(all(len(point) == 3 for point in points), "a vertex of fewer than three numbers")
    indices = []
    for words in lines[1 + vertices :]:
        count = int(words[0])
        demand(len(words) > count, "a face is cut")
        indices.append([int(word) for word in words[1 : 1 + count]])
    return corners(points, iter(indices))


def obj_text(data: bytes) -> Array:
    """Return the triangles of an OBJ file by its specification; what is neither vertex nor face is passed over."""
    text = re.sub(r"\\(\r\n|\r|\n)", " ", data.decode("utf-8-sig", "replace")).replace("\r\n", "\n").replace("\r", "\n")
    points: list[list[float]] = []
    faces: list[list[int]] = []
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if words[:1] == ["v"]:
            demand(len(words) >= 4, "a vertex of fewer than three numbers")
            points.append([float(word) for word in words[1:4]])
        elif words[:1] == ["f"]:
            given = [int(word.partition("/")[0]) for word in words[1:]]
            demand(0 not in given, "index 0")
            faces.append([index - 1 if index > 0 else len(points) + index for index in given])
    return corners(points, iter(faces))


PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
PLY_TYPES |= {"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"}
PLY_TYPES |= {"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"}


def ply_elements(data: bytes) -> Array:
    """Return the triangles of a PLY file by its header: all elements there, and nothing after them."""
    end = re.search(rb"[\r\n][ \t]*end_header[ \t]*(?=[\r\n])", data)
    demand(end is not None, "no end of the header")
    assert end is not None
    head, body = data[: end.start()].removeprefix(b"\xef\xbb\xbf"), data[end.end() :]
    body = body[2 if body.startswith(b"\r\n") and b"\n" in head else 1 :]  # a first number may begin like a line end
    lines = [line.split() for line in re.split(r"[\r\n]", head.decode("latin-1")) if line.strip()]
    demand(len(lines) > 1 and lines[0] == ["ply"], "no header")
    (form,) = (words for words in lines if words[0] == "format")
    ascii_words = iter(body.split()) if form[1] == "ascii" else None
    order = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}[form[1]]
    at = 0

    def number(name: str) -> float:
        nonlocal at
        kind = np.dtype(order + PLY_TYPES[name])
        if ascii_words is not None:
            word = next(ascii_words, None)
            demand(word is not None, "it ends early")
            return float(word)  # type: ignore[arg-type]  # whole numbers too, as numbers that nobody needs may be written
        demand(at + kind.itemsize <= len(body), "it ends early")
        at += kind.itemsize
        return np.frombuffer(body, kind, 1, at - kind.itemsize)[0].item()

    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in lines[1:]:
        if words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
        else:
            demand(words[0] in ("format", "comment", "obj_info"), f"{words[0]} in its header")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, count, properties in elements:
        demand(count < 2**20 and bool(properties), "elements without properties, or too many")
        rows[name] = []
        for _ in range(count):
            row: dict[str, Any] = {}
            for words in properties:
                if words[0] != "list":
                    row[words[1]] = number(words[0])
                    continue
                length = int(number(words[1]))
                demand(0 <= length < 2**20, f"a list of {length}")
                row[words[3]] = [int(number(words[2])) for _ in range(length)]
            rows[name].append(row)
    left = next(ascii_words, None) if ascii_words is not None else body[at:] or None
    demand(left is None, "more after its last element")
    faces = (row.get("vertex_indices", row.get("vertex_index")) for row in rows["face"])
    return corners([[row[axis] for axis in "xyz"] for row in rows["vertex"]], faces)  # type: ignore[arg-type]


def stl_triangles(data: bytes) -> Array:
    """Return the triangles of an STL file: as many as stated, or up to the end of each solid."""
    count = int.from_bytes(data[80:84], "little")
    if len(data) == 84 + 50 * count and len(data) > 84:
        rows = np.frombuffer(data, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")], offset=84)
        return rows["corners"].astype(np.float64)
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1").lower()
    demand(text.lstrip().startswith("solid"), f"it states {count} triangles and has {len(data)} bytes")
    whole = re.compile(r"\s*solid[^\n\r]*[\n\r](.*?)\bendsolid[^\n\r]*", re.DOTALL)
    facet = re.compile(
        r"\s*facet\s+normal((?:\s+\S+){3})\s+outer\s+loop((?:\s+vertex(?:\s+\S+){3}){3})\s+endloop\s+endfacet"
    )
    found, at = [], 0
    while text[at:].strip():
        solid = whole.match(text, at)
        demand(solid is not None, "no solid, or one without its end")
        assert solid is not None
        inner, at = solid.start(1), solid.end()
        while (part := facet.match(text, inner, solid.end(1))) is not None:
            found.append([float(word) for word in part[2].split() if word != "vertex"])
            inner = part.end()
        demand(not text[inner : solid.end(1)].strip(), "a facet that is none")
    demand(bool(found), "no facets")
    return np.array(found).reshape(-1, 3, 3)


def glb_buffers(data: bytes) -> None:
    """Check that a binary glTF file's lengths are right, and that its accessors lie in its buffer."""
    demand(data[:4] == b"glTF" and len(data) >= 20, "no header")
    version, length, said = struct.unpack("<3I", data[4:16])
    demand(version == 2 and length == len(data), f"version {version}, {length} bytes stated, {len(data)} there")
    demand(data[16:20] == b"JSON" and 20 + said <= len(data), "no description")
    description = json.loads(data[20 : 20 + said].decode())
    at, stated = 20 + said, 0
    while at < len(data):
        demand(at + 8 <= len(data), "a chunk is cut")
        size, kind = struct.unpack("<I4s", data[at : at + 8])
        stated = size if kind == b"BIN\0" and at == 20 + said else stated
        at += 8 + size
        demand(at <= len(data), "a chunk is cut")
    for view in description.get("bufferViews", []):
        demand(0 <= view.get("byteOffset", 0) + view["byteLength"] <= stated, "a view beyond its buffer")
    for accessor in description.get("accessors", []):
        size = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}[accessor["componentType"]]
        size *= {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}[accessor["type"]]
        if "bufferView" in accessor:
            view = description["bufferViews"][accessor["bufferView"]]
            end = accessor.get("byteOffset", 0) + size + (accessor["count"] - 1) * view.get("byteStride", size)
            demand(end <= view["byteLength"], "an accessor beyond its view")


# ---- comparisons ---------------------------------------------------------------------------------------------------


def apart(found: Any, other: Any, tolerance: float) -> str | None:
    """Return in words how two arrays differ, None where they do not."""
    found, other = np.asarray(found, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if found.shape != other.shape:
        return f"shape {found.shape} here, {other.shape} there"
    with np.errstate(invalid="ignore"):
        far = ~(np.abs(found - other) <= tolerance * np.maximum(1, np.abs(other)))
    if not far.any():
        return None
    at = tuple(int(index[0]) for index in np.nonzero(far))
    return f"{int(far.sum())} of {far.size} numbers differ, the first at {at}: {found[at]} here, {other[at]} there"


def triangles_apart(found: Array, other: Array) -> str | None:
    """Return in words how two sets of triangles differ, whichever corner comes first; flat ones do not count."""
    if not np.isfinite(other).all():
        return "NaN or Inf among the vertices there"
    return apart(*map(_sorted_triangles, (found, other)), 1e-5)


def _sorted_triangles(triangles: Array) -> Array:
    single = triangles.astype(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        area = np.linalg.norm(np.cross(single[:, 1] - single[:, 0], single[:, 2] - single[:, 0]), axis=1)
    kept = single[area > 1e-6 * np.abs(single).max(initial=1.0) ** 2]
    turned = [np.roll(triangle, -min(range(3), key=lambda i, t=triangle: tuple(t[i])), 0).ravel() for triangle in kept]
    return np.array(sorted(map(tuple, turned))).reshape(-1, 9)
