"""Small valid files of every format, written by other programs than the product wherever there is one."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import wave
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import meshio
import numpy as np
import png
import soundfile
import tifffile
from PIL import Image

HEIGHT, WIDTH = 6, 7


def _draw(*shape: int, bits: int = 8) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(sum(shape)).integers(0, 2**bits, shape)
    return drawn.astype(np.uint8 if bits <= 8 else np.uint16)


def _written(write: Callable[[Any], object], name: str | None = None) -> bytes:
    """Return what a writer wrote, into memory or into a file of this name."""
    if name is None:
        stream = io.BytesIO()
        write(stream)
        return stream.getvalue()
    with TemporaryDirectory() as folder:
        write(str(Path(folder, name)))
        return Path(folder, name).read_bytes()


# ---- images ------------------------------------------------------------------------------------------------------


@cache
def png_files() -> list[bytes]:
    """PNG of every colour type and depth, plain and interlaced, with and without transparent colours, by pypng."""
    found = []
    for planes, bits in ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 8), (2, 16), (3, 8), (3, 16), (4, 8), (4, 16)):
        rows = _draw(HEIGHT, WIDTH * planes, bits=bits).tolist()
        options: dict[str, Any] = {"greyscale": planes < 3, "alpha": planes in (2, 4), "bitdepth": bits}
        for more in ({}, {"interlace": True}, {"transparent": tuple(rows[0][:planes]) if planes == 3 else rows[0][0]}):
            if "transparent" in more and planes in (2, 4):
                continue
            writer = png.Writer(WIDTH, HEIGHT, **options, **more)
            found.append(_written(lambda stream, writer=writer, rows=rows: writer.write(stream, rows)))
    for bits in (1, 2, 4, 8):
        for channels in (3, 4):
            palette = [tuple(map(int, row)) for row in _draw(2**bits, channels)]
            writer = png.Writer(WIDTH, HEIGHT, palette=palette, bitdepth=bits)
            rows = _draw(HEIGHT, WIDTH, bits=bits).tolist()
            found.append(_written(lambda stream, writer=writer, rows=rows: writer.write(stream, rows)))
    return found


@cache
def tiff_files() -> list[bytes]:
    """TIFF of many types, layouts, compressions and numbers of pages, by tifffile and by Pillow."""
    grey, colour = _draw(HEIGHT, WIDTH), _draw(HEIGHT, WIDTH, 3)
    wide: list[tuple[np.ndarray[Any, Any], dict[str, Any]]] = [
        (grey, {}),
        (colour, {"photometric": "rgb"}),
        (_draw(HEIGHT, WIDTH, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (_draw(HEIGHT, WIDTH, bits=16), {}),
        (_draw(HEIGHT, WIDTH, 3, bits=16), {"photometric": "rgb"}),
        (_draw(3, HEIGHT, WIDTH), {"photometric": "rgb", "planarconfig": "separate"}),
        (grey, {"photometric": "miniswhite"}),
        (grey.astype(np.int16), {}),
        (grey.astype(np.uint32), {}),
        (grey.astype(np.int32), {}),
        (grey.astype(np.float32) / 255, {}),
        (colour, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
        (colour, {"photometric": "rgb", "rowsperstrip": 2}),
        (_draw(32, 32), {"tile": (16, 16)}),
        (_draw(2, HEIGHT, WIDTH), {"photometric": "minisblack"}),
        (grey > 127, {}),
    ]
    found = []
    for order, big in (("<", False), (">", False), ("<", True)):
        for pixels, options in wide:
            with io.BytesIO() as stream:
                with tifffile.TiffWriter(stream, byteorder=order, bigtiff=big) as writer:  # type: ignore[arg-type]
                    writer.write(pixels, metadata=None, software=False, **options)
                found.append(stream.getvalue())
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        picture = Image.fromarray(colour)
        found.append(_written(lambda s, p=picture, c=compression: p.save(s, "TIFF", compression=c)))
    bilevel = Image.fromarray(grey).convert("1")
    found.append(_written(lambda stream: bilevel.save(stream, "TIFF", compression="group4")))
    return found


@cache
def pillow_files(name: str) -> list[bytes]:
    """Files of one of Pillow's formats, in every mode that it writes."""
    found = []
    options: tuple[dict[str, Any], ...] = ({},)
    if name == "JPEG":
        options = ({}, {"progressive": True}, {"quality": 20, "subsampling": 2}, {"restart_marker_blocks": 1})
    if name == "WEBP":
        options = ({}, {"lossless": True}, {"quality": 10})
    for mode, more in itertools.product(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"), options):
        pixels = _draw(HEIGHT, WIDTH, 4)
        picture = Image.fromarray(pixels, "RGBA")
        try:
            if mode == "I;16":
                picture = Image.fromarray(_draw(HEIGHT, WIDTH, bits=16))
            else:
                picture = picture.convert("RGB").convert(mode) if mode in ("1", "L", "P") else picture.convert(mode)
            found.append(_written(lambda stream, p=picture, m=more: p.save(stream, name, **m)))
        except (OSError, ValueError, KeyError):
            continue
    if name in ("GIF", "WEBP", "PNG"):
        first, second = (Image.fromarray(_draw(HEIGHT, WIDTH, 3 + extra)[..., :3].copy()) for extra in (0, 1))
        found.append(_written(lambda stream: first.save(stream, name, save_all=True, append_images=[second])))
    return found


PROGRAMS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 moveto 8 8 lineto stroke\nshowpage\n%%EOF\n",
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Count 0/Kids[]>>endobj\ntrailer<<>>\n",
    b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, 60, 0, 0, 0, 0) + b"\xff\xff\0\0%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'><image href='file:///etc/passwd'/></svg>\n",
)
"""Files that a reader of pictures may hand to another program."""


