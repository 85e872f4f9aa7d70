"""The formats of images, sounds, volumes and meshes: valid files, mutations that know them, and who else reads them."""

from __future__ import annotations

import json
import random
import struct
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz import readers, seeds
from fuzz.formats import Format
from fuzz.laws import GROWTH
from fuzz.mutations import dump_json, mutate_bytes, mutate_json, mutate_text
from inrfast.errors import InrfastError
from inrfast.memory import budget_bytes
from inrfast.signals.audio import load_audio
from inrfast.signals.image import load_image
from inrfast.signals.mesh import load_mesh
from inrfast.signals.points import load_points
from inrfast.signals.video import load_video
from inrfast.signals.volume import load_volume

# ---- what is read, and how readings differ -------------------------------------------------------------------------


def _pixels_apart(found: Any, other: Any) -> str | None:
    return readers.apart(found[..., : other.shape[-1]], other, 1e-6) if found.ndim == other.ndim else "dimensions"


def _colours_apart(found: Any, other: Any) -> str | None:
    return _pixels_apart(found, np.broadcast_to(other, (*other.shape[:2], 3)) if other.shape[-1] == 1 else other)


def _sounds_apart(found: Any, other: Any) -> str | None:
    values, rate = found
    if isinstance(other, tuple):
        if other[0] != rate:
            return f"{rate} Hz here, {other[0]} Hz there"
        other = other[1]
    return readers.apart(values, other, 1e-6)


def _opaque(path: Path) -> Any:
    return load_image(path, alpha=True).numpy()


def _clip(path: Path) -> Any:
    return load_video(path)[0].numpy()


def _cloud(path: Path) -> Any:
    return load_points(path).points.numpy()


def _triangles(path: Path) -> Any:
    return load_mesh(path).triangles


# ---- mutations and repairs that know a format ----------------------------------------------------------------------


def _right_checksums(data: bytes) -> bytes:
    """Return a PNG with the right checksum after every chunk whose length leads to another one."""
    found, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        found += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return found + data[at:]


def _right_riff(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] if len(data) >= 8 else data


