"""Forward operators of inverse problems: the base, the composition, operators of two callables, the test of adjoints.

An operator ``A`` maps a signal on a grid to measurements, every channel alike. Fitting a network to measurements is
``inr.fit(net, coords, zeros, loss=A.loss(y))``, where the targets only stand in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.errors import InrfastError, check_float, check_int, check_seed, check_takes, check_tensor

Shape = tuple[int, ...]

RTOL = 1e-10
"""Largest relative error of the dot-product test in fp64; rounding leaves some 1e-15 times the root of the size."""


class AdjointError(InrfastError, ValueError):
    """An operator whose ``adjoint`` is not that of its ``forward``; the message names it and the error found.

    Attributes
    ----------
    error
        The relative error of the worst draw.
    """

    error: float = math.nan


class Operator:
    """Base of the forward operators: signals (*shape_in, M) to measurements (*shape_out, M), channel by channel.

    A subclass says ``apply`` (and, where it is linear, ``apply_adjoint``) for tensors with the channels last; the
    public methods take more forms and check them, and hand on copies, into which it may write.

    Parameters
    ----------
    shape_in, shape_out
        Sizes of the grid of the signal, such as (height, width), and of the measurements, without channels.

    Attributes
    ----------
    linear
        Whether it is linear, and so has an adjoint.
    complex_in, complex_out
        Whether complex signals belong to its domain, and whether real signals have complex measurements. Where neither
        holds it is a real matrix, which acts on real and imaginary parts alike.
    ambiguities
        What measurements cannot tell a signal from: names out of ``"sign"``, ``"flip"`` and ``"shift"``, see
        :func:`inrfast.inverse.align_ambiguities`.
    """

    linear: bool = True
    ambiguities: tuple[str, ...] = ()
    complex_in: bool = False
    complex_out: bool = False

    def __init__(self, shape_in: int | Sequence[int], shape_out: int | Sequence[int]) -> None:
        self.shape_in = check_shape("shape_in", shape_in)
        self.shape_out = check_shape("shape_out", shape_out)

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}({self.shape_in} -> {self.shape_out})"

    # ---- what a subclass says ------------------------------------------------------------------------------------

    def apply(self, x: Tensor) -> Tensor:
        """Return the measurements (*shape_out, M) of a signal (*shape_in, M); differentiable."""
        raise NotImplementedError(f"{self.name} must define apply(x)")

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint (*shape_in, M) of measurements (*shape_out, M); unless said, that of autograd, exactly."""
        is_complex = y.is_complex() and (self.complex_in or not self.complex_out)
        return transposed(self.apply, y, self.shape_in, is_complex)

    def difference(self, x: Tensor, measured: Tensor) -> Tensor:
        """Return what a loss squares, (*shape_out, M), of a signal (*shape_in, M) and measurements (*shape_out, M)."""
        return self.declared(self.apply(x), x) - measured

    def check_measurements(self, y: Tensor) -> None:
        """Refuse measurements that this operator cannot give; any finite ones are taken unless said."""

    def declared(self, found: Tensor, x: Tensor) -> Tensor:
        """Return measurements of a signal x, if they are complex only where that was said."""
        if found.is_complex() and not x.is_complex() and not self.complex_out:
            raise TypeError(
                f"{self!r} has complex measurements of real signals, and complex_out is False; set complex_out=True, "
                "and complex_in=True if it takes complex signals"
            )
        return found

    # ---- what users call -----------------------------------------------------------------------------------------

    def forward(self, x: ArrayLike) -> Tensor:
        """Return the measurements of a signal.

        Parameters
        ----------
        x
            (*shape_in, M), (*shape_in) of one channel, or points in row-major order (N, M), (N,), which is what
            networks return. Floating or complex, any device; of 16 bits Fourier transforms return fp32 or complex64,
            which hold their sums.

        Returns
        -------
        Tensor
            In the same form: (*shape_out, M), (*shape_out), (m, M) or (m,).

        Raises
        ------
        ValueError, TypeError
            Another shape, no numbers, NaN or Inf; complex measurements of a real signal where ``complex_out`` is False.
        """
        grid, form = on_grid("x", x, self.shape_in, "the signal")
        return in_form(self.declared(self.apply(grid.clone()), grid), form, self.shape_out)

    def __call__(self, x: ArrayLike) -> Tensor:
        """See :meth:`forward`."""
        return self.forward(x)

    def adjoint(self, y: ArrayLike) -> Tensor:
        """Return ``A^T y`` (of complex operators ``A^H y``) in the form of ``y``, see :meth:`forward`.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`; TypeError also of an operator that is not linear.
        """
        if not self.linear:
            raise TypeError(f"{self.name} is not linear and has no adjoint")
        grid, form = on_grid("y", y, self.shape_out, f"measurements of {self!r}")
        return in_form(self.apply_adjoint(grid.clone()), form, self.shape_in)

    def __matmul__(self, other: Any) -> Any:
        """Return the composition ``A @ B``, which applies B first, or ``A(x)`` of an array."""
        return Composition(self, other) if isinstance(other, Operator) else self.forward(other)

    def loss(self, measurements: ArrayLike, weight: ArrayLike | None = None) -> MeasurementLoss:
        """Return the loss of a network's predictions against measurements, for ``inr.fit(..., loss=...)``.

        It is ``sum w |A f - y|^2 / sum w`` over all measurements and channels, of a magnitude the smoothed difference
        that the operator says. All points in every step: no ``batch_size``.

        Parameters
        ----------
        measurements
            In one of the forms of :meth:`forward`, real, or complex where the operator's are.
        weight
            Zero or more, (*shape_out), (m,), or with channels as the measurements; None: all alike.

        Raises
        ------
        ValueError, TypeError
            Another shape, NaN or Inf; negative magnitudes; weights that are negative or all zero.
        """
        return MeasurementLoss(self, measurements, weight)


