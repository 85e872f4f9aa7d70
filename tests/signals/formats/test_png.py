"""PNG files of another writer come out exactly, and no altered bit passes for a pixel."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import png
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inrfast.errors import MemoryBudgetError
from inrfast.signals.formats.raster import oriented
from inrfast.signals.image import load_image

KINDS = [
    *((bits, 1, keyed) for bits in (1, 2, 4, 8, 16) for keyed in (False, True)),
    *((bits, channels, keyed) for bits in (8, 16) for channels, keyed in ((2, False), (3, False), (3, True))),
    *((bits, 4, False) for bits in (8, 16)),
]
"""Bits, samples per pixel, and whether one colour stands for "transparent"."""


def samples(bits: int, channels: int, height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, (height, width, channels))


def by_pypng(pixels: np.ndarray, bits: int, keyed: bool = False, interlace: bool = False) -> bytes:
    channels, file = pixels.shape[2], io.BytesIO()
    key = None if not keyed else tuple(map(int, pixels[0, 0])) if channels == 3 else int(pixels[0, 0, 0])
    writer = png.Writer(
        pixels.shape[1],
        pixels.shape[0],
        bitdepth=bits,
        greyscale=channels < 3,
        alpha=channels in (2, 4),
        transparent=key,
        interlace=interlace,
    )
    writer.write(file, pixels.reshape(len(pixels), -1).tolist())
    return file.getvalue()


def meant(pixels: np.ndarray, bits: int, keyed: bool = False) -> np.ndarray:
    """Return what the samples stand for: colours and opacity (H, W, 4), fp32."""
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, 2)
    opacity = pixels[..., -1:] if pixels.shape[2] in (2, 4) else np.full_like(pixels[..., :1], 2**bits - 1)
    if keyed:
        opacity = (pixels != pixels[0, 0]).any(2, keepdims=True) * (2**bits - 1)
    return np.concatenate([colours, opacity], 2).astype(np.float32) / np.float32(2**bits - 1)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def states(width: int, height: int, bits: int, kind: int, packed: bytes, *further: bytes) -> bytes:
    """Return a PNG of a header, some data, and right checksums."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *further, chunk(b"IDAT", packed), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.booleans(), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_every_layout_keeps_all_of_its_bits(
    tmp_path_factory: pytest.TempPathFactory,
    kind: tuple[int, int, bool],
    interlace: bool,
    height: int,
    width: int,
    seed: int,
) -> None:
    bits, channels, keyed = kind
    pixels = samples(bits, channels, height, width, seed)
    path = tmp_path_factory.mktemp("png") / "a.picture"  # the content decides, not the name
    path.write_bytes(by_pypng(pixels, bits, keyed, interlace))
    np.testing.assert_array_equal(load_image(path, alpha=True).numpy(), meant(pixels, bits, keyed))


@pytest.mark.parametrize(("bits", "channels"), [(8, 3), (16, 2)])
def test_an_altered_bit_is_refused(tmp_path: Path, bits: int, channels: int) -> None:
    content = by_pypng(samples(bits, channels, 9, 11, 0), bits)
    path, random = tmp_path / "a.png", np.random.default_rng(0)
    last = [(len(content) - 1 - byte, bit) for byte in range(60) for bit in range(8)]
    for where, bit in last + [(int(random.integers(len(content))), int(random.integers(8))) for _ in range(100)]:
        altered = bytearray(content)
        altered[where] ^= 1 << bit
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"a\.png is"):
            load_image(path)
    for kept in range(1, len(content), 17):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"a\.png is"):
            load_image(path)


