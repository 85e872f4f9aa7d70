"""Which networks have factors in closed form, and that those with filters of the coordinates have right ones."""

import pytest
import torch
from random_networks import exact_jacobian, exact_kernel

import inrfast as inr
from inrfast.modulations.fourier import Fourier

FILTERS = [{"name": "fourier", "scale": 4.0}, {"name": "gabor", "scale": 4.0}]


def network(seed, **given):
    """Networks with filters, of other depths, norms, activations and numbers of coordinates by their seed."""
    return inr.INR(
        1 + seed % 3,
        1 + seed % 2,
        width=16,
        hidden_layers=1 + seed % 3,
        activation=["relu", "sine", "tanh"][seed % 3],
        norm=[None, "sphere", "topk"][seed // 2 % 3],
        modulation=[None, *[FILTERS[(seed + k) % 2] for k in range(seed % 3)]] if seed % 3 else FILTERS[seed // 3 % 2],
        seed=seed,
        **given,
    )


def truth(net, coords):
    """The kernel by automatic differentiation in fp64."""
    jacobian = exact_jacobian(net.double(), coords.double())
    return exact_kernel(jacobian, jacobian, "trace")


def grid(net):
    return inr.grid({1: (120,), 2: (11, 11), 3: (5, 5, 5)}[net.in_features])


@pytest.mark.parametrize("seed", range(6))
def test_closed_form_with_filters_is_exact_in_both_precisions(seed):
    net = network(seed)
    coords = grid(net)
    kernel, exact = inr.ntk(net, coords, precision="highest"), truth(net, coords)
    assert kernel.capture.closed_form
    scale = exact.diagonal().sqrt()
    size = scale.unsqueeze(1) * scale
    assert ((kernel.to_dense() - exact).abs() <= 1e-10 * size).all()
    high = inr.ntk(network(seed), coords).to_dense().double()
    assert ((high - exact).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("seed", range(6))
def test_certified_ranks_of_networks_with_filters_hold(seed):
    net = network(seed)
    kernel = inr.ntk(net, grid(net), precision="highest")
    eigenvalues = torch.linalg.eigvalsh(kernel.to_dense())
    for rtol in (1e-3, 1e-6, 1e-8):
        found = inr.numerical_rank(kernel, rtol)
        assert found.lower <= int((eigenvalues > rtol * eigenvalues[-1]).sum()) <= found.upper


def test_reports_keep_filters_apart_from_what_layers_pass_on():
    net = network(2)
    report = inr.diagnose(net, inr.grid((5, 5, 5)))
    assert [own.name for own in report.representations] == ["input", "layers.0", "layers.1", "layers.2"]
    assert {"modulations.1.linear", "modulations.2"} & {own.name for own in report.sensitivities}
    found = inr.variance(net, grid(net))
    assert found.similarities.gates.keys() == {"layers.0", "layers.1", "layers.2"}


def test_a_filter_without_a_derivative_of_its_own_is_run():
    class Other(Fourier):
        def forward(self, coords):
            return super().forward(coords) ** 2

    net = inr.INR(2, 1, width=8, hidden_layers=1, modulation="fourier", dtype=torch.float64)
    coords = inr.grid((6, 6), dtype=torch.float64)
    net.modulations[0].__class__ = Other
    kernel = inr.ntk(net, coords, precision="highest")
    assert not kernel.capture.closed_form
    torch.testing.assert_close(kernel.to_dense(), truth(net, coords), rtol=1e-10, atol=1e-10)
