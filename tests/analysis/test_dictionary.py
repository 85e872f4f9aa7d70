"""Dictionaries of eigenfunctions against dense NumPy, automatic differentiation and gradient descent itself."""

import copy
import itertools
import math

import extended_precision
import mpmath
import numpy as np
import pytest
import torch
from extended_precision import needs_long_double
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from scipy.linalg import subspace_angles

import inrfast as inr
from inrfast.errors import ResolutionError
from inrfast.linalg.spectrum import dense_spectrum

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def known(values, seed=0, k=None, **options):
    """The dictionary of a random matrix with these eigenvalues, and the matrix."""
    matrix = matrix_with(torch.as_tensor(values, dtype=F64), seed)
    error = 4 * len(matrix) * 2.2e-16 * float(max(values))
    spectrum = dense_spectrum(matrix.clone(), error, 1e-6, len(matrix), k, eigenvectors=True)
    return inr.Dictionary.of(spectrum, **options), matrix


def small(output="trace", **options):
    net = inr.INR(2, 3, width=12, hidden_layers=1, activation="sine", omega=6.0, init="siren", seed=1)
    return inr.dictionary(net, inr.grid((4, 5)), output=output, progress=False, **options)


# ---- atoms -------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    net=networks(max_width=16, max_depth=3), output=st.sampled_from(["trace", "full", 0]), seed=st.integers(0, 10**6)
)
def test_atoms_are_orthonormal_eigenvectors_of_the_exact_kernel(net, output, seed):
    coords = random_coords(12, net.in_features, seed)
    jacobian = exact_jacobian(net, coords)
    kernel = exact_kernel(jacobian, jacobian, output).numpy()
    if not kernel.any():
        with pytest.raises(ValueError, match="zero everywhere"):
            inr.dictionary(net, coords, output=output)
        return
    D = inr.dictionary(net, coords, output=output, progress=False)
    atoms, values = D.atoms.numpy(), D.eigenvalues.numpy()
    error = max(D.spectrum.lower_error, D.spectrum.upper_error) + 1e-14 * values[0]
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(len(kernel)), atol=1e-12)
    assert np.linalg.norm(kernel @ atoms - atoms * values, axis=0).max() <= error
    assert (atoms.max(0) >= (1 - 1e-6) * np.abs(atoms).max(0)).all()  # the largest entry is positive
    assert (len(D), D.points, D.outputs) == (len(kernel), 12, net.out_features if output == "full" else 1)
    if net.in_features > 1:
        with pytest.raises(ValueError, match="on a grid"):
            D.images()


@pytest.mark.parametrize(("output", "behind"), [("trace", ()), (1, ()), ("full", (3,))])
def test_images_are_atoms_on_the_grid(output, behind):
    D = small(output)
    for k in (None, 2):
        images = D.images(k)
        assert images.shape == (k or D.spectrum.size, 4, 5, *behind)
        assert torch.equal(images.flatten(1).t(), D.atoms[:, :k])
    net = inr.INR(2, 3, width=12, hidden_layers=1, seed=1)
    scattered = inr.dictionary(net, torch.rand(20, 2), output=output, shape=(2, 10))
    assert scattered.images(1).shape == (1, 2, 10, *behind)
    with pytest.raises(ValueError, match=r"^shape must be \(4, 5\), .*got \(2, 10\)"):
        small(output, shape=(2, 10))
    assert small(output, shape=(1, 4, 5)).shape == (1, 4, 5)


def test_a_budget_that_leaves_fewer_atoms_than_were_asked_for_is_told():
    net, coords = inr.INR(2, 1, width=8, activation="sine", init="siren"), inr.grid((24, 24))
    for k in (None, 300):
        with pytest.warns(RuntimeWarning, match=r"the memory budget left \d+ of \d+ atoms"):
            D = inr.dictionary(net, coords, k, memory_budget=2_000_000)
        assert len(D) < min(k or 576, D.spectrum.rank_bound)


