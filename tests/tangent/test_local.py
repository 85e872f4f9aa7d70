"""The tangent kernel against the exact Jacobians of automatic differentiation, and its laws."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.backends import warn_once
from inrfast.errors import MemoryBudgetError, NotAvailableError, RangeError, ResolutionError
from inrfast.linalg import eigenvalues, systems
from inrfast.tangent import products
from inrfast.tangent.kernel_operator import KernelOperator

TOLERANCE = {"highest": 1e-10, "high": 1e-5}

FUSED_TOLERANCE = {"highest": 1e-10, "high": 1e-6, "medium": 2e-4}


def scale(kernel_diagonal, other_diagonal):
    """sqrt(K_ii K_jj), the size of an entry by Cauchy and Schwarz."""
    tiny = 1e-30 * (1 + kernel_diagonal.max())
    return torch.outer((kernel_diagonal + tiny).sqrt(), (other_diagonal + tiny).sqrt())


def multiplied(name, kernel, V):
    """Return ``K V`` by one engine, whether it would be taken or not."""
    engine = next(engine for engine in products.ENGINES if engine.name == name)
    return engine.product(kernel.sides, V, lambda part: part)


def diagonal_of(jacobian, output):
    squares = jacobian.square().sum(2)
    if output == "trace":
        return squares.sum(1)
    return squares.flatten() if output == "full" else squares[:, output]


@settings(max_examples=8)
@given(
    networks(),
    st.integers(1, 23),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(["highest", "high"]),
    st.sampled_from(["trace", "full", 0]),
)
def test_kernels_between_two_sets_of_points_agree_with_autodiff(net, n, n2, seed, precision, output):
    coords, coords2 = random_coords(n, net.in_features, seed), random_coords(n2, net.in_features, seed + 1)
    left, right = exact_jacobian(net, coords), exact_jacobian(net, coords2)
    tol = TOLERANCE[precision]
    K = inr.ntk(net, coords, coords2, output=output, precision=precision)
    truth = exact_kernel(left, right, output)
    bound = scale(diagonal_of(left, output), diagonal_of(right, output))
    assert ((K.to_dense() - truth).abs() <= tol * bound).all()
    assert abs(K.frobenius() - truth.norm()) <= tol * bound.norm()
    assert ((K.columns([n2 - 1, 0]) - truth[:, [n2 - 1, 0]]).abs() <= tol * bound[:, [n2 - 1, 0]]).all()
    assert ((K.row_sums() - truth.sum(1)).abs() <= tol * bound.sum(1)).all()
    U = torch.randn(K.shape[1], 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    W = torch.randn(K.shape[0], 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    operator = K.to_scipy()
    for found in (K @ U, torch.from_numpy(operator @ U.numpy())):
        assert ((found - truth @ U).abs() <= tol * (bound @ U.abs())).all()
    found = torch.from_numpy(operator.T @ W.numpy())
    assert ((found - truth.t() @ W).abs() <= tol * (bound.t() @ W.abs())).all()
    parts = sum(layer.to_dense().double() for layer in K.layers.values())
    assert ((parts - truth).abs() <= tol * bound).all()


@settings(max_examples=12)
@given(networks(max_width=24, max_depth=3), st.integers(2, 40), st.integers(0, 10**6))
def test_streaming_under_a_small_budget_changes_nothing(net, n, seed):
    coords = random_coords(n, net.in_features, seed)
    for output in ("trace", "full", 0):
        K = inr.ntk(net, coords, output=output, precision="highest")
        dense, V = K.to_dense(), torch.randn(K.shape[1], 2, dtype=torch.float64)
        per_point = K.left.store.bytes_per_point
        small = inr.ntk(net, coords, output=output, precision="highest", memory_budget=40 * per_point)
        assert n <= 20 or not small.left.store.fits
        out = torch.full_like(dense, float("nan"))
        bound = scale(dense.diagonal(), dense.diagonal())
        assert ((small.to_dense(out=out) - dense).abs() <= 1e-13 * bound).all()
        assert ((small @ V - K @ V).abs() <= 1e-12 * (bound @ V.abs())).all()
        assert ((small.diagonal() - dense.diagonal()).abs() <= 1e-13 * bound.diagonal()).all()
        assert small.frobenius() == pytest.approx(float(dense.norm()), rel=1e-12)


@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_recomputed_factors_of_many_points_are_those_that_are_kept(output):
    """Several chunks in several threads, whose memory is used again and again."""
    net = inr.INR(2, 2, width=8, hidden_layers=2, activation="sine", init="siren")
    coords = random_coords(5003, 2, 3)
    K = inr.ntk(net, coords, output=output, precision="highest")
    small = inr.ntk(net, coords, output=output, precision="highest", memory_budget=4 << 20)
    assert K.left.store.fits
    assert not small.left.store.fits
    V = torch.randn(K.shape[0], 2, dtype=torch.float64)
    size, chosen = K.diagonal().sqrt(), [1, 4999, 3]  # |K_ij| <= size_i size_j: what entries and sums are measured by
    for _ in range(2):
        error = (multiplied("factors", small, V) - multiplied("factors", K, V)).abs()
        assert (error <= 1e-13 * torch.outer(size, size @ V.abs())).all()
        error = (small.columns(chosen) - K.columns(chosen)).abs()
        assert (error <= 1e-13 * torch.outer(size, size[chosen])).all()
        torch.testing.assert_close(small.diagonal(), K.diagonal(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("output", ["trace", "full"])
def test_the_frobenius_norm_does_not_depend_on_the_threads(output):
    net = inr.INR(2, 2, width=8, hidden_layers=2)
    K = inr.ntk(net, random_coords(1201, 2, 3), output=output)
    found = {K.frobenius() for _ in range(4)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(torch.linalg.vector_norm(K.to_dense(), dtype=torch.float64)), rel=1e-9)


def test_factors_whose_squares_fp32_cannot_hold():
    """Without biases a norm multiplies vanishing features by vast sensitivities: the kernel is an ordinary number."""
    x = random_coords(23, 3, 72327)
    options = {"activation": ["gaussian", "finer", "finer"], "norm": "sphere", "norm_position": "pre", "bias": False}
    smallest = 1.0
    for seed in (0, 5, 36):
        net = inr.INR(3, 2, width=31, hidden_layers=3, omega=30.0, init="siren", seed=seed, **options)
        exact = inr.ntk(net, x, precision="highest")
        smallest = min(smallest, float(exact.left.store.all()[1].features.abs().amax(1).min()))
        dense, truth = inr.ntk(net, x).to_dense(), exact.to_dense()
        assert ((dense - truth).abs() <= 1e-6 * scale(truth.diagonal(), truth.diagonal())).all()
        J, v = inr.jacobian(net, x), torch.ones(46, dtype=torch.float64)
        exact_product = inr.jacobian(net, x, precision="highest").T @ v
        assert ((J.T @ v - exact_product).abs() <= 1e-5 * exact_product.abs().max()).all()
    assert smallest**2 < torch.finfo(torch.float32).tiny


def test_norms_of_kernels_whose_squares_fp32_cannot_hold():
    for size in (1e-12, 1e12):
        net = inr.INR(2, 1, width=8, hidden_layers=1)
        with torch.no_grad():
            net.layers[0].weight.mul_(size)
            net.layers[0].bias.mul_(size)
            net.layers[1].bias.zero_()
        K = inr.ntk(net, random_coords(30, 2, 3), params=["layers.1.weight"])
        exact = inr.ntk(net, random_coords(30, 2, 3), params=["layers.1.weight"], precision="highest").to_dense()
        assert K.frobenius() == pytest.approx(float(exact.norm()), rel=1e-5)


def test_vectors_of_complex_numbers_are_for_scipy_alone():
    K = inr.ntk(inr.INR(2, 1, width=4), inr.grid((3, 3)))
    with pytest.raises(TypeError, match="V must have a floating-point dtype"):
        K @ torch.ones(9, dtype=torch.complex64)


@settings(max_examples=15)
@given(exponent=st.integers(-45, 45), bias=st.booleans(), seed=st.integers(0, 100))
def test_results_are_right_or_refused_whatever_the_scale(exponent, bias, seed):
    """ReLU networks whose weights are multiplied by a power of two, up to kernels of 1e80 and down to 1e-80."""
    net = inr.INR(2, 1, width=12, hidden_layers=2, bias=bias, seed=seed)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(2.0**exponent)
    coords = random_coords(17, 2, seed)
    jacobian = exact_jacobian(net, coords)
    truth = exact_kernel(jacobian, jacobian, "trace")
    bound = scale(truth.diagonal(), truth.diagonal())
    largest = float(truth.diagonal().max())
    K, J, v = inr.ntk(net, coords), inr.jacobian(net, coords), torch.ones(17)
    assert K.trace() == pytest.approx(float(truth.trace()), rel=1e-6)
    assert K.frobenius() == pytest.approx(float(truth.norm()), rel=1e-6)
    asked = {
        "dense": (lambda: K.to_dense(), truth, bound),
        "columns": (lambda: K.columns([3, 5]), truth[:, [3, 5]], bound[:, [3, 5]]),
        "submatrix": (lambda: K.submatrix([3, 5]), truth[[3, 5]][:, [3, 5]], bound[[3, 5]][:, [3, 5]]),
        "diagonal": (lambda: K.diagonal(), truth.diagonal(), bound.diagonal()),
        "product": (lambda: K @ v, truth.sum(1), bound.sum(1)),
        "form": (lambda: K.quadratic_form(v), truth.sum(), bound.sum()),
    }
    for ask, exact, size in asked.values():
        try:
            found = ask()
        except RangeError:
            assert not 1e-29 < largest < 1e36
        else:
            assert 1e-31 < largest < 1e38
            assert ((found - exact).abs() <= 1e-5 * size).all()
    rows = jacobian.flatten(0, 1)
    try:
        found = J.rows()
    except RangeError:
        assert not 1e-29 < largest**0.5 < 1e36
    else:
        sizes = rows.norm(dim=1, keepdim=True)
        assert ((found - rows).abs() <= 1e-5 * sizes).all()
        assert ((J.T @ v - rows.sum(0)).abs() <= 1e-5 * rows.abs().sum(0) + 1e-5 * sizes.max()).all()
        direction = torch.ones(rows.shape[1])
        assert ((J @ direction - rows.sum(1)).abs() <= 1e-5 * rows.abs().sum(1)).all()
    exact = inr.ntk(net, coords, precision="highest").to_dense()
    assert ((exact - truth).abs() <= 1e-10 * bound).all()


@pytest.mark.parametrize("bias", [-4.0, -19.0, -24.0])
def test_sphere_norms_of_vanishing_features_are_those_of_autodiff(bias):
    """Gaussian units far from their centre: features near 1e-250, whose squares are 0."""
    net = inr.INR(1, 1, width=4, hidden_layers=1, activation="gaussian", omega=1.0, norm="sphere", norm_position="post")
    with torch.no_grad():
        net.layers[0].bias.fill_(bias)
    coords = inr.grid((7,))
    jacobian = exact_jacobian(net, coords)
    truth = exact_kernel(jacobian, jacobian, "trace")
    K = inr.ntk(net, coords, precision="highest").to_dense()
    assert ((K - truth).abs() <= 1e-8 * scale(truth.diagonal(), truth.diagonal())).all()


def test_a_layer_s_own_kernel_is_not_lost_beside_the_whole():
    net = inr.INR(2, 1, width=8, hidden_layers=2, bias=False)
    with torch.no_grad():
        net.layers[0].weight.mul_(1e10)
        net.layers[1].weight.mul_(1e-28)
        net.layers[2].weight.mul_(1e10)
    K = inr.ntk(net, inr.grid((4, 4)))
    with pytest.raises(RangeError, match="precision='highest'"):
        K.layers["layers.0"].to_dense()
    exact = inr.ntk(net, inr.grid((4, 4)), precision="highest")
    assert K.layers["layers.0"].frobenius() == pytest.approx(exact.layers["layers.0"].frobenius(), rel=1e-6)
    assert K.frobenius() == pytest.approx(exact.frobenius(), rel=1e-6)


def test_a_sum_over_outputs_predicts_the_training_of_the_head():
    """A linear model of M outputs that share no parameter: gradient descent itself is the truth."""
    net, coords = inr.INR(2, 3, width=16, hidden_layers=1), inr.grid((6, 6))
    target = torch.stack([(k * coords[:, 0]).sin() for k in (1.0, 2.0, 3.0)], 1).double()
    exact = copy.deepcopy(net).double()
    head = exact.layers[-1]
    K = inr.ntk(net, coords, params=["layers.1"])
    s = K.spectrum(1e-10, eigenvectors=True)
    lr = 1.9 * 3 / float(s.eigenvalues[0])
    features = torch.relu(exact.layers[0](coords.double())).detach()
    start = head(features).detach()
    optimizer = torch.optim.SGD(head.parameters(), lr=lr)
    for _ in range(30):
        optimizer.zero_grad()
        (0.5 * (head(features) - target).square().sum()).backward()
        optimizer.step()
    warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match='output="full"'):
        found = s.predict(target, start, lr, 30)
    torch.testing.assert_close(found, head(features).detach(), rtol=1e-7, atol=1e-7)
    one = inr.ntk(net, coords, params=["layers.1"], output=1).spectrum(1e-10, eigenvectors=True)
    torch.testing.assert_close(one.predict(target[:, 1], start[:, 1], lr, 30), found[:, 1], rtol=1e-7, atol=1e-7)
    full = inr.ntk(net, coords, params=["layers.1"], output="full").spectrum(1e-10, eigenvectors=True)
    whole = full.predict(target.flatten(), start.flatten(), lr, 30)
    torch.testing.assert_close(whole.view_as(found), found, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(full.predict(target, start, lr, 30), found, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(full.energy(target), full.energy(target.flatten()))
    for wrong, message in ((s, "one per point, as the kernel sums over its 3"), (one, "36 rows"), (full, "times 3")):
        with pytest.raises(ValueError, match=message):
            wrong.predict(*(torch.ones(wrong.size + 36, 2, dtype=torch.float64),) * 2, lr, 3)
    assert (s.output, one.output, full.output) == ("trace", 1, "full")


def test_columns_are_those_of_the_products():
    """Of one matrix to the last bit, or a factorisation of one would not be of the other."""
    net, coords = inr.INR(2, 2, width=40, hidden_layers=5, activation="finer"), inr.grid((9, 9))
    for output in ("trace", "full", 1):
        K = inr.ntk(net, coords, output=output, precision="highest")
        K.diagonal()
        kept = K.left.store.all()
        columns = K.left.side_of(torch.tensor([3, 80, 41]), None)
        for layer, some in zip(kept, columns, strict=True):
            for whole, part in zip(layer, some, strict=True):
                assert whole is None or torch.equal(whole[[3, 80, 41]], part)
        gap = (K.columns([7, 2]) - K @ torch.eye(K.shape[0], dtype=torch.float64)[:, [7, 2]]).abs().max()
        assert gap <= 1e-13 * K.trace()


def test_dense_into_a_memmap(tmp_path):
    net = inr.INR(2, 1, width=8, hidden_layers=1)
    K = inr.ntk(net, inr.grid((30, 20)))
    file = np.memmap(tmp_path / "kernel.bin", dtype=np.float32, mode="w+", shape=K.shape)
    assert K.to_dense(out=file) is file
    np.testing.assert_array_equal(np.asarray(file), K.to_dense().numpy())


def test_spectrum_solve_and_prediction_against_numpy():
    net = inr.INR(2, 1, width=32, hidden_layers=2, activation="sine", omega=6.0, init="siren")
    coords = inr.grid((8, 8))
    K = inr.ntk(net, coords)
    jacobian = exact_jacobian(net, coords)[:, 0]
    values = torch.linalg.svdvals(jacobian).square()
    s = K.spectrum(rtol=1e-8, eigenvectors=True)
    assert s.method == "dense"
    assert ((s.eigenvalues - values).abs() <= s.upper_error).all()
    for rtol in (1e-2, 1e-4, 1e-6, 1e-8):
        interval = s.rank(rtol)
        assert int((values > rtol * values[0]).sum()) in interval
    p = values / values.sum()
    assert s.effective_rank() == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
    assert s.stable_rank() == pytest.approx(float(values.sum() / values[0]), rel=1e-9)
    with pytest.raises(ResolutionError, match="below"):
        s.rank(1e-9)
    assert len(K.spectrum(k=5).eigenvalues) == 5
    with pytest.raises(ResolutionError, match="compute more"):
        K.spectrum(k=3).rank(1e-6)

    target = torch.sin(3 * coords.sum(1)).double()
    assert float(s.energy(target).sum()) == pytest.approx(1.0)
    dense, lr = jacobian @ jacobian.t(), 0.5 / float(values[0])
    y = torch.zeros_like(target)
    for _ in range(20):
        y = y - lr * dense @ (y - target)
    torch.testing.assert_close(s.predict(target, torch.zeros_like(target), lr, 20), y)

    x = K.solve(target, ridge=1e-3)
    torch.testing.assert_close(dense @ x + 1e-3 * x, target, rtol=1e-6, atol=1e-8)


def test_large_grids_have_a_certified_spectrum_and_eigenfunctions(monkeypatch):
    """Eigenpairs, ranks of the layers and a ridge system, none of them dense, checked against the dense matrix."""
    for module in (eigenvalues, systems):
        monkeypatch.setattr(module, "SMALL", 1000)
    net = inr.INR(2, 1, width=16, hidden_layers=2, init="rank_expanding")
    coords = inr.grid((34, 34))
    K = inr.ntk(net, coords)
    exact = inr.ntk(net, coords, precision="highest")
    dense = exact.to_dense()
    s = K.spectrum(1e-6, eigenvectors=True)
    assert s.method == "cholesky"
    assert "order 1156 is above 1000" in s.note
    values = torch.linalg.eigvalsh(dense).flip(0)
    assert int((values > 1e-6 * values[0]).sum()) in s.rank()
    Q = s.eigenvectors
    assert Q[:, 0].reshape(34, 34).abs().min() > 0  # Perron and Frobenius: K is positive, so is its first function
    residuals = torch.linalg.vector_norm(dense @ Q - Q * s.eigenvalues, dim=0)
    assert residuals.max() <= s.upper_error
    for name, layer in exact.layers.items():
        found = layer.spectrum(1e-5)
        own = torch.linalg.eigvalsh(layer.to_dense())
        assert int((own > 1e-5 * own.max()).sum()) in found.rank(), name
    y = torch.randn(1156, 2, generator=torch.Generator().manual_seed(0))
    ridge = 1e-5 * float(values[0])
    x = K.solve(y, ridge, tol=1e-7)
    residual = torch.linalg.vector_norm(exact.product(x, ridge) - y.double(), dim=0)
    assert (residual <= 1.01e-7 * torch.linalg.vector_norm(y.double(), dim=0)).all()


def test_the_largest_eigenpairs_stream_under_a_budget(monkeypatch):
    """Neither the factors nor F in fp64 would fit: pairs come from recomputed factors and an fp32 F, certified."""
    monkeypatch.setattr(eigenvalues, "SMALL", 1000)
    net, coords = inr.INR(2, 1, width=32, hidden_layers=2), inr.grid((40, 40))
    K = inr.ntk(net, coords, memory_budget=3 << 20, precision="highest")
    assert not K.left.store.fits
    s = K.spectrum(1e-4, k=20, eigenvectors=True)
    assert (s.method, len(s.eigenvalues)) == ("cholesky", 20)
    dense = inr.ntk(net, coords, precision="highest").to_dense()
    values = torch.linalg.eigvalsh(dense).flip(0)
    assert max(s.lower_error, s.upper_error) <= 1e-4 * values[0]
    assert (values[:20] >= s.eigenvalues - s.lower_error).all()
    assert (values[:20] <= s.eigenvalues + s.upper_error).all()
    residuals = torch.linalg.vector_norm(dense @ s.eigenvectors - s.eigenvectors * s.eigenvalues, dim=0)
    assert residuals.max() <= max(s.lower_error, s.upper_error)


def test_an_interrupted_spectrum_leaves_nothing_half_true(monkeypatch):
    for module in (eigenvalues, systems):
        monkeypatch.setattr(module, "SMALL", 100)
    K = inr.ntk(inr.INR(2, 1, width=16), inr.grid((25, 25)), precision="highest", memory_budget=4 << 20)
    expected = K.spectrum(1e-6).eigenvalues
    whole, calls = inr.NTK._product, []

    def interrupted(self, V):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, V)

    monkeypatch.setattr(inr.NTK, "_product", interrupted)
    with pytest.raises(KeyboardInterrupt):
        K.spectrum(1e-6)
    assert len(calls) == 3
    monkeypatch.setattr(inr.NTK, "_product", whole)
    assert torch.equal(K.spectrum(1e-6).eigenvalues, expected)


def test_operators_of_linear_algebra_take_what_is_named_twice():
    for output in ("trace", "full", 1):
        K = inr.ntk(
            inr.INR(2, 2, width=8, hidden_layers=2), random_coords(30, 2, 0), output=output, precision="highest"
        )
        dense, named = K.to_dense(), torch.tensor([7, 3, 20, 7])
        torch.testing.assert_close(KernelOperator(K).submatrix(named), dense[named][:, named])
        torch.testing.assert_close(KernelOperator(K).columns(named), dense[:, named])


def test_kernel_is_a_snapshot():
    net = inr.INR(2, 1, width=8, hidden_layers=1)
    coords = inr.grid((4, 4))
    K = inr.ntk(net, coords)
    before = inr.ntk(copy.deepcopy(net), coords).to_dense()
    with torch.no_grad():
        net.layers[0].weight.zero_()
    assert torch.equal(K.to_dense(), before)


BAD_CALLS = {
    "net": (lambda net, x: inr.ntk("net", x), TypeError, "net must be"),
    "coords type": (lambda net, x: inr.ntk(net, x.tolist()), TypeError, "coords must be a torch.Tensor"),
    "coords shape": (lambda net, x: inr.ntk(net, x[:, :1]), ValueError, r"\(N, 2\)"),
    "coords ndim": (lambda net, x: inr.ntk(net, x[0]), ValueError, r"shape \(N, d\)"),
    "coords dtype": (lambda net, x: inr.ntk(net, x.long()), TypeError, "floating"),
    "coords device": (lambda net, x: inr.ntk(net, x.to("meta")), ValueError, "network is on cpu"),
    "coords nan": (lambda net, x: inr.ntk(net, x / 0), ValueError, "NaN or Inf"),
    "coords empty": (lambda net, x: inr.ntk(net, x[:0]), ValueError, "empty"),
    "coords2": (lambda net, x: inr.ntk(net, x, x[:, :1]), ValueError, "coords2"),
    "output name": (lambda net, x: inr.ntk(net, x, output="trase"), ValueError, "Did you mean 'trace'"),
    "output number": (lambda net, x: inr.ntk(net, x, output=1), ValueError, "below the network's 1"),
    "precision": (lambda net, x: inr.ntk(net, x, precision="hihg"), ValueError, "Did you mean 'high'"),
    "backend": (lambda net, x: inr.ntk(net, x, backend="trito"), ValueError, "Did you mean 'triton'"),
    "devices": (lambda net, x: inr.ntk(net, x.to("meta")), ValueError, "coords is on meta but the network is on cpu"),
    "backend absent": (lambda net, x: inr.ntk(net, x, backend="triton"), NotAvailableError, "CUDA|is installed"),
    "budget": (lambda net, x: inr.ntk(net, x, memory_budget=0), ValueError, "memory_budget"),
    "budget small": (lambda net, x: inr.ntk(net, x, memory_budget=100).to_dense(), MemoryBudgetError, "bytes"),
    "rtol": (lambda net, x: inr.ntk(net, x).spectrum(rtol=0), ValueError, "rtol"),
    "cross submatrix": (lambda net, x: inr.ntk(net, x, x).submatrix([0]), ValueError, "coords2"),
    "k": (lambda net, x: inr.ntk(net, x).spectrum(k=17), ValueError, "k must be at most"),
    "rank floor": (lambda net, x: inr.ntk(net, x).spectrum(rtol=1e-13).rank(1e-16), ResolutionError, "floor"),
    "cross trace": (lambda net, x: inr.ntk(net, x, x).trace(), ValueError, "coords2"),
    "cross diagonal": (lambda net, x: inr.ntk(net, x, x).diagonal(), ValueError, "coords2"),
    "cross form": (lambda net, x: inr.ntk(net, x, x).quadratic_form(torch.ones(16)), ValueError, "coords2"),
    "Y nan": (lambda net, x: inr.ntk(net, x).quadratic_form(torch.ones(16) / 0), ValueError, "Y must be finite"),
    "cross spectrum": (lambda net, x: inr.ntk(net, x, x).spectrum(), ValueError, "coords2"),
    "cross solve": (lambda net, x: inr.ntk(net, x, x).solve(torch.ones(16)), ValueError, "coords2"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_by_name(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(inr.INR(2, 1, width=4, hidden_layers=1), inr.grid((4, 4)))


def test_too_large_for_a_dense_spectrum_says_what_fits():
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    K = inr.ntk(net, inr.grid((200, 200)))
    with pytest.raises(NotAvailableError, match="dense limit"):
        K.spectrum(method="dense")
    K = inr.ntk(net, inr.grid((50, 50)), memory_budget=10**6)
    with pytest.raises(MemoryBudgetError, match="raise memory_budget"):
        K.spectrum()


def test_nan_weights_are_refused():
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    with torch.no_grad():
        net.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.weight"):
        inr.ntk(net, inr.grid((4, 4)))


def test_a_singular_system_asks_for_a_ridge():
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    with pytest.raises(ResolutionError, match="ridge"):
        inr.ntk(net, inr.grid((16, 16))).solve(torch.ones(256))


def test_generic_module_equals_the_closed_form():
    net = inr.INR(2, 3, width=16, hidden_layers=2)
    plain = nn.Sequential(net.layers[0], nn.ReLU(inplace=True), net.layers[1], nn.ReLU(inplace=True), net.layers[2])
    coords = random_coords(30, 2, 5)
    for output in ("trace", "full", 2):
        a = inr.ntk(net, coords, output=output, precision="highest")
        b = inr.ntk(plain, coords, output=output, precision="highest")
        assert not b.capture.closed_form
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-12, atol=1e-12)


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(
    networks(max_width=32, max_depth=3),
    st.integers(1, 24),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(sorted(FUSED_TOLERANCE)),
    st.sampled_from(["trace", "full", 0]),
    st.booleans(),
)
def test_the_triton_backend_agrees_with_autodiff(device, net, n, n2, seed, precision, output, small):
    """Dense, columns, tiles, layers and two sets of points, for networks that the fused pass covers and others."""
    coords, coords2 = random_coords(n, net.in_features, seed), random_coords(n2, net.in_features, seed + 1)
    left, right = exact_jacobian(net, coords), exact_jacobian(net, coords2)
    tol = FUSED_TOLERANCE[precision]
    moved = copy.deepcopy(net).to(device)
    budget = 200_000 if small else None  # the operands of a few points at a time
    kwargs = {"output": output, "precision": precision, "backend": "triton", "memory_budget": budget}
    K = inr.ntk(moved, coords.to(device), **kwargs)
    truth = exact_kernel(left, left, output)
    bound = scale(diagonal_of(left, output), diagonal_of(left, output))
    dense = K.to_dense()
    assert dense.dtype == K.dtype
    assert torch.equal(dense, dense.t())
    assert ((dense.cpu() - truth).abs() <= tol * bound).all()
    index = [0, n - 1, 0]
    assert ((K.columns(index).cpu() - truth[:, index]).abs() <= tol * bound[:, index]).all()
    assert abs(K.frobenius() - truth.norm()) <= tol * bound.norm()
    V = torch.randn(K.shape[1], 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    product = multiplied("tiles", K, V.to(device, K.dtype)).cpu()
    assert ((product - truth @ V).abs() <= (tol + 1e-6 * (precision != "highest")) * (bound @ V.abs())).all()

    found = K.row_sums().cpu()
    assert ((found - truth.sum(1)).abs() <= (tol + 1e-6 * (precision != "highest")) * bound.sum(1)).all()

    parts = [layer.to_dense().double().cpu() for layer in K.layers.values()]
    assert ((sum(parts) - truth).abs() <= tol * bound).all()

    cross = inr.ntk(moved, coords.to(device), coords2.to(device), **kwargs).to_dense()
    bound = scale(diagonal_of(left, output), diagonal_of(right, output))
    assert ((cross.cpu() - exact_kernel(left, right, output)).abs() <= tol * bound).all()


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(
    networks(max_width=32, max_depth=3),
    st.integers(1, 24),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(["highest", "high"]),
    st.sampled_from(["trace", "full", 0]),
    st.booleans(),
)
def test_the_triton_backend_multiplies_by_its_operands(device, net, n, n2, seed, precision, output, small):
    """Products, whole and by layer, between two sets of points, forms and the diagonal; factors are computed once."""
    coords, coords2 = random_coords(n, net.in_features, seed), random_coords(n2, net.in_features, seed + 1)
    left, right = exact_jacobian(net, coords), exact_jacobian(net, coords2)
    tol = TOLERANCE[precision]
    moved = copy.deepcopy(net).to(device)
    kwargs = {"output": output, "precision": precision, "backend": "triton"}
    K = inr.ntk(moved, coords.to(device), memory_budget=200_000 if small else None, **kwargs)
    truth = exact_kernel(left, left, output)
    bound = scale(diagonal_of(left, output), diagonal_of(left, output))
    V = torch.randn(K.shape[1], 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = multiplied("operands", K, V.to(device, K.dtype)).cpu()
    assert ((found - truth @ V).abs() <= tol * (bound @ V.abs())).all()
    parts = sum(multiplied("operands", layer, V.to(device, K.dtype)).double() for layer in K.layers.values()).cpu()
    assert ((parts - truth @ V).abs() <= tol * (bound @ V.abs())).all()
    form = products.ByOperands().form(K.sides, V.to(device, K.dtype), lambda part: part).cpu()
    assert ((form - V.t() @ truth @ V).abs() <= tol * (V.t().abs() @ bound @ V.abs())).all()
    sums = sum(layer._diagonal for layer in K.layers.values()).cpu()
    for diagonal in (K._diagonal.cpu(), sums):
        assert ((diagonal - truth.diagonal()).abs() <= tol * bound.diagonal()).all()
    if precision == "highest" and not small:  # a layer's operands are a part of the whole kernel's
        some = next(iter(K.layers.values()))
        error = (some.columns([0, n - 1]) - some.to_dense()[:, [0, n - 1]]).abs().cpu()
        assert (error <= 1e-14 * bound[:, [0, n - 1]]).all()
        assert len(K.left.store._operands) == 1
        assert K.left.store._kept is None
    cross = inr.ntk(moved, coords.to(device), coords2.to(device), **kwargs)
    U = torch.randn(cross.shape[1], 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bound = scale(diagonal_of(left, output), diagonal_of(right, output))
    found = multiplied("operands", cross, U.to(device, K.dtype)).cpu()
    assert ((found - exact_kernel(left, right, output) @ U).abs() <= tol * (bound @ U.abs())).all()


def test_the_triton_backend_writes_into_what_it_is_given(device):
    net, coords = inr.INR(2, 2, width=20).to(device), inr.grid((6, 7)).to(device)
    K = inr.ntk(net, coords, backend="triton")
    whole = torch.full((50, 120), 7.0, device=device)
    for out in (whole[3:45, 5:47], whole[3:45, 5:89:2], whole[3:45, 5:47].t()):
        whole.fill_(7.0)
        assert K.to_dense(out=out) is out
        assert torch.equal(out, K.to_dense())
        out.fill_(7.0)
        assert (whole == 7.0).all()
    with pytest.raises(ValueError, match="out must have shape"):
        K.to_dense(out=torch.empty(42, 41, device=device))


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_numpy_arrays_of_any_layout_are_written_or_refused_by_name(precision):
    K = inr.ntk(inr.INR(2, 1, width=8), inr.grid((3, 3)), precision=precision)
    dtype = np.float64 if precision == "highest" else np.float32
    other = np.float32 if precision == "highest" else np.float64
    dense = K.to_dense().numpy()
    whole = np.empty((20, 40), dtype)
    packed = np.zeros((9, 9), [("gap", "u1"), ("x", dtype)])["x"]
    for out in (whole[2:11, 3:12], whole[:18:2, 1:37:4], whole[:9, :9].T, np.empty((9, 9), dtype, "F")):
        assert K.to_dense(out=out) is out
        assert (out == dense).all()
    refused = {
        "byte order": np.empty((9, 9), np.dtype(dtype).newbyteorder("S")),
        "negative strides": whole[8::-1, :9],
        "whole entries": packed,
        "out must have dtype|out must have shape": np.empty((9, 9), other),
        "out must have dtype": np.empty((9, 9), np.longdouble),
        "writable": np.broadcast_to(whole[:1, :9], (9, 9)),
        "memory of its own": np.lib.stride_tricks.as_strided(whole, (9, 9), (dtype(0).itemsize,) * 2),
    }
    for message, out in refused.items():
        with pytest.raises(ValueError, match=message):
            K.to_dense(out=out)
    for out in (torch.empty(9, 1, dtype=K.dtype).expand(9, 9), torch.empty(17, dtype=K.dtype).unfold(0, 9, 1)):
        with pytest.raises(ValueError, match="memory of its own"):
            K.to_dense(out=out)


def test_the_triton_backend_refuses_what_does_not_fit(device):
    K = inr.ntk(
        inr.INR(2, 1, width=20).to(device), inr.grid((64, 64)).to(device), backend="triton", memory_budget=10**6
    )
    with pytest.raises(MemoryBudgetError, match="67108864 bytes"):
        K.to_dense()


def test_ranges_too_wide_for_half_precision(device):
    """Features of 1e9 beside features of 1e-3: another format keeps the promise."""
    net = inr.INR(2, 1, width=20, hidden_layers=2, activation="identity").to(device)
    with torch.no_grad():
        net.layers[0].bias.zero_()
        net.layers[0].weight.mul_(1e9)
    coords = torch.cat([random_coords(20, 2, 0), random_coords(20, 2, 1) * 1e-12]).to(device)
    K = inr.ntk(net, coords, backend="triton")
    assert K.sides.plan.layout.format == "tf32x3"
    exact = inr.ntk(net, coords, precision="highest", backend="torch").to_dense()
    size = torch.outer(exact.diagonal().sqrt(), exact.diagonal().sqrt())
    assert ((K.to_dense() - exact).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_the_figure_of_a_kernel_shows_its_columns_on_the_grid(shape, output):
    d = len(shape)
    net = inr.INR(d, 2, width=8, activation="sine", init="siren", dtype=torch.float64)
    coords = inr.grid(shape if d > 1 else shape[0], dtype=torch.float64)
    K = inr.ntk(net, coords, output=output)
    whole = inr.ntk(net, coords, output=1 if output == 1 else "trace").to_dense().reshape(-1, *shape).numpy()
    for axes, point in zip(K.plot(points=[0, 5]).axes, (0, 5), strict=False):
        drawn = axes.get_lines()[0].get_ydata() if d == 1 else axes.get_images()[0].get_array()
        expected = whole[point] if d < 3 else whole[point, point // 12]
        np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-5 * np.abs(whole).max())
    assert sum(bool(axes.get_title()) for axes in K.plot().axes) == 4


def test_the_figure_of_a_kernel_refuses_what_it_cannot_draw(tmp_path):
    net = inr.INR(2, 1, width=4)
    scattered = torch.rand(6, 2)
    with pytest.raises(ValueError, match="shape must be given: the 6 points"):
        inr.ntk(net, scattered).plot()
    assert inr.ntk(net, scattered).plot(shape=(2, 3), points=0, path=tmp_path / "kernel.png").axes
    with pytest.raises(ValueError, match="shape must hold the 6 points"):
        inr.ntk(net, scattered).plot(shape=(2, 2))
    with pytest.raises(ValueError, match="coords2"):
        inr.ntk(net, scattered, scattered[:2]).plot(shape=(2, 3))
    with pytest.raises(IndexError, match="points is out of range"):
        inr.ntk(net, inr.grid((2, 3))).plot(points=[6])


def test_a_missing_attribute_is_told_with_the_nearest_one():
    K = inr.ntk(inr.INR(2, 1, width=4), inr.grid((2, 3)))
    for wrong, right in (
        ("dense", "to_dense"),
        ("todense", "to_dense"),
        ("spectrums", "spectrum"),
        ("diag", "diagonal"),
    ):
        with pytest.raises(AttributeError, match=f"no attribute '{wrong}'. Did you mean '{right}'"):
            getattr(K, wrong)
    with pytest.raises(AttributeError, match=r"no attribute 'vpj'\. Did you mean 'vjp'"):
        _ = K.left.vpj
    assert not hasattr(K, "__cuda_array_interface__") and not hasattr(K, "_repr_latex_")
    assert pickle.loads(pickle.dumps(K)).shape == K.shape