class MeasurementLoss:
    """What :meth:`Operator.loss` returns: a callable of predictions (N, M), whose mean square error it is.

    Attributes
    ----------
    operator, measurements, weight
        The operator, the measurements (*shape_out, M), and their weights, which sum to one, or None.
    """

    def __init__(self, operator: Operator, measurements: ArrayLike, weight: ArrayLike | None = None) -> None:
        self.operator = operator
        self.measurements = check_measurements(operator, measurements)
        self.weight = None if weight is None else self._weights(weight)

    @property
    def __name__(self) -> str:
        return f"loss of {self.operator.name}"

    def __call__(self, prediction: Tensor, target: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return the loss of the predictions at all points of the grid, in row-major order."""
        whole = on_whole_grid(prediction, self.operator, self.measurements.shape[-1], index)
        square = self.residual(whole)
        square = square.abs().square() if square.is_complex() else square.square()
        return square.mean() if self.weight is None else (square * self.weight.to(square)).sum()

    def residual(self, x: Tensor) -> Tensor:
        """Return what is squared, (*shape_out, M), of a signal (*shape_in, M); fp32 of one of 16 bits."""
        x = at_least_fp32(x)
        if x.device != self.measurements.device or x.real.dtype != self.measurements.real.dtype:
            real, is_complex = x.real.dtype, self.measurements.is_complex()
            dtype = (torch.complex128 if real == torch.float64 else torch.complex64) if is_complex else real
            self.measurements = self.measurements.to(x.device, dtype)
        return self.operator.difference(x.clone(), self.measurements.clone())  # it may write into them

    def relative(self, x: Tensor) -> float:
        """Return the norm of the residual over that of the measurements."""
        with torch.no_grad():
            size = float(torch.linalg.vector_norm(self.measurements))
            return float(torch.linalg.vector_norm(self.residual(x))) / max(size, torch.finfo(torch.float64).tiny)

    def _weights(self, given: ArrayLike) -> Tensor:
        found = check_tensor("weight", given, floating=False)
        found = found.double()
        shape, channels = self.operator.shape_out, self.measurements.shape[-1]
        count = math.prod(shape)
        if tuple(found.shape) in (shape, (count,)):
            found = found.reshape(*shape, 1)
        elif tuple(found.shape) in ((*shape, channels), (count, channels)):
            found = found.reshape(*shape, channels)
        else:
            raise ValueError(
                f"weight must have shape {shape}, ({count},) or those with {channels} channels, got "
                f"{tuple(found.shape)}"
            )
        if bool((found < 0).any()) or not bool((found > 0).any()):
            raise ValueError("weight must be zero or more everywhere and above zero somewhere")
        return found / found.expand(*shape, channels).sum()


class Composition(Operator):
    """``outer @ inner``: inner first. It is linear if both are."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if outer.shape_in != inner.shape_out:
            raise ValueError(
                f"{outer!r} @ {inner!r}: what the second returns, {inner.shape_out}, is not what the first takes, "
                f"{outer.shape_in}"
            )
        if not inner.linear:
            raise TypeError(f"{outer!r} @ {inner!r}: the second must be linear")
        super().__init__(inner.shape_in, outer.shape_out)
        self.outer, self.inner = outer, inner
        self.linear = outer.linear
        self.ambiguities = outer.ambiguities if all(own == "sign" for own in outer.ambiguities) else ()
        self.complex_out = outer.complex_out or inner.complex_out
        self.complex_in = self.complex_out and all(own.complex_in or not own.complex_out for own in (outer, inner))

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.outer.name} @ {self.inner.name}"

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self.outer.apply(self.inner.apply(x))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self.inner.apply_adjoint(self.outer.apply_adjoint(y))

    def difference(self, x: Tensor, measured: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self.outer.difference(self.inner.declared(self.inner.apply(x), x), measured)

    def check_measurements(self, y: Tensor) -> None:
        """See :class:`Operator`."""
        self.outer.check_measurements(y)


class LinearOperator(Operator):
    """A linear operator of your own, of two callables.

    Parameters
    ----------
    forward, adjoint
        Callables of one tensor: (*shape_in, M) to (*shape_out, M), and back. Losses differentiate ``forward``. They get
        copies, and may write into them.
    shape_in, shape_out
        As in :class:`Operator`.
    name
        What messages call it.
    complex_in, complex_out
        As in :class:`Operator`.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> wrong = lambda y: y.repeat_interleave(2, 0)  # y0, y0, y1, y1, where it must be y0, 0, y1, 0
    >>> rows = inr.inverse.LinearOperator(lambda x: x[::2], wrong, (4, 3), (2, 3))
    >>> try:
    ...     inr.inverse.check_adjoint(rows)
    ... except inr.inverse.AdjointError as error:
    ...     print(error.error > 1e-3)
    True
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        shape_in: int | Sequence[int],
        shape_out: int | Sequence[int],
        name: str = "LinearOperator",
        complex_in: bool = False,
        complex_out: bool = False,
    ) -> None:
        super().__init__(shape_in, shape_out)
        check_takes("forward", forward, ["x"])
        check_takes("adjoint", adjoint, ["y"])
        self._forward, self._adjoint, self._name = forward, adjoint, name
        self.complex_in, self.complex_out = complex_in, complex_out

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self._given(self._forward(x.clone()), self.shape_out, x, "forward")

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`Operator`."""
        return self._given(self._adjoint(y.clone()), self.shape_in, y, "adjoint")

    def _given(self, found: Any, shape: Shape, of: Tensor, what: str) -> Tensor:
        wanted = (*shape, of.shape[-1])
        if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{what} of {self.name} must return a tensor {wanted} for one {tuple(of.shape)}, got {got}"
            )
        return found


