"""The layerwise Jacobian as an operator, against automatic differentiation."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import exact_jacobian, networks, random_coords
from torch import nn
from torch.nn.utils import parameters_to_vector

import inrfast as inr
from inrfast import backends
from inrfast.errors import MemoryBudgetError


@given(networks(), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from(["highest", "high"]))
def test_rows_and_products_agree_with_autodiff(net, n, seed, precision):
    coords = random_coords(n, net.in_features, seed)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    J = inr.jacobian(net, coords, precision=precision)
    tol = 1e-10 if precision == "highest" else 1e-5
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(truth.shape[1], 3, generator=generator, dtype=torch.float64)
    v = torch.randn(truth.shape[0], 3, generator=generator, dtype=torch.float64)
    assert J.shape == tuple(truth.shape)
    row_size = truth.norm(dim=1)
    assert ((J.rows() - truth).abs() <= tol * row_size[:, None] + 1e-300).all()
    m, half = net.out_features, n // 2
    assert ((J.rows(slice(half, n)) - truth[half * m :]).abs() <= tol * row_size[half * m :, None] + 1e-300).all()
    assert ((J @ p - truth @ p).abs() <= tol * torch.outer(row_size, p.norm(dim=0)) + 1e-300).all()
    assert ((J.T @ v - truth.t() @ v).abs() <= tol * (row_size @ v.abs()) + 1e-300).all()
    assert J.rows(-1).shape == (m, J.shape[1])
    # <J p, v> = <p, J^T v>
    assert float(((J @ p) * v).sum() - (p * (J.T @ v)).sum()) == pytest.approx(
        0, abs=1e-4 * float((J @ p).norm() * v.norm()) + 1e-300
    )


def test_layers_partition_the_columns_and_split_names_them():
    net = inr.INR(2, 2, width=6, hidden_layers=2, norm="batch")
    coords = random_coords(11, 2, 0)
    inr.calibrate_batchnorm_(net, coords)
    J = inr.jacobian(net.eval(), coords, precision="highest")
    p = parameters_to_vector(net.parameters()).detach().double()
    named = J.split(p)
    assert list(named) == [name for name, _ in net.named_parameters()]
    for name, parameter in net.named_parameters():
        assert torch.equal(named[name], parameter.detach().double())
    total = torch.zeros(J.shape[0], dtype=torch.float64)
    for name, layer in J.layers.items():
        own = torch.cat([named[key].flatten() for key in named if key.startswith(name + ".")])
        assert layer.shape == (J.shape[0], len(own))
        total += layer @ own
        torch.testing.assert_close(layer.rows() @ own, layer @ own)
    torch.testing.assert_close(total, J @ p)


@pytest.mark.parametrize("params", [["layers.1"], ["layers.0.bias", "layers.2.weight"], ["layers.2.bias"]])
def test_params_and_frozen_parameters_restrict_the_columns(params):
    net = inr.INR(2, 3, width=7, hidden_layers=2)
    coords = random_coords(9, 2, 1)
    names = [n for n, _ in net.named_parameters() if any(n == p or n.startswith(p + ".") for p in params)]
    truth = exact_jacobian(net, coords, names).flatten(0, 1)
    torch.testing.assert_close(inr.jacobian(net, coords, params=params, precision="highest").rows(), truth)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
    frozen = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(frozen.rows(), truth)
    v = torch.randn(27, dtype=torch.float64)
    torch.testing.assert_close(frozen.T @ v, truth.t() @ v)
    for output in ("trace", "full", 1):
        K = inr.ntk(net, coords, output=output, precision="highest")
        torch.testing.assert_close(K @ torch.eye(K.shape[1], dtype=torch.float64), K.to_dense())


def affine_net():
    """Layer norms with and without a bias, and linear layers with and without one."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 9, bias=False), nn.RMSNorm(9), nn.Linear(9, 2)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "params", [None, ["0.bias", "1.bias", "5.weight"], ["0.weight", "1.weight", "5.bias"], ["1", "4"]]
)
def test_every_kind_of_layer_on_every_backend(device, backend, params):
    """Rows of any range, whole and layer by layer, and both products."""
    if backend == "triton" and device.type == "cpu" and not backends.interpreted():
        pytest.skip("no kernels here")
    net, coords = affine_net().to(device), random_coords(7, 2, 0).to(device)
    chosen = params or [""]
    names = [n for n, _ in net.named_parameters() if any(n == p or n.startswith(p + "." * bool(p)) for p in chosen)]
    truth = exact_jacobian(net, coords, names)
    J = inr.jacobian(net, coords, params=params, precision="highest", backend=backend)
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for points in (slice(0, 7), slice(2, 5), slice(3, 3), slice(6, 7)):
        close(J.rows(points), truth[points].flatten(0, 1))
    shapes = dict(net.named_parameters())
    columns = dict(zip(names, truth.split([shapes[n].numel() for n in names], 2), strict=True))
    for name, layer in J.layers.items():
        own = [block for n, block in columns.items() if n.rpartition(".")[0] == name]
        close(layer.rows(slice(1, 4)), torch.cat(own, 2)[1:4].flatten(0, 1))
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(truth.shape[2], 2, generator=rng, dtype=torch.float64).to(device)
    v = torch.randn(14, 2, generator=rng, dtype=torch.float64).to(device)
    close(J @ p, truth.flatten(0, 1) @ p)
    close(J.T @ v, truth.flatten(0, 1).t() @ v)


