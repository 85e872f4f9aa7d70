"""Images survive the way to a file and back; every bad file is named."""

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageCms, PngImagePlugin

from inrfast.errors import MemoryBudgetError
from inrfast.signals.formats.raster import Stated
from inrfast.signals.image import LUMA, astronaut, image_suffixes, load, load_image, readable_suffixes, save, save_image


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pixels that 8 bits hold exactly."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    save_image(noise(12, 20, 3), tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_png_round_trip_is_exact(picture: Path, tmp_path: Path) -> None:
    image = load_image(picture)
    assert image.dtype == torch.float32
    assert torch.equal(image, noise(12, 20, 3))
    for grey in (noise(9, 4, 1), noise(9, 4)):
        save_image(grey, tmp_path / "grey.png")
        assert torch.equal(load_image(tmp_path / "grey.png")[..., 0], grey.reshape(9, 4))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_written_where_they_are_asked_for(tmp_path: Path, suffix: str, channels: int) -> None:
    samples = np.random.default_rng(channels).integers(0, 2**16, (9, 7, channels), dtype=np.uint16)
    path = tmp_path / f"deep{suffix}"
    save_image(torch.from_numpy(samples.astype(np.float32) / 65535), path, bits=16)
    loaded = load(path, grey=None, alpha=None)
    assert loaded.bits == 16
    np.testing.assert_array_equal((loaded.pixels.double() * 65535).round().numpy(), samples)
    with Image.open(path) as picture:  # another reader; of colours it knows the upper 8 bits
        if channels == 1:
            np.testing.assert_array_equal(np.asarray(picture), samples[..., 0])
        elif suffix == ".png":
            np.testing.assert_array_equal(np.asarray(picture), samples >> 8)
    if suffix != ".png" and channels > 1:
        np.testing.assert_array_equal(tifffile.imread(path), samples)


def test_sixteen_bits_are_refused_where_they_would_be_lost(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"16 bits.*\.png"):
        save_image(noise(4, 4), tmp_path / "a.jpg", bits=16)
    with pytest.raises(ValueError, match="bits must be 8 or 16, got 12"):
        save_image(noise(4, 4), tmp_path / "a.png", bits=12)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_greys_keep_one_channel_where_the_file_decides(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.frombytes(mode, (5, 6), np.arange(30, dtype="<u2").tobytes())
    else:
        picture = Image.fromarray((noise(6, 5, 3) * 255).byte().numpy()).convert(mode)
    if "A" in mode:
        picture.putpixel((0, 0), (10, 20, 30, 40) if mode == "RGBA" else (10, 40))
    picture.save(tmp_path / "a.png")
    whole = load_image(tmp_path / "a.png", alpha=None)
    colours, channels = whole[..., :3], 3 if mode in ("RGB", "RGBA", "P") else 1
    got = load_image(tmp_path / "a.png", grey=None, alpha=None)
    assert torch.equal(got[..., :channels], colours[..., :channels])
    assert got.shape[2] == channels + ("A" in mode)
    assert "A" not in mode or torch.equal(got[..., -1], whole[..., -1])
    half = load_image(tmp_path / "a.png", (3, 5), grey=None, alpha=None)
    coloured = load_image(tmp_path / "a.png", (3, 5), alpha=None)
    assert torch.equal(half[..., :channels], coloured[..., :channels])
    assert torch.equal(half[..., -1], coloured[..., -1])


def test_values_outside_the_range_are_clipped(tmp_path: Path) -> None:
    save_image(3 * noise(8, 8) - 1, tmp_path / "clipped.png")
    expected = ((3 * noise(8, 8) - 1).clamp(0, 1) * 255).round() / 255
    assert torch.allclose(load_image(tmp_path / "clipped.png")[..., 0], expected, atol=1e-6)


def test_grey_is_the_luma(picture: Path) -> None:
    expected = (noise(12, 20, 3).double() @ torch.tensor(LUMA, dtype=torch.float64)).float()
    assert load_image(picture, grey=True).shape == (12, 20, 1)
    assert torch.allclose(load_image(picture, grey=True)[..., 0], expected, atol=1e-6)


def test_resizing_averages_areas_of_the_centre_crop(picture: Path) -> None:
    square = noise(12, 20, 3)[:, 4:16]
    blocks = square.reshape(6, 2, 6, 2, 3).mean((1, 3))
    assert torch.allclose(load_image(picture, size=6), blocks, atol=1e-6)
    assert torch.equal(load_image(picture, size=(12, 20)), noise(12, 20, 3))
    tall = load_image(picture, size=(6, 2))  # the centre crop is 12 x 4
    assert torch.allclose(tall, noise(12, 20, 3)[:, 8:12].reshape(6, 2, 2, 2, 3).mean((1, 3)), atol=1e-6)
    assert load_image(picture, size=(25, 40)).shape == (25, 40, 3)


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    loaded = load_image(tmp_path / "deep.png")
    assert loaded.shape == (5, 6, 3)
    np.testing.assert_allclose(loaded[..., 0].numpy(), deep / 65535, atol=1e-6)
    Image.new("RGBA", (3, 4), (255, 0, 51, 7)).save(tmp_path / "clear.png")
    assert torch.allclose(load_image(tmp_path / "clear.png"), torch.tensor([1.0, 0.0, 0.2]).expand(4, 3, 3))


def test_opacity_is_a_fourth_channel_where_it_is_asked_for(picture: Path, tmp_path: Path) -> None:
    clear = noise(7, 5, 4)
    save_image(clear, tmp_path / "clear.png")
    assert torch.equal(load_image(tmp_path / "clear.png", alpha=True), clear)
    assert torch.equal(load_image(tmp_path / "clear.png", alpha=None), clear)
    assert torch.equal(load_image(tmp_path / "clear.png"), clear[..., :3])
    assert load_image(tmp_path / "clear.png", grey=True, alpha=None).shape == (7, 5, 1)
    opaque = torch.cat([noise(12, 20, 3), torch.ones(12, 20, 1)], -1)
    save_image(opaque, tmp_path / "opaque.png")
    for path in (picture, tmp_path / "opaque.png"):
        assert torch.equal(load_image(path, alpha=True), opaque)
        assert torch.equal(load_image(path, alpha=None), opaque[..., :3])
    with pytest.raises(ValueError, match="alpha=True"):
        load_image(picture, grey=True, alpha=True)
    with pytest.raises(TypeError, match="alpha"):
        load_image(picture, alpha="yes")


def test_areas_are_averaged_by_what_is_seen(tmp_path: Path) -> None:
    clear = noise(6, 8, 4)
    clear[:2, :2, 3] = 0  # an area that nobody sees
    save_image(clear, tmp_path / "clear.png")
    blocks = clear.double().reshape(3, 2, 4, 2, 4).transpose(1, 2).flatten(2, 3)
    colours, opacity = blocks[..., :3], blocks[..., 3:]
    got = load_image(tmp_path / "clear.png", (3, 4), alpha=True).double()
    assert torch.allclose(got[..., 3:], opacity.mean(2), atol=1e-6)
    seen = (colours * opacity).sum(2) / opacity.sum(2)
    seen[0, 0] = colours[0, 0].mean(0)
    assert torch.allclose(got[..., :3], seen, atol=1e-6)


@pytest.mark.parametrize("suffix", image_suffixes(transparent=True))
def test_formats_with_transparency_give_it_back(tmp_path: Path, suffix: str) -> None:
    clear = noise(16, 16, 4)
    save_image(clear, tmp_path / f"clear{suffix}")
    assert torch.equal(load_image(tmp_path / f"clear{suffix}", alpha=True)[..., 3], clear[..., 3])


def test_formats_without_transparency_are_refused_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a transparent image \(.*\.png.*got .*clear\.jpg"):
        save_image(noise(4, 4, 4), tmp_path / "clear.jpg")
    assert os.listdir(tmp_path) == []


def test_astronaut_is_the_photograph() -> None:
    from skimage import data

    pixels = data.astronaut().astype(np.float64) / 255
    blocks = pixels.reshape(64, 8, 64, 8, 3).mean((1, 3))
    np.testing.assert_allclose(astronaut(64).numpy(), blocks, atol=1e-6)
    assert astronaut((32, 64), grey=True).shape == (32, 64, 1)


def test_bad_files_are_named(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError, match="folder"):
        load_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        load_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("this is not a picture")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        load_image(tmp_path / "text.png")
    for suffix in ("png", "jpg", "bmp"):
        save_image(noise(64, 64, 3), tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for kept in (len(content) // 2, len(content) - 40):
            (tmp_path / f"cut.{suffix}").write_bytes(content[:kept])
            with pytest.raises(ValueError, match=f"cut.{suffix} is truncated"):
                load_image(tmp_path / f"cut.{suffix}")
    with pytest.raises(TypeError, match="path"):
        load_image(3)
    for size in (0, (4, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="size"):
            load_image(picture, size=size)
    with pytest.raises(TypeError, match="size"):
        load_image(picture, size=2.5)


ROUND = sorted({Image.registered_extensions()[s] for s in readable_suffixes() if s in image_suffixes()} - {"MPO"})
"""Formats that are written and read, by Pillow's names."""

STREAM = " without a container"


def encoded(form: str, mode: str, height: int = 24, width: int = 20) -> bytes | None:
    """Return a smooth picture as Pillow writes it; None where the format has no such pixels."""
    coarse = noise(5, 4, 3).mul(255).to(torch.uint8).numpy()
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    try:
        picture.save(file, form.removesuffix(STREAM), no_jp2=form.endswith(STREAM))
    except (OSError, ValueError):
        return None
    return file.getvalue()


def loaded_or_reason(path: Path, **options: object) -> torch.Tensor | str:
    """Return the image, or the words of one of the errors that are promised."""
    try:
        return load_image(path, **options)
    except (ValueError, MemoryBudgetError) as error:
        return str(error)


@pytest.mark.parametrize("form", [*ROUND, "JPEG2000" + STREAM])
def test_cut_files_are_refused_and_altered_ones_raise_nothing_else(tmp_path: Path, form: str) -> None:
    random, path, tried = np.random.default_rng(0), tmp_path / "a.picture", 0
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        content = encoded(form, mode)
        if content is None:
            continue
        path.write_bytes(content)
        whole = load_image(path, alpha=True)
        tried += 1
        for kept in [*random.integers(1, len(content), 6), *range(max(len(content) - 40, 1), len(content), 7)]:
            path.write_bytes(content[: int(kept)])
            got = loaded_or_reason(path, alpha=True)
            assert "a.picture" in got if isinstance(got, str) else torch.equal(got, whole)
        for _ in range(8):
            altered = bytearray(content)
            where = int(random.integers(min(len(content), (64, len(content))[int(random.integers(2))])))
            altered[where] ^= 1 << int(random.integers(8))
            path.write_bytes(altered)
            got = loaded_or_reason(path, alpha=None)
            assert "a.picture" in got if isinstance(got, str) else bool(((got >= 0) & (got <= 1)).all())
    assert tried


@pytest.mark.parametrize("form", ["JPEG", "GIF", "WEBP", "BMP", "TGA", "PPM"])
def test_names_do_not_matter_and_pillow_is_agreed_with(tmp_path: Path, form: str) -> None:
    for mode in ("RGB", "L", "P", "RGBA"):
        content = encoded(form, mode)
        if content is not None:
            (tmp_path / "a.png").write_bytes(content)
            expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.float32) / 255
            assert np.array_equal(load_image(tmp_path / "a.png").numpy(), expected)


def test_nothing_that_starts_another_program_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    for module, name in ((EpsImagePlugin, "Ghostscript"), (subprocess, "Popen"), (os, "system")):
        monkeypatch.setattr(module, name, started)
    picture = Image.new("RGB", (32, 24))
    for form in ("EPS", "PDF"):
        for suffix in (".png", ".eps", ".tif", ""):
            picture.save(tmp_path / f"a{suffix}", form)
            with pytest.raises(ValueError, match="is not an image in a format that is read"):
                load_image(tmp_path / f"a{suffix}")
    wmf = b"\xd7\xcd\xc6\x9a" + bytes(2) + (1).to_bytes(2, "little") * 4 + bytes(60)
    (tmp_path / "a.png").write_bytes(wmf)
    with pytest.raises(ValueError, match="is not an image in a format that is read"):
        load_image(tmp_path / "a.png")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.one_of(st.none(), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.sampled_from([(False, False), (True, False), (False, True), (False, None)]),
    st.integers(1, 3000),
    st.integers(0, 99),
)
def test_strips_give_what_the_whole_gives(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    size: tuple[int, int] | None,
    kind: tuple[bool, bool | None],
    strip: int,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("image") / "a.png"
    save_image(noise(height, width, 4, seed=seed), path)
    grey, alpha = kind
    whole = load_image(path, size, grey, alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inrfast.signals.image.STRIP", strip)
        strips = load_image(path, size, grey, alpha)
    # Averages of averages, and then colours over opacities: each is exact to a few roundings.
    assert strips.shape == whole.shape
    assert torch.allclose(strips, whole, rtol=1e-4, atol=1e-6)
    if size is None:
        assert torch.equal(strips, whole)


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_budgets_hold(tmp_path: Path) -> None:
    side = 2000
    Image.new("RGB", (side, side), (1, 2, 3)).save(tmp_path / "a.png", compress_level=1)
    Image.new("L", (side, side), 7).save(tmp_path / "a.jpg")
    Image.fromarray(np.zeros((side, side), np.uint16)).save(tmp_path / "a.tif")
    Image.new("L", (side * side // 4, 1), 7).save(tmp_path / "wide.png")
    load_image(tmp_path / "a.tif", size=4)  # what is imported only now is not the picture's
    results = set()
    for name in ("a.png", "a.jpg", "a.tif", "wide.png"):
        for options in ({}, {"size": 64}, {"size": 64, "grey": True}, {"alpha": True}):
            for budget in (2**23, 2**25, 2**27):
                try:
                    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now
                except OSError:
                    pytest.skip("this system does not let a process measure its peak")
                before = peak_bytes()
                got = loaded_or_reason(tmp_path / name, memory_budget=budget, **options)
                results.add(type(got))
                if isinstance(got, str):
                    assert re.search(r"(2000x2000|1x1000000) pixels", got)
                    assert peak_bytes() - before < 2**23
                assert peak_bytes() - before <= budget + 2**22
    assert results == {torch.Tensor, str}


def test_sizes_within_are_checked_too(tmp_path: Path) -> None:
    picture, files = Image.new("RGB", (24, 20)), {}
    for form, options in (("JPEG2000", {}), ("ICO", {"sizes": [(16, 16)]}), ("ICO", {"bitmap_format": "bmp"})):
        file = io.BytesIO()
        picture.save(file, form, **options)
        files[form + str(options)] = bytearray(file.getvalue())
    stream, _, bitmap = files.values()
    at = stream.index(b"\xff\x4f\xff\x51")
    stream[at + 8 : at + 16] = (60000).to_bytes(4, "big") * 2
    at = int.from_bytes(bitmap[18:22], "little")
    bitmap[at + 4 : at + 12] = (60000).to_bytes(4, "little") + (120000).to_bytes(4, "little")
    for content in (stream, bitmap):
        (tmp_path / "a.picture").write_bytes(content)
        with pytest.raises(MemoryBudgetError, match="60000x60000 pixels"):
            load_image(tmp_path / "a.picture", memory_budget=2**30)


@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
def test_portable_maps_keep_all_of_their_bits(tmp_path: Path, kind: bytes, white: int) -> None:
    channels = 1 if kind in (b"P2", b"P5") else 3
    values = np.random.default_rng(0).integers(0, white, (5, 7, channels), endpoint=True)
    stored = values.astype(">u2" if white > 255 else "u1").tobytes()
    if kind in (b"P2", b"P3"):
        stored = b" # a pixel\n".join(b"%d" % value for value in values.reshape(-1))
    content = kind + b" # made by hand\n7 5\n" + str(white).encode() + b"\n" + stored
    if white == 1023:
        content = content.replace(b"7 5", b"7#" + b"wide" * 2000 + b"\n5")
    (tmp_path / "a.ppm").write_bytes(content)
    expected = (np.repeat(values, 3 // channels, 2).astype(np.float32)) / np.float32(white)
    assert np.array_equal(load_image(tmp_path / "a.ppm").numpy(), expected)
    (tmp_path / "cut.ppm").write_bytes(content[: content.rindex(b"#")] if kind in (b"P2", b"P3") else content[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load_image(tmp_path / "cut.ppm")
    if white < 2**15:
        higher = stored.replace(b"\n", b"\n9999", 1) if kind in (b"P2", b"P3") else b"\xff" * len(stored)
        (tmp_path / "high.ppm").write_bytes(content[: -len(stored)] + higher)
        if white != 255:
            with pytest.raises(ValueError, match="damaged"):
                load_image(tmp_path / "high.ppm")


def test_depths_that_a_format_loses_are_refused(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    from imagecodecs import avif_encode, jpeg2k_encode

    files = {
        "a.jp2": jpeg2k_encode(deep, level=0),
        "a.j2k": jpeg2k_encode(deep >> 4, level=0, codecformat="j2k", bitspersample=12),
        "a.avif": avif_encode(deep >> 6, bitspersample=10),
        "a.sgi": b"\x01\xda\x00\x02\x00\x03" + b"\x00\x10" * 2 + b"\x00\x03" + bytes(500) + deep.tobytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} holds 1[026] bits per channel, which its format loses here"):
            load_image(tmp_path / name)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.jp2")
    assert np.array_equal(load_image(tmp_path / "grey.jp2")[..., 0].numpy(), deep[..., 0] / np.float32(65535))


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(4, 4, 3)
    for bad in (torch.zeros(4), torch.zeros(4, 4, 2), torch.full((4, 4), float("nan"))):
        with pytest.raises(ValueError, match="image"):
            save_image(bad, tmp_path / "a.png")
    with pytest.raises(ValueError, match="suffix"):
        save_image(image, tmp_path / "a.picture")
    with pytest.raises(FileNotFoundError, match="folder"):
        save_image(image, tmp_path / "nowhere" / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="folder"):
        save_image(image, tmp_path / "file" / "a.png")
    before = sorted(os.listdir(tmp_path))

    def failing(self: Image.Image, file: object, format: str) -> None:
        file.write(b"half")
        raise OSError("broken data stream")

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(ValueError, match=r"4x4 pixels cannot be written as PNG: broken data stream"):
        save_image(image, tmp_path / "a.png")
    assert sorted(os.listdir(tmp_path)) == before


FULL_DISK = """
import os, pathlib, resource, signal, sys, torch
from inrfast.signals.image import image_suffixes, save_image
folder, failed = pathlib.Path(sys.argv[1]), []
image = torch.rand(64, 80, 3)
for suffix in image_suffixes():
    (folder / f"old{suffix}").write_bytes(b"what was there")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk: a short write, and then an error
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
for suffix in image_suffixes():
    for name in ("old", "new"):
        try:
            save_image(image, folder / f"{name}{suffix}")
        except OSError:
            failed.append(name + suffix)
print(len(image_suffixes()), len(failed))
"""


def test_a_full_disk_is_an_error_and_leaves_the_old_file_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    suffixes, failed = map(int, done.stdout.split())
    assert failed == 2 * suffixes > 40
    assert {path.stem for path in tmp_path.iterdir()} == {"old"}
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"what was there"}


@pytest.mark.parametrize("suffix", image_suffixes())
def test_every_suffix_keeps_sizes_or_refuses_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for shape in ((9, 21), (300, 40, 3), (9, 70000, 1)):  # the last is more than many formats hold
        path.unlink(missing_ok=True)
        try:
            save_image(noise(*shape), path)
        except ValueError as refused:
            reason = str(refused)
            assert f"an image of {shape[0]}x{shape[1]} pixels cannot be written as" in reason
            assert max(shape) > 256
            assert not path.exists()
            continue
        if suffix in readable_suffixes():
            assert load_image(path).shape == (*shape[:2], 3)


def test_a_folder_that_refuses_files_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot write /proc/a\.png"):
        save_image(noise(4, 4), "/proc/a.png")  # which refuses root, too


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_notes_that_cannot_be_read_say_nothing_of_the_pixels(tmp_path: Path, form: str) -> None:
    random, file = np.random.default_rng(0), io.BytesIO()
    Image.new("RGB", (5, 7), (9, 99, 199)).save(file, form)
    (tmp_path / "plain").write_bytes(file.getvalue())
    plain = load_image(tmp_path / "plain")
    for size in (8, 9, 30, 200):
        for start in (b"", b"Exif\0\0", b"II*\0\x08\0\0\0"):
            Image.new("RGB", (5, 7), (9, 99, 199)).save(tmp_path / "a", form, exif=start + random.bytes(size))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert torch.equal(load_image(tmp_path / "a"), plain)


@pytest.mark.parametrize("bits", [8, 16])
def test_long_texts_do_not_matter(tmp_path: Path, bits: int) -> None:
    notes = PngImagePlugin.PngInfo()
    for add in (notes.add_text, notes.add_itxt):
        add("workflow", "x" * 2**21, zip=True)
    picture = Image.fromarray(noise(5, 7).mul(255).numpy().astype(f"u{bits // 8}"))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "a.png", pnginfo=notes, exif=exif)
    picture.save(tmp_path / "b.png", exif=exif)
    assert load_image(tmp_path / "a.png").shape == (7, 5, 3)
    assert torch.equal(load_image(tmp_path / "a.png"), load_image(tmp_path / "b.png"))


def test_the_limit_of_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(noise(20, 30), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(ValueError, match=r"more than 598 pixels, twice PIL\.Image\.MAX_IMAGE_PIXELS"):
        load_image(tmp_path / "a.png")


def profile(space: bytes) -> bytes:
    """A profile of sRGB, or one whose header says that it is of other channels."""
    found = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return found[:16] + space + found[20:]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_profiles_and_resolutions_are_written_and_read(tmp_path, bits, suffix, channels):
    if bits == 16 and suffix == "jpg":
        return
    stated, file = Stated(profile(b"RGB " if channels == 3 else b"GRAY"), (300.0, 150.0)), tmp_path / f"a.{suffix}"
    assert save(noise(6, 8, channels), file, bits, stated) == stated
    found = load(file).stated
    assert found.icc == stated.icc
    assert found.dpi == pytest.approx(stated.dpi, abs=0.1)  # a PNG counts whole dots per metre
    if suffix != "jpg":
        assert torch.equal(load_image(file, grey=channels == 1), noise(6, 8, channels))
    opened = Image.open(file)  # as another program sees it
    assert opened.info["icc_profile"] == stated.icc
    assert [float(each) for each in opened.info["dpi"]] == pytest.approx(stated.dpi, abs=0.1)


def test_what_a_file_cannot_hold_is_not_said_to_be_held(tmp_path):
    resolution, ours = (300.0, 300.0), profile(b"RGB ")
    assert save(noise(6, 8, 3), tmp_path / "a.bmp", 8, Stated(ours, resolution)) == Stated(None, resolution)
    assert save(noise(6, 8, 3), tmp_path / "a.webp", 8, Stated(ours, resolution)) == Stated(ours, None)
    assert save(noise(6, 8, 3), tmp_path / "a.png", 8, Stated(profile(b"CMYK"), None)) == Stated()
    assert save(noise(6, 8, 1), tmp_path / "a.png", 8, Stated(ours, None)) == Stated()
    assert load(tmp_path / "a.png").stated == Stated()


def test_resolutions_that_say_nothing_are_none_and_turned_ones_are_turned(tmp_path):
    turned = Image.Exif()
    turned[0x112] = 6
    pixels = Image.new("RGB", (8, 6), (10, 200, 90))
    for suffix in ("png", "jpg", "tif"):
        pixels.save(tmp_path / f"turned.{suffix}", exif=turned, dpi=(300, 150))
        assert load(tmp_path / f"turned.{suffix}").stated.dpi == pytest.approx((150, 300), abs=0.1)
        pixels.save(tmp_path / f"plain.{suffix}")
        assert load(tmp_path / f"plain.{suffix}").stated == Stated()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint8), resolution=(100, 100), resolutionunit="centimeter")
    assert load(tmp_path / "a.tif").stated.dpi == pytest.approx((254, 254))
    for dpi in ((0, 0), (1, 1), (float("nan"), 300), (300,), None, "a", (-300, 300), (1e9, 1e9)):
        assert Stated.of(None, dpi) == Stated()