def test_what_is_printed_is_one_short_line():
    D, signals = small(), random(3, 4, 5)
    found = D.energy(signals, [0.5, 1e-3])
    low, high = (float(bound[1]) for bound in found.interval)
    assert repr(found).startswith(f"Energy(3 signals less their means, thresholds=2, {low:.4g}")
    assert f"{high:.4g} above 0.001 of the largest eigenvalue" in repr(found)
    assert "signals as given" in repr(D.energy(signals, demean=False))
    assert "less their means" in D.energy.__doc__.splitlines()[0]
    assert all(len(repr(one)) < 120 for one in (found, D.kernel_norm(signals), D.energy(signals, 0.5), D))


def test_the_largest_atoms_by_other_methods_are_those_of_the_dense_kernel():
    net = inr.INR(2, 1, width=24, hidden_layers=2, activation="sine", omega=4.0, init="siren", seed=0)
    coords = inr.grid((16, 15))
    K = inr.ntk(net, coords)
    whole, signal = inr.dictionary(net, coords), random(16, 15)
    alike = [inr.Dictionary.of(K), inr.Dictionary.of(K.spectrum(eigenvectors=True), coords=coords)]
    for other in (*alike, *(inr.dictionary(net, coords, 6, method=m, rtol=1e-12) for m in ("lanczos", "cholesky"))):
        assert other.shape == whole.shape == (16, 15)
        k = min(len(other), 6)
        errors = other.spectrum.upper_error + whole.spectrum.upper_error
        assert float((other.eigenvalues[:k] - whole.eigenvalues[:k]).abs().amax()) <= errors
        torch.testing.assert_close(other.images(k), whole.images(k), rtol=0, atol=1e-6)
        torch.testing.assert_close(other.coefficients(signal)[:k], whole.coefficients(signal)[:k], rtol=0, atol=1e-5)
        assert other.cosine(whole, k) == pytest.approx(1, abs=1e-10)
        levels, ridge = [0.3, 1e-2, 1e-4, 1e-8], 1e-3 * float(whole.eigenvalues[0])
        open_to, truth = other.energy(signal, levels), whole.energy(signal, levels).mean
        assert bool((open_to.lower - 1e-6 <= truth).all() & (truth <= open_to.upper + 1e-6).all())
        norm, truth = other.kernel_norm(signal, ridge=ridge), whole.kernel_norm(signal, ridge=ridge).value
        assert float(norm.lower) * (1 - 1e-6) <= float(truth) <= float(norm.upper) * (1 + 1e-6)
    vectors = K.spectrum(eigenvectors=True)
    before = vectors.eigenvectors.clone()
    inr.Dictionary.of(vectors)
    assert torch.equal(before, vectors.eigenvectors)


def test_signs_do_not_hang_on_what_the_solver_returns():
    """Of an eigenfunction that is odd, two entries are largest in size, equal but for rounding."""
    odd = torch.tensor([-2.0, -1.0, 0.5, -0.5, 1.0, 2.0 + 1e-12], dtype=F64)
    vectors, _ = torch.linalg.qr(torch.stack([odd, random(6)], 1))
    flips = [vectors * torch.tensor(signs) for signs in itertools.product([1.0, -1.0], repeat=2)]
    base = dense_spectrum(matrix_with(torch.arange(6.0).flip(0), 0), 0.0, 1e-6, 6, eigenvectors=True).truncated(2)
    found = [inr.Dictionary.of(base.truncated(2, flip)).atoms for flip in flips]
    assert all(torch.equal(atoms, found[0]) for atoms in found)
    assert float(found[0][0, 0]) > 0


