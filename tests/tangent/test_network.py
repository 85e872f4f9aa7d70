"""The network that is differentiated: how it is called, and what is taken from what it returns."""

from __future__ import annotations

import pickle
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import inrfast as inr
from inrfast.errors import UnsupportedModuleError

Pair = namedtuple("Pair", ["rgb", "density"])


@dataclass
class Rendered:
    """What a field may return."""

    rgb: torch.Tensor
    density: torch.Tensor


class Field(nn.Module):
    """A network of (..., 2) to (..., 3) that refuses coordinates of other axes than it is told."""

    def __init__(self, axes: int = 2, squeezes: bool = False, kind: type | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
        self.axes, self.squeezes, self.kind = axes, squeezes, kind

    def forward(self, coords: torch.Tensor) -> object:
        if coords.ndim != self.axes:
            raise RuntimeError(f"expected {self.axes} axes")
        found = self.last(torch.sin(3 * self.first(coords)))
        found = found.squeeze() if self.squeezes else found
        return found if self.kind is None else self.kind(found, found[..., :1])


class Rows(nn.Module):
    """A field that treats every row of an image in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.offsets = nn.Linear(2, 1), nn.Parameter(torch.arange(4.0))

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.linear(coords)) * self.offsets[: len(coords), None, None]


@pytest.mark.parametrize("shape", [(1, 6, 2), (2, 3, 2), (2, 1, 3, 2), (1, 1, 2)])
@pytest.mark.parametrize("squeezes", [False, True])
@pytest.mark.filterwarnings("ignore:parameters")
def test_points_are_all_axes_but_the_last(shape, squeezes):
    net, coords = Field(squeezes=squeezes), torch.randn(shape)
    flat = inr.ntk(net, coords.reshape(-1, 2), coords2=torch.ones(2, 2), output="full", precision="highest")
    net.axes = coords.ndim
    kernel = inr.ntk(net, coords, coords2=torch.ones(1, 1, 2, 2), output="full", precision="highest")
    assert torch.allclose(kernel.to_dense(), flat.to_dense(), rtol=1e-12, atol=1e-12)
    rows = inr.jacobian(net, coords, precision="highest").rows()
    assert torch.allclose(rows @ rows.t(), inr.ntk(net, coords, output="full", precision="highest").to_dense())


@pytest.mark.filterwarnings("ignore:parameters")
def test_a_pickled_kernel_is_called_with_the_same_axes():
    kernel = inr.ntk(Field(axes=3), torch.randn(1, 6, 2), precision="highest")
    again = pickle.loads(pickle.dumps(kernel))
    assert torch.equal(again.to_dense(), kernel.to_dense())


@pytest.mark.filterwarnings("ignore:parameters")
def test_a_diagnosis_calls_the_network_with_the_axes_of_its_grid():
    net, coords = Field(axes=3), torch.randn(1, 6, 2)
    report = inr.diagnose(net, coords, ntk_coords=coords[0, :4], progress=False)
    assert report.points == 6 and report.kernel is not None and report.kernel.points == 4
    assert inr.dictionary(net, coords, 3).atoms.shape == (6, 3)
    assert inr.representation(net, coords, report.representations[0].name, progress=False).spectrum.rows == 6


def test_a_network_that_looks_at_the_axes_is_refused():
    with pytest.raises(UnsupportedModuleError, match=r"coords of shape \(2, 2, 2\) otherwise than .* \(1, 4, 2\)"):
        inr.ntk(Rows(), torch.randn(4, 5, 2))
    with pytest.raises(ValueError, match=r"points of coords, given as \(1, n, 2\) .*: expected 2 axes"):
        inr.ntk(Field(), torch.randn(2, 5, 2))
    with pytest.raises(ValueError, match=r"coords must have shape \(N, d\), or \(\.\.\., d\) with more axes"):
        inr.ntk(Field(), torch.randn(5))


@pytest.mark.parametrize(
    ("kind", "select"),
    [(Pair, "rgb"), (Pair, 0), (Rendered, "rgb"), (lambda a, b: {"rgb": a, "density": b}, "rgb"), (Pair, -2)],
)
def test_outputs_by_key_index_or_attribute(kind, select):
    net, coords = Field(), torch.randn(5, 2)
    plain = inr.ntk(net, coords, precision="highest").to_dense()
    net.kind = kind
    assert torch.equal(inr.ntk(net, coords, select=select, precision="highest").to_dense(), plain)
    with pytest.raises(ValueError, match="select='colour' is not in what net returns"):
        inr.ntk(net, coords, select="colour")


def test_a_tensors_own_attributes_are_no_outputs():
    with pytest.raises(ValueError, match="select='T' is not in what net returns: Tensor"):
        inr.ntk(Field(), torch.randn(5, 2), select="T")
