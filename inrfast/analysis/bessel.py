"""A network of two layers of sines as a series of sinusoids, whose coefficients are products of Bessel functions.

Source: equations 5 to 7 of Yüce, Ortiz-Jiménez, Besbinar and Frossard, A structured dictionary perspective on implicit
neural representations, CVPR 2022, with the biases that its footnote 9 leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.analysis.harmonics import described, input_mapping
from inrfast.arrays import ArrayLike
from inrfast.errors import MemoryBudgetError, check_coords, check_float
from inrfast.memory import budget_bytes, chunks, counted, require, tells_refusals
from inrfast.records import Record

ROWS = 4096
"""Points that a series is evaluated at in one go."""

COPIES = 4
"""Copies of the products that are held while terms are chosen."""

INSTEAD = "take fewer units in the mapping, smaller weights or a larger atol"

WIDEST = 0.5
"""Most that a sum of ``|J_s(a)|`` may lack: what is left of it is then at least ``1 - WIDEST^2``, and never near 0."""

MOST_ORDERS = 2**20
"""Most terms of one unit of the mapping: finding so many takes seconds, and with another unit they do not fit."""

LARGEST = 700.0
"""Logarithm of the largest bound that is told from infinity."""


@dataclass(frozen=True)
class BesselSeries(Record):
    """``f(r) = offset + Im sum_s c_s exp(2 pi i <s Omega, r>)``: with zero biases ``c_s`` is real, as in equation 6.

    Attributes
    ----------
    orders
        (S, T), int64: the integers ``s``, one for each unit of the input mapping.
    frequencies
        (S, d), fp64: ``s Omega``, in cycles per unit of the coordinates. Of terms with orders ``s`` and ``-s`` both are
        there, and others may have the same frequency.
    coefficients
        (S, M), complex128: ``c_s``, over the units m of the second layer the sum of equation 7. A bias of the second
        layer turns the terms of its unit, one of the first those of its order.
    offset
        (M,), fp64: the head's bias.
    error
        What is left out is nowhere larger, in any output. Rounding comes on top.
    """

    orders: Tensor
    frequencies: Tensor
    coefficients: Tensor
    offset: Tensor
    error: float

    def __repr__(self) -> str:
        terms, outputs = self.coefficients.shape
        return (
            f"BesselSeries(terms={terms}, units={self.orders.shape[1]}, coordinates={self.frequencies.shape[1]}, "
            f"outputs={outputs}, error={self.error:.2g})"
        )

    def __call__(self, coords: ArrayLike) -> Tensor:
        """Return the series' values (N, M), fp64, at coordinates (N, d)."""
        coords = check_coords("coords", coords, self.frequencies.shape[1]).detach().double().cpu()
        found = torch.empty(len(coords), self.coefficients.shape[1], dtype=torch.float64)
        for rows in chunks(len(coords), ROWS):
            phase = 2 * math.pi * (coords[rows] @ self.frequencies.mT)
            found[rows] = torch.polar(torch.ones_like(phase), phase).matmul(self.coefficients).imag + self.offset
        return found

    def fourier(self) -> tuple[Tensor, Tensor]:
        """Return frequencies (U, d), each once, and ``F`` (U, M) in ``f(r) = sum_u F_u exp(2 pi i <nu_u, r>)``.

        Frequencies are sums in fp64: two that differ by its rounding alone stand as two.
        """
        nothing = torch.zeros(1, self.frequencies.shape[1], dtype=torch.float64)
        both = torch.cat([self.frequencies, -self.frequencies, nothing]) + 0.0  # no negative zero
        half = self.coefficients / 2j
        found, place = torch.unique(both, dim=0, return_inverse=True)
        sums = torch.zeros(len(found), half.shape[1], dtype=torch.complex128)
        return found, sums.index_add_(0, place, torch.cat([half, half.conj(), self.offset[None].to(half.dtype)]))


@tells_refusals
def bessel_series(net: nn.Module, atol: float = 1e-12, memory_budget: int | None = None) -> BesselSeries:
    """Return a network of two layers of sines, the first or an encoding's mapping, as a series of sinusoids.

    ``sin(a sin u)`` is a sum of harmonics of u with the coefficients ``J_s(a)``. So the network ``w sin(W sin(2 pi
    Omega r + phi) + b) + offset`` is a sum over all integer vectors s: ``c_s = exp(i <s, phi>) sum_m w_m exp(i b_m)
    prod_t J_(s_t)(W_mt)``, with the frequency ``omega`` of the second layer as a factor of W and b. Terms are left out
    from the smallest on while the sum of their sizes stays below ``atol``. Their number grows as a power of the number
    of units in the mapping: the series is for small networks.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` of two hidden layers of sines, or of one behind random Fourier features or a positional
        encoding; no norms.
    atol
        Bound on what is left out, in the unit of the outputs.
    memory_budget
        Bytes; None takes half of what is free.

    Raises
    ------
    TypeError, ValueError
        Another network, or one that holds NaN or Inf; ``atol`` that is not positive.
    MemoryBudgetError
        More terms than memory holds, or than :data:`MOST_ORDERS` of one unit of the mapping; their number is told.

    Examples
    --------
    >>> from inrfast import INR
    >>> net = INR(1, 1, width=2, hidden_layers=2, activation="sine", omega=[30.0, 1.0], dtype=torch.float64)
    >>> series, r = bessel_series(net), torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    >>> bool((series(r) - net(r)).abs().max() < 1e-11)
    True
    """
    atol = check_float("atol", atol, minimum=0.0, exclusive=True)
    mlp, mapping = described(net), input_mapping(net)
    last = mlp.hidden[-1]
    if mapping.layers != 2 or last.activation.name != "sine" or last.norm is not None:
        raise ValueError(
            "net must have one layer of sines and a head behind its input mapping, and no norm; got "
            f"{mapping.layers - 1} layers behind it, the last of {last.activation.name!r}"
        )
    omega = last.activation.named["omega"]
    weight = omega * _numpy(last.linear.weight)
    bias = np.zeros(len(weight)) if last.linear.bias is None else omega * _numpy(last.linear.bias)
    head = _numpy(mlp.head.weight)
    offset = np.zeros(len(head)) if mlp.head.bias is None else _numpy(mlp.head.bias)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):  # omega may be beyond any number
        raise ValueError("net must have finite weights and biases, times omega, in its last layer of sines")
    sizes = np.abs(head).max(0)
    budget = budget_bytes(memory_budget)
    values, beyond = _bessel(weight, sizes, atol / 2, budget)
    orders, products, dropped = _terms(values, sizes, atol / 2, budget)
    phases = np.exp(1j * (orders @ mapping.phases.numpy()))
    coefficients = phases[:, None] * (products @ (head * np.exp(1j * bias)).T)
    frequencies = torch.from_numpy(orders.astype(float)) @ mapping.frequencies
    return BesselSeries(torch.from_numpy(orders), frequencies, torch.from_numpy(coefficients),
                        torch.from_numpy(offset), float(beyond + dropped))  # fmt: skip