def check_adjoint(
    operator: Operator, draws: int = 3, channels: int = 2, seed: int = 0, rtol: float = RTOL, device: str = "cpu"
) -> float:
    """Test that an operator's adjoint is that of its forward map, and return the largest relative error.

    For random x and y in fp64, ``|<A x, y> - <x, A* y>| / (|A x| |y| + |x| |A* y|)`` must not exceed ``rtol``. Where
    the signal is real and the measurements are complex, the real parts are compared. The solvers of this package call
    it once at their start.

    Parameters
    ----------
    operator
        A linear :class:`Operator`, your own too.
    draws, channels, seed
        Pairs of random vectors, their channels, and the seed they follow from.
    rtol
        1e-10, far above rounding in fp64; an operator that computes in fp32 inside asks for some 1e-4.
    device
        Where it is tested.

    Raises
    ------
    AdjointError
        The test fails; a ValueError too.
    TypeError
        The operator is none, or not linear; it is complex and does not say so.

    Examples
    --------
    >>> import inrfast as inr
    >>> inr.inverse.check_adjoint(inr.inverse.Blur.gaussian((16, 16), 1.5)) < 1e-12
    True
    """
    check_operator(operator)
    if not operator.linear:
        raise TypeError(f"operator must be linear, and {operator!r} is not: it has no adjoint")
    draws, channels = check_int("draws", draws, minimum=1), check_int("channels", channels, minimum=1)
    rtol = check_float("rtol", rtol, minimum=0.0)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    worst = 0.0
    for _ in range(draws):
        x = _drawn((*operator.shape_in, channels), operator.complex_in, generator, device)
        y = _drawn((*operator.shape_out, channels), operator.complex_out, generator, device)
        # Copies, since code of the user's may write into what it gets, and may return the same buffer every time.
        forward, back = operator.apply(x.clone()).clone(), operator.apply_adjoint(y.clone()).clone()
        _check_declared(operator, x, forward, back)
        error = _dot_error(operator, x, y, forward, back)
        if not error <= rtol:
            raise _failed(operator, error, rtol)
        worst = max(worst, error)
    return worst


