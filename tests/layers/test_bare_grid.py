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


class VectorMatrix(nn.Module):
    """apchenstu/TensoRF: planes times lines of features, their places gathered for all three modes at once."""

    def __init__(self, components=2, side=5):
        super().__init__()
        self.matMode, self.vecMode = [[0, 1], [0, 2], [1, 2]], [2, 1, 0]
        self.app_plane = nn.ParameterList(torch.randn(1, components, side, side) for _ in range(3))
        self.app_line = nn.ParameterList(torch.randn(1, components, side, 1) for _ in range(3))
        self.basis_mat = nn.Linear(3 * components, 2, bias=False)

    def forward(self, xyz):
        planes = torch.stack([xyz[..., mode] for mode in self.matMode]).view(3, -1, 1, 2)
        lines = torch.stack([xyz[..., mode] for mode in self.vecMode])
        lines = torch.stack((torch.zeros_like(lines), lines), dim=-1).view(3, -1, 1, 2)
        found = [
            F.grid_sample(plane, planes[[k]], align_corners=True).view(-1, len(xyz))
            * F.grid_sample(line, lines[[k]], align_corners=True).view(-1, len(xyz))
            for k, (plane, line) in enumerate(zip(self.app_plane, self.app_line, strict=True))
        ]
        return self.basis_mat(torch.cat(found).t())


class TriPlane(nn.Module):
    """NVlabs/eg3d: three planes of one tensor, sampled as a batch, their mean decoded."""

    def __init__(self, channels=3, side=4):
        super().__init__()
        self.planes = nn.Parameter(torch.randn(1, 3, channels, side, side))
        self.decoder = nn.Sequential(nn.Linear(channels, 6), nn.Softplus(), nn.Linear(6, 2))

    def forward(self, x):
        places = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [2, 0]]]).unsqueeze(1)
        features = F.grid_sample(self.planes.view(3, *self.planes.shape[2:]), places, align_corners=False)
        return self.decoder(features.permute(0, 3, 2, 1).reshape(3, len(x), -1).mean(0))


@pytest.mark.parametrize("kind", [VectorMatrix, TriPlane])
def test_fields_of_planes_and_lines(kind):
    """No parameter of theirs is left to automatic differentiation."""
    torch.manual_seed(0)
    found = agrees(kind(), n=7, d=3)
    assert set(found.values()) == {"bare_grid", "linear"}


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
