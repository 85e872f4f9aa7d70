"""PEAK: a trained polynomial encoding put before any network, with the regulariser that aligns its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.encodings import Compose, Encoding, Polynomial
from inrfast.errors import check_coords, check_flag, check_float, check_int, check_tensor
from inrfast.mlp import describe
from inrfast.nn import INR, described_network
from inrfast.snapshot import snapshot
from inrfast.training.data import check_net
from inrfast.training.regularizers.kar import KAR


class PEAK:
    """Plug-in Encoding for Aligned Kernels: a network behind a trained polynomial encoding, and its regulariser.

    ``gamma(x) = (+)_k sqrt(a_k) x^{(x)k}``, ``a_k >= 0`` trained, stands before the network's own encoding:

        peak = inr.PEAK(net, grid)
        inr.fit(peak.net, x, y, regularizers=peak.regularizers)

    The network that is given stays as it is. Of an :class:`inrfast.INR` without an encoding, and wherever gamma has as
    many columns as there are coordinates, ``peak.net`` begins as the same function: the weights of the first layer are
    those of the columns of degree 1, its bias is the weight of the constant column, and columns of higher degrees begin
    with weight 0. Behind more columns an encoding of its own, and all layers, are drawn anew, with the network's
    settings and seed.

    Parameters
    ----------
    net
        An :class:`inrfast.INR`, or any module (n, d) to (n, M), which is copied behind gamma.
    points
        Of the regulariser: see :class:`inrfast.KAR`; None: the points of each step.
    degree
        Highest degree k, at least 1: of the constant alone the network would be one too.
    factor
        Of the regulariser.
    constant
        Whether degree 0 is there. Without it gamma of degree 1 is ``sqrt(a_1) x``, which fits before any module. None:
        where the network is an INR without an encoding, or degree is above 1.
    coefficients
        Where the a_k begin, the constant's first; None: ``a_0 = a_1 = 1``, and ``d^-k`` above, so that in the box
        [-1, 1]^d no degree outweighs the others. Above 0, also after rounding to the network's dtype: neither an a_k of
        0 nor the weights 0 of its columns would get a gradient, and without a_1 the network sees no coordinates.
    options
        Of :class:`inrfast.KAR`, by name.

    Attributes
    ----------
    net
        The network to be trained.
    kar
        The regulariser.
    regularizers
        For :func:`inrfast.fit`: ``[(kar, factor)]``.

    Raises
    ------
    ValueError, TypeError
        Points that the network does not take; a module that does not take as many columns as gamma has; coefficients
        that are not above 0.

    Notes
    -----
    A hash grid divides the box of its ``bounds``: where a_1 grows above 1, scaled coordinates leave it and get the
    values of its border. Give the grid some room then, as in ``HashGrid(bounds=(-1.25, 1.25))``.

    Source: PEAK (Li et al.), Theorem 3.3 and Algorithm 1.

    Examples
    --------
    >>> import inrfast as inr
    >>> x = inr.grid((16, 16))
    >>> peak = inr.PEAK(inr.INR(2, 1, width=16, activation="sine", init="siren"), x, rows=64, keys=64)
    >>> result = inr.fit(peak.net, x[::2], x[::2, :1].sin(), steps=20, regularizers=peak.regularizers)
    >>> [round(a) for a in peak.coefficients]
    [1, 1]
    """

    def __init__(
        self,
        net: nn.Module,
        points: ArrayLike | None = None,
        degree: int = 1,
        factor: float = 1e-2,
        *,
        constant: bool | None = None,
        coefficients: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        dtype, device = check_net(net)
        factor = check_float("factor", factor, minimum=0.0)
        degree = check_int("degree", degree, minimum=1)
        if constant is None:
            constant = degree != 1 or (isinstance(net, INR) and _is_plain(net) and net.encoding is None)
        constant = check_flag("constant", constant)
        features = net.in_features if isinstance(net, INR) else options.get("in_features")
        if points is not None:
            given = check_tensor("points", points, finite=False, device=device)
            features = check_coords("points", given, features, device).shape[1]
            if given.dtype != dtype:
                raise TypeError(f"points must have the network's dtype {dtype}, got {given.dtype}")
            points = given
        elif features is None:
            raise ValueError("PEAK needs points, or in_features, the number of coordinates that the network takes")
        self.kar = KAR(points, **{"dtype": dtype, "device": device, **options, "in_features": features})
        if coefficients is None:
            orders = range(0 if constant else 1, degree + 1)
            coefficients = [1.0 if k < 2 else float(features) ** -k for k in orders]
        coefficients = [check_float("coefficients", a, minimum=0.0) for a in coefficients]
        if not bool(torch.tensor(coefficients, dtype=torch.float64, device="cpu").sqrt().to(dtype).all()):
            raise ValueError(
                f"coefficients must be above 0 in {dtype}, got {coefficients}: one that begins at 0 is never trained; "
                "take a lower degree or constant=False, or a small number such as 1e-6"
            )
        polynomial = Polynomial(degree, coefficients, trainable=True, constant=constant)
        self.net = _plugged(net, polynomial, features, dtype, device)
        self.regularizers: list[tuple[KAR, float]] = [(self.kar, factor)]

    @property
    def polynomial(self) -> Polynomial:
        """The trained encoding gamma."""
        found = next(own for own in self.net.modules() if isinstance(own, Polynomial) and own.trainable)
        return found

    @property
    def coefficients(self) -> list[float]:
        """The a_k as they are now, those of lower degrees first."""
        return self.polynomial.coefficients

    def __repr__(self) -> str:
        return f"PEAK({self.polynomial}, {self.kar}, factor={self.regularizers[0][1]:g})"


class Plugged(nn.Module):
    """A module behind an encoding of its coordinates."""

    def __init__(self, encoding: Encoding, net: nn.Module) -> None:
        super().__init__()
        self.encoding, self.net = encoding, net

    def forward(self, coords: Tensor) -> Any:
        """Return what the module returns for the encoded coordinates (..., d)."""
        return self.net(self.encoding(coords))


def _is_plain(net: nn.Module) -> bool:
    """Return whether a network is an INR as its class makes it, and describes itself."""
    return type(net) is INR and not isinstance(describe(net), str) and described_network(net) is not None


def _plugged(
    net: nn.Module, polynomial: Polynomial, features: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Return a copy of a network behind the polynomial of so many coordinates."""
    if _is_plain(net):
        assert isinstance(net, INR)
        return _rebuilt(net, polynomial, dtype, device)
    built = polynomial.build(features, torch.Generator(), device, dtype)
    found = Plugged(built, snapshot(net))
    if built.out_features != features:
        try:
            with torch.no_grad():
                snapshot(found).eval()(torch.zeros(2, features, dtype=dtype, device=device))
        except Exception as error:  # of anybody's class
            raise ValueError(
                f"net ({type(net).__name__}) does not take the {built.out_features} columns of the encoding in place "
                f"of {features} coordinates: {error}. Make its first layer of {built.out_features} inputs, or take "
                "constant=False and degree=1, which leave as many columns as there are coordinates"
            ) from error
    return found


