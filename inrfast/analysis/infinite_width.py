"""The tangent kernel of infinitely wide ReLU networks, by the arc-cosine recursion, without cancellation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import check_choice, check_coords, check_float, check_int, check_tensor
from inrfast.memory import require_free
from inrfast.modes import in_own_modes
from inrfast.records import Record

PARAMETRIZATIONS = ("ntk", "standard")

KINDS = ("ntk", "nngp")

SERIES = 0.5
"""Angle below which ``sin t - t cos t`` is summed as a series: the difference would lose digits as t^-2."""

TERMS = 9
"""Terms of that series: the next is below 1e-19 of the first."""


@dataclass(frozen=True)
class Layer:
    """What a layer's pre-activations are for pairs of points.

    ``left``, ``right`` are the roots of their variances, (N, 1) and (1, N'); ``gap`` is left - right, ``angle`` the
    angle whose cosine is their correlation, (N, N').
    """

    left: Tensor
    right: Tensor
    gap: Tensor
    angle: Tensor

    @property
    def covariance(self) -> Tensor:
        """``E[h h']``, (N, N')."""
        return self.left * self.right * self.angle.cos()


@dataclass(frozen=True)
class InfiniteNTK(Record):
    """Kernels of a ReLU network ``R^d -> R`` of infinite width, as functions of points; built by :func:`infinite_ntk`.

    Call it with points (N, d), or with two sets of them, for the tangent kernel.

    Attributes
    ----------
    depth
        Number of hidden layers L.
    weight_variances, bias_variances
        ``sigma_w^2`` and ``sigma_b^2`` of the L + 1 linear layers.
    parametrization
        ``"ntk"`` or ``"standard"``.
    width
        Units n of the hidden layers, for ``"standard"``; else None.
    """

    depth: int
    weight_variances: tuple[float, ...]
    bias_variances: tuple[float, ...]
    parametrization: str
    width: int | None

    @in_own_modes
    def __call__(self, coords: ArrayLike, coords2: ArrayLike | None = None) -> Tensor:
        """Return the tangent kernel (N, N') in fp64 between points (N, d) and (N', d).

        None: between the same points, symmetric to the last bit. A ValueError says where entries are beyond fp64.
        """
        return self._kernel("ntk", coords, coords2)

    @in_own_modes
    def nngp(self, coords: ArrayLike, coords2: ArrayLike | None = None) -> Tensor:
        """Return the covariance of the network's output at initialisation, (N, N') in fp64."""
        return self._kernel("nngp", coords, coords2)

    @in_own_modes
    def of_cosine(self, c: ArrayLike, kind: str = "ntk") -> Tensor:
        """Return the kernel of points of length ``sqrt(d)`` as a function of the cosine of their angle, in fp64.

        That is the paper's dot-product kernel K(c): its first layer has the covariance ``sigma_w^2 c + sigma_b^2``
        (24), where its weights ``N(0, sigma_w^2 / d)`` (23) give that for inputs of length ``sqrt(d)``, not 1.

        Parameters
        ----------
        c
            Cosines of any shape in [-1, 1]. Complex ones give the analytic continuation, cut along the real axis
            outside, in complex fp64: :func:`inrfast.dot_product_encoding` takes power series from it.
        kind
            ``"ntk"`` or ``"nngp"``.

        Raises
        ------
        ValueError, TypeError
            Cosines outside; a kernel in the standard parametrisation, which depends on d.
        """
        check_choice("kind", kind, KINDS)
        if self.parametrization != "ntk":
            raise ValueError('of_cosine is of parametrization="ntk": in the standard one the kernel depends on d')
        given = check_tensor("c", c, floating=not _is_complex(c), finite=not _is_complex(c)).detach()
        given = given.to(torch.complex128 if given.is_complex() else torch.float64)
        if not given.is_complex() and bool((given.abs() > 1).any()):
            raise ValueError(f"c must be from -1 to 1, got numbers up to {float(given.abs().amax())} in size")
        one = torch.ones((), dtype=torch.float64, device=given.device)
        variance, bias = self.weight_variances[0], self.bias_variances[0]
        root = math.sqrt(variance + bias) * one
        if given.is_complex():
            angle = torch.arccos((variance * given + bias) / (variance + bias))
        else:  # 1 - c and 1 + c are exact where they are small
            angle = 2 * torch.atan2((variance * (1 - given)).sqrt(), (variance * (1 + given) + 2 * bias).sqrt())
        return self._run(kind, Layer(root, root, 0 * one, angle), 1)

    def standard(self, width: int) -> InfiniteNTK:
        """Return the kernel that networks of this width have in the standard parametrisation."""
        return replace(self, parametrization="standard", width=check_int("width", width, minimum=1))

    def _kernel(self, kind: str, coords: Any, coords2: Any) -> Tensor:
        left = check_coords("coords", coords).detach().to(torch.float64)
        right = left
        if coords2 is not None:
            right = check_coords("coords2", coords2, device=left.device).detach().to(torch.float64)
            if right.shape[1] != left.shape[1]:
                raise ValueError(f"coords2 must have the {left.shape[1]} coordinates of coords, got {right.shape[1]}")
        numbers = 8 * len(left) * len(right)
        require_free(8 * numbers, f"a kernel of {len(left)} x {len(right)} points", "take fewer points", left.device)
        kernel = self._run(kind, self._first(left, right), left.shape[1])
        if not bool(kernel.isfinite().all()):
            longest = max(float(own.abs().amax()) for own in (left, right))
            raise ValueError(
                f"coords go up to {longest:.1e} in size, where entries of the kernel are beyond fp64; give smaller ones"
            )
        return kernel if coords2 is not None else (kernel + kernel.t()) / 2  # angles round by their place in memory

    def _first(self, left: Tensor, right: Tensor) -> Layer:
        """Return the first layer: inner products of ``sqrt(sigma_w^2 / d) x`` with ``sigma_b`` as a further entry."""
        scale, bias = math.sqrt(self.weight_variances[0] / left.shape[1]), math.sqrt(self.bias_variances[0])
        first, second = (torch.cat([scale * x, torch.full_like(x[:, :1], bias)], 1) for x in (left, right))
        lengths, units = zip(*(_measured(x) for x in (first, second)), strict=True)
        # Kahan's angle: half its tangent is the ratio of the chords to a unit vector and to its opposite.
        mode = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(units[0], units[1], compute_mode=mode)
        angle = 2 * torch.atan2(apart, torch.cdist(units[0], -units[1], compute_mode=mode))
        return Layer(lengths[0], lengths[1].t(), lengths[0] - lengths[1].t(), angle)

    def _run(self, kind: str, layer: Layer, d: int) -> Tensor:
        """Return the kernel, given its first layer's covariance at points of d coordinates."""
        kernel, before = self._own(0, layer.covariance, d), None
        for index in range(1, self.depth + 1):
            before = layer
            layer = advance(layer, self.weight_variances[index], self.bias_variances[index])
            covariance = layer.covariance
            if kind == "ntk":
                gates = self.weight_variances[index] * (math.pi - before.angle) / (2 * math.pi)
                kernel = self._own(index, covariance, self.width or 1) + gates * kernel
        return covariance if kind == "nngp" else kernel

    def _own(self, index: int, covariance: Tensor, inputs: int) -> Tensor:
        """Return what a layer's own parameters add to the kernel of its pre-activations.

        In the NTK parametrisation their covariance; in the standard one a weight moves it by ``z z'``, without the
        factor ``sigma_w^2 / n`` and so n times as much, and a bias by 1.
        """
        if self.parametrization == "ntk":
            return covariance
        return (covariance - self.bias_variances[index]) * (inputs / self.weight_variances[index]) + 1


def advance(layer: Layer, weight_variance: float, bias_variance: float) -> Layer:
    """Return the next layer, ``q' = sigma_w^2 E[relu(h) relu(h')] + sigma_b^2``.

    ``E = sqrt(q q') (sin t + (pi - t) cos t) / (2 pi)``, the arc-cosine kernel of degree 1. The next angle is found
    from ``1 - cos``, a sum of terms that are not negative: one of the angle before, one of the gap between lengths.
    """
    scale, bias = math.sqrt(weight_variance / 2), layer.left.new_tensor(math.sqrt(bias_variance))
    a, b = (scale * root for root in (layer.left, layer.right))
    left, right = torch.hypot(a, bias), torch.hypot(b, bias)
    # Ratios alone, since squares and products of lengths would over- or underflow.
    gap = scale * layer.gap * _ratio(a + b, left + right)
    both, biases = _ratio(a, left) * _ratio(b, right), _ratio(bias, left) * _ratio(bias, right)
    # left right - a b - bias = bias (a - b)^2 / (left right + a b + bias), without a difference of large numbers.
    lengths = scale * _ratio(layer.gap, torch.maximum(left, right)) * _ratio(bias, torch.minimum(left, right))
    half = ((lengths.square() / (1 + both + biases) + both * one_minus(layer.angle)) / 2).sqrt()
    angle = 2 * torch.asin(half if half.is_complex() else half.clamp_max(1.0))
    return Layer(left, right, gap, angle)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, 0 where the whole is."""
    return torch.where(whole > 0, part / whole, 0.0)


def _measured(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths (N, 1) and directions (N, d) of vectors of any length; 0 has the direction 0."""
    largest = x.abs().amax(1, keepdim=True)
    x = torch.where(largest > 0, x / largest, 0.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return largest * length, x / length.clamp_min(1.0)


def one_minus(angle: Tensor) -> Tensor:
    """Return ``1 - (sin t + (pi - t) cos t) / pi``, right to rounding also at small angles."""
    square = angle.square()
    term, rest = square * angle / 3, torch.zeros_like(angle)
    for k in range(1, TERMS + 1):  # (-1)^(k+1) 2k t^(2k+1) / (2k+1)!
        rest = rest + term
        term = -term * square * ((k + 1) / k) / ((2 * k + 2) * (2 * k + 3))
    rest = torch.where(angle.abs() < SERIES, rest, angle.sin() - angle * angle.cos())
    return 2 * (angle / 2).sin().square() - rest / math.pi


def _is_complex(given: Any) -> bool:
    return "complex" in str(getattr(given, "dtype", ""))


@in_own_modes
def infinite_ntk(
    depth: int,
    weight_variance: float | Sequence[float] = 2.0,
    bias_variance: float | Sequence[float] = 0.0,
    parametrization: str = "ntk",
    width: int | None = None,
) -> InfiniteNTK:
    """Return the tangent kernel of ReLU networks of infinite width, a function of points, in fp64.

    With t the angle of two points' pre-activations in a layer, and q, q' their variances there::

        Sigma_1     = sigma_w^2 x.x' / d + sigma_b^2
        Sigma_{l+1} = sigma_w^2 sqrt(q q') (sin t + (pi - t) cos t) / (2 pi) + sigma_b^2
        Theta_1     = Sigma_1,     Theta_{l+1} = Sigma_{l+1} + sigma_w^2 (pi - t) / (2 pi) Theta_l

    Parameters
    ----------
    depth
        Number of hidden layers, at least 1.
    weight_variance
        ``sigma_w^2``: weights have the variance ``sigma_w^2 / in``. 2 is He's, which keeps variances; one number, or
        one for each of the depth + 1 linear layers.
    bias_variance
        ``sigma_b^2``, likewise.
    parametrization
        ``"ntk"``: weights ``sigma_w / sqrt(in)`` times, biases ``sigma_b`` times standard normal parameters, as in the
        theory: the limit is finite. ``"standard"``: the parameters of :class:`inrfast.INR` and of torch. There weights
        of a layer of ``in`` inputs count ``in / sigma_w^2`` times as much, and a bias ``1 / sigma_b^2`` times: the
        kernel grows as ``width``, and is what :func:`inrfast.ntk` gives for a wide network of one output.
    width
        Units of the hidden layers, for ``"standard"``.

    Returns
    -------
    InfiniteNTK
        ``K(X)`` and ``K(X, X2)`` for points of any length whose entries fp64 holds, ``K.nngp(X)``, ``K.of_cosine(c)``.

    Raises
    ------
    ValueError, TypeError
        A depth below 1, a variance of weights that is not positive, lists of another length, a width without the
        standard parametrisation or the other way round.

    Notes
    -----
    Entries are within ``1e-15 (depth + 2) sqrt(K_ii K_jj)`` of the exact ones, also for points that all but coincide,
    where the kernel has the slope of a square root: angles come from chords, and ``1 - cos`` from sums.

    One network is off by its random numbers: of width 4,096 with two hidden layers some 4.5 % in Frobenius norm, nearly
    a common factor, and the mean of 32 of them below 2 %; the error falls as one over the root of the width.

    The limit needs Gaussian pre-activations. Hidden layers have them for every distribution of weights. The first
    layer, of few inputs, has them for Gaussian weights alone (``init="kaiming"``, whose biases are zero: ``sigma_w^2 =
    2, sigma_b^2 = 0``). Torch's default draws uniform weights (``sigma_w^2 = 1/3``), and its kernel in two dimensions
    tends to another limit, with two hidden layers 2.5 % away in Frobenius norm, that is no function of the angle.

    The paper's recursions are not these: its (25) is not the arc-cosine kernel, (17) lacks the term Sigma.

    Examples
    --------
    >>> import inrfast as inr
    >>> coords = inr.grid((3, 3))[:3]
    >>> net = inr.INR(2, 1, width=2048, hidden_layers=2, init="kaiming")
    >>> wide = inr.infinite_ntk(2, parametrization="standard", width=2048)(coords)
    >>> float((inr.ntk(net, coords).to_dense() / wide - 1).abs().max()) < 0.1
    True

    Source: Cho and Saul, Kernel methods for deep learning, NIPS 2009; Jacot, Gabriel, Hongler, NeurIPS 2018, theorem 1;
    Lee et al., Wide neural networks of any depth, NeurIPS 2019 (standard parametrisation).
    """
    depth = check_int("depth", depth, minimum=1)
    check_choice("parametrization", parametrization, PARAMETRIZATIONS)
    if (width is None) == (parametrization == "standard"):
        raise ValueError(f'width belongs to parametrization="standard", got {width!r} with {parametrization!r}')
    return InfiniteNTK(
        depth,
        _variances("weight_variance", weight_variance, depth, exclusive=True),
        _variances("bias_variance", bias_variance, depth, exclusive=False),
        parametrization,
        None if width is None else check_int("width", width, minimum=1),
    )


def _variances(name: str, given: Any, depth: int, exclusive: bool) -> tuple[float, ...]:
    """Return one variance per linear layer."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != depth + 1:
            raise ValueError(f"{name} must be one number or depth + 1 = {depth + 1} of them, got {len(given)}")
        return tuple(check_float(name, own, minimum=0.0, exclusive=exclusive) for own in given)
    return (check_float(name, given, minimum=0.0, exclusive=exclusive),) * (depth + 1)