def _drawn(shape: Shape, is_complex: bool, generator: torch.Generator, device: str) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def _check_declared(operator: Operator, x: Tensor, forward: Tensor, back: Tensor) -> None:
    """Refuse an operator that is complex and did not say so: real parts alone would be compared, or fitted."""
    if operator.complex_out:
        return
    real = x.real.clone()
    operator.declared(operator.apply(real) if x.is_complex() else forward, real)
    if back.is_complex():
        raise TypeError(
            f"the adjoint of {operator!r} is complex for real measurements, and complex_out is False; set "
            "complex_out=True, and complex_in=True if it takes complex signals"
        )


def _dot_error(operator: Operator, x: Tensor, y: Tensor, forward: Tensor, back: Tensor) -> float:
    for what, found, shape in (("forward", forward, y.shape), ("adjoint", back, x.shape)):
        if found.shape != shape:
            raise AdjointError(f"{what} of {operator!r} must return {tuple(shape)}, got {tuple(found.shape)}")
    dtype = torch.complex128
    there = torch.vdot(y.to(dtype).flatten(), forward.to(dtype).flatten())
    here = torch.vdot(back.to(dtype).flatten(), x.to(dtype).flatten())
    difference = there - here
    size = forward.norm() * y.norm() + x.norm() * back.norm()
    if not operator.complex_in:
        difference = difference.real
    return float(difference.abs() / size) if float(size) > 0 else float(difference.abs())


def _failed(operator: Operator, error: float, rtol: float) -> AdjointError:
    found = AdjointError(
        f"the adjoint of {operator!r} is not that of its forward map: <A x, y> and <x, A* y> differ by {error:.3g} "
        f"relative to the norms for random x and y, where {rtol:g} is allowed"
    )
    found.error = error
    return found


# ---- forms -------------------------------------------------------------------------------------------------------


def check_operator(operator: Any, argument: str = "operator") -> Operator:
    """Return what is an :class:`Operator`."""
    if isinstance(operator, type) and issubclass(operator, Operator):
        raise TypeError(f"{argument} must be an object, got the class {operator.__name__}; make one of it")
    if not isinstance(operator, Operator):
        raise TypeError(f"{argument} must be an inrfast.inverse.Operator, got {type(operator).__name__}")
    return operator


