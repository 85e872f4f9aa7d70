"""Radiance fields: a density at points, and a colour that depends on the direction from which it is seen."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.encodings import Compose, Encoding, Polynomial
from inrfast.encodings.hash_grid import HashGrid
from inrfast.errors import check_flag, check_float, check_int
from inrfast.nn import INR

LINEAR_FROM = 4.0
"""Output of the density network from which on the density grows along the tangent of the exponential."""

START = -2.0
"""Logarithm of the density everywhere before a fit: the box is nearly clear, so that emptiness need not be learned."""

SECOND_SEED = 7919
"""Added to the seed for the network of colours."""


def harmonics(directions: Tensor) -> Tensor:
    """Return the 16 real spherical harmonics of degrees 0 to 3 at unit directions (n, 3), orthonormal on the sphere.

    Source: Sloan, Efficient spherical harmonic evaluation, JCGT 2013; the directions' encoding of Instant-NGP.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz, xy = x * x, y * y, z * z, x * y
    columns = [
        torch.full_like(x, 0.5 * math.sqrt(1 / math.pi)),
        *(math.sqrt(3 / (4 * math.pi)) * own for own in (y, z, x)),
        *(math.sqrt(15 / (4 * math.pi)) * own for own in (xy, y * z)),
        math.sqrt(5 / (16 * math.pi)) * (3 * zz - 1),
        math.sqrt(15 / (4 * math.pi)) * x * z,
        math.sqrt(15 / (16 * math.pi)) * (xx - yy),
        math.sqrt(35 / (32 * math.pi)) * y * (3 * xx - yy),
        math.sqrt(105 / (4 * math.pi)) * xy * z,
        math.sqrt(21 / (32 * math.pi)) * y * (5 * zz - 1),
        math.sqrt(7 / (16 * math.pi)) * z * (5 * zz - 3),
        math.sqrt(21 / (32 * math.pi)) * x * (5 * zz - 1),
        math.sqrt(105 / (16 * math.pi)) * z * (xx - yy),
        math.sqrt(35 / (32 * math.pi)) * x * (xx - 3 * yy),
    ]
    return torch.stack(columns, dim=-1)


def rising(raw: Tensor) -> Tensor:
    """Return a density above 0: ``exp(raw)``, from ``raw = 4`` on its tangent, so that no step overflows or is lost."""
    return math.exp(LINEAR_FROM) * (F.elu(raw - LINEAR_FROM) + 1)


class RadianceField(nn.Module):
    """Density and colour in a box: ``geometry`` maps points to a density and features, ``appearance`` those and the
    direction of view to a colour.

    Parameters
    ----------
    bounds
        ``(low, high)`` of the cube in which there is anything, in the world's lengths. Its points are mapped to
        [-1, 1]^3, the coordinates of ``geometry``.
    encoding
        Of those coordinates; None: ``HashGrid(levels=8, table_size=2**15, coarsest=8, finest=128)``.
    polynomial
        Whether the trained polynomial encoding of degree 1 of PEAK stands before it: coordinates are then multiplied by
        ``sqrt(a_1)``, which begins at 1. The constant ``sqrt(a_0)`` is left out: to a grid it says nothing, and costs
        an axis. Where a_1 is above 1, points near the border leave a hash grid's box and have its border's value.
    width
        Of the two networks' hidden layers, one in ``geometry`` and two in ``appearance``.
    features
        That ``geometry`` hands to ``appearance``.
    seed
        Of the weights; None draws one from torch's global generator.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    geometry
        An :class:`inrfast.INR` with 1 + features outputs: the first is the logarithm of the density (see
        :func:`rising`).
    appearance
        An :class:`inrfast.INR` whose outputs are logits of red, green and blue.

    Raises
    ------
    ValueError, TypeError, MemoryBudgetError
        A box without volume; sizes below 1; see :class:`inrfast.INR`.

    Source: Mueller et al., Instant neural graphics primitives, SIGGRAPH 2022, section 5.4.

    Examples
    --------
    >>> field = RadianceField(encoding=HashGrid(levels=4, table_size=2**10, coarsest=4, finest=16))
    >>> density, colours = field(torch.zeros(5, 3), torch.eye(3)[[0, 0, 1, 1, 2]])
    >>> density.shape, colours.shape
    (torch.Size([5]), torch.Size([5, 3]))
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        bounds: tuple[float, float] = (-1.0, 1.0),
        encoding: Encoding | None = None,
        width: int = 64,
        features: int = 15,
        polynomial: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        try:
            low, high = (check_float("bounds", bound) for bound in bounds)
        except (TypeError, ValueError) as error:
            raise type(error)(f"bounds must be a pair (low, high) of numbers, got {bounds!r}: {error}") from None
        if not low < high:
            raise ValueError(f"bounds must be (low, high) with low below high, got {bounds!r}")
        check_int("features", features, minimum=1)
        if encoding is None:
            encoding = HashGrid(levels=8, table_size=2**15, coarsest=8, finest=128)
        if check_flag("polynomial", polynomial):
            encoding = Compose(Polynomial(1, [1.0], trainable=True, constant=False), encoding)
        made: dict[str, Any] = {"width": width, "init": "kaiming", "device": device, "dtype": dtype}
        self.geometry = INR(3, 1 + features, hidden_layers=1, encoding=encoding, seed=seed, **made)
        seed = self.geometry.seed
        other = (seed + SECOND_SEED) % 2**32
        self.appearance = INR(features + 16, 3, hidden_layers=2, seed=other, **made)
        head = self.geometry.layers[-1]
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.bias[0] = START
        self.register_buffer("low", head.weight.new_full((3,), low))
        self.register_buffer("high", head.weight.new_full((3,), high))

    @property
    def scale(self) -> float | None:
        """The present a_1 of the trained polynomial; None without one."""
        for part in self.geometry.modules():
            if isinstance(part, Polynomial) and part.trainable:
                return part.coefficients[-1]
        return None

    def unit(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the world in the coordinates of ``geometry``."""
        return 2 * (points - self.low) / (self.high - self.low) - 1

    def density(self, points: Tensor) -> Tensor:
        """Return the density (n,) at points (n, 3) of the world, per unit of its length."""
        return rising(self.geometry(self.unit(points))[:, 0])

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return densities (n,) and colours (n, 3) in [0, 1] at points (n, 3), seen along unit directions (n, 3)."""
        found = self.geometry(self.unit(points))
        logits = self.appearance(torch.cat([found[:, 1:], harmonics(directions)], dim=-1))
        return rising(found[:, 0]), torch.sigmoid(logits)
