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


def _numbers(tensor):
    return tensor.detach().double().numpy().astype(LONG)


def _norm(module, u):
    """Value of a norm in eval mode, and the function that takes a gradient (n, M, D) in it to one in ``u``."""
    kind, mask, m = type(module).__name__, np.ones_like(u), u.shape[1]
    if kind == "Identity":
        return u, lambda g: g
    if kind == "BatchNorm1d":
        scale = _numbers(module.weight) / np.sqrt(_numbers(module.running_var) + LONG(module.eps))
        return (u - _numbers(module.running_mean)) * scale + _numbers(module.bias), lambda g: g * scale
    if kind == "LayerNorm":
        weight, apart = _numbers(module.weight), u - u.mean(1, keepdims=True)
        inverse = 1 / np.sqrt((apart**2).mean(1, keepdims=True) + LONG(module.eps))
        y = apart * inverse

        def back(g):
            g = g * weight
            along = (g * y[:, None]).mean(2, keepdims=True)
            return (g - g.mean(2, keepdims=True) - y[:, None] * along) * inverse[:, None]

        return y * weight + _numbers(module.bias), back
    if kind.startswith("TopK"):
        mask = (np.abs(u) >= np.sort(np.abs(u), axis=1)[:, -module.k][:, None]).astype(LONG)
        u = u * mask
    if kind == "TopK":
        return u, lambda g: g * mask[:, None]
    length = np.sqrt((u**2).sum(1, keepdims=True))
    factor = np.where(length > 0, np.sqrt(LONG(m)) / np.where(length > 0, length, 1), 0)
    y = u * factor
    return y, lambda g: factor[:, None] * (g - y[:, None] * (g * y[:, None]).sum(2, keepdims=True) / m) * mask[:, None]


def _filter(module, x):
    """Values of a filter of the coordinates."""
    h = np.sin(x @ _numbers(module.linear.weight).T + _numbers(module.linear.bias))
    if hasattr(module, "gamma"):
        apart = ((x[:, None] - _numbers(module.mu)) ** 2).sum(2)
        h = h * np.exp(-_numbers(module.gamma) / 2 * apart)
    return h


def layers(net: inr.INR, coords):
    """Yield every hidden layer's input and output, what its activation is given, and the way back through it."""
    x = z = _numbers(coords)
    if isinstance(net.encoding, inr.RandomFourier):
        phase = 2 * PI * (z @ _numbers(net.encoding.frequencies).T)
        z = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    for k in range(net.hidden_layers):
        layer, own, pre = net.layers[k], net.bound_activations[k], net.norm_position == "pre"
        u = z @ _numbers(layer.weight).T + (0 if layer.bias is None else _numbers(layer.bias))
        u, before = _norm(net.norms[k], u) if pre else (u, lambda g: g)
        values, slope = _activation(own.name, u, *map(LONG, own.numbers))
        values, after = (values, lambda g: g) if pre else _norm(net.norms[k], values)
        h = LONG(1)
        if net.modulations is not None and hasattr(net.modulations[k], "linear"):
            h = _filter(net.modulations[k], x)
        values = values * h

        def back(g, before=before, after=after, slope=slope, h=h):
            return before(after(g * np.broadcast_to(h, slope.shape)[:, None]) * slope[:, None])

        yield z, values, u, back
        z = values


def factors(net: inr.INR, coords):
    """Return features [Z, 1] (n, D + 1) (or Z) of every layer and sensitivities (n, M, D) of all but the head.

    Those of linear layers; parameters of norms and filters have others.
    """
    passed, features = list(layers(net, coords)), []
    for z, layer in zip([z for z, *_ in passed] + [passed[-1][1]], net.layers, strict=True):
        features.append(z if layer.bias is None else np.concatenate([z, np.ones((len(z), 1), LONG)], 1))
    s = np.broadcast_to(_numbers(net.layers[-1].weight), (len(coords), *net.layers[-1].weight.shape))
    sensitivities = []
    for (*_, back), layer in zip(passed[::-1], list(net.layers[:-1])[::-1], strict=True):
        s = back(s)
        sensitivities.append(s)
        s = s @ _numbers(layer.weight)
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