def test_with_right_checksums_another_reader_decides(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "a.png"
    for bits, channels in itertools.product((8, 16), (1, 3)):
        raw = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in samples(bits, channels, 9, 11, 0))
        packed = zlib.compress(raw)
        for _ in range(40):
            altered = bytearray(packed)
            altered[int(random.integers(len(packed)))] = int(random.integers(256))
            content = states(11, 9, bits, {1: 0, 3: 2}[channels], bytes(altered))
            path.write_bytes(content)
            try:
                got = load_image(path).numpy()
            except ValueError:
                continue
            rows = np.array([list(row) for row in png.Reader(bytes=content).read()[2]]).reshape(9, 11, channels)
            np.testing.assert_array_equal(got, meant(rows, bits)[..., :3])


@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (8, 1), (8, 3), (16, 3)])
def test_pixels_are_as_many_as_the_header_states(tmp_path: Path, bits: int, channels: int) -> None:
    path, kind, width = tmp_path / "a.png", {1: 0, 3: 2}[channels], 11
    row = bytes(1 + -(-width * bits * channels // 8))
    for rows in (1, 6, 8, 9, 10, 40):
        for packed in (zlib.compress(rows * row), zlib.compress(rows * row)[:-5], zlib.compress(rows * row + b"0")):
            path.write_bytes(states(width, 9, bits, kind, packed))
            if rows == 9 and packed == zlib.compress(rows * row):
                assert load_image(path).shape == (9, width, 3)
                continue
            with pytest.raises(ValueError, match=r"a\.png is"):
                load_image(path)


def test_stated_sizes_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for bits, kind in itertools.product((8, 16), (0, 2, 4, 6)):
        path.write_bytes(states(2**20, 2**20, bits, kind, zlib.compress(bytes(2**16))))
        with pytest.raises(ValueError, match="1048576x1048576 pixels, more than"):
            load_image(path, 16)
        path.write_bytes(states(2**12, 2**12, bits, kind, bytes(2**20)))  # which cannot be decoded
        with pytest.raises(MemoryBudgetError, match=r"4096x4096 pixels.* pixels fit"):
            load_image(path, 16, memory_budget=2**23)
        with pytest.raises(ValueError, match="damaged"):
            load_image(path, 16)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("turned", range(1, 9))
def test_the_camera_s_orientation_is_applied_to_all_bits(tmp_path: Path, bits: int, late: bool, turned: int) -> None:
    pixels = samples(bits, 3, 3, 5, 0)
    content = by_pypng(pixels, bits)
    exif = Image.Exif()
    exif[0x0112] = turned
    at = len(content) - 12 if late else 33  # before the end, or behind the header
    content = content[:at] + chunk(b"eXIf", exif.tobytes()[6:]) + content[at:]
    (tmp_path / "a.png").write_bytes(content)
    got = load_image(tmp_path / "a.png").numpy()
    right = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    right |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
    np.testing.assert_array_equal(got, meant(right[turned](pixels), bits)[..., :3])
    np.testing.assert_array_equal(oriented(pixels, turned), right[turned](pixels))


def test_frames_are_named(tmp_path: Path) -> None:
    frames = [Image.fromarray(samples(8, 3, 4, 5, seed).astype(np.uint8)) for seed in range(3)]
    for name in ("a.png", "a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        with pytest.raises(ValueError, match=r"holds 3 pages or frames: say which one, page 0 to page 2"):
            load_image(tmp_path / name)
        with pytest.raises(ValueError, match="page must be below"):
            load_image(tmp_path / name, page=3)
    for page, frame in enumerate(frames):
        expected = torch.from_numpy(np.asarray(frame).astype(np.float32)) / 255
        assert torch.equal(load_image(tmp_path / "a.png", page=page), expected)
    with pytest.raises(ValueError, match="page"):
        load_image(tmp_path / "a.png", page=-1)
    deep = states(5, 4, 16, 0, zlib.compress(bytes(4 * 11)), chunk(b"acTL", struct.pack(">II", 2, 0)))
    (tmp_path / "deep.png").write_bytes(deep)
    with pytest.raises(ValueError, match="2 frames of 16 bits"):
        load_image(tmp_path / "deep.png", page=0)
