"""What is drawn in a step, from a seed and the step alone: mini-batches, and random numbers of networks and losses."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 (Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), as
signed numbers."""


def _scrambled(numbers: Tensor) -> Tensor:
    """Return the output function of SplitMix64; products of int64 wrap around on every device."""
    numbers = numbers * GOLDEN
    numbers = (numbers ^ _shifted(numbers, 30)) * FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Return the logical shift to the right."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def seeds_on(seeds: Sequence[int], device: torch.device) -> Tensor:
    """Return seeds as :func:`permutations` takes them: a copy from the host, for which a GPU stops."""
    return torch.tensor([seed % 2**63 for seed in seeds], dtype=torch.int64, device=device)


def permutations(n: int, seeds: Tensor, number: int) -> Tensor:
    """Return for each seed a permutation of ``range(n)``, the ``number``-th of it; shape (len(seeds), n), int64.

    The points are sorted by a hash of (seed, number, point): the same on every device, with nothing copied from the
    host and nothing to remember.
    """
    keys = _scrambled(_scrambled(seeds) + number + 1)
    points = torch.arange(1, n + 1, dtype=torch.int64, device=seeds.device)
    return torch.argsort(_scrambled(keys.unsqueeze(1) + _scrambled(points)), dim=1, stable=True)


def step_seed(seed: int, step: int) -> int:
    """Return a seed for what is drawn in one step: the hash of both, from 0 to 2^63 - 1."""
    return _scrambled_number(_scrambled_number(seed % 2**63) + step + 1) % 2**63


def _scrambled_number(number: int) -> int:
    """Return :func:`_scrambled` of one number, its 64 bits without a sign: ten times faster than as a tensor."""
    number = number * GOLDEN % 2**64
    number = (number ^ number >> 30) * FIRST % 2**64
    number = (number ^ number >> 27) * SECOND % 2**64
    return number ^ number >> 31


class Batches:
    """The rows of every step: each pass over the points is a permutation, cut into batches of one size.

    What is left of a pass when no full batch remains is skipped. Without a size every step takes all points.

    Parameters
    ----------
    n
        Number of points.
    size
        Points of a step, or None.
    seeds
        One per network.
    """

    def __init__(self, n: int, size: int | None, seeds: Sequence[int], device: torch.device) -> None:
        self.n, self.size, self.seeds, self.device = n, size, list(seeds), device
        self.number = -1
        self.orders = torch.empty(0)
        self.own: Tensor | None = None

    def rows(self, step: int) -> Tensor | None:
        """Return the rows of a step, (B, size), or (1, size) where all networks have one seed; None stands for all."""
        if self.size is None or self.size == self.n:
            return None
        number, place = divmod(step, self.n // self.size)
        if number != self.number:
            if self.own is None:
                self.own = seeds_on(self.seeds[:1] if len(set(self.seeds)) == 1 else self.seeds, self.device)
            self.orders, self.number = permutations(self.n, self.own, number), number
        return self.orders[:, place * self.size : (place + 1) * self.size]

    def keep(self, index: Sequence[int]) -> None:
        """Go on with some of the networks."""
        self.seeds, self.number, self.own = [self.seeds[i] for i in index], -1, None


_generators = threading.RLock()
"""PyTorch's generators are the whole process's: fits in several threads draw from them one after another."""


@contextmanager
def drawing_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for the block; afterwards they are as they were."""
    with _generators, torch.random.fork_rng([device] if device.type == "cuda" else []):
        # torch.manual_seed tells devices that are not there, too, and takes a millisecond for it.
        torch.default_generator.manual_seed(step_seed(seed, step))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(step_seed(seed, step))
        yield
