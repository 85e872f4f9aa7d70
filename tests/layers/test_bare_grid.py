"""Grids of features that ``F.grid_sample`` interpolates: sparse rows, against automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F
from captured_layers import agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr

ARRANGED = {
    "(1, 1, n)": lambda x, axes: x.view(1, *[1] * (axes - 1), -1, axes),
    "(1, n, 1)": lambda x, axes: x.view(1, -1, *[1] * (axes - 1), axes),
    "(1, n, 2)": lambda x, axes: torch.stack([x, -0.7 * x], dim=1).view(1, *[1] * (axes - 2), -1, 2, axes),
}


class Interpolated(nn.Module):
    """Features at a point's place in a grid of 2 or 3 axes, one or two of them side by side, and a linear map."""

    def __init__(self, sizes, batch, channels, again, turned, arranged, options):
        super().__init__()
        self.axes, self.again, self.turned, self.options = len(sizes), again, turned, options
        shape = (*sizes, channels, batch) if turned else (batch, channels, *sizes)
        self.grid = nn.Parameter(torch.randn(shape))
        self.arranged = ARRANGED[arranged]
        self.head = nn.Linear(batch * channels * (2 if arranged == "(1, n, 2)" else 1), 2)

    def forward(self, x):
        n, found = len(x), 0.0
        grid = self.grid.movedim((-1, -2), (0, 1)) if self.turned else self.grid
        for call in range(self.again):
            places = self.arranged((1.6 - call) * x[:, : self.axes], self.axes)
            read = F.grid_sample(grid, places.expand(len(grid), *places.shape[1:]), **self.options)
            found = found + read.movedim((0, 1), (-2, -1)).reshape(n, -1)
        return self.head(torch.sin(found))


@settings(max_examples=8)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(sorted(ARRANGED)),
    st.sampled_from(["bilinear", "nearest"]),
    st.sampled_from(["zeros", "border", "reflection"]),
    st.booleans(),
)
def test_grids_of_any_shape_and_padding(sizes, batch, channels, again, turned, arranged, mode, padding, aligned):
    torch.manual_seed(0)
    options = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    net = Interpolated(sizes, batch, channels, again, turned, arranged, options)
    agrees(net, {"grid": "bare_grid", "head": "linear"}, n=7, d=3)


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_other_interpolation_is_left_to_automatic_differentiation():
    cubic = {"mode": "bicubic", "align_corners": False}
    agrees(Interpolated([4, 3], 1, 2, 1, False, "(1, 1, n)", cubic), {"grid": "autodiff"}, n=7, d=3)


def test_a_large_grid_takes_no_memory_of_its_size():
    """A volume of 2^20 entries: every point holds eight corners of it."""
    options = {"padding_mode": "border", "align_corners": True}
    net = Interpolated([64, 64, 64], 1, 4, 1, False, "(1, 1, n)", options)
    K = inr.ntk(net, inr.grid((6, 6, 6)), memory_budget=2**24)
    assert K.left.capture.stored[0] == (32, 32)
    assert bool((K.diagonal() > 0).all())
