"""How a network is called: the axes that its coordinates have, and where in what it returns its output is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError

Select = Callable[[Any], Tensor] | str | int | None


class Calling:
    """The way from points (n, d) to the outputs (n, M) of a network of anybody's.

    Parameters
    ----------
    select
        A key, an index, an attribute's name or a function that takes the output tensor from what the network returns;
        None: it is the output.
    axes
        Number of axes of the coordinates that the network is called with: points are (n, d), and leading axes of size 1
        make them as many. Its output has the same leading axes, or none.
    """

    def __init__(self, select: Select = None, axes: int = 2) -> None:
        self.select = select
        self.axes = axes

    def predicted(self, net: nn.Module, coords: Tensor) -> Tensor:
        """Return the outputs (n, M) of a network at ``coords`` (n, d), by one call of it.

        Raises
        ------
        ValueError, TypeError
            See :meth:`output_in`.
        """
        return self.output_in(net(self.with_axes(coords)), len(coords))

    def with_axes(self, coords: Tensor) -> Tensor:
        """Return points (n, d) with the leading axes of size 1 that the network is called with."""
        return coords if self.axes == 2 else coords.reshape(*(1,) * (self.axes - 2), *coords.shape)

    def output_in(self, returned: Any, points: int) -> Tensor:
        """Return the output (n, M) in what a network returns for so many points; of one point it may have any shape.

        Raises
        ------
        ValueError, TypeError
            It is not there, or no tensor of real floating-point numbers with one row per point.
        """
        output = self.selected(returned)
        if not isinstance(output, Tensor):
            if self.select is None:
                raise TypeError(
                    f"net returns {_kind(returned)}; pass select= (a key, an index or a function) that takes the "
                    "output tensor from it"
                )
            own = "select= gives" if callable(self.select) else f"select={self.select!r} gives"
            raise TypeError(
                f"{own} {_kind(output)}, no tensor; a function takes one from it, such as select=lambda returned: "
                "returned['colour']['fine']"
            )
        given = tuple(output.shape)
        for _ in range(self.axes - 2):  # the leading axes of the coordinates
            output = output.squeeze(0) if output.ndim > 1 and len(output) == 1 else output
        if points > 1 and (output.ndim == 0 or len(output) != points):
            told = f"{points} points" if self.axes == 2 else f"coords of {(1,) * (self.axes - 2) + (points,)} points"
            raise ValueError(f"the output must have one row per point: {told} gave shape {given}")
        if output.is_complex():
            raise UnsupportedModuleError(f"net returns complex values ({output.dtype}); only real ones are supported")
        if not output.is_floating_point():
            raise TypeError(
                f"net must return floating-point numbers, got {output.dtype}: whole numbers and truth values have no "
                "derivatives"
            )
        if output.numel() == 0:
            raise ValueError(f"net must return at least one output per point, got shape {given}")
        return output.reshape(points, -1)

    def selected(self, returned: Any) -> Any:
        """Return the output in what a network returns, in its own shape."""
        if self.select is None:
            return returned
        if callable(self.select):
            return self.select(returned)
        try:
            if isinstance(self.select, str) and isinstance(returned, Tensor):
                raise KeyError(self.select)
            return returned[self.select]
        except (KeyError, IndexError, TypeError) as error:
            if isinstance(self.select, str) and not isinstance(returned, Mapping | Tensor):
                with suppress(AttributeError):  # of a dataclass or a named tuple
                    return getattr(returned, self.select)
            keys = list(returned) if isinstance(returned, Mapping) else type(returned).__name__
            raise ValueError(f"select={self.select!r} is not in what net returns: {keys}") from error


def _kind(returned: Any) -> str:
    """Return in words what a module returns: its type, with the keys that it has."""
    kind = type(returned).__name__
    return f"{kind} {list(returned)}" if isinstance(returned, Mapping) else kind


class Called(nn.Module):
    """A network together with how it is called: points (n, d) in, outputs (n, M) out."""

    def __init__(self, net: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.net, self.calling = net, calling

    def forward(self, coords: Tensor) -> Tensor:
        """Return the outputs."""
        return self.calling.predicted(self.net, coords)
