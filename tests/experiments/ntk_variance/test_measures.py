"""Numbers of kernels are those of the dense matrix, and of the theory's formula where there is one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.experiments.ntk_variance.hadamard import factors
from inrfast.experiments.ntk_variance.measures import (
    dense,
    effective_rank,
    first_share,
    made_up,
    measured,
    rest,
    spectrum,
)
from inrfast.experiments.ntk_variance.settings import Setting
from inrfast.experiments.ntk_variance.variants import BOTH, HADAMARD, PLAIN, VARIANTS, fourier, ready
from inrfast.grids import grid
from inrfast.tangent.local import ntk


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_numbers_are_those_of_the_dense_kernel(variant):
    coords = grid((5, 6), dtype=torch.float64)

    def network():
        return ready(variant.network(2, 12, 2, seed=3, dtype=torch.float64), coords)

    found, net = measured(network(), coords), network()
    kernel = dense(net, coords)
    values = torch.linalg.eigvalsh(kernel)
    assert found["mean"] == pytest.approx(values.mean().item(), rel=1e-9)
    assert found["variance"] == pytest.approx(values.var(correction=0).item(), rel=1e-9)
    assert found["normalised"] == pytest.approx(made_up(found["overlap"], found["diagonal"], 30), rel=1e-12)
    assert found["normalised"] == pytest.approx(found["variance"] / found["mean"] ** 2, rel=1e-12)
    pairs = ~torch.eye(30, dtype=torch.bool)
    energies = torch.outer(kernel.diagonal(), kernel.diagonal())
    assert found["overlap"] == pytest.approx((kernel.square()[pairs].sum() / energies[pairs].sum()).item(), rel=1e-9)
    for number, kept in (("frozen", "layers."), ("first", "layers.0.")):
        names = [name for name, _ in net.named_parameters() if name.startswith(kept)]
        own = torch.linalg.eigvalsh(ntk(net, coords, params=names, precision="highest").to_dense())
        assert found[number] == pytest.approx((own.var(correction=0) / own.mean() ** 2).item(), rel=1e-9)
    assert sum(layer["energy"] for layer in found["layers"].values()) == pytest.approx(1, rel=1e-9)
    assert np.allclose(spectrum(net, coords), values.flip(0).clamp_min(0), rtol=1e-9, atol=1e-12 * values[-1].item())


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=20))
def test_the_effective_rank_counts_equal_eigenvalues(values):
    values = np.sort(values)[::-1]
    assert 1 <= effective_rank(values) <= len(values) + 1e-9
    assert effective_rank(np.concatenate([values, np.zeros(3)])) == pytest.approx(effective_rank(values))
    assert effective_rank(np.concatenate([values, values])) == pytest.approx(2 * effective_rank(values))
    assert rest(np.concatenate([[1e9], np.full(5, 2.0)])) == 0 <= rest(np.concatenate([values, values]))
    assert first_share(values) == pytest.approx(values.max() / values.sum())


@given(st.integers(0, 99), st.sampled_from(["gaussian", "sphere"]), st.integers(2, 5), st.sampled_from([0.5, 8.0]))
def test_the_kernel_of_the_theorys_model_is_its_formula(seed, points, dimension, frequency):
    """By inner products of gates and filters on one side, by the network's own kernel on the other."""
    setting = Setting("", "", points=points, count=20, dimension=dimension, width=24, hidden_layers=1, theory=True)
    coords, net = setting.coords(seed), setting.network(PLAIN, seed)
    gates = (coords @ net.layers[0].weight.T > 0).double()
    expected = (coords @ coords.T) * (gates @ gates.T) / 24
    kernel = ntk(net, coords, params=setting.params, precision="highest").to_dense()
    assert torch.allclose(kernel, expected, rtol=1e-9, atol=1e-12)
    with_filter = HADAMARD.but(filters=fourier(frequency))
    plain, filtered = (setting.measured(one, seed)["normalised"] for one in (PLAIN, with_filter))
    found = factors(setting, frequency, seed)
    assert found["normalised"] == pytest.approx(filtered / plain, rel=1e-9)
    assert found["overlap"] > 0 and 0 <= found["above"] <= 1 and found["mean"] <= found["largest"]


def test_points_and_networks_are_those_of_the_setting():
    on_sphere = Setting("", "", points="sphere", count=9, dimension=3)
    assert torch.allclose(on_sphere.coords(1).norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert not torch.equal(on_sphere.coords(1), on_sphere.coords(2))
    net = Setting("", "", width=7, hidden_layers=2, options={"bias": False}).network(BOTH, 0)
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(7, 2), (7, 7), (1, 7)]
    assert all(layer.bias is None for layer in net.layers)
