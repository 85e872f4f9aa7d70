"""Area means are integrals of the picture's pixels; an enlarged picture has the means it was made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from inrfast.inverse.downsample import Downsample
from inrfast.inverse.enlarging import area_means, back_projected, bicubic


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