# ---- sounds ------------------------------------------------------------------------------------------------------


@cache
def wav_files() -> list[bytes]:
    """WAV of every width, mono and stereo, by libsndfile, by Python's own writer, and with chunks around the data."""
    values = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    found = []
    for subtype, kind in itertools.product(
        ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"), ("WAV", "WAVEX")
    ):
        for channels in (1, 2):
            part = values[:, :channels]
            found.append(_written(lambda s, p=part, t=subtype, k=kind: soundfile.write(s, p, 8000, t, format=k), None))

    found = [re.sub(rb"(PEAK.{8}).{4}", rb"\1\0\0\0\0", data, flags=re.DOTALL) for data in found]  # the time

    def plain(stream: Any) -> None:
        with wave.open(stream, "wb") as writer:
            writer.setparams((2, 2, 44100, 0, "NONE", ""))
            writer.writeframes((values * 30000).astype("<i2").tobytes())

    found.append(_written(plain))
    title = b"LIST" + struct.pack("<I", 18) + b"INFOINAM" + struct.pack("<I", 5) + b"title\0"
    body = found[-1][12:36] + title + found[-1][36:] + title
    found.append(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body)
    return found


@cache
def sound_files(kind: str) -> list[bytes]:
    """FLAC or Ogg files by libsndfile."""
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (300, 2))
    subtypes = {"FLAC": ("PCM_S8", "PCM_16", "PCM_24"), "OGG": ("VORBIS", "OPUS")}[kind]
    found = [
        _written(lambda s, t=subtype, c=channels: soundfile.write(s, values[:, :c], 48000, t, format=kind))
        for subtype in subtypes
        for channels in (1, 2)
    ]
    return found if kind == "FLAC" else [right_pages(data, serial=1) for data in found]


def right_pages(data: bytes, serial: int | None = None) -> bytes:
    """Return an Ogg file with the right checksum in every page, and the same serial number if one is given."""
    starts = [match.start() for match in re.finditer(b"OggS", data)]
    pages = [bytearray(data[start:stop]) for start, stop in itertools.pairwise([*starts, len(data)])]
    for page in pages:
        if len(page) < 27:
            continue
        if serial is not None:  # libsndfile draws it from the time
            page[14:18] = struct.pack("<I", serial)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(page))
    return data[: starts[0] if starts else len(data)] + b"".join(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """Return the checksum of RFC 3533: of polynomial 0x04C11DB7, the highest bit first."""
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = found << 1 ^ (0x104C11DB7 if found & 0x80000000 else 0)
    return found


# ---- volumes -----------------------------------------------------------------------------------------------------


def volumes() -> Iterator[np.ndarray[Any, Any]]:
    """Yield arrays of every kind that a volume may have, and some that it may not."""
    values = np.random.default_rng(0).integers(0, 2, (3, 4, 5))
    for name in (
        "?",
        "u1",
        "<u2",
        ">u2",
        "<u4",
        "<u8",
        "<f2",
        "<f4",
        ">f4",
        "<f8",
        ">f8",
        "<i4",
        "<c8",
        "S3",
        "<M8[s]",
    ):
        yield values.astype("<i8").astype(name)
    yield np.asfortranarray(values.astype(np.float32))
    yield values[..., None].repeat(3, 3).astype(np.uint8)


@cache
def npy_files() -> list[bytes]:
    """NumPy files of all three versions of the format."""
    found = []
    for values in volumes():
        for version in ((1, 0), (2, 0), (3, 0)):
            found.append(
                _written(lambda s, v=values, w=version: np.lib.format.write_array(s, v, w, allow_pickle=False))
            )
    pickled = np.array([[[{"a": 1}]]], dtype=object)
    found.append(_written(lambda stream: np.lib.format.write_array(stream, pickled, allow_pickle=True)))
    return found


@cache
def npz_files() -> list[bytes]:
    """NumPy archives of one array and of two, stored and compressed."""
    found = []
    for values in volumes():
        found.append(_written(lambda stream, v=values: np.savez(stream, volume=v)))
        found.append(_written(lambda stream, v=values: np.savez_compressed(stream, v)))
    found.append(_written(lambda stream: np.savez(stream, a=np.zeros((2, 2, 2)), b=np.ones((3, 3, 3)))))
    return found


# ---- meshes ------------------------------------------------------------------------------------------------------

POINTS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1.5)])
QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]], dtype=np.int32)
TRIANGLES = np.concatenate([QUADS[:, [0, 1, 2]], QUADS[:, [0, 2, 3]]])


