"""The factors' check sees errors in rows of every size, and takes rounding for what it is."""

import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import HiddenProduct
from random_networks import exact_jacobian, random_coords
from torch import nn

import inrfast as inr


class Uneven(nn.Module):
    """Rows of the Jacobian of very different sizes, of which the small ones use a weight twice."""

    def __init__(self, large, points):
        super().__init__()
        self.large, self.points, self.a = large, points, nn.Linear(2, 4)

    def forward(self, x):
        h = self.a(x).sin()
        twice = h + 0.5 * HiddenProduct.apply(x, self.a.weight)
        return (
            torch.where(x[:, :1] > 0, self.large * h, twice) if self.points else torch.cat([self.large * h, twice], 1)
        )


@given(exponent=st.floats(2, 10), points=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_errors_in_small_rows_are_seen(exponent, points, seed):
    """Law: K_ii is the squared norm of row i by automatic differentiation, however small beside other rows."""
    torch.manual_seed(seed)
    net, coords = Uneven(10.0**exponent, points).double(), random_coords(12, 2, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = inr.ntk(net, coords, output="full", precision="highest").diagonal()
    values, parameters = net(coords.double()).flatten(), list(net.parameters())
    gradients = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values]
    rows = torch.stack([torch.cat([own.flatten() for own in one]) for one in gradients])
    torch.testing.assert_close(found, rows.square().sum(1), rtol=1e-9, atol=0.0)


@given(steep=st.floats(1, 10), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_rows_that_rounding_makes_are_no_errors(steep, seed):
    """Law: the rows of a saturated softmax, what is left of 1 - p, are those of automatic differentiation."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5), nn.Softmax(1)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(steep)
    coords = random_coords(12, 2, seed)
    found, rows = inr.jacobian(net, coords, precision="highest").rows(), exact_jacobian(net, coords).flatten(0, 1)
    assert float((found - rows).abs().max()) <= 1e-9 * float(rows.abs().max())
