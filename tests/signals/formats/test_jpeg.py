"""JPEG: what lacks data, or takes passes without end, is refused; what encoders write is read."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs import jpeg8_encode, jpegls_encode, ljpeg_encode
from PIL import Image

from inrfast.signals.formats import jpeg
from inrfast.signals.image import load_image


def encoded(pixels: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **how)
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.integers(1, 95),
    st.integers(0, 2),
    st.booleans(),
)
def test_least_bits_are_never_more_than_an_encoder_writes(
    sides: tuple[int, int], grey: bool, progressive: bool, subsampling: int, quality: int, coarse: int, optimize: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 + 255 // 9**coarse, sides if grey else (*sides, 3)).astype(np.uint8)
    how = {"progressive": progressive, "quality": quality, "optimize": optimize}
    content = encoded(pixels, **how, **({} if grey else {"subsampling": subsampling}))
    jpeg.check(content, Path("a.jpg"))
    found = jpeg.frame(content)
    assert (found.height, found.width, found.bits) == (*sides, 8)


@pytest.mark.parametrize("progressive", [False, True])
def test_more_pixels_than_bytes_hold_are_refused(tmp_path: Path, progressive: bool) -> None:
    content = encoded(np.full((64, 64, 3), 9, np.uint8), progressive=progressive)
    found = jpeg.MARKER.search(content, content.index(b"\xff\xc2" if progressive else b"\xff\xc0"))
    at = found.end() + 3
    (tmp_path / "a.jpg").write_bytes(content[:at] + (8000).to_bytes(2, "big") * 2 + content[at + 4 :])
    with pytest.raises(ValueError, match="8000x8000 pixels, more than the"):
        load_image(tmp_path / "a.jpg")
    start = content.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:start] + b"\xff\xd9")
    with pytest.raises(ValueError, match="0 of its 3 colours"):
        load_image(tmp_path / "a.jpg")


def test_scans_without_end_are_refused(tmp_path: Path) -> None:
    content = encoded(np.full((64, 64), 9, np.uint8), progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + last * jpeg.MOST_SCANS + b"\xff\xd9")
    with pytest.raises(ValueError, match="more than 100 scans"):
        load_image(tmp_path / "a.jpg")


def test_other_kinds_are_named(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    kinds = {
        "JPEG-LS": jpegls_encode(pixels.astype(np.uint8)),
        "lossless": ljpeg_encode(pixels, bitspersample=12),
        "12 bits per channel": jpeg8_encode(pixels, bitspersample=12),
    }
    for words, content in kinds.items():
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_image(tmp_path / "a.jpg")
