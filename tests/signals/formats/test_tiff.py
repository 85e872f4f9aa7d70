"""TIFF files of other writers come out exactly in every layout; what is not stated or not there is refused."""

import io
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inrfast.errors import MemoryBudgetError
from inrfast.signals.formats.raster import oriented
from inrfast.signals.image import load as loaded
from inrfast.signals.image import load_image

logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    kind = np.dtype(dtype)
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def by_tifffile(pixels: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **how)
    return file.getvalue()


def fp32(pixels: np.ndarray, largest: int | None = None) -> np.ndarray:
    """Return what unsigned integers stand for, rounded once."""
    largest = np.iinfo(pixels.dtype).max if largest is None else largest
    return (pixels.astype(np.longdouble) / largest).astype(np.float32)


def load(tmp_path: Path, content: bytes, **how: object) -> np.ndarray:
    (tmp_path / "a.picture").write_bytes(content)  # the content decides, not the name
    return load_image(tmp_path / "a.picture", **how).numpy()


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["u1", "u2", "u4"]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([None, "lzw", "deflate", "packbits", "zstd"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"tile": (16, 32)}, {"rowsperstrip": 3}]),
    st.sampled_from("<>"),
    st.booleans(),
    st.integers(1, 8),
    st.tuples(st.integers(1, 20), st.integers(1, 40)),
)
def test_every_layout_keeps_all_of_its_bits(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    channels: int,
    compression: str | None,
    planar: bool,
    predictor: bool,
    layout: dict[str, object],
    byteorder: str,
    big: bool,
    turned: int,
    sides: tuple[int, int],
) -> None:
    pixels = noise((*sides, channels), dtype)
    grey = channels == 1
    content = by_tifffile(
        pixels[..., 0] if grey else np.moveaxis(pixels, 2, 0) if planar else pixels,
        photometric="minisblack" if grey else "rgb",
        planarconfig=None if grey else "separate" if planar else "contig",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression=compression,
        predictor=predictor and compression not in (None, "packbits"),
        byteorder=byteorder,
        bigtiff=big,
        extratags=[(274, "H", 1, turned, True)],
        **layout,
    )
    got = load(tmp_path_factory.mktemp("tiff"), content, alpha=None if channels == 4 else False)
    expected = fp32(oriented(np.repeat(pixels, 3, 2) if grey else pixels, turned))
    if channels == 4 and got.shape[2] == 3:  # opaque everywhere
        assert bool((pixels[..., 3] == np.iinfo(pixels.dtype).max).all())
        expected = expected[..., :3]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "u4"])
def test_greys_whose_zero_is_white_are_turned(tmp_path: Path, dtype: str) -> None:
    pixels = noise((5, 7), "u1") > 99 if dtype == "?" else noise((5, 7), dtype)
    largest = 1 if dtype == "?" else np.iinfo(pixels.dtype).max
    for photometric, expected in (("minisblack", pixels), ("miniswhite", largest - pixels.astype("u8"))):
        got = load(tmp_path, by_tifffile(pixels, photometric=photometric))
        np.testing.assert_array_equal(got, fp32(np.repeat(expected[..., None], 3, 2), largest))


def test_palettes_keep_their_sixteen_bits(tmp_path: Path) -> None:
    pixels, palette = noise((5, 7), "u1"), noise((3, 256), "u2")
    got = load(tmp_path, by_tifffile(pixels, photometric="palette", colormap=palette))
    np.testing.assert_array_equal(got, fp32(palette.T[pixels]))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colours_are_divided_by_the_opacity_they_are_multiplied_by(tmp_path: Path, dtype: str) -> None:
    pixels = noise((5, 7, 4), dtype)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    pixels[0, 0] = 0
    got = load(tmp_path, by_tifffile(pixels, photometric="rgb", extrasamples=["assocalpha"]), alpha=True)
    np.testing.assert_array_equal(got[..., 3], fp32(pixels[..., 3]))
    seen = pixels[..., :3].astype(np.float64) / np.maximum(pixels[..., 3:], 1)
    np.testing.assert_allclose(got[..., :3], seen, atol=1e-6)


PILLOWS = [
    *((mode, how) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16") for how in ("raw", "tiff_lzw")),
    *(
        (mode, how)
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16")
        for how in ("tiff_adobe_deflate", "packbits")
    ),
    ("1", "group4"),
    *((mode, "jpeg") for mode in ("L", "RGB", "CMYK")),
]


@pytest.mark.parametrize(("mode", "compression"), PILLOWS)
def test_what_pillow_writes_is_read_as_pillow_reads_it(tmp_path: Path, mode: str, compression: str) -> None:
    path = tmp_path / "a.tif"
    if mode in ("I;16", "LAB"):
        picture = Image.frombytes(mode, (40, 24), noise((24, 40, 2 if mode == "I;16" else 3), "u1").tobytes())
    else:
        picture = Image.fromarray(noise((24, 40, 3), "u1")).convert(mode)
    picture.save(path, compression=compression)
    with Image.open(path) as read:
        pixels = np.asarray(read) if mode == "I;16" else np.asarray(read.convert("RGB"))
    expected = fp32(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))
    if compression == "jpeg":
        np.testing.assert_allclose(load_image(path).numpy(), expected, atol=4 / 255)  # of another decoder
    else:
        np.testing.assert_array_equal(load_image(path).numpy(), expected)
    assert loaded(path, alpha=None).transparent is False


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "c8"])
def test_samples_without_a_stated_range_are_refused(tmp_path: Path, dtype: str) -> None:
    for photometric, shape in (("minisblack", (5, 7)), ("rgb", (5, 7, 3))):
        content = by_tifffile(np.zeros(shape, dtype), photometric=photometric)
        with pytest.raises(ValueError, match="without a stated range; convert"):
            load(tmp_path, content)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("how", [{}, {"planarconfig": "separate"}, {"tile": (16, 16), "compression": "deflate"}])
