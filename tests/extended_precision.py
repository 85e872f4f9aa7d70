"""Tangent kernels of INRs in NumPy's long double, 64 bits of mantissa on x86-64: the truth for what fp64 claims."""

import numpy as np
import pytest

import inrfast as inr

LONG = np.longdouble
PI = np.arctan2(LONG(0), LONG(-1))

needs_long_double = pytest.mark.skipif(
    np.finfo(LONG).eps > np.finfo(float).eps / 1000, reason="long double is no more precise than fp64 here"
)


def _erf(u):
    """The series with terms of one sign (Abramowitz and Stegun 7.1.6); beyond 7 it is 1 to 22 digits."""
    a = np.minimum(np.abs(u), 7)
    term, n = a.copy(), 0
    total = a.copy()
    while np.any(term > LONG(1e-21) * total):
        n += 1
        term = term * (2 * a * a) / (2 * n + 1)
        total = total + term
    return np.sign(u) * 2 / np.sqrt(PI) * np.exp(-a * a) * total


def _activation(name, u, omega=None, sigma=None):
    """Value and derivative."""
    if name == "identity":
        return u, np.ones_like(u)
    if name == "relu":
        return np.maximum(u, 0), (u > 0).astype(LONG)
    if name == "sine":
        return np.sin(omega * u), omega * np.cos(omega * u)
    if name == "gaussian":
        value = np.exp(-((omega * u) ** 2))
        return value, -2 * omega * omega * u * value
    if name == "finer":
        phase = omega * (np.abs(u) + 1) * u
        return np.sin(phase), omega * (2 * np.abs(u) + 1) * np.cos(phase)
    if name == "tanh":
        return np.tanh(u), 1 / np.cosh(u) ** 2
    if name == "gelu":
        phi = (1 + _erf(u / np.sqrt(LONG(2)))) / 2
        return u * phi, phi + u * np.exp(-u * u / 2) / np.sqrt(2 * PI)
    if name == "wire":
        bell = np.exp(-((sigma * u) ** 2))
        slope = -(omega * np.sin(omega * u) + 2 * sigma * sigma * u * np.cos(omega * u)) * bell
        return np.cos(omega * u) * bell, slope
    assert name == "softplus"
    return np.logaddexp(u, LONG(0)), 1 / (1 + np.exp(-u))


def factors(net: inr.INR, coords):
    """Return features [Z, 1] (n, D + 1) (or Z) of every layer and sensitivities (n, M, D) of all but the head."""

    def numbers(tensor):
        return tensor.detach().double().numpy().astype(LONG)

    z, features, slopes = numbers(coords), [], []
    if isinstance(net.encoding, inr.RandomFourier):
        phase = 2 * PI * (z @ numbers(net.encoding.frequencies).T)
        z = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    for k in range(net.hidden_layers + 1):
        layer = net.layers[k]
        features.append(z if layer.bias is None else np.concatenate([z, np.ones((len(z), 1), LONG)], 1))
        if k < net.hidden_layers:
            u = z @ numbers(layer.weight).T + (0 if layer.bias is None else numbers(layer.bias))
            own = net.bound_activations[k]
            z, slope = _activation(own.name, u, *map(LONG, own.numbers))
            slopes.append(slope)
    s = np.broadcast_to(numbers(net.layers[-1].weight), (len(z), *net.layers[-1].weight.shape))
    sensitivities = []
    for k in reversed(range(net.hidden_layers)):
        s = s * slopes[k][:, None]
        sensitivities.append(s)
        s = s @ numbers(net.layers[k].weight)
    return features, sensitivities[::-1]


def kernel(net: inr.INR, coords):
    """Return the trace kernel (n, n)."""
    features, sensitivities = factors(net, coords)
    total = net.out_features * (features[-1] @ features[-1].T)
    for z, s in zip(features, sensitivities, strict=False):
        flat = s.reshape(len(s), -1)
        total = total + (z @ z.T) * (flat @ flat.T)
    return (total + total.T) / 2


def eigenvalues(matrix):
    """Return the eigenvalues, descending, and a bound on their error: what similarity leaves off the diagonal.

    The eigenvectors of fp64 are made orthonormal in long double by Newton and Schulz's iteration.
    """
    vectors = np.linalg.eigh(matrix.astype(float))[1].astype(LONG)
    for _ in range(2):
        vectors = vectors @ (1.5 * np.eye(len(matrix), dtype=LONG) - (vectors.T @ vectors) / 2)
    similar = vectors.T @ matrix @ vectors
    values = np.diag(similar).copy()
    rest = np.linalg.norm((similar - np.diag(values)).astype(float))
    return np.sort(values)[::-1], rest