def check_shape(argument: str, given: Any) -> Shape:
    """Return the sizes of a grid, each one or more, from one number or several."""
    sizes = (given,) if hasattr(given, "__index__") else given
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"{argument} must be a size or a sequence of sizes, got {type(given).__name__}")
    if len(sizes) == 0:
        raise ValueError(f"{argument} must have at least one size, got none")
    return tuple(check_int(f"{argument}[{axis}]", size, minimum=1) for axis, size in enumerate(sizes))


def on_grid(argument: str, given: ArrayLike, shape: Shape, what: str) -> tuple[Tensor, str]:
    """Return an array in one of the forms of :meth:`Operator.forward` as (*shape, M), and its form.

    Raises
    ------
    ValueError, TypeError
        It has another shape, holds no numbers, or NaN or Inf.
    """
    found = as_tensor(argument, given)
    if found.is_complex():
        if not bool(torch.isfinite(torch.view_as_real(found.detach().resolve_conj())).all()):
            raise ValueError(f"{argument} must be finite, got NaN or Inf")
    else:
        check_tensor(argument, found)
    count, got = math.prod(shape), tuple(found.shape)
    if got == shape:
        return found[..., None], "grid"
    if got[:-1] == shape:
        return found, "grid with channels"
    if got == (count,):
        return found.reshape(*shape, 1), "flat"
    if found.ndim == 2 and got[0] == count:
        return found.reshape(*shape, got[1]), "flat with channels"
    raise ValueError(
        f"{argument} must be {what}, of shape {shape} or ({count},), or one of them with a last axis for channels, got "
        f"{got}"
    )


def at_least_fp32(x: Tensor) -> Tensor:
    """Return numbers of 16 bits in fp32, or complex64, for operations of torch that take no others."""
    if x.is_complex():
        return x.to(torch.promote_types(x.dtype, torch.complex64))
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_form(found: Tensor, form: str, shape: Shape) -> Tensor:
    """Return (*shape, M) in the form that :func:`on_grid` names."""
    if form.startswith("flat"):
        found = found.reshape(math.prod(shape), found.shape[-1])
    return found if form.endswith("channels") else found[..., 0]


def on_whole_grid(prediction: Tensor, operator: Operator, channels: int, index: Tensor | None) -> Tensor:
    """Return predictions (N, M) as (*shape_in, M), if they are those of all points in their order."""
    count = math.prod(operator.shape_in)
    if prediction.numel() != count * channels or prediction.shape[0] != count:
        raise ValueError(
            f"{operator!r} takes predictions at all {count} points with {channels} channels, got "
            f"{tuple(prediction.shape)}: fit without batch_size, on coordinates of the grid {operator.shape_in}"
        )
    if index is not None and not torch.equal(index, torch.arange(count, device=index.device)):
        raise ValueError(
            f"{operator!r} takes predictions at all points in row-major order, got others: fit without batch_size "
            "and without points of weight 0"
        )
    return prediction.reshape(*operator.shape_in, channels)


def check_measurements(operator: Operator, measurements: ArrayLike) -> Tensor:
    """Return measurements as (*shape_out, M), if they may be those of the operator."""
    found, _ = on_grid("measurements", measurements, operator.shape_out, f"those of {operator!r}")
    if found.is_complex() and not operator.complex_out:
        raise TypeError(f"measurements must be real, as those of {operator!r} are, got {found.dtype}")
    operator.check_measurements(found)
    return found.detach().clone()  # the caller may reuse its memory


def transposed(apply: Callable[[Tensor], Tensor], y: Tensor, shape_in: Shape, is_complex: bool = False) -> Tensor:
    """Return the adjoint of a linear map at y, by the automatic differentiation of the map, exactly.

    Of a map of real signals to complex measurements it is the real part of ``A^H y``.
    """
    dtype = y.dtype if is_complex else y.real.dtype
    with torch.enable_grad():
        x = torch.zeros(*shape_in, y.shape[-1], dtype=dtype, device=y.device, requires_grad=True)
        found = apply(x.clone())
        (back,) = torch.autograd.grad(found, x, y.to(found.dtype), create_graph=y.requires_grad)
    return back