# ---- energy ------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), k=st.integers(1, 24), demean=st.booleans())
def test_energy_is_the_mean_of_the_shares_and_its_interval_holds_it(seed, count, k, demean):
    values = np.sort(10.0 ** np.random.default_rng(seed).uniform(-8, 0, 24))[::-1].copy()
    values[3] = values[2]  # whose eigenvectors are any basis of their plane
    D, matrix = known(values, seed)
    signals = (random(count, 24, seed=seed) + 3) * torch.logspace(-100, 100, count, dtype=F64).unsqueeze(1)
    levels = [1.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-9]
    found = D.energy(signals, levels, demean=demean)
    exact, vectors = np.linalg.eigh(matrix.numpy())
    g = signals.numpy() - (signals.numpy().mean(1, keepdims=True) if demean else 0)
    shares = (g @ vectors) ** 2 / (g**2).sum(1, keepdims=True)
    truth = np.stack([shares[:, exact >= level * exact[-1] * (1 - 1e-12)].sum(1) for level in levels], 1)
    np.testing.assert_allclose(found.mean, truth.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.lower, truth, atol=1e-9)
    assert float(found.mean[-1]) == pytest.approx(1)
    assert bool((found.mean.diff() >= 0).all())
    printed = D.energy(signals[:1] * 1e100, levels, demean=demean, normalisation="printed")
    length = (g[0] * 1e100 @ g[0] * 1e100) if count == 1 else (1e100 * g[0]) @ (1e100 * g[0])
    np.testing.assert_allclose(printed.mean * length, truth[0], atol=1e-9)
    few = known(values, seed, k)[0].energy(signals, levels, demean=demean)
    assert bool((few.lower <= found.upper + 1e-9).all())
    assert bool((found.lower <= few.upper + 1e-9).all())


@needs_long_double
def test_energies_hold_down_to_1e_11_of_the_largest_eigenvalue():
    """Against eigenvectors of the kernel in more digits than fp64 has."""
    net = inr.INR(1, 1, width=16, hidden_layers=2, activation="sine", omega=5.0, init="siren", seed=3)
    coords, signals = inr.grid(22, "exclusive", (0, 1)), random(4, 22)
    matrix = extended_precision.kernel(net, coords)
    with mpmath.workdps(30):
        halves = [[mpmath.mpf(float(x)) + mpmath.mpf(float(x - float(x))) for x in row] for row in matrix]
        values, vectors = mpmath.eigsy(mpmath.matrix(halves))
        values = np.array([float(value) for value in values])
        vectors = np.array(vectors.tolist(), dtype=float)
    assert values[0] < 1e-12 * values[-1]
    g = (signals - signals.mean(1, keepdim=True)).numpy()
    shares = (g @ vectors) ** 2 / (g**2).sum(1, keepdims=True)
    levels = 10.0 ** -np.arange(0.5, 12)
    truth = np.stack([shares[:, values >= level * values[-1]].sum(1) for level in levels], 1)
    found = inr.dictionary(net, coords).energy(signals, levels)
    np.testing.assert_allclose(found.mean, truth.mean(0), atol=1e-3)
    assert found.floor < 1e-12


def test_energy_that_the_eigenpairs_leave_open_is_refused_and_bounded():
    D, _ = known([1.0, 0.5, 1e-3, 1e-6], k=2)
    g = random(4)
    low, high = D.energy(g, [0.6, 1e-2, 1e-4], demean=False).interval
    kept = D.coefficients(g).square().cumsum(0) / g.square().sum()
    assert low.tolist() == pytest.approx([float(kept[0]), float(kept[1]), float(kept[1])])
    assert high.tolist() == pytest.approx([float(kept[0]), float(kept[1]), 1.0])
    with pytest.raises(ResolutionError, match=r"0.0001 is open, between .* and 1: only the atoms down to 5.0e-01"):
        _ = D.energy(g, [0.6, 1e-4], demean=False).mean
    floor, _ = known([1.0, 1e-3, 1e-17, 1e-18])
    with pytest.raises(ResolutionError, match="within their error"):
        _ = floor.energy(g, 1e-15).mean
    assert D.energy(D.atoms[:, 0], demean=False).mean.amin() == pytest.approx(1)  # a signal may leave nothing open