def test_floats_in_the_unit_interval_are_themselves(
    tmp_path: Path, dtype: str, channels: int, how: dict[str, object]
) -> None:
    pixels = np.random.default_rng(0).random((9, 11, channels)).astype(dtype)
    pixels[0, 0], pixels[-1, -1] = 0, 1  # both ends are in
    colours = 3 if channels > 2 else 1
    if channels == 1:
        how = {key: value for key, value in how.items() if key != "planarconfig"}
    for byteorder in "<>":
        content = by_tifffile(
            pixels[..., 0] if channels == 1 else np.moveaxis(pixels, 2, 0) if "planarconfig" in how else pixels,
            photometric="rgb" if colours == 3 else "minisblack",
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            planarconfig=how.get("planarconfig", None if channels == 1 else "contig"),
            byteorder=byteorder,
            **{key: value for key, value in how.items() if key != "planarconfig"},
        )
        got = load(tmp_path, content, grey=None, alpha=None)
        np.testing.assert_array_equal(got, pixels.astype(np.float32))


def test_floats_beyond_the_unit_interval_are_refused_with_their_range(tmp_path: Path) -> None:
    for value, words in ((1.5, "from 0 to 1.5"), (-0.25, "from -0.25 to 0"), (np.nan, "NaN"), (np.inf, "to inf")):
        pixels = np.zeros((5, 7), np.float32)
        pixels[2, 3] = value
        with pytest.raises(ValueError, match=rf"floating-point pixels with .*{words}.*scale them to \[0, 1\]"):
            load(tmp_path, by_tifffile(pixels, photometric="minisblack"))
    with pytest.raises(ValueError, match="32 bits per sample of the photometric interpretation 8"):
        load(tmp_path, by_tifffile(np.zeros((5, 7, 3), np.float32), photometric="cielab"))


def test_white_is_zero_turns_floats(tmp_path: Path) -> None:
    pixels = np.array([[0, 0.25, 1]], np.float32)
    got = load(tmp_path, by_tifffile(pixels, photometric="miniswhite"), grey=None)
    np.testing.assert_array_equal(got[..., 0], 1 - pixels)


def test_meanings_that_are_not_read_are_named(tmp_path: Path) -> None:
    for photometric in ("ycbcr", "cielab", "separated"):
        content = by_tifffile(noise((8, 8, 4 if photometric == "separated" else 3), "u2"), photometric=photometric)
        with pytest.raises(ValueError, match=r"16 bits per sample of the photometric interpretation [568]"):
            load(tmp_path, content)


def test_pages_are_named_and_copies_are_none(tmp_path: Path) -> None:
    pages = [noise((6, 4 + number, 3), "u2", number) for number in range(3)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", metadata=None)
            writer.write(page[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(load(tmp_path, file.getvalue(), page=number), fp32(page))
    with pytest.raises(ValueError, match="holds 3 pages or frames: say which one, page 0 to page 2"):
        load(tmp_path, file.getvalue())
    with pytest.raises(ValueError, match="below the number of pages"):
        load(tmp_path, file.getvalue(), page=3)
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.zeros((4, 5, 6), "u2"), imagej=True)
    with pytest.raises(ValueError, match=r"4 (pages|images)"):
        load(tmp_path, stack.getvalue())


def test_samples_that_nobody_names_are_refused_unless_they_say_nothing(tmp_path: Path) -> None:
    pixels = noise((5, 7, 4), "u1")
    content = by_tifffile(pixels, photometric="rgb", extrasamples=["unassalpha"], byteorder="<")
    altered = content.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 999, 0))
    assert altered != content
    with pytest.raises(ValueError, match="does not say what sample 4 of its 4"):
        load(tmp_path, altered)
    opaque = altered.replace(pixels.tobytes(), (pixels | np.array([0, 0, 0, 255], np.uint8)).tobytes())
    np.testing.assert_array_equal(load(tmp_path, opaque), fp32(pixels[..., :3]))


