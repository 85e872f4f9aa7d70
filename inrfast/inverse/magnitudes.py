"""The magnitude of a linear operator: measurements without their phase or sign, and the smoothed loss of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.errors import check_float
from inrfast.inverse.operators import Operator


class Magnitude(Operator):
    """``|B x|`` of a linear B; a loss compares ``sqrt(|B x|^2 + epsilon)`` with ``sqrt(y^2 + epsilon)``.

    Smoothed so, the loss has a gradient where ``B x`` is zero. A subclass says ``linear_part``.

    Parameters
    ----------
    shape_in, shape_out
        As in :class:`inrfast.inverse.Operator`.
    epsilon
        Zero or more, in units of squared measurements.
    """

    linear = False
    ambiguities: tuple[str, ...] = ("sign",)

    def __init__(self, shape_in: int | Sequence[int], shape_out: int | Sequence[int], epsilon: float) -> None:
        super().__init__(shape_in, shape_out)
        self.epsilon = check_float("epsilon", epsilon, minimum=0.0)

    def linear_part(self, x: Tensor) -> Tensor:
        """Return ``B x`` (*shape_out, M) of a signal (*shape_in, M)."""
        raise NotImplementedError

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return self.linear_part(x).abs()

    def difference(self, x: Tensor, measured: Tensor) -> Tensor:
        """See :class:`inrfast.inverse.Operator`."""
        return self.smoothed(self.linear_part(x)) - (measured.square() + self.epsilon).sqrt()

    def smoothed(self, values: Tensor) -> Tensor:
        """Return ``sqrt(|v|^2 + epsilon)``, with a gradient of zero where that is zero."""
        square = values.real.square() + values.imag.square() if values.is_complex() else values.square()
        square = square + self.epsilon
        return torch.where(square > 0, square, 1.0).sqrt() * (square > 0) if self.epsilon == 0 else square.sqrt()

    def check_measurements(self, y: Tensor) -> None:
        """Refuse negative magnitudes."""
        if bool((y < 0).any()):
            count = int((y < 0).sum())
            raise ValueError(
                f"measurements of {self!r} are magnitudes, zero or more, got {count} negative of {y.numel()}"
            )
