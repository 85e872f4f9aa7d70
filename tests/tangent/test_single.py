"""Products in fp32 are those of the kernel, for every output and layer, or not offered."""

import pytest
import torch

import inrfast as inr
from inrfast.tangent.kernel_operator import KernelOperator


@pytest.mark.parametrize("output", ["trace", "full", 1])
@pytest.mark.parametrize("layer", [None, "layers.0", "layers.2"])
def test_products_of_every_output_and_layer(output, layer):
    net = inr.INR(2, 3, width=40, hidden_layers=2, activation="sine", seed=1)
    kernel = inr.ntk(net, torch.rand(1500, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1, output=output)
    kernel = (kernel if layer is None else kernel.layers[layer]).at_precision("highest")
    single = KernelOperator(kernel).single
    v = torch.randn(kernel.shape[0], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    exact = kernel @ v
    error = float((single @ v - exact).norm())
    largest = float(kernel.trace()) ** 0.5
    assert error <= 2 * single.noise * largest + single.noise**2
    assert error >= 1e-12 * float(exact.norm())  # fp32 indeed


@pytest.mark.parametrize("output", ["trace", "full", 1])
@pytest.mark.parametrize("layer", [None, "layers.0"])
def test_random_vectors_have_the_kernel_for_covariance(output, layer):
    net = inr.INR(2, 3, width=8, hidden_layers=1, activation="sine", seed=1)
    kernel = inr.ntk(net, torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1, output=output)
    kernel = (kernel if layer is None else kernel.layers[layer]).at_precision("highest")
    single, draws = KernelOperator(kernel).single, 4000
    vectors = torch.cat([single.random(seed) for seed in range(draws)], 1)
    covariance, exact = vectors @ vectors.t() / draws, kernel.to_dense()
    deviation = ((exact**2 + torch.outer(exact.diagonal(), exact.diagonal())) / draws).sqrt()
    assert (covariance - exact).abs().max() <= 5 * deviation.max()
    assert ((covariance - exact).abs() <= 6 * deviation + 1e-6 * exact.diagonal().max()).all()


@pytest.mark.parametrize("budget", [2**30, 2_500_000])
@pytest.mark.parametrize("released", [False, True])
def test_held_factors_are_the_same_and_those_in_fp64_come_back(budget, released, monkeypatch):
    """Kept factors and recomputed ones, of all layers and of one."""
    if released:
        monkeypatch.setattr("inrfast.tangent.single.RELEASED", 0)
    net = inr.INR(2, 2, width=48, hidden_layers=2, seed=1)
    whole = inr.ntk(net, inr.grid((40, 40)), precision="highest", memory_budget=budget)
    v = torch.randn(1600, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kernel in (whole, whole.layers["layers.1"]):
        single, exact, store = KernelOperator(kernel).single, kernel @ v, kernel.sides.left.store
        rounded, kept = single @ v, store.kept
        for room, held in ((2**30, True), (0, released and store.fits and kernel is whole)):
            with single.held(room):
                assert (single._held is not None) == held
                assert store.kept == (kept and not (released and held and store.fits and kernel is whole))
                with single.held(room):
                    # Fewer threads may share the points: sums in fp64 differ by rounding.
                    assert torch.allclose(single @ v, rounded, rtol=0, atol=1e-6 * float(rounded.abs().max()))
            assert single._held is None
        assert torch.equal(kernel @ v, exact)


@pytest.mark.parametrize("activation", ["relu", "sine", "tanh", "finer"])
def test_columns_after_a_release_are_of_the_same_factors(activation, monkeypatch):
    """To the bit: some factors computed anew beside other points would round otherwise."""
    monkeypatch.setattr("inrfast.tangent.single.RELEASED", 0)
    monkeypatch.setenv("INRFAST_NATIVE", "plain")
    net = inr.INR(2, 1, width=64, hidden_layers=3, activation=activation, seed=0)
    kernel = inr.ntk(net, inr.grid((37, 41)), precision="highest")
    operator, index = KernelOperator(kernel), torch.tensor([3, 700, 1500, 11, 12])
    operator.diagonal()
    submatrix, columns, found = operator.submatrix(index), operator.columns(index), torch.empty(1517, 5).double()
    for _ in range(2):
        with operator.single.held(0):
            assert kernel.sides.left.store.released
        operator.blocks_([(found, slice(0, 1517))], index, torch.float64)
        assert torch.equal(found, columns)
        with operator.single.held(0):
            pass
        assert torch.equal(operator.submatrix(index), submatrix)


@pytest.mark.parametrize("size", [1.2e-12, 6e-12, 1e-6, 1e-3, 1.0, 1e11])
def test_kernels_that_fp32_does_not_hold_are_left_to_fp64(size):
    """Factors that it does hold may have products that it does not: a bound would be zero."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 1, bias=False))
    net = net.double()
    with torch.no_grad():
        net[2].weight.fill_(size)
    coords = size * torch.rand(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = inr.ntk(net, coords, params=["0.weight"], precision="highest")
    assert (KernelOperator(kernel).single is None) == (not 1e-5 <= size <= 1e5)
    exact = torch.linalg.eigvalsh(kernel.to_dense())
    counted = kernel.counts(1e-3).rank(1e-3)
    assert int((exact > 1e-3 * exact[-1]).sum()) in counted


def test_what_fp32_does_not_hold_is_not_offered():
    for scale, offered in ((1.0, True), (1e-16, False), (1e16, False)):
        net = inr.INR(2, 1, width=16, hidden_layers=1, seed=0, dtype=torch.float64)
        with torch.no_grad():
            net.layers[-1].weight *= scale  # so that the sensitivities are; features hold the 1 of the bias
        operator = KernelOperator(inr.ntk(net, inr.grid((8, 8)), precision="highest"))
        assert (operator.single is not None) == offered


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_counts_do_not_depend_on_the_default_dtype(dtype):
    net, coords = inr.INR(2, 1, width=32, hidden_layers=2, seed=0), inr.grid((72, 72))
    expected = inr.ntk(net, coords).counts(1e-5)
    assert expected.certified  # by products in fp32
    level = 1e-5 * float(expected.eigenvalues[0])
    by_level = inr.ntk(net, coords).counts(levels=level)
    assert by_level.counts is None and by_level.note == expected.note  # nothing is left to estimate
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = inr.ntk(net, coords).counts(1e-5)
    finally:
        torch.set_default_dtype(before)
    assert (found.rank(), found.certified) == (expected.rank(), expected.certified)
