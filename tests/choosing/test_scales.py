"""Scales of a signal: what they hold together, and that drawn patches stand for all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.choosing.samples import samples_of
from inrfast.choosing.scales import drawn, patch_shape, scales_of


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), patches=st.integers(5, 40), share=st.floats(0.2, 0.9))
def test_weights_of_drawn_patches_sum_to_the_mean_on_average(seed, patches, share):
    random = np.random.default_rng(seed)
    energy = random.exponential(size=patches) ** 2
    count = max(2, int(share * patches))
    sums = []
    for _ in range(300):
        chosen, weight = drawn(energy, count, random)
        assert len(set(chosen)) == len(chosen) == count
        sums.append(float(weight @ torch.from_numpy(energy[chosen])))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - energy.mean()) <= 5 * error + 1e-9 * energy.mean()


@pytest.mark.parametrize("shape", [(5000,), (64, 48), (16, 15, 14), (3, 900)])
def test_scales_of_a_grid_are_samples_of_it(shape):
    """The finest scale holds samples of the signal at their own places; none both trains and judges."""
    values = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(0))
    samples = samples_of(values)
    scales = scales_of(samples, 600, seed=0)
    fine = scales[0]
    known = {tuple(row) for row in samples.coords.double().tolist()}
    train, judges = ({tuple(row) for row in x.tolist()} for x in (fine.train, fine.held_out))
    assert train <= known
    assert judges <= known
    assert not train & judges
    centred = (samples.values.double() - samples.values.double().mean(0)).tolist()
    found = dict(zip(map(tuple, samples.coords.double().tolist()), centred, strict=True))
    sums = (fine.values + fine.smooth).tolist()
    for place, value in zip(map(tuple, fine.train.tolist()), sums, strict=True):
        assert value == pytest.approx(found[place], abs=1e-12)
    assert scales[-1].patch is None
    assert scales[-1].counts * len(scales[-1].train) == pytest.approx(len(samples.values) / 2)
    assert sum(len(scale.train) for scale in scales) <= 700


def test_points_anywhere_and_unknown_samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3000, 3, generator=generator)
    y = (x.norm(dim=1, keepdim=True) < 0.7).float()
    fine, coarse = scales_of(samples_of(y, x), 700, seed=0)
    assert len(coarse.train) <= 700 // 3
    train, judges = ({tuple(row) for row in x.tolist()} for x in (fine.train, fine.held_out))
    assert not train & judges
    assert len(train) == len(fine.train)


def test_a_small_signal_is_taken_whole():
    x = inr.grid((9, 9))
    (scale,) = scales_of(samples_of(x[:, :1].sin(), x), 100, seed=0)
    assert len(scale.train) + len(scale.held_out) == 81
    assert float(scale.weight.sum()) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_a_patch_lies_in_its_grid(shape):
    sides = patch_shape(shape)
    assert all(1 <= side <= size for side, size in zip(sides, shape, strict=True))
