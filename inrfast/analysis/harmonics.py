"""The frequencies that a network can express: harmonics of those of its input mapping, and which DFT bins they reach.

A network is written as in equation 1 of the source: ``z_0 = sin(2 pi Omega r + phi)``, then ``L - 1`` layers
``z_l = rho(W_l z_(l-1) + b_l)`` and a linear one, ``f = W_L z_(L-1) + b_L``. Behind an encoding, ``L - 1`` is the
number of hidden layers of an :class:`inrfast.INR`; of a network of sines without one, whose first layer is the mapping,
one less. Frequencies are in cycles per unit of the coordinates, as those of :class:`inrfast.RandomFourier`: the
source's, in radians, divided by 2 pi.

If ``rho`` is a polynomial of degree K, then ``f`` is a sum of sinusoids with frequencies in
``H(Omega) = {sum_t s_t Omega_t : s_t integers, sum_t |s_t| <= K^(L-1)}`` (Theorem 1), of which 0 belongs to the biases.

Source: Yüce, Ortiz-Jiménez, Besbinar and Frossard, A structured dictionary perspective on implicit neural
representations, CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrfast.encodings import PositionalEncoding, RandomFourier
from inrfast.errors import check_int, check_tensor
from inrfast.grids import check_bounds
from inrfast.memory import budget_bytes, counted, require, tells_refusals
from inrfast.mlp import MLP, describe
from inrfast.progress import progress_bar
from inrfast.records import Record
from inrfast.tangent.refusals import check_tensors
from inrfast.wrapped import unwrapped

WORD = 62
"""Bits of an integer of 64 that sums of digits may fill."""

COPIES = 6
"""Copies of the frequencies of one order that are held at once while they are sorted, per frequency of the mapping."""

CELLS = 2**27
"""Most points of the grid, refined by the denominators of the frequencies, on which bins are searched."""


# ---- the input mapping -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputMapping(Record):
    """What a network makes of its coordinates first: ``z_t = sin(2 pi <frequencies_t, r> + phases_t)``.

    Attributes
    ----------
    frequencies
        (T, d), fp64, in cycles per unit of the coordinates. Of a cosine and a sine of one frequency both are listed.
    phases
        (T,), fp64, in radians.
    layers
        L of the module's equation: the layers behind the mapping, the head included.
    """

    frequencies: Tensor
    phases: Tensor
    layers: int


def input_mapping(net: nn.Module) -> InputMapping:
    """Return frequencies and phases of a network's Fourier features, positional encoding or first layer of sines.

    A positional encoding has octaves of half a cycle per unit, whatever its dtype makes of pi.

    Raises
    ------
    TypeError, ValueError
        No :class:`inrfast.INR`, or one whose coordinates enter in another way; one that holds NaN or Inf.
    """
    found = _mapping(described(net))
    for what, numbers in (("frequencies", found.frequencies), ("phases", found.phases)):
        if not bool(torch.isfinite(numbers).all()):  # a buffer, or a product with omega
            raise ValueError(f"net must have finite {what} in its input mapping, got NaN or Inf")
    return found


def _mapping(mlp: MLP) -> InputMapping:
    """Return what :func:`input_mapping` does of a network's description, finite or not."""
    if isinstance(mlp.encoding, RandomFourier):
        one = mlp.encoding.frequencies.detach().double().cpu()
        quarter = torch.full((len(one),), math.pi / 2, dtype=torch.float64)
        return InputMapping(one.repeat(2, 1), torch.cat([quarter, torch.zeros_like(quarter)]), len(mlp.layers))
    if isinstance(mlp.encoding, PositionalEncoding):
        octaves = 2.0 ** torch.arange(-1, mlp.encoding.n - 1, dtype=torch.float64)
        one = torch.kron(torch.eye(mlp.inputs, dtype=torch.float64), octaves[:, None].repeat_interleave(2, 0))
        return InputMapping(one, torch.tensor([0.0, math.pi / 2] * (len(one) // 2), dtype=torch.float64),
                            len(mlp.layers))  # fmt: skip
    first = mlp.hidden[0]
    if mlp.encoding is not None or first.activation.name != "sine" or first.norm is not None:
        began = "another encoding" if mlp.encoding is not None else f"a layer of {first.activation.name!r}"
        norm = " with a norm" if mlp.encoding is None and first.norm is not None else ""
        raise ValueError(
            "net must begin with RandomFourier, PositionalEncoding or a layer of sines without a norm, got one that "
            f"begins with {began}{norm}"
        )
    omega, linear = first.activation.named["omega"], first.linear
    weight = linear.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if linear.bias is None else linear.bias.detach().double().cpu()
    return InputMapping(omega * weight / (2 * math.pi), omega * bias, len(mlp.layers) - 1)


def described(net: Any) -> MLP:
    """Return a network's description; an unknown formula raises ``TypeError``, NaN or Inf in it ``ValueError``."""
    if not isinstance(net, nn.Module):
        raise TypeError("net must be an inrfast.INR, whose layers are known: it is no torch.nn.Module")
    mlp = describe(net := unwrapped(net))
    if isinstance(mlp, str):
        raise TypeError(f"net must be an inrfast.INR, whose layers are known: {mlp}")
    check_tensors(net, mlp.head.weight.device)
    return mlp


# ---- the support -------------------------------------------------------------------------------------------------


def reach(degree: int, layers: int) -> int:
    """Return ``K^(L-1)``, the largest sum of ``|s_t|``, from the polynomials' degree K >= 1 and the layers L >= 1."""
    return int(check_int("degree", degree, minimum=1) ** (check_int("layers", layers, minimum=1) - 1))


def support_count(count: int, degree: int, layers: int) -> int:
    """Return how many frequencies H(Omega) has at most, zero and both signs included.

    It has as many if no two sums are equal, as for frequencies drawn at random; harmonics of a few are far fewer. The
    number is that of integer points in a ball of the 1-norm, ``sum_k C(T, k) C(n, k) 2^k`` with ``n = K^(L-1)``:
    choose which k of the s_t are not zero, their sizes, and their signs.

    Parameters
    ----------
    count
        T, the number of frequencies of the mapping; a cosine and a sine of one frequency count once.
    degree, layers
        K and L of the module's equation.

    Raises
    ------
    ValueError, TypeError
        Numbers out of range.

    Examples
    --------
    >>> support_count(1, 3, 2)  # from -3 to 3 times the frequency
    7
    >>> support_count(256, 2, 4)
    119028071544545281
    """
    n = reach(degree, layers)
    terms = check_int("count", count, minimum=1)
    found, term = 1, 1
    for k in range(min(terms, n)):
        term = term * 2 * (terms - k) * (n - k) // (k + 1) ** 2
        found += term
    return found


@tells_refusals
def support(
    frequencies: Any, degree: int, layers: int, memory_budget: int | None = None, progress: bool | None = None
) -> Tensor:
    """Return all frequencies in H(Omega), each once, in ascending order.

    Sums are taken and compared as integers over a common denominator, so no two that are equal count twice, and none
    that differ are taken for one.

    Parameters
    ----------
    frequencies
        Omega, (T, d): a tensor or an array, of integers too, or rows of numbers, ``fractions.Fraction`` among them. A
        float counts as the binary fraction that it is.
    degree, layers
        K and L of the module's equation.
    memory_budget
        Bytes; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Returns
    -------
    Tensor
        (S, d), fp64 (where the exact sums are rounded), in the units of ``frequencies``.

    Raises
    ------
    MemoryBudgetError
        There are more frequencies than memory holds; their number is told.
    ValueError, TypeError
        No matrix of finite numbers; numbers out of range.

    Examples
    --------
    >>> support([[1.0], [3.0]], degree=2, layers=2)[:, 0].tolist()
    [-6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0]
    """
    rows, n = _distinct(_fractions("frequencies", frequencies)), reach(degree, layers)
    numbers, denominators = _integers(rows)
    # Neither more than there are vectors s nor than there are points of the lattice in the box of the largest sums.
    most = min(
        support_count(len(rows), degree, layers) if rows else 1,
        math.prod(2 * n * max((abs(row[axis]) for row in numbers), default=0) + 1 for axis in range(len(denominators))),
    )
    digits = _Digits.of(numbers, n, len(denominators))
    require(
        8 * digits.columns * (most + COPIES * min(most, 2 * len(rows) * most)),
        budget_bytes(memory_budget),
        f"a support of up to {counted(most)} frequencies",
        "take fewer frequencies, a lower degree or fewer layers, or support_mask, which needs no list of them",
    )
    steps = np.concatenate([digits.steps, -digits.steps])
    shells = [np.zeros((1, digits.columns), dtype=np.int64)]
    for _ in progress_bar(range(min(n, most)), desc="support", progress=progress, leave=False):
        # One more step from a shell leads to the shell before, to itself, or to the next one.
        reached = digits.carried((shells[-1][:, None, :] + steps).reshape(-1, digits.columns))
        new = _not_among(_sorted(reached), np.concatenate(shells[-2:]))
        if not len(new):
            break
        shells.append(new)
    sums = digits.value(np.concatenate(shells), denominators)
    return torch.from_numpy(sums[np.lexsort(sums.T[::-1])])


@dataclass(frozen=True)
class _Digits:
    """Integers of any size as rows of int64: each one in ``limbs`` digits of ``bits`` bits, the last with the sign."""

    steps: np.ndarray
    limbs: int
    bits: int

    @classmethod
    def of(cls, numbers: Sequence[Sequence[int]], times: int, axes: int) -> _Digits:
        """Return the digits of numbers (T, d) such that sums of up to ``times`` of them fit."""
        largest = max((abs(number) for row in numbers for number in row), default=0)
        whole = (times * largest).bit_length() + 1
        bits = WORD if whole <= WORD else max(WORD - times.bit_length() - 1, 1)
        limbs = -(-whole // bits)
        mask = (1 << bits) - 1
        steps = np.array(
            [
                [
                    (number >> (bits * limb)) & (mask if limb < limbs - 1 else -1)
                    for number in row
                    for limb in range(limbs)
                ]
                for row in numbers
            ],
            dtype=np.int64,
        ).reshape(len(numbers), axes * limbs)
        return cls(steps, limbs, bits)

    @property
    def columns(self) -> int:
        """Digits of a row."""
        return int(self.steps.shape[1])

    def carried(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of sums with every digit but the last in its range, in place: equal sums have equal digits."""
        for column in range(rows.shape[1]):
            if column % self.limbs < self.limbs - 1:
                rows[:, column + 1] += rows[:, column] >> self.bits
                rows[:, column] &= (1 << self.bits) - 1
        return rows

    def value(self, rows: np.ndarray, denominators: Sequence[int]) -> np.ndarray:
        """Return rows of digits as fp64, each number over the denominator of its axis."""
        found = np.empty((len(rows), len(denominators)))
        for axis, denominator in enumerate(denominators):
            own = rows[:, axis * self.limbs : (axis + 1) * self.limbs]
            if self.limbs == 1 and denominator.bit_length() + max(int(abs(own).max()).bit_length(), 1) <= 53:
                found[:, axis] = own[:, 0] / denominator
            else:
                whole = [sum(int(digit) << (self.bits * limb) for limb, digit in enumerate(row)) for row in own]
                found[:, axis] = [float(Fraction(number, denominator)) for number in whole]
        return found


def _sorted(rows: np.ndarray) -> np.ndarray:
    """Return the rows of integers in ascending order, each once."""
    rows = rows[np.lexsort(rows.T[::-1])]
    return rows[np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)])]


def _not_among(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return those rows, no two alike, that are not among the known ones, no two alike."""
    both = np.concatenate([known, rows])
    order = np.lexsort(both.T[::-1])  # stable: of two that are equal the known one comes first
    same = np.concatenate([[False], (both[order][1:] == both[order][:-1]).all(1)])
    return rows[np.sort(order[~same & (order >= len(known))]) - len(known)]


def _fractions(argument: str, given: Any) -> list[list[Fraction]]:
    """Return a matrix of finite numbers as exact fractions."""
    rows = given
    if isinstance(given, Tensor):
        if given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{argument} must be finite numbers of shape (T, d), got {given.dtype}")
        rows = check_tensor(argument, given, ndim=2, floating=False).tolist()
    elif isinstance(given, np.ndarray):
        rows = given.tolist()
    rows = [rows] if isinstance(rows, str) or not isinstance(rows, Iterable) else list(rows)
    bare = next((row for row in rows if isinstance(row, str) or not isinstance(row, Iterable)), None)
    if bare is not None:
        raise ValueError(
            f"{argument} must be rows of d numbers, one row for each of T frequencies, such as [[1.0], [2.0]] on one "
            f"coordinate, got {bare!r:.80} for a row"
        )
    try:
        exact = [[Fraction(number) for number in row] for row in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{argument} must be finite numbers of shape (T, d): {error}") from None
    widths = {len(row) for row in exact}
    if len(widths) != 1 or 0 in widths:
        raise ValueError(
            f"{argument} must be numbers of shape (T, d), got {len(exact)} rows of {sorted(widths)} numbers"
        )
    return exact


def _distinct(rows: Sequence[Sequence[Fraction]]) -> list[list[Fraction]]:
    """Return the rows that are not zero, one of each pair that differs by its sign, in their order."""
    found: dict[tuple[Fraction, ...], None] = {}
    for row in rows:
        if any(row) and tuple(-number for number in row) not in found:
            found[tuple(row)] = None
    # A mapping of the frequency 0 alone is a constant; one row keeps the number of axes.
    return [list(row) for row in found] or [[Fraction(0)] * len(rows[0])]


def _integers(rows: Sequence[Sequence[Fraction]]) -> tuple[list[list[int]], list[int]]:
    """Return the numbers of each axis over its common denominator, and these."""
    denominators = [math.lcm(*(number.denominator for number in axis)) for axis in zip(*rows, strict=True)]
    return [[int(x * q) for x, q in zip(row, denominators, strict=True)] for row in rows], denominators


# ---- on a grid ---------------------------------------------------------------------------------------------------


@tells_refusals
def support_mask(
    frequencies: Any, degree: int | None, layers: int, shape: int | Sequence[int], bounds: Any = (-1, 1)
) -> Tensor:
    """Return which bins of the DFT on a grid H(Omega) can reach, frequencies above Nyquist folded.

    The grid is ``inrfast.grid(shape, "exclusive", bounds)``. A frequency that is a multiple of 1 / (high - low) on an
    axis falls into one bin of it, modulo the number of points; any other spreads over all bins of that axis. What is
    no member of the mask has no energy, whatever the weights are.

    Sums need not be listed: the bins are searched from 0, in steps of the frequencies, until nothing new is found. On
    an axis whose frequencies have denominators so large that the search would be too long (such as those drawn at
    random), all bins count as reached.

    Parameters
    ----------
    frequencies
        Omega, (T, d), as in :func:`support`, in cycles per unit of the coordinates.
    degree
        K, or None for activations that are no polynomials (sines, ReLU), which reach all sums.
    layers
        L of the module's equation.
    shape, bounds
        Of the grid; an int is an axis.

    Returns
    -------
    Tensor
        bool, of the grid's shape, in the order of ``torch.fft.fftn``.

    Raises
    ------
    ValueError, TypeError
        No matrix of finite numbers, another number of axes, numbers out of range.
    MemoryBudgetError
        A grid that does not fit.

    Examples
    --------
    >>> support_mask([[1.0]], None, 2, 8).tolist()  # one cycle per unit: two on [-1, 1), so no odd bin
    [True, False, True, False, True, False, True, False]
    """
    rows = _fractions("frequencies", frequencies)
    sizes = [check_int("shape", n, minimum=1) for n in (shape if isinstance(shape, Sequence) else [shape])]
    if len(sizes) != len(rows[0]):
        raise ValueError(f"shape must have {len(rows[0])} axes, one for each column of frequencies, got {shape!r}")
    periods = [Fraction(high) - Fraction(low) for low, high in check_bounds(bounds, len(sizes))]
    # A linear layer alone adds up the mapping's frequencies.
    steps = 1 if check_int("layers", layers, minimum=1) == 1 else None if degree is None else reach(degree, layers)
    bins = [[number * period for number, period in zip(row, periods, strict=True)] for row in rows]
    numbers, parts = _integers(_distinct(bins))
    searched = _searched(sizes, parts)
    require(
        10 * math.prod(sizes), budget_bytes(None), f"a mask of {counted(math.prod(sizes))} bins", "take a smaller grid"
    )
    refined = [
        size * part if axis in searched else 1 for axis, (size, part) in enumerate(zip(sizes, parts, strict=True))
    ]
    mask = _reached([[number % size for number, size in zip(row, refined, strict=True)] for row in numbers], refined,
                    steps)  # fmt: skip
    for axis, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        if axis not in searched:
            mask = np.repeat(mask, size, axis)
            continue
        # Of every bin the frequencies that fall on it, and then those between, which spread over all.
        mask = np.moveaxis(mask, axis, 0).reshape(size, part, *np.delete(mask.shape, axis))
        mask = np.moveaxis(mask[:, 0] | mask[:, 1:].any(axis=(0, 1)), 0, axis)
    return torch.from_numpy(np.ascontiguousarray(mask))


def _searched(sizes: Sequence[int], parts: Sequence[int]) -> list[int]:
    """Return the axes that are searched: those of the largest denominators are left out until the rest fits."""
    axes = sorted(range(len(sizes)), key=lambda axis: parts[axis])
    while axes and math.prod(sizes[axis] * parts[axis] for axis in axes) > max(CELLS, math.prod(sizes)):
        axes.pop()
    return axes


def _reached(steps: Sequence[Sequence[int]], shape: Sequence[int], most: int | None) -> np.ndarray:
    """Return which points of a torus are reached from 0 in up to ``most`` steps forwards and backwards."""
    strides = np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], dtype=np.int64)
    forwards = np.array(steps, dtype=np.int64).reshape(-1, len(shape))
    moves = np.unique(np.concatenate([forwards, -forwards]) % np.array(shape), axis=0)
    seen = np.zeros(math.prod(shape), dtype=bool)
    seen[0] = True
    front = np.zeros((1, len(shape)), dtype=np.int64)
    done = 0
    while len(front) and (most is None or done < most):
        new = []
        for move in moves:
            there = (front + move) % np.array(shape)
            index = there @ strides
            fresh = ~seen[index]
            seen[index[fresh]] = True
            new.append(there[fresh])
        front, done = np.concatenate(new), done + 1
    return seen.reshape(shape)


def energy_outside(values: Tensor, mask: Tensor) -> float:
    """Return the share of a sampled function's energy that lies in bins outside a mask.

    Parameters
    ----------
    values
        The function on the grid, ``(*grid)`` or ``(*grid, M)``, real; the energy is that of all outputs, mean included.
    mask
        bool, of the grid's shape, in the order of ``torch.fft.fftn``, as :func:`support_mask` gives it.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit; values that are not finite, or zero everywhere.

    Examples
    --------
    >>> from inrfast import INR, RandomFourier, grid
    >>> net = INR(1, 1, width=16, encoding=RandomFourier(frequencies=[[1.0]]), dtype=torch.float64)
    >>> mapping = input_mapping(net)
    >>> mask = support_mask(mapping.frequencies, None, mapping.layers, 64)
    >>> energy_outside(net(grid(64, "exclusive", dtype=torch.float64)), mask) < 1e-20  # odd bins
    True
    """
    values, mask = check_tensor("values", values), check_tensor("mask", mask, floating=False)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if values.shape[: mask.ndim] != mask.shape or values.ndim > mask.ndim + 1:
        raise ValueError(f"values must have the mask's shape {tuple(mask.shape)}, got {tuple(values.shape)}")
    energy = energies(values, mask.ndim)
    whole = float(energy.sum())
    if whole == 0:
        raise ValueError("values must not be zero everywhere: there is no energy to share")
    return float(energy[~mask.to(energy.device)].sum()) / whole


def energies(values: Tensor, axes: int) -> Tensor:
    """Return ``|DFT|^2`` over the first ``axes`` axes, summed over outputs, fp64."""
    spectrum = torch.fft.fftn(values.detach().double(), dim=tuple(range(axes))).abs().square()
    return spectrum.reshape(*spectrum.shape[:axes], -1).sum(-1)
