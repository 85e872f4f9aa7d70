"""Ambiguities of phase retrieval: what measurements cannot tell apart is brought back to the truth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.inverse import FourierMagnitude, GaussianMagnitude, Mask, align_ambiguities


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 7), min_size=1, max_size=3), st.booleans(), st.booleans(), st.integers(0, 999))
def test_signs_flips_and_shifts_are_undone(shape, negative, flipped, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(*shape, 2, dtype=torch.float64)
    inside = tuple(slice(0, max(1, n - 2)) for n in shape)  # room for a shift within the grid
    truth[inside] = torch.rand(truth[inside].shape, generator=generator, dtype=torch.float64) + 0.1
    moved = truth.roll([min(1, n - 1) for n in shape], tuple(range(len(shape))))
    moved = moved.flip(tuple(range(len(shape)))) if flipped else moved
    moved = -moved if negative else moved
    operator = FourierMagnitude(shape, 2.0)
    torch.testing.assert_close(operator(moved), operator(truth))  # nothing that is measured tells them apart
    torch.testing.assert_close(align_ambiguities(moved, truth, operator), truth)


def test_only_what_is_named_is_tried():
    truth = torch.rand(6, 6) + 0.5
    assert torch.equal(align_ambiguities(-truth, truth, GaussianMagnitude((6, 6), 1.0)), truth)
    turned = truth.flip(0, 1)
    assert torch.equal(align_ambiguities(turned, truth, "sign"), turned)
    assert torch.equal(align_ambiguities(-truth, truth, Mask.random((6, 6), 0.5)), -truth)


@pytest.mark.parametrize(
    ("found", "target", "ambiguities", "padded", "message"),
    [
        (torch.ones(4, 4), torch.ones(4, 5), ("sign",), None, "found must be the reconstruction"),
        (torch.ones(4, 4), torch.ones(4, 4), ("sing",), None, "Did you mean 'sign'"),
        (torch.ones(4, 4), torch.ones(4, 4), ("shift",), (3, 4), "padded must be as large"),
        (torch.full((4, 4), torch.nan), torch.ones(4, 4), ("sign",), None, "must be finite"),
        (torch.ones(4, 4), torch.ones(4, 4), 3, None, "must be an inrfast.inverse.Operator"),
        (torch.ones(3, 3), torch.ones(3, 3, dtype=torch.complex64), "sign", None, "target must be real"),
    ],
)
def test_bad_input_is_refused(found, target, ambiguities, padded, message):
    with pytest.raises((ValueError, TypeError), match=message):
        align_ambiguities(found, target, ambiguities, padded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_signals_of_16_bits_are_aligned(dtype):
    truth = torch.rand(6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = torch.zeros(12, 14, dtype=dtype)
    moved[:6, :7] = -truth.flip(0, 1)
    assert torch.equal(align_ambiguities(moved.roll((2, 3), (0, 1)), moved), moved)
    assert torch.equal(align_ambiguities(-truth, truth, "sign"), truth)