def test_rows_do_not_depend_on_the_range_asked_for():
    """The same bits whether rows are made alone or among others, from kept factors or recomputed ones."""
    net, coords = inr.INR(2, 2, width=16, hidden_layers=2), random_coords(1100, 2, 0)
    kept = inr.jacobian(net, coords)
    whole = kept.rows()
    kept.store.all()
    assert torch.equal(kept.rows(slice(500, 1050)), whole[1000:2100])
    least = 2 * whole.nbytes // 1100 * 20
    assert torch.equal(inr.jacobian(net, coords, memory_budget=least).rows(slice(7, 9)), whole[14:18])


BAD_CALLS = {
    "p shape": (lambda J: J @ torch.ones(3), ValueError, "p must have shape"),
    "v shape": (lambda J: J.T @ torch.ones(3), ValueError, "v must have shape"),
    "p integer": (lambda J: J @ torch.ones(J.shape[1], dtype=torch.long), TypeError, "floating"),
    "rows step": (lambda J: J.rows(slice(0, 4, 2)), ValueError, "step 1"),
    "rows type": (lambda J: J.rows([0]), TypeError, "slice"),
    "rows range": (lambda J: J.rows(99), IndexError, "out of range"),
    "split": (lambda J: J.split(torch.ones(2)), ValueError, "p must have shape"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_by_name(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(inr.jacobian(inr.INR(2, 1, width=4, hidden_layers=1), inr.grid((3, 3))))


def test_unknown_parameters_and_budgets():
    net, coords = inr.INR(2, 1, width=4, hidden_layers=1), inr.grid((3, 3))
    with pytest.raises(ValueError, match=r"Did you mean 'layers\.0"):
        inr.jacobian(net, coords, params=["layer.0"])
    with pytest.raises(TypeError, match="list of names"):
        inr.jacobian(net, coords, params="layers.0")
    with pytest.raises(ValueError, match="at least one"):
        inr.jacobian(net, coords, params=[])
    with pytest.raises(MemoryBudgetError, match="ask for fewer"):
        inr.jacobian(net, coords, memory_budget=100).rows()


@pytest.mark.parametrize("hooked", [False, True])
def test_coordinates_are_copied(hooked):
    """The caller may reuse the memory of the points, as well as train the network, after the call."""
    net = inr.INR(2, 2, width=7, hidden_layers=2)
    net = nn.Sequential(net) if hooked else net
    first, second = random_coords(9, 2, 0), random_coords(7, 2, 1)
    v, w, p = torch.ones(18), torch.ones(9, 1), torch.ones(sum(q.numel() for q in net.parameters()))

    def results(K, square, J):
        return [
            square.to_dense(),
            square.columns([0, 4]),
            square.submatrix([1, 3]),
            square @ w,
            square.diagonal(),
            square.spectrum(progress=False).eigenvalues,
            K.to_dense(),
            K.columns([2]),
            J.rows(),
            J.T @ v,
            J @ p,
        ]

    def made(x, y):
        return inr.ntk(net, x, y), inr.ntk(net, x), inr.jacobian(net, x)

    expected = results(*made(first, second))
    x, y = first.clone(), second.clone()
    later = made(x, y)
    x.zero_()
    y.zero_()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for got, right in zip(results(*later), expected, strict=True):
        assert torch.equal(got, right)
