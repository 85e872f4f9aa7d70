"""The probes tell networks that are another function in fp64, and factors that are wrong in rows of any size."""

import itertools
import math
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_coords
from torch import nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Cells(nn.Module):
    """A table read by the cell of the first coordinate, or a branch taken on one side of a border."""

    def __init__(self, cells, branch):
        super().__init__()
        self.cells, self.branch = cells, branch
        self.table, self.decoder = nn.Parameter(torch.randn(cells + 1, 3)), nn.Linear(3, 2)

    def forward(self, x):
        place = x[:, 0] * self.cells
        index = (place >= self.cells // 2).long() if self.branch else place.long()
        return self.decoder(self.table[index].sin())


@given(cells=st.integers(3, 200), branch=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_points_on_borders_of_cells_are_told(cells, branch, seed):
    """Law: the number told is that of points whose cell in fp32 is another one than in fp64; over 1 % are refused."""
    torch.manual_seed(seed)
    net = Cells(cells, branch)
    borders = (torch.arange(cells + 1) / cells)[torch.randint(cells + 1, (8,))]
    coords = torch.rand(600, 2)
    coords[torch.randperm(600)[:8], 0] = borders
    for points in (coords, coords[coords[:, :1].sub(borders).abs().amin(1) == 0]):
        places = [(points[:, 0].to(dtype) * cells) for dtype in (torch.float32, torch.float64)]
        index = [(place >= cells // 2).long() if branch else place.long() for place in places]
        off = int((index[0] != index[1]).sum())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if off > 0.01 * len(points):
                with pytest.raises(UnsupportedModuleError, match=f"at {off} of {len(points)} points"):
                    inr.ntk(net, points)
                continue
            inr.ntk(net, points)
        told = [
            re.findall(r"at (\d+) of", str(one.message)) for one in caught if "another function" in str(one.message)
        ]
        assert [found for found in told if found] == ([[str(off)]] if off else [])
        cured = inr.ntk(net.double(), points.double())
        assert cured.shape == (len(points), len(points))
        net.float()


class Waves(nn.Module):
    """Positional encoding, a deep sine network and a box or window: where rounding is amplified, and unevenly."""

    def __init__(self, omega, depth, window):
        super().__init__()
        self.omega, self.window = omega, window
        sizes = [12, *[24] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(24, 2)
        for layer in self.layers:
            nn.init.uniform_(layer.weight, -math.sqrt(6 / 24) / omega, math.sqrt(6 / 24) / omega)

    def forward(self, x):
        waves = x.unsqueeze(-1) * (math.pi * 2.0 ** torch.arange(3.0, 9.0, 2.0)).to(x)
        h = torch.cat([waves.sin().flatten(1), waves.cos().flatten(1)], 1)
        for layer in self.layers:
            h = torch.sin(self.omega * layer(h))
        if self.window == "box":
            return self.head(h) * (x.abs().amax(1, keepdim=True) < 0.31)
        return self.head(h) * (torch.exp(-20 * x.square().sum(1, keepdim=True)) if self.window else 1)


@given(
    omega=st.sampled_from([30.0, 60.0]),
    depth=st.integers(1, 7),
    window=st.sampled_from([None, "box", "gaussian"]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_rounding_is_no_border(omega, depth, window, dtype, seed):
    """Law: smooth networks of high frequency, whatever they do to rounding, are not told to have borders."""
    torch.manual_seed(seed)
    net = Waves(omega, depth, window).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inr.ntk(net, random_coords(1000, 2, seed))