def test_energy_is_blind_to_brightness_contrast_and_the_order_of_points():
    net, coords = inr.INR(2, 1, width=16, hidden_layers=1), inr.grid((6, 5))
    g, order = random(3, 30), torch.randperm(30)
    levels = (0.9, 1e-2, 1e-3)
    D = inr.dictionary(net, coords)
    base = D.energy(g, levels).mean
    assert D.energy(g, 1e-2).mean.shape == () == D.energy(g[0], torch.tensor(1e-2)).mean.shape
    torch.testing.assert_close(D.energy(4 * g - 7, levels).mean, base)
    shuffled = inr.dictionary(net, coords[order])
    assert shuffled.shape is None
    torch.testing.assert_close(shuffled.energy(g[:, order], levels).mean, base)
    torch.testing.assert_close(
        shuffled.kernel_norm(g[:, order], ridge=0.1).value, D.kernel_norm(g, ridge=0.1).value, rtol=1e-6, atol=0
    )


def test_colours_are_demeaned_one_by_one():
    D, g = small("full"), random(4, 5, 3)
    base = D.energy(g, [1e-1, 1e-2]).mean
    torch.testing.assert_close(D.energy(g + torch.tensor([1.0, -2.0, 5.0]), [1e-1, 1e-2]).mean, base)
    for level in torch.logspace(-3, 3, 20, dtype=F64):  # what rounding leaves of a constant is no signal
        with pytest.raises(ValueError, match="constant"):
            D.energy(level.expand(4, 5, 3))


def test_signals_in_every_shape_are_the_same_signals():
    g = random(2, 20)
    for D in (small(), small(1)):
        columns = g.t().contiguous().t()
        for form in (g, columns, g.reshape(2, 4, 5), g.reshape(2, 4, 5, 1), g.unsqueeze(2)):
            torch.testing.assert_close(D.coefficients(form), g @ D.atoms)
        torch.testing.assert_close(D.coefficients(g[0].reshape(4, 5)), g[0] @ D.atoms)
        torch.testing.assert_close(D.coefficients(g.bfloat16()), g.bfloat16().double() @ D.atoms)
    D, g = small("full"), random(2, 60)
    for form in (g, g.reshape(2, 20, 3), g.reshape(2, 4, 5, 3)):
        torch.testing.assert_close(D.coefficients(form), g @ D.atoms)


# ---- kernel norm -------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.0, 1e-9, 1e-2]), k=st.integers(1, 12))
def test_the_kernel_norm_is_that_of_a_dense_solve(seed, ridge, k):
    values = np.sort(10.0 ** np.random.default_rng(seed).uniform(-9, 1, 12))[::-1].copy()
    D, matrix = known(values, seed)
    g = random(3, 12, seed=seed)
    truth = (g * torch.linalg.solve(matrix + ridge * torch.eye(12, dtype=F64), g.t()).t()).sum(1)
    whole = D.kernel_norm(g, ridge=ridge)
    torch.testing.assert_close(whole.value, truth, rtol=1e-2, atol=0)
    # Equation 10 as printed: means over the points, for functions of mean square 1.
    kernel = matrix / 12
    mercer, functions = torch.linalg.eigh(kernel)
    inner = (g @ functions) * math.sqrt(12) / 12
    torch.testing.assert_close((inner.square() / (mercer + ridge / 12)).sum(1), whole.value, rtol=1e-2, atol=0)
    few = known(values, seed, k)[0].kernel_norm(g, ridge=ridge)
    for found in (whole, few):
        slack = 1e-6 * truth
        assert bool((found.lower <= truth + slack).all())
        assert bool((truth - slack <= found.upper).all())
    if k < 12 and ridge == 0:
        assert bool(few.upper.isinf().all())
        with pytest.raises(ResolutionError, match=f"of its energy is not on the {k} atoms"):
            _ = few.value


