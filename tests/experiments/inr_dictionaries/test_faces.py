"""Faces: none is in both parts, mirror images stay with theirs, images of one's own are cut and sorted."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from inrfast.experiments.inr_dictionaries.faces import faces, targets
from inrfast.experiments.paper import Request


def test_bundled_faces_stand_beside_their_mirror_images_and_none_is_in_both_parts():
    there = faces(Request(), 25, 5000, 100)
    assert there.learned.shape == (150, 25, 25) and there.held_out.shape == (50, 25, 25)
    everything = torch.cat([there.learned, there.held_out])
    torch.testing.assert_close(everything[::2].flip(2), everything[1::2], rtol=0, atol=0)
    kept = torch.from_numpy(data.lfw_subset()[:100].astype(np.float64))
    torch.testing.assert_close(everything[::2], kept, rtol=0, atol=1e-12)  # at its own size a face stays as it is
    stems = [name.partition("-")[0] for name in there.names]
    assert not set(stems[:150]) & set(stems[150:]) and len(set(stems)) == 100
    few = faces(Request(), 25, 6, 4)
    assert torch.equal(few.learned, there.learned[:6]) and torch.equal(few.held_out, there.held_out[:4])
    assert few.names == (*there.names[:6], *there.names[150:154])


def test_means_are_taken_out_of_each_image_and_targets_are_around_zero():
    there = faces(Request(), 16, 4, 6)
    assert there.centred.mean((1, 2)).abs().max() < 1e-12
    torch.testing.assert_close(targets(there.held_out)[2, :, 0], there.held_out[2].flatten().float() - 0.5)


def test_images_of_ones_own_are_their_central_squares_in_grey_and_the_last_ones_are_held_out(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 22, 17, 3), dtype=np.uint8)
    for i, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / f"{i}.png")
    there = faces(Request(images=tuple(sorted(tmp_path.iterdir()))), 17, 5, 9)
    assert there.names == ("0.png", "1.png", "2.png", "3.png", "4.png", "6.png", "7.png")
    grey = values[:, 2:19] @ np.array([0.299, 0.587, 0.114]) / 255  # the authors' weights, 17 of 22 rows
    np.testing.assert_allclose(there.learned, grey[:5], atol=1e-6)
    np.testing.assert_allclose(there.held_out, grey[6:], atol=1e-6)


def test_too_few_and_too_small_images_are_refused_by_name(tmp_path):
    for name in ("a", "b"):
        Image.new("L", (9, 12)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"a\.png is alone"):
        faces(Request(images=(tmp_path / "a.png",)), 8, 1, 1)
    with pytest.raises(ValueError, match=r"at least 10 pixels high and wide, and .*a\.png is 12x9"):
        faces(Request(images=(tmp_path / "a.png", tmp_path / "b.png")), 10, 1, 1)