def _rebuilt(net: INR, polynomial: Polynomial, dtype: torch.dtype, device: torch.device) -> INR:
    old, columns = net.encoding, polynomial.columns(net.in_features)
    encoding = polynomial if old is None else Compose(polynomial, old)
    anew = old is not None and columns != net.in_features
    settings = {**net.config(), "encoding": encoding, "dtype": dtype, "device": device}
    found = INR(**(settings if anew else {**settings, "init": "default"}))
    found.init = net.init
    if not anew:
        _take_over(found, net)
    mine = dict(found.named_parameters())
    for name, own in net.named_parameters():
        name = name.replace("encoding.", "encoding.encodings.1.", 1) if name.startswith("encoding.") else name
        if name in mine:
            mine[name].requires_grad_(own.requires_grad)
    return found.train(net.training)


@torch.no_grad()
def _take_over(found: INR, net: INR) -> None:
    """Make a network behind a polynomial the same function as one without it."""
    polynomial: Any = found.encoding
    if net.encoding is not None:
        assert isinstance(found.encoding, Compose)
        polynomial, old = found.encoding.encodings
        old.load_state_dict(net.encoding.state_dict())
    found.norms.load_state_dict(net.norms.state_dict())
    for mine, own in list(zip(found.layers, net.layers, strict=True))[1:]:
        mine.load_state_dict(own.state_dict())
    root = dict(zip(range(polynomial.lowest, polynomial.degree + 1), polynomial.roots.tolist(), strict=True))
    if net.encoding is not None:
        found.layers[0].load_state_dict(net.layers[0].state_dict())
        return
    first, given = found.layers[0], net.layers[0]
    assert isinstance(first, nn.Linear) and isinstance(given, nn.Linear)
    order = polynomial.exponents.sum(1)
    first.weight.zero_()
    if root.get(1, 0.0) > 0:
        first.weight[:, order == 1] = given.weight / root[1]
    if given.bias is not None:
        whole = root.get(0, 0.0) > 0
        first.bias.copy_(torch.zeros_like(given.bias) if whole else given.bias)
        if whole:
            first.weight[:, order == 0] = given.bias.unsqueeze(1) / root[0]