def _numpy(parameter: Tensor) -> np.ndarray:
    numbers: np.ndarray = parameter.detach().double().cpu().numpy()
    return numbers


def _bessel(weight: np.ndarray, sizes: np.ndarray, allowed: float, budget: int) -> tuple[list[np.ndarray], float]:
    """Return ``J_s(W_mt)`` for every t as (F, 2 n_t + 1), s from -n_t to n_t, and a bound on all terms beyond these.

    The tails are at least halved from one try to the next: in the end they are 0, and so is the bound.
    """
    from scipy.special import jv  # slow to import

    halves, tail = [float(half) for half in np.abs(weight).max(0) / 2], min(allowed, WIDEST)
    while True:
        _check_orders([int(half) for half in halves], len(sizes), budget)  # there are more than |a| / 2
        orders = [_order(half, tail) for half in halves]
        _check_orders(orders, len(sizes), budget)
        values = [jv(np.arange(-n, n + 1), weight[:, t, None]) for t, n in enumerate(orders)]
        sums = np.stack([np.abs(one).sum(1) for one in values], 1)
        beyond = np.array([_tail(half, n) for half, n in zip(halves, orders, strict=True)])
        with np.errstate(over="ignore"):
            scale = sizes * sums.prod(1)
            bound = float((scale * np.expm1(np.log1p(beyond / sums).sum(1))).sum())
        if not np.isfinite(scale).all():
            raise MemoryBudgetError(f"a series whose terms add up to more than 1e308 does not fit; {INSTEAD}")
        if bound <= allowed:
            return values, bound
        tail *= min(allowed / bound, 0.5)


def _check_orders(orders: list[int], units: int, budget: int) -> None:
    """Refuse orders, from -n to n of each unit, whose Bessel functions do not fit or are too many."""
    count, most = sum(2 * n + 1 for n in orders), 2 * max(orders) + 1
    if most > MOST_ORDERS:
        raise MemoryBudgetError(
            f"a series of {counted(most)} terms in one unit of the mapping is beyond the {MOST_ORDERS} that are taken; "
            f"{INSTEAD}"
        )
    require(8 * COPIES * units * count, budget, f"a series of {counted(count)} terms so far", INSTEAD)


def _order(half: float, tail: float) -> int:
    """Return the smallest order beyond which the Bessel functions' sum is at most ``tail``: the bound only falls."""
    low, high = -1, 1
    while _tail(half, high) > tail:  # it falls below any number, and to 0
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tail(half, middle) <= tail else (middle, high)
    return high


def _tail(half: float, order: int) -> float:
    """Return a bound on ``sum_(|s| > n) |J_s(a)|``, ``half = |a| / 2``.

    ``|J_s(a)| <= half^s / s!``, and from some s on these fall at least as a geometric series.
    """
    ratio = half / (order + 2)
    if ratio >= 1:
        return math.inf
    log = (order + 1) * math.log(half) - math.lgamma(order + 2) if half else -math.inf
    return 2 * math.exp(log) / (1 - ratio) if log < LARGEST else math.inf


def _terms(
    values: list[np.ndarray], sizes: np.ndarray, allowed: float, budget: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return orders (S, T), products (S, F) and a bound on the terms that were left out.

    Units of the mapping come one after another; what is left out with the first orders goes with all that follow.
    """
    sums = np.stack([np.abs(one).sum(1) for one in values], 1)
    orders, products, dropped = np.zeros((1, 0), dtype=np.int64), np.ones((1, len(sizes))), 0.0
    for t, one in enumerate(values):
        count = len(products) * one.shape[1]
        require(
            8 * COPIES * count * (len(sizes) + t), budget, f"a series of {counted(count)} terms so far",
            INSTEAD,
        )  # fmt: skip
        products = (products[:, None, :] * one.T).reshape(-1, len(sizes))
        new = np.tile(np.arange(one.shape[1]) - one.shape[1] // 2, len(orders))
        orders = np.column_stack([np.repeat(orders, one.shape[1], 0), new])
        bound = np.abs(products) @ (sizes * sums[:, t + 1 :].prod(1))
        rising = np.argsort(bound, kind="stable")
        running = np.cumsum(bound[rising])
        gone = int(np.searchsorted(running, allowed / len(values), side="right"))
        dropped += float(running[gone - 1]) if gone else 0.0
        kept = np.sort(rising[gone:])
        orders, products = orders[kept], products[kept]
    return orders, products, dropped