@given(seed=st.integers(0, 10**6), size=st.floats(1e-4, 1e-1), ridge=st.sampled_from([0.0, 1e-2]))
def test_bounds_of_a_kernel_norm_hold_whatever_the_matrix_is_off_by(seed, size, ridge):
    values = np.sort(10.0 ** np.random.default_rng(seed).uniform(-3, 0, 12))[::-1].copy()
    matrix = matrix_with(torch.from_numpy(values), seed)
    turned = matrix_with(torch.sign(random(12, seed=seed)), seed + 1)
    off = size * float(values[-1]) * (torch.eye(12, dtype=F64) if seed % 2 else turned)
    error = 1.0001 * float(torch.linalg.matrix_norm(off, 2))
    found = inr.Dictionary.of(dense_spectrum(matrix + off, error, 1e-6, 12, eigenvectors=True))
    g = random(3, 12, seed=seed)
    truth = (g * torch.linalg.solve(matrix + ridge * torch.eye(12, dtype=F64), g.t()).t()).sum(1)
    norm = found.kernel_norm(g, ridge=ridge)
    assert bool((norm.lower * (1 - 1e-9) <= truth).all() & (truth <= norm.upper * (1 + 1e-9)).all())


def test_what_a_kernel_norm_does_not_count_is_told():
    D, _ = known([1.0, 1e-2, 1e-5, 1e-19, 1e-20])
    g = D.atoms @ torch.tensor([1.0, 2.0, 0.0, 2.0, 0.0], dtype=F64)
    found = D.kernel_norm(g)
    assert found.atoms == 3
    assert float(found.counted) == pytest.approx(1 + 4 / 1e-2)
    assert float(found.uncounted) == pytest.approx(4 / 9)
    assert float(found.lower) > 4e12
    assert math.isinf(found.upper)
    cut = D.kernel_norm(g, cut=0.1)
    assert (cut.atoms, float(cut.counted)) == (1, pytest.approx(1))
    assert float(cut.uncounted) == pytest.approx(8 / 9)
    assert float(D.kernel_norm(g, ridge=1e-3).value) == pytest.approx(1 / 1.001 + 4 / 0.011 + 4 / 1e-3, rel=1e-6)


def test_norms_and_energies_of_a_singular_kernel_without_error():
    """Exact zeros: nothing divided by nothing is no answer, and what lies on them has no norm."""
    values, vectors = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=F64), torch.eye(4, dtype=F64)
    exact = inr.Spectrum(values, vectors, 0.0, 0.0, 4, 3.0, 4, 1e-6, "dense")
    D, inside, outside = inr.Dictionary.of(exact), torch.tensor([4.0, 3, 0, 0]), torch.tensor([4.0, 3, 2, 1])
    assert D.kernel_norm(torch.stack([inside, outside])).lower.tolist() == pytest.approx([17, math.inf])
    assert float(D.kernel_norm(inside).value) == pytest.approx(17)
    assert D.energy(outside, [1.0, 0.5, 1e-9], demean=False).mean.tolist() == pytest.approx([16 / 30, 25 / 30, 25 / 30])


@pytest.mark.parametrize("output", ["full", "trace"])
def test_gradient_descent_learns_along_atoms_at_the_speed_of_their_eigenvalues(output):
    """Of a network that is linear in what is trained, its head: with one output, or with three at once."""
    outputs = 3 if output == "full" else 1
    net, coords = inr.INR(2, outputs, width=16, hidden_layers=1, seed=2), inr.grid((5, 6))
    D = inr.dictionary(net, coords, output=output, params=["layers.1"])
    exact, target = copy.deepcopy(net).double(), random(30, outputs)
    optimizer = torch.optim.SGD(exact.layers[1].parameters(), lr=(lr := 1 / float(D.eigenvalues[0])))
    start = D.coefficients(exact(coords.double()).detach() - target)
    for _ in range(25):
        optimizer.zero_grad()
        (0.5 * (exact(coords.double()) - target).square().sum()).backward()
        optimizer.step()
    left = D.coefficients(exact(coords.double()).detach() - target)
    torch.testing.assert_close(left, (1 - lr * D.eigenvalues) ** 25 * start, rtol=1e-7, atol=1e-10)


