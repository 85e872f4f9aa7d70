"""Area means are integrals of the picture's pixels; an enlarged picture has the means it was made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import lsq_linear
from skimage import data

from inrfast.inverse.downsample import Downsample
from inrfast.inverse.enlarging import area_means, back_projected, bicubic, contrast, within


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_means_are_integrals_over_equal_areas(sides: tuple[int, int], wanted: tuple[int, int]) -> None:
    picture = torch.rand(*sides, 2, generator=torch.Generator().manual_seed(sides[0]), dtype=torch.float64)
    shape = (min(sides[0], wanted[0]), min(sides[1], wanted[1]))
    # Every pixel cut into as many parts as there are means is averaged exactly by blocks.
    parts = picture.repeat_interleave(shape[0], 0).repeat_interleave(shape[1], 1)
    blocks = parts.view(shape[0], sides[0], shape[1], sides[1], 2).mean((1, 3))
    torch.testing.assert_close(area_means(picture, shape), blocks, atol=1e-12, rtol=0)


def test_whole_ratios_are_the_operator_that_downsamples() -> None:
    picture = torch.rand(12, 18, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(area_means(picture, (4, 6)), Downsample((12, 18), 3)(picture), atol=1e-12, rtol=0)


def test_bicubic_is_that_of_the_field() -> None:
    small = data.camera()[::8, ::8].astype(np.float32) / 255
    got = bicubic(torch.from_numpy(small)[..., None], (128, 128))[..., 0].numpy()
    # Pillow has a = -0.5, torch and OpenCV -0.75: both are cubic convolutions that agree at the given points' scale.
    pillow = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))
    assert np.sqrt(np.mean((got - pillow) ** 2)) < 0.02


@pytest.mark.parametrize("ratio", [2, 3, 4, 1.5, 2.3])
def test_enlarged_pictures_have_the_means_they_are_made_of(ratio: float) -> None:
    small = torch.from_numpy(data.astronaut()[::8, ::8].copy()).double() / 255
    large = back_projected(small, (round(64 * ratio), round(64 * ratio)))
    difference = area_means(large, (64, 64)) - small
    assert float(difference.square().mean().sqrt()) < 1e-3
    flipped = back_projected(1 - small, (large.shape[0], large.shape[1]))
    torch.testing.assert_close(flipped, 1 - large, atol=1e-12, rtol=0)  # linear, and constants stay


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3, 5]), st.integers(0, 2**31), st.booleans())
def test_pictures_of_whole_ratios_keep_their_means_within_the_bounds(ratio: int, seed: int, bits: bool) -> None:
    draws = torch.Generator().manual_seed(seed)
    means = torch.rand(5, 4, 2, generator=draws, dtype=torch.float64)
    means = means.round() if bits else means
    wild = torch.randn(5 * ratio, 4 * ratio, 2, generator=draws, dtype=torch.float64)
    found, difference = within(wild, means)
    assert bool(((found >= 0) & (found <= 1)).all())
    got = float((area_means(found, (5, 4)) - means).abs().max())
    assert got == pytest.approx(difference, abs=1e-12)
    assert got <= 1e-6
    kept = 0.3 + 0.1 * torch.rand(5 * ratio, 4 * ratio, 2, generator=draws, dtype=torch.float64)
    assert torch.equal(within(kept, area_means(kept, (5, 4)))[0], kept)  # what fits already stays


@pytest.mark.parametrize(("sides", "bits"), [((12, 9), False), ((12, 9), True), ((19, 13), False)])
def test_where_no_picture_has_the_means_little_more_is_left_than_must_be(sides: tuple[int, int], bits: bool) -> None:
    draws = torch.Generator().manual_seed(1)
    means = torch.rand(8, 6, 1, generator=draws, dtype=torch.float64)
    means = means.round() if bits else means
    found, _ = within(back_projected(means, sides), means)
    count = sides[0] * sides[1]
    matrix = area_means(torch.eye(count, dtype=torch.float64).view(*sides, count), (8, 6)).reshape(-1, count)
    least = 2 * lsq_linear(matrix.numpy(), means.flatten().numpy(), bounds=(0, 1)).cost
    assert float((area_means(found, (8, 6)) - means).square().sum()) < 2 * least + 1e-6


def test_contrast_is_that_of_the_neighbourhood() -> None:
    picture = torch.full((9, 9, 1), 0.25, dtype=torch.float64)
    picture[4, 4] = 0.75
    got = contrast(picture, (18, 18))[..., 0]
    near = torch.zeros(18, 18, dtype=torch.bool)
    near[4:14, 4:14] = True
    assert torch.equal(got, near * 0.5)
    assert float(contrast(torch.rand(1, 1, 3), (8, 8)).max()) == 0
