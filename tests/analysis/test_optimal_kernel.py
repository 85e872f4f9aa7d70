"""The optimal kernel of samples: its entries, and what is true of Theorem 3.1."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inrfast as inr


def functions(seed, samples, n, kind):
    """Random functions at n points: mixtures of waves, or steps, which are far from Gaussian."""
    draw = np.random.default_rng(seed)
    x = np.linspace(-1, 1, n)
    if kind == "waves":
        return draw.standard_normal((samples, 6)) @ np.stack(
            [np.sin((k + 1) * x + draw.uniform(0, 6)) for k in range(6)]
        )
    return np.where(x > draw.uniform(-1, 1, (samples, 1)), 1.0, draw.uniform(-1, 0, (samples, 1)))


@given(s=st.integers(1, 8), n=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_every_method_is_that_of_the_dense_kernel(s, n, seed):
    draw = np.random.default_rng(seed)
    F = draw.standard_normal((s, n))
    K, dense = inr.optimal_kernel(F), F.T @ F / s
    scale = np.abs(dense).max()
    V, rows, columns = draw.standard_normal((n, 2)), draw.integers(0, n, 3), draw.integers(0, n, 2)
    for found, truth in (
        (K.to_dense(), dense), (np.asarray(K), dense), (K @ V, dense @ V), (K @ V[:, 0].copy(), dense @ V[:, 0]),
        (K.between(torch.from_numpy(rows), columns.tolist()), dense[rows][:, columns]),
        (K.diagonal(), dense.diagonal()), (K.trace(), dense.trace()), (K.frobenius(), np.linalg.norm(dense)),
    ):  # fmt: skip
        np.testing.assert_allclose(np.asarray(found), truth, atol=1e-13 * scale * n * s)
    assert K.samples == s and K.shape == (n, n)
    if n > 2:
        other = inr.optimal_kernel(draw.standard_normal((3, n)))
        for target, array in ((other, other.to_dense()), (V, V)):
            for centered in (False, True):
                found = inr.alignment(K, target, centered=centered)
                assert found == pytest.approx(inr.alignment(dense, array, centered=centered), abs=1e-12)


@given(seed=st.integers(0, 10**6), samples=st.integers(1, 30), kind=st.sampled_from(["waves", "steps"]))
def test_no_kernel_predicts_the_samples_better_on_average(seed, samples, kind):
    """Theorem 3.1 as it is true: for any functions, at every point, among all positive semidefinite kernels.

    Held for the mean over the samples that K* is made of, of which it is an identity of least squares. The rounding
    allowed is that of an inverse with eigenvalues down to 1e-12.
    """
    n = 24
    F = functions(seed, samples, n, kind)
    draw = np.random.default_rng(seed + 1)
    observed = np.sort(draw.choice(n, 9, replace=False))
    rest = np.setdiff1d(np.arange(n), observed)

    def errors(K, rtol):
        found = inr.kernel_regression(
            K[np.ix_(observed, observed)], F[:, observed].T.copy(), K[np.ix_(rest, observed)], rtol=rtol
        )
        return ((found.prediction.numpy() - F[:, rest].T) ** 2).mean(1)

    best = errors(inr.optimal_kernel(F).to_dense().numpy(), 1e-12)
    x = np.linspace(-1, 1, n)
    others = [
        np.exp(-((x[:, None] - x) ** 2) / draw.uniform(0.02, 1)),
        np.minimum(x[:, None], x) + 1.5,
        np.cov(draw.standard_normal((n, draw.integers(2, 40)))),
    ]
    for K in others:
        assert (best <= errors(K, 1e-9) + 1e-7 * (F**2).mean()).all()


def test_of_new_functions_it_is_as_good_as_the_best_linear_rule_once_samples_are_many():
    """On functions that are not among the samples: worse than the best rule with few samples, equal to it with many."""
    n, observed = 24, np.arange(0, 24, 3)
    rest = np.setdiff1d(np.arange(n), observed)
    new = functions(7, 4000, n, "steps")
    rule = np.linalg.lstsq(new[:, observed], new[:, rest], rcond=None)[0]  # the best there is, on these functions
    least = ((new[:, observed] @ rule - new[:, rest]) ** 2).mean()
    ratios = []
    for samples in (9, 200, 20000):
        K = inr.optimal_kernel(functions(8, samples, n, "steps"))
        found = inr.kernel_regression(K.between(observed.tolist(), observed.tolist()), new[:, observed].T.copy(),
                                      K.between(rest.tolist(), observed.tolist()))  # fmt: skip
        ratios.append(((found.prediction.numpy().T - new[:, rest]) ** 2).mean() / least)
    assert ratios[0] > 1.5 and 1 <= ratios[1] < 1.2 and 1 <= ratios[2] < 1.01


def test_given_the_data_it_returns_the_posterior_mean_that_went_into_it():
    """The paper's reading: y is fixed, K*(X, X) = y y^T, and f(x) = E[f(x) | y] whatever kernel has that product."""
    y, mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.3, 4.0], dtype=torch.float64)
    draws = mean + torch.randn(50, 2, dtype=torch.float64)
    F = torch.cat([y.expand(50, 3), draws - draws.mean(0) + mean], 1)
    K = inr.optimal_kernel(F)
    found = inr.kernel_regression(K.between([0, 1, 2], [0, 1, 2]), y, K.between([3, 4], [0, 1, 2]))
    torch.testing.assert_close(found.prediction, mean, rtol=1e-12, atol=1e-12)
    assert found.rank == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(2, 3), "zero everywhere"),
        (torch.ones(2, 3, 4), r"must have shape \(S, N\)"),
        (torch.full((2, 3), float("inf")), "must be finite"),
        (torch.ones(0, 3), "must not be empty"),
        (torch.ones(2, 3, dtype=torch.int64), "floating-point dtype"),
        ([[1.0]], "must be a torch.Tensor"),
    ],
)
def test_what_is_refused(samples, message):
    with pytest.raises((ValueError, TypeError), match=message):
        inr.optimal_kernel(samples)