# ---- two dictionaries --------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 9))
def test_the_cosine_is_that_of_the_angles_between_the_spans(seed, k):
    values = 2.0 ** -np.arange(10.0)
    one, other = known(values, seed)[0], known(values[::-1].copy() * 3, seed + 1)[0]
    angles = np.sort(subspace_angles(one.atoms[:, :k].numpy(), other.atoms[:, :k].numpy()))
    np.testing.assert_allclose(one.principal_cosines(other, k), np.cos(angles), atol=1e-7)
    assert one.cosine(other, k) == pytest.approx(math.sqrt((np.cos(angles) ** 2).mean()), abs=1e-10)
    assert one.cosine(other, k) == pytest.approx(other.cosine(one, k))
    assert one.cosine(one, k) == pytest.approx(1)
    assert one.cosine(other) == pytest.approx(1)  # all atoms span everything
    mixed = random(10, 10, seed=seed)  # signs, order and rotations within the span do not matter
    mixed[:, :k] = one.atoms[:, :k] @ torch.linalg.qr(mixed[:k, :k]).Q
    mixed, _ = torch.linalg.qr(mixed)
    rotated = inr.Dictionary.of(one.spectrum.truncated(10, mixed))
    assert one.cosine(rotated, k) == pytest.approx(1)


def test_cosines_of_a_span_that_is_not_determined_are_refused():
    one, _ = known([2.0, 1.0, 1.0, 1e-18, 1e-18, 0.0])
    assert one.cosine(one, 3) == pytest.approx(1)
    for k in (2, 4, 5):
        with pytest.raises(ResolutionError, match=f"first {k} atoms is not determined"):
            one.cosine(one, k)
    net = inr.INR(2, 1, width=8)
    same, moved = inr.dictionary(net, inr.grid((3, 4), dtype=F64)), inr.dictionary(net, inr.grid((3, 4)) / 2)
    D = inr.dictionary(net, inr.grid((3, 4)))
    assert D.cosine(same, 2) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="on the same points"):
        D.cosine(moved, 2)
    with pytest.raises(ValueError, match="12 points and 1 outputs, got 6"):
        D.cosine(one)
    with pytest.raises(TypeError, match="Dictionary, got Spectrum"):
        D.cosine(one.spectrum)


