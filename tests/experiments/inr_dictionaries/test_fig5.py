"""Likeness to faces, and the frequency of pictures."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.experiments.inr_dictionaries.faces import faces
from inrfast.experiments.inr_dictionaries.fig5 import along_edges, frequency, in_space, mosaic, with_mean_face
from inrfast.experiments.paper import Found, Request

THERE = faces(Request(), 12, 30, 4)


@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(0.1, 10))
def test_likeness_is_one_for_faces_and_zero_for_what_is_orthogonal_to_them(seed, brightness, contrast):
    mix = torch.randn(3, len(THERE.learned), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = THERE.learned.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    pictures = (contrast * (mix @ rows) + brightness).reshape(3, 12, 12)
    every = min(len(rows), 143)
    np.testing.assert_allclose(in_space(pictures, THERE, every), 1, atol=1e-9)
    noise = torch.randn(3, 144, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([rows, torch.ones(1, 144)]).T).Q
    apart = (noise - noise @ basis @ basis.T).reshape(3, 12, 12) + brightness
    np.testing.assert_allclose(in_space(apart, THERE, every), 0, atol=1e-9)
    np.testing.assert_allclose(with_mean_face(apart, THERE), 0, atol=1e-9)
    mean = brightness - contrast * THERE.learned.mean(0, keepdim=True)
    np.testing.assert_allclose(with_mean_face(mean, THERE), 1, atol=1e-9)
    shares = [in_space(noise.reshape(3, 12, 12), THERE, count)[0] for count in (1, 5, 15, every)]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1


@given(st.integers(0, 7), st.integers(0, 7), st.floats(0, 6), st.floats(-3, 3))
def test_the_frequency_of_a_wave_is_its_own(k, m, phase, mean):
    if k == m == 0:
        return
    i = np.arange(16) / 16
    wave = np.cos(2 * np.pi * (k * i[:, None] + m * i[None]) + phase) + mean
    cell = Found({}, {"atoms": wave[None].astype(np.float32)})
    assert abs(frequency(cell) - np.hypot(k, m)) < 1e-2


def test_pictures_of_a_mosaic_stand_in_their_places():
    rows = [[np.full((3, 3), 10.0 * i + j) for j in range(4)] for i in range(2)]
    made = mosaic(rows)
    assert made.shape == (8, 16)
    for i in range(2):
        for j in range(4):
            assert (made[4 * i : 4 * i + 3, 4 * j : 4 * j + 3] == rows[i][j]).all()
    assert np.isnan(made[3::4]).all() and np.isnan(made[:, 3::4]).all()


@given(st.floats(0, np.pi), st.floats(0, np.pi), st.sampled_from([-3.0, -0.1, 0.5, 20.0]), st.floats(-2, 2))
def test_edges_of_two_slopes_agree_by_the_cosine_of_twice_their_angle(first, second, contrast, brightness):
    i, j = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    slopes = [np.cos(angle) * j + np.sin(angle) * i for angle in (first, second)]
    found = along_edges((contrast * slopes[0] + brightness)[None], slopes[1])
    np.testing.assert_allclose(found, np.cos(2 * (first - second)), atol=1e-4)


def test_edges_of_a_face_are_those_of_its_negative_and_not_those_of_noise():
    face = THERE.learned[0]
    noise = torch.randn(200, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(along_edges(torch.stack([face, 1 - face]), face), 1, atol=1e-12)
    assert abs(np.mean(along_edges(noise, face))) < 0.05
