"""Pictures and whole numbers become the values that image files give, and their white is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from inrfast.pixels import as_values, is_picture, one_white, range_of_pixels
from inrfast.signals.image import load_image

GENERATOR = np.random.default_rng(0)


def pixels(*shape, bits=8):
    return GENERATOR.integers(0, 2**bits, shape, dtype=np.uint8 if bits == 8 else np.uint16)


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_picture_has_the_values_that_its_file_is_read_with(mode, tmp_path):
    picture = Image.fromarray(pixels(5, 7, *((len(mode),) if len(mode) > 1 else ())))
    assert picture.mode == mode and is_picture(picture) and not is_picture(np.asarray(picture))
    picture.save(tmp_path / "picture.png")
    values, white = as_values("target", picture)
    assert white == 255
    read = load_image(tmp_path / "picture.png", grey=mode == "L", alpha=mode == "RGBA")
    assert torch.equal(values.reshape(5, 7, -1), read)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("give", [np.asarray, torch.from_numpy, lambda samples: Image.fromarray(samples)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_numbers_are_shares_of_white(bits, give, dtype):
    samples = pixels(6, 4, bits=bits)
    with pytest.warns(UserWarning, match=f"target holds pixels of {bits} bits .* value / {2**bits - 1}"):
        values, white = as_values("target", give(samples), dtype)
    assert white == 2**bits - 1 and values.dtype == dtype
    exact = samples.astype(np.float64) / white
    assert np.array_equal(values.numpy(), exact.astype(values.numpy().dtype))


def test_what_is_no_pixel_is_left_as_it_is(recwarn):
    for given in (torch.rand(3), torch.arange(3)):
        assert as_values("target", given) == (given, None)
    mask, white = as_values("target", torch.tensor([True, False]))
    assert mask.tolist() == [1.0, 0.0] and white is None and not recwarn


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr", "F"])
def test_other_modes_give_the_picture_that_they_show(mode):
    picture = Image.fromarray(pixels(6, 4, 3)).convert(mode)
    shown = {"1": "L", "LA": "LA", "F": "F"}.get(mode, "RGB")
    values, white = as_values("target", picture)
    assert np.allclose(np.asarray(picture.convert(shown)) / (white or 1), values)


def test_integers_without_a_white_are_refused():
    with pytest.raises(TypeError, match=r"target is an image of 32-bit integers \(mode I\)"):
        as_values("target", Image.fromarray(np.ones((3, 3), dtype=np.int32)))


@pytest.mark.parametrize(
    ("given", "white", "found"), [(255, 255, 1.0), (1, 255, 1.0), (None, 255, 1.0), (None, None, None), (7, None, 7)]
)
def test_a_range_is_that_of_the_pixels_or_of_their_share(given, white, found):
    assert range_of_pixels(given, white) == found


def test_another_range_is_refused():
    with pytest.raises(ValueError, match=r"data_range must be 255 for pixels of 8 bits, or 1 .* got 100"):
        range_of_pixels(100, 255)


def test_two_arguments_of_one_psnr_have_one_white():
    assert one_white("target", 255, "eval_target", 255) == 255 and one_white("a", None, "b", None) is None
    with pytest.raises(ValueError, match="target and eval_target must be of one kind, got pixels of 8 bits and values"):
        one_white("target", 255, "eval_target", None)
    with pytest.raises(ValueError, match="pixels of 8 bits and pixels of 16 bits"):
        one_white("target", 255, "eval_target", 65535)


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
def test_a_cameras_orientation_is_applied_as_to_a_file(orientation, shape, tmp_path):
    picture = Image.fromarray(pixels(*shape))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "image.png", exif=exif)
    values, _ = as_values("target", Image.open(tmp_path / "image.png"))
    assert np.allclose(
        load_image(tmp_path / "image.png", grey=len(shape) == 2).reshape(values.shape), values, atol=1e-6
    )
    assert tuple(values.shape[:2]) == ((4, 6) if orientation in (5, 6, 7, 8) else (6, 4))