@cache
def mesh_files(suffix: str) -> list[bytes]:
    """Cubes of triangles and of quadrilaterals, by meshio, and hand-written ones with what else a format has."""
    binary = {"ply": (True, False), "stl": (True, False)}.get(suffix, (None,))
    found = []
    for cells, flag in itertools.product(([("triangle", TRIANGLES)], [("quad", QUADS)]), binary):
        if suffix in ("stl", "off") and cells[0][0] == "quad":
            continue
        options = {} if flag is None else {"binary": flag}
        mesh = meshio.Mesh(POINTS, cells)
        data = _written(lambda path, m=mesh, o=options: m.write(path, **o), f"mesh.{suffix}")
        found.append(re.sub(rb"(Created by meshio|Written by meshio)[^\r\n]*", b"A comment", data))  # with the time
    return found + [text.encode() for text in WRITTEN_MESHES.get(suffix, ())]


def _rows(rows: np.ndarray[Any, Any], form: str = "{}") -> str:
    return "".join(form.format(" ".join(map(str, row))) + "\n" for row in rows.tolist())


WRITTEN_MESHES = {
    "obj": (
        "mtllib none.mtl\no cube\n" + _rows(POINTS, "v {} 1 0 0") + "vt 0 0\nvn 0 0 1\nusemtl red\ns off\n"
        "f 1/1/1 2/1/1 4/1/1 3/1/1\nf -4//1 -2//1 -1//1 -3//1\ng side\nf 1/1 5/1 6/1 2/1 # why\nl 1 2\n",
        _rows(POINTS, "v\t{}") + "".join(f"f {a + 1} \\\n {b + 1} {c + 1}\n" for a, b, c in TRIANGLES.tolist()),
    ),
    "off": (
        f"OFF\n8 6 12\n{_rows(POINTS)}" + "".join(f"4 {' '.join(map(str, row))}\n" for row in QUADS.tolist()),
        f"COFF\n# colours\n8 6 12\n{_rows(POINTS, '{} 255 0 0 255')}"
        + "".join(f"4 {' '.join(map(str, row))} 0.1 0.2 0.3\n" for row in QUADS.tolist()),
    ),
    "ply": (
        "ply\nformat ascii 1.0\ncomment by hand\nelement vertex 8\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nelement face 6\nproperty list uchar int vertex_indices\n"
        "property float quality\nelement edge 1\nproperty int vertex1\nproperty int vertex2\nend_header\n"
        + _rows(POINTS, "{} 7")
        + "".join(f"4 {' '.join(map(str, row))} 0.5\n" for row in QUADS.tolist())
        + "0 1\n",
    ),
    "stl": (
        "solid a b\n"
        + "".join(
            "facet normal 0 0 1\nouter loop\n" + _rows(POINTS[row], "vertex {}") + "endloop\nendfacet\n"
            for row in TRIANGLES
        )
        + "endsolid a b\n",
    ),
}


@cache
def glb_files() -> list[bytes]:
    """A cube as binary glTF: with short and long indices, one with a node that moves it and one without."""
    return [glb(*_gltf(np.dtype(kind), moved)) for kind in ("<u1", "<u2", "<u4") for moved in (False, True)]


def _gltf(kind: np.dtype[Any], moved: bool) -> tuple[dict[str, Any], bytes]:
    points, faces = POINTS.astype("<f4").tobytes(), TRIANGLES.astype(kind).tobytes()
    code = {1: 5121, 2: 5123, 4: 5125}[kind.itemsize]
    node: dict[str, Any] = {"mesh": 0, "translation": [1, 2, 3], "scale": [2, 2, 2]} if moved else {"mesh": 0}
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 4}]}],
        "buffers": [{"byteLength": len(points + faces)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(points)},
            {"buffer": 0, "byteOffset": len(points), "byteLength": len(faces)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(POINTS), "type": "VEC3"}
            | {"min": POINTS.min(0).tolist(), "max": POINTS.max(0).tolist()},
            {"bufferView": 1, "componentType": code, "count": TRIANGLES.size, "type": "SCALAR"},
        ],
    }, points + faces


def glb(description: Any, data: bytes, text: str | None = None) -> bytes:
    """Return a binary glTF file of a description (or its text) and a buffer."""
    said = (json.dumps(description) if text is None else text).encode()
    said += b" " * (-len(said) % 4)
    data += b"\0" * (-len(data) % 4)
    chunks = struct.pack("<I4s", len(said), b"JSON") + said + struct.pack("<I4s", len(data), b"BIN\0") + data
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks
