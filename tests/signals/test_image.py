"""Images survive the way to a file and back; every bad file is named."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inrfast.signals.image import LUMA, astronaut, image_suffixes, load_image, save_image


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


def test_one_grey_of_sixteen_bits_may_be_transparent(tmp_path: Path) -> None:
    deep = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=3000)
    expected = torch.tensor([[1.0, 1, 1], [0, 1, 1]])
    assert torch.equal(load_image(tmp_path / "deep.png", alpha=None)[..., 3], expected)


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

    def full_disk(self: Image.Image, file: object, format: str) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*a\.png: No space left"):
        save_image(image, tmp_path / "a.png")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_refuses_files_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot write /proc/a\.png"):
        save_image(noise(4, 4), "/proc/a.png")  # which refuses root, too
