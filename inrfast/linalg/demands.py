"""What may be asked of a certified spectrum: ranks to be known, or eigenpairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inrfast.linalg.operators import UNIT

WIDTH = 0.028
"""Stop once a rank's interval is at most this wide, relative to the rank: 3 % with rounding added."""


@dataclass(frozen=True)
class Ranks:
    """The number of eigenvalues above some levels.

    Attributes
    ----------
    rtols
        Levels relative to lambda_1.
    levels
        Absolute levels, beside those.
    width
        Largest width of a rank's interval, relative to its lower end.
    values
        Whether the eigenvalues' own errors are wanted as well, about as small as the lowest level.
    """

    rtols: tuple[float, ...]
    levels: tuple[float, ...] = ()
    width: float = WIDTH
    values: bool = True

    def absolute(self, largest: float) -> tuple[float, ...]:
        """Return all levels as absolute ones, lambda_1 being ``largest``."""
        return (*(rtol * largest for rtol in self.rtols), *self.levels)

    def level(self, largest: float) -> float:
        """Return the lowest of the levels."""
        return min(self.absolute(largest))

    def near(self, largest: float, power: float) -> float:
        """Return an estimate, made without eigenvalues, of the residual norm that suffices, at most level / 4.

        Eigenvalues fall as ``i^-p``, with p about half of ``power``, the exponent with which the residual norm before a
        block falls with the pivots after it (0: unknown). Lowering the level by a fraction ``1 - (1 + width)^-p`` then
        raises the count by the fraction ``width``.
        """
        share = 1 - (1 + self.width) ** (-power / 2) if power > 0 else 1.0
        return min(share, 1 / 4) * self.level(largest)

    def hope(self, largest: float) -> float:
        """Return the residual norm that is needed if the eigenvalues are evenly spread around the level."""
        return self.width * self.level(largest)

    def met(self, values: Tensor, error: float) -> bool:
        """Return whether every interval is narrow enough."""
        for level in self.absolute(float(values[0])):
            if error >= level:
                return False
            lower, upper = (int((values > bound).sum()) for bound in (level, level - error))
            if upper - lower > self.width * lower:
                return False
        return True

    def allowed_error(self, values: Tensor) -> float:
        """Return the largest error for which :meth:`met` holds, up to a factor of 0.8."""
        largest = float(values[0])
        error = self.level(largest)
        while error > UNIT * largest:
            error *= 0.8
            if self.met(values, error):
                return error
        return 0.0


@dataclass(frozen=True)
class Pairs:
    """The largest eigenpairs, with residuals of at most ``accuracy lambda_1``.

    Attributes
    ----------
    count
        How many.
    accuracy
        Error relative to lambda_1.
    """

    count: int
    accuracy: float

    def near(self, largest: float, power: float) -> float:
        """Return the residual norm below which a bound is worth computing: the accuracy itself."""
        return self.hope(largest)

    def hope(self, largest: float) -> float:
        """Return the error."""
        return self.accuracy * largest

    def met(self, values: Tensor, error: float) -> bool:
        """Return whether there are enough eigenvalues, with a small enough error."""
        return len(values) >= self.count and error <= self.hope(float(values[0]))

    def allowed_error(self, values: Tensor) -> float:
        """Return the error."""
        return self.hope(float(values[0]))