def _mutate_pixels(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Mutate a PNG's pixels before they are compressed, or what is stated about them."""
    at = data.find(b"IDAT")
    if at < 0:
        return mutate_bytes(data, other, rng)
    length = int.from_bytes(data[at - 4 : at], "big")
    pixels = zlib.compress(mutate_bytes(zlib.decompress(data[at + 4 : at + 4 + length]), b"", rng))
    return _right_checksums(
        data[: at - 4] + struct.pack(">I", len(pixels)) + b"IDAT" + pixels + data[at + 4 + length :]
    )


def _mutate_array_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Mutate the words of a NumPy file's header, and state its right length."""
    wide = data[6:7] != b"\1"
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    header = mutate_text(data[start : start + length], b"", rng)[: 2 ** (32 if wide else 16) - 1]
    return data[:8] + len(header).to_bytes(start - 8, "little") + header + data[start + length :]


def _mutate_archive(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Mutate an array within a NumPy archive, or the names of its members."""
    stream = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(stream, "w", rng.choice((0, 8))) as new:
        for name in old.namelist():
            content = rng.choice((mutate_bytes, _mutate_array_header))(old.read(name), b"", rng)
            names = (name, name, name, "../" + name, "/tmp/" + name, name * 100, "é.npy", "a.txt", "a/b.npy")
            new.writestr(zipfile.ZipInfo(rng.choice(names)), content)
    return stream.getvalue()


def _mutate_gltf(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Mutate the description in a binary glTF file, and keep all lengths right."""
    length = int.from_bytes(data[12:16], "little")
    description = mutate_json(json.loads(data[20 : 20 + length]), rng)
    return seeds.glb(None, data[28 + length :], dump_json(description))


def _right_gltf(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", len(data)) + data[12:] if len(data) >= 12 else data


# ---- the formats ---------------------------------------------------------------------------------------------------


def _pillow_format(name: str, suffix: str, **others: readers.Reader) -> Format:
    return Format(name.lower(), suffix, lambda: seeds.pillow_files(name), _opaque, {"pillow": readers.pillow, **others})


def _any_picture() -> list[bytes]:
    """Return a file of every format that Pillow writes, and those that other programs would be started for."""
    Image.init()
    rest = [name for name in sorted(Image.SAVE) if name not in ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP")]
    return [*(file for name in rest for file in seeds.pillow_files(name)[:2]), *seeds.PROGRAMS]


TEXT = (mutate_text, mutate_text, mutate_bytes)

IMAGES = (
    Format(
        "png",
        ".png",
        seeds.png_files,
        _opaque,
        {"png_chunks": readers.png_chunks, "pypng": readers.pypng, "pillow": readers.pillow},
        _pixels_apart,
        (mutate_bytes, mutate_bytes, _mutate_pixels),
        _right_checksums,
    ),
    Format(
        "tiff",
        ".tiff",
        seeds.tiff_files,
        _opaque,
        {"tifffile": readers.tiff_pages},
        _colours_apart,
    ),
    _pillow_format("JPEG", ".jpg", jpeg_segments=readers.jpeg_segments),
    _pillow_format("WEBP", ".webp", webp_chunks=readers.webp_chunks),
    _pillow_format("GIF", ".gif", gif_blocks=readers.gif_blocks),
    _pillow_format("BMP", ".bmp", bmp_header=readers.bmp_header),
    Format("clip", ".gif", lambda: seeds.pillow_files("GIF"), _clip, {"gif_blocks": readers.gif_blocks}),
    Format("webp clip", ".webp", lambda: seeds.pillow_files("WEBP"), _clip, {"webp_chunks": readers.webp_chunks}),
    Format("picture", ".png", _any_picture, _opaque, {"pillow": readers.pillow}),
)

CLOUDS = [b"# x y z\n0 1 2.5\n1e-3 -4 5\n", b"0 0 1 0 0 1\n1 1 1 0 1 0\n"]

OTHERS = (
    Format(
        "wav",
        ".wav",
        seeds.wav_files,
        load_audio,
        {"wav_chunks": readers.wav_chunks, "libsndfile": readers.libsndfile, "wave": readers.python_wave},
        _sounds_apart,
        repair=_right_riff,
    ),
    Format(
        "flac",
        ".flac",
        lambda: seeds.sound_files("FLAC"),
        load_audio,
        {"libsndfile": readers.libsndfile},
        _sounds_apart,
    ),
    Format(
        "ogg",
        ".ogg",
        lambda: seeds.sound_files("OGG"),
        load_audio,
        {"libsndfile": readers.libsndfile},
        _sounds_apart,
        repair=seeds.right_pages,
    ),
    Format(
        "npy",
        ".npy",
        seeds.npy_files,
        load_volume,
        {"numpy": readers.numpy_array},
        lambda found, other: readers.apart(found, other, 0.0),
        (mutate_bytes, _mutate_array_header),
    ),
    Format(
        "npz",
        ".npz",
        seeds.npz_files,
        load_volume,
        {"numpy": readers.zipped_array},
        lambda found, other: readers.apart(found, other, 0.0),
        (mutate_bytes, _mutate_archive),
    ),
    Format(
        "obj",
        ".obj",
        lambda: seeds.mesh_files("obj"),
        _triangles,
        {"obj_text": readers.obj_text},
        readers.triangles_apart,
        TEXT,
    ),
    Format(
        "off",
        ".off",
        lambda: seeds.mesh_files("off"),
        _triangles,
        {"off_text": readers.off_text},
        readers.triangles_apart,
        TEXT,
    ),
    Format(
        "xyz", ".xyz", lambda: [b"# x y z\n0 1 2.5\n1e-3 -4 5\n", b"0 0 1 0 0 1\n1 1 1 0 1 0\n"], _cloud, mutations=TEXT
    ),
    Format("cloud", ".ply", lambda: seeds.mesh_files("ply"), _cloud, mutations=TEXT),
    Format(
        "ply",
        ".ply",
        lambda: seeds.mesh_files("ply"),
        _triangles,
        {"ply_elements": readers.ply_elements},
        readers.triangles_apart,
        TEXT,
    ),
    Format(
        "stl",
        ".stl",
        lambda: seeds.mesh_files("stl"),
        _triangles,
        {"stl_triangles": readers.stl_triangles},
        readers.triangles_apart,
        TEXT,
    ),
    Format(
        "glb",
        ".glb",
        seeds.glb_files,
        _triangles,
        {"glb_buffers": readers.glb_buffers},
        None,
        (mutate_bytes, _mutate_gltf),
        _right_gltf,
    ),
)

DOCUMENTED = (ValueError, OSError, InrfastError)

FORMATS = (
    *(replace(form, refusals=DOCUMENTED, growth=lambda: GROWTH + budget_bytes(None)) for form in IMAGES),
    *(replace(form, refusals=DOCUMENTED) for form in OTHERS),
)
"""All of them. The few bytes of an image may well stand for many pixels: as many as the default budget takes."""