# ---- figure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "outputs"), [((9,), 2), ((4, 5), 1), ((4, 5), 2), ((4, 5), 3), ((3, 4, 5), 1)])
def test_a_figure_shows_the_atoms_themselves(shape, outputs, tmp_path):
    net = inr.INR(len(shape), outputs, width=12, hidden_layers=1, seed=0)
    D = inr.dictionary(net, inr.grid(shape), output="full" if outputs > 1 else "trace")
    signal = random(*shape, outputs)
    figure = D.plot(6, tmp_path / "atoms.png" if shape == (9,) else None, signals=signal)
    assert (tmp_path / "atoms.png").is_file() == (shape == (9,))
    atoms, spectrum, energy = figure.axes[:6], figure.axes[-2], figure.axes[-1]
    for axes, image in zip(atoms, D.images(6).numpy(), strict=True):
        planes = image if outputs > 1 else image[..., None]
        if len(shape) == 1:
            drawn = np.stack([line.get_ydata() for line in axes.get_lines()[:outputs]], 1)
        else:
            planes = planes if len(shape) == 2 else planes[1]  # the middle of three slices
            drawn = np.asarray(axes.get_images()[0].get_array())
            if outputs == 3:
                drawn = 2 * (drawn - 0.5) * np.abs(planes).max()
            else:
                planes = np.concatenate([planes[..., m] for m in range(outputs)], axis=1)
        np.testing.assert_allclose(drawn, planes, atol=1e-12)
    assert "lambda_{2}" in atoms[1].get_title()
    np.testing.assert_allclose(spectrum.get_lines()[0].get_ydata()[0], 1)
    assert len(D.plot(6).axes) == len(figure.axes) - 1
    listed = (D.eigenvalues / D.eigenvalues[0])[D.eigenvalues > D.floor * D.eigenvalues[0]]
    assert spectrum.get_ylim()[0] <= float(listed[-1]) <= max(10 * spectrum.get_ylim()[0], 1)
    np.testing.assert_allclose(energy.get_lines()[0].get_ydata(), sum(D.energy(signal).interval) / 2)


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"k": 26}, ValueError, "k must be at most the 25 rows"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"shape": (5, 4)}, ValueError, r"shape must hold the 25 points, got \(5, 4\)"),
        ({"shape": (5, 5.0)}, TypeError, "shape"),
        ({"method": "inertia"}, ValueError, "method must be one of"),
        ({"net": inr.ntk(inr.INR(2, 1, width=4), inr.grid((5, 5)))}, TypeError, "got NTK; Dictionary.of takes"),
        ({"coords": torch.full((4, 2), float("nan"))}, ValueError, "coords"),
        ({"net": "siren"}, TypeError, "net"),
        ({"memory_budget": 10**4}, inr.errors.MemoryBudgetError, "budget"),
    ],
)
def test_bad_input_of_a_dictionary_is_named(arguments, error, match):
    good = {"net": inr.INR(2, 1, width=4, hidden_layers=2), "coords": inr.grid((5, 5))}
    with pytest.raises(error, match=match):
        inr.dictionary(**good | arguments)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda D: D.energy(torch.zeros(20)), ValueError, "constant .signal 0 is"),
        (lambda D: D.energy(torch.full((4, 5), 0.1)), ValueError, "constant"),
        (lambda D: D.energy(torch.zeros(20), demean=False), ValueError, "zero everywhere"),
        (lambda D: D.kernel_norm(torch.stack([torch.ones(20), torch.zeros(20)])), ValueError, "signal 1 is"),
        (lambda D: D.energy(torch.full((20,), math.nan)), ValueError, "finite"),
        (lambda D: D.energy(torch.ones(20, dtype=torch.uint8)), TypeError, r"got torch.uint8; .* .float\(\) / 255"),
        (lambda D: D.energy([1.0] * 20), TypeError, "torch.Tensor"),
        (lambda D: D.energy(torch.ones(20, 7)), ValueError, r"give signals\.t\(\)"),
        (lambda D: D.energy(torch.ones(4, 5, 3)), ValueError, 'output="full"'),
        (lambda D: D.energy(torch.ones(2, 2, 4, 5)), ValueError, r"one of shape \(20,\) or \(4, 5\) or"),
        (lambda D: D.energy(torch.ones(20), 2.0), ValueError, r"threshold must be in \(0, 1\]"),
        (lambda D: D.energy(torch.ones(20), []), ValueError, "threshold"),
        (lambda D: D.energy(torch.ones(20), [0.5, math.nan]), ValueError, "threshold"),
        (lambda D: D.energy(torch.ones(20), "half"), TypeError, "threshold"),
        (lambda D: D.energy(torch.ones(20), True), TypeError, "threshold"),
        (lambda D: D.energy(torch.ones(20), normalisation="print"), ValueError, "Did you mean 'printed'"),
        (lambda D: D.energy(torch.ones(20), demean=1), TypeError, "demean"),
        (lambda D: D.kernel_norm(torch.ones(20), ridge=-1), ValueError, "ridge"),
        (lambda D: D.kernel_norm(torch.ones(20), cut=math.inf), ValueError, "cut"),
        (lambda D: D.images(21), ValueError, "at most the 20 atoms"),
        (lambda D: D.plot(0), ValueError, "k must be at least 1"),
        (lambda D: D.plot(2, "atoms.jpeg"), ValueError, "path must end in"),
        (lambda D: inr.Dictionary.of(D.spectrum, coords=inr.grid((4, 4))), ValueError, "coords must have"),
        (lambda D: inr.Dictionary.of(D.spectrum, 21), ValueError, "20 eigenvalues listed"),
        (lambda D: inr.Dictionary.of(D), TypeError, "source must be a kernel"),
    ],
)
def test_bad_input_of_its_methods_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call(small())