@pytest.mark.parametrize("planar", [False, True])
def test_a_grey_with_a_second_sample_that_says_nothing_is_a_grey(
    tmp_path: Path, planar: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = noise((5, 7, 2), "u1")
    pixels[..., 1] = 255
    content = by_tifffile(
        np.moveaxis(pixels, 2, 0) if planar else pixels,
        photometric="minisblack",
        planarconfig="separate" if planar else "contig",
        extrasamples=["unassalpha"],
        byteorder="<",
    )
    altered = content.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 999, 0))
    assert altered != content
    for alpha in (False, None):
        np.testing.assert_array_equal(load(tmp_path, altered, grey=None, alpha=alpha), fp32(pixels[..., :1]))
    np.testing.assert_array_equal(load(tmp_path, altered), fp32(np.repeat(pixels[..., :1], 3, 2)))
    assert capfd.readouterr() == ("", "")
    unknown = altered.replace(pixels.tobytes(), (pixels - np.array([0, 1], np.uint8)).tobytes())
    if not planar:
        with pytest.raises(ValueError, match="does not say what sample 2 of its 2"):
            load(tmp_path, unknown)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that it passes over
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}])
def test_damage_is_refused_or_read_as_pillow_reads_it(
    tmp_path: Path, compression: str | None, layout: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    pixels, random, path = noise((19, 23, 3), "u1") // 3, np.random.default_rng(0), tmp_path / "a.tif"
    pixels = np.moveaxis(pixels, 2, 0) if "planarconfig" in layout else pixels
    content = by_tifffile(pixels, photometric="rgb", compression=compression, **layout)
    compared = 0
    for number in range(40):
        altered = bytearray(content)
        if number % 4 == 0:
            del altered[int(random.integers(1, len(content))) :]
        for _ in range(int(random.integers(1, 4)) * (number % 4 > 0)):
            where = int(random.integers(min(len(content), (280, len(content))[number % 2])))
            altered[where] = random.choice([altered[where] ^ 1 << int(random.integers(8)), 0, 255])
        path.write_bytes(altered)
        try:
            got = load_image(path, alpha=None)
        except (ValueError, MemoryBudgetError):
            continue
        try:
            with Image.open(path) as picture:
                expected = np.asarray(picture.convert("RGB")) if picture.mode in ("L", "RGB", "RGBA") else None
        except (OSError, SyntaxError, ValueError, KeyError):  # it needs tags that have a default
            continue
        if expected is not None:
            compared += 1
            np.testing.assert_array_equal(got[..., :3], fp32(expected))
    assert compared or compression == "zstd"  # which older versions of Pillow do not read
    capfd.readouterr()  # what libtiff says of the files that it refuses


def test_stated_sizes_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    for compression, words in ((None, "more than its"), ("deflate", "more than its"), ("lzw", "")):
        content = by_tifffile(noise((16, 23), "u1"), photometric="minisblack", compression=compression, byteorder="<")
        for tag, side in ((256, 23), (257, 16), (278, 16)):
            content = content.replace(struct.pack("<HHII", tag, 4, 1, side), struct.pack("<HHII", tag, 4, 1, 2**20))
        with pytest.raises((ValueError, MemoryBudgetError), match=words or "1048576x1048576 pixels"):
            load(tmp_path, content)
    with pytest.raises(MemoryBudgetError, match=r"2000x2000 pixels.* pixels fit"):
        load(tmp_path, by_tifffile(np.zeros((2000, 2000), "u2"), compression="deflate"), size=8, memory_budget=2**22)


def test_lists_of_pages_have_an_end(tmp_path: Path) -> None:
    content = bytearray(by_tifffile(noise((5, 7), "u1"), photometric="minisblack", byteorder="<", bigtiff=False))
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, first)
    with pytest.raises(ValueError, match="comes back on itself"):
        load(tmp_path, bytes(content))


def test_nothing_is_said_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = by_tifffile(noise((5, 7), "u1"), photometric="minisblack", byteorder="<")
    for size in range(8, len(content), 11):
        with pytest.raises(ValueError, match="picture"):
            load(tmp_path, content[:size])
    assert capfd.readouterr().err == ""
    assert os.listdir(tmp_path) == ["a.picture"]


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "jpegxl", "jpegxr", "png", "webp", "lerc"])
def test_pictures_within_are_as_large_as_their_strip_or_refused(tmp_path: Path, compression: str) -> None:
    pixels = noise((32, 32, 3), "u1")
    content = by_tifffile(pixels, photometric="rgb", compression=compression, byteorder="<", bigtiff=False)
    if compression == "jpeg":
        assert load(tmp_path, content).shape == (32, 32, 3)
        start, end = content.index(b"\xff\xda") + 14, content.rindex(b"\xff\xd9")
        for lacking in (bytes(end - start + 2), b"\xff\xd9" + bytes(end - start)):  # without an end, without pixels
            with pytest.raises(ValueError, match="truncated or damaged"):
                load(tmp_path, content[:start] + lacking + content[end + 2 :])
    for tag, side in ((256, 32), (257, 32), (278, 32)):
        for kind, form in ((4, "<HHII"), (3, "<HHIHxx")):
            content = content.replace(struct.pack(form, tag, kind, 1, side), struct.pack(form, tag, kind, 1, 16))
    with pytest.raises(ValueError, match=r"a JPEG of 32x32 pixels for a strip.*16x16|of the compression \d+; of TIFF"):
        load(tmp_path, content)
