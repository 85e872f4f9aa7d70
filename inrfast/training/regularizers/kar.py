"""The Kernel Alignment Regulariser: a network's values are weighted means of its values at the training points."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike, as_tensor
from inrfast.calling import Calling, Select
from inrfast.errors import check_choice, check_coords, check_device, check_flag, check_int, check_seed, check_tensor
from inrfast.memory import budget_bytes, over_budget
from inrfast.nn import INR
from inrfast.snapshot import twin
from inrfast.training.regularizers.attention import KEYS, LEAST_KEYS, LEAST_ROWS, ROWS, attend, attend_bytes
from inrfast.training.regularizers.drawing import Part, check_part, drawn, generator_of, own_copy, same_points
from inrfast.training.regularizers.passes import evaluated, evaluated_bytes, points_taken

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda gap: torch.linalg.vector_norm(gap, dim=1).mean(),
    "squared": lambda gap: gap.square().sum(1).mean(),
    "rms": lambda gap: torch.linalg.vector_norm(gap) / len(gap) ** 0.5,
    "l1": lambda gap: gap.abs().sum(1).mean(),
}
"""Of gaps (R, M) between the values of a network and the weighted means: one number."""

PLACES = ("rows", "attention", "keys")
"""Where the gradient goes: f(x), A, f(X)."""

ROWS_DRAWN, KEYS_DRAWN = 128, 256
"""Rows and keys of a step by default: more cost more, and did not restore missing pixels reliably better."""

FEW = 2**22
"""Features of all points of a step up to which no budget is looked at."""

_FITTING: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[int, int] | None]] = weakref.WeakKeyDictionary()
"""The tiles that were found to fit, by network and number of points; no state of the regulariser itself."""


class KAR(nn.Module):
    """Kernel Alignment Regulariser ``R = |f(x) - A(x, X) f(X)|``, with its attention network.

    ``A = softmax(g(x)^T g(X))`` over training points X, and g a compact SIREN from the d coordinates to ``r`` features
    that is trained with the network. ``inr.fit(net, X, y, regularizers=[(inr.KAR(grid), 0.01)])`` adds 0.01 times
    its mean over points x of the grid to the loss.

    Parameters
    ----------
    points
        Points x, (G, d) or (..., d), such as the whole grid of a picture of which some pixels are known; None: the
        points of the step. A module that is no INR is called with as many axes as these have.
    r
        Features of g.
    every
        Steps from one to the next in which R counts: it is taken times ``every`` in these and is 0 in all others, which
        then cost nothing. Small networks are trained faster than R is taken, some 2 ms by default.
    width, hidden_layers, omega
        Of g, a SIREN without encoding.
    attention
        A module (n, d) to (n, r) of your own in its place.
    rows, keys
        How many of the points x, and of the training points X, take part in a step: a number, or ``"all"``; None:
        128 rows and 256 keys, or all where there are fewer. They are drawn anew in each step.
    norm
        ``"l2"``: mean over x of the Euclidean norm; ``"squared"``: of its square; ``"l1"``: of the sum of magnitudes;
        ``"rms"``: the root of the mean square over x.
    own
        Whether a point may attend to itself, as in the paper: A = identity then gives R = 0 for any network.
    detach
        Which of ``"rows"`` (f(x)), ``"attention"`` (A) and ``"keys"`` (f(X)) get no gradient.
    in_features
        d, where there are no ``points``.
    select
        As in :func:`inrfast.fit`.
    memory_budget
        Bytes for what autograd keeps of the points of a step, and for the attention, which goes over blocks of rows
        and keys; None takes half of what is free.
    seed
        Of g, and of the points that are drawn: they hang on seed and step alone.
    device, dtype
        Of g; those of ``points``, or fp32 on the CPU.

    Raises
    ------
    ValueError, TypeError
        No points, points that hold NaN, r below 1, more rows than points, an unknown norm or place.

    Examples
    --------
    >>> from inrfast import INR, fit, grid
    >>> x = grid((16, 16))
    >>> kar, net = KAR(x, r=16, rows=64, keys=64), INR(2, 1, width=16, activation="sine", init="siren")
    >>> result = fit(net, x[::2], x[::2, :1].sin(), steps=20, regularizers=[(kar, 0.01)])
    >>> float(kar(net, x[::2], 0).detach()) < 0.2
    True

    Notes
    -----
    Batch norms in train mode take the statistics of the points x and X of a step, and their running statistics, which
    an evaluation takes, stay those of the points of the fit. Those of an ``attention`` of your own move.

    Source: PEAK (Li et al.), equations 10 to 12. The paper's lambda multiplies a sum over G points beside a sum of
    squared errors over N points; with the loss ``"mse"``, a mean over N points and M outputs, ``norm="l2"`` and the
    factor ``lambda G / (N M)`` give the same minima.
    """

    points: Tensor | None
    usual_rows, usual_keys = ROWS_DRAWN, KEYS_DRAWN
    _not_compared = ("memory_budget",)

    def __init__(
        self,
        points: ArrayLike | None = None,
        *,
        r: int = 100,
        width: int = 32,
        hidden_layers: int = 2,
        omega: float = 30.0,
        attention: nn.Module | None = None,
        every: int = 1,
        rows: Part | None = None,
        keys: Part | None = None,
        norm: str = "l2",
        own: bool = False,
        detach: Sequence[str] = (),
        in_features: int | None = None,
        select: Select = None,
        memory_budget: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.r = check_int("r", r, minimum=1)
        self.every = check_int("every", every, minimum=1)
        self.norm = check_choice("norm", norm, NORMS)
        self.own = check_flag("own", own)
        self.detach = _places(detach)
        self.seed = check_seed("seed", seed)
        self.memory_budget = None if memory_budget is None else check_int("memory_budget", memory_budget, minimum=1)
        self.points, self.select, self.axes = None, select, 2
        if points is not None:
            where = None if device is None else check_device("device", device)
            shaped = check_tensor("points", points, finite=False, device=where)
            self.points = own_copy(check_coords("points", shaped, in_features).to(device=where, dtype=dtype))
            self.axes = shaped.ndim
            in_features, device, dtype = self.points.shape[1], self.points.device, self.points.dtype
        elif in_features is None and attention is None:
            raise ValueError("KAR needs points, or in_features, the number of coordinates of the points of a step")
        self.rows = check_part("rows", rows, None if self.points is None else len(self.points), "points")
        self.keys = check_part("keys", keys, minimum=2)
        if attention is None:
            sine: dict[str, Any] = {"activation": "sine", "omega": omega, "init": "siren", "seed": self.seed}
            made = {"width": width, "hidden_layers": hidden_layers, "device": device, "dtype": dtype, **sine}
            assert in_features is not None
            attention = INR(in_features, self.r, **made)
        elif not isinstance(attention, nn.Module):
            raise TypeError(f"attention must be a torch.nn.Module, got {type(attention).__name__}")
        self.attention = attention

    def forward(self, net: nn.Module, coords: Tensor, step: int | None = None) -> Tensor:
        """Return R, a tensor of one element, of a network and training points (N, d), by part as ``step`` draws them.

        Without a step they are drawn from PyTorch's generator.

        Raises
        ------
        ValueError, TypeError
            ``coords`` of another number of coordinates, dtype or device than the points or g; fewer than two of them,
            or fewer than ``keys``.
        MemoryBudgetError
            The points of a step, or one block of rows of the attention, exceed the budget.
        """
        coords = as_tensor("coords", coords)
        if step is not None and step % self.every:
            return coords.new_zeros(())
        rows, keys = self.drawn(coords, step)
        both = rows if rows is keys else torch.cat([rows, keys])
        calling = Calling(self.select, 2 if isinstance(net, INR) else self.axes)
        tile = self._fitting(net, calling, rows, keys)
        values = evaluated(net, calling, both)
        with points_taken(_attention_takes(both)):
            features = evaluated(self.attention, Calling(), both, kept=False)
        if "attention" in self.detach:
            features = features.detach()
        at_rows, at_keys = values[: len(rows)], values[-len(keys) :]
        at_rows = at_rows.detach() if "rows" in self.detach else at_rows
        at_keys = at_keys.detach() if "keys" in self.detach else at_keys
        left_out = None if self.own else same_points(rows, keys)
        means, found = attend(features[: len(rows)], features[-len(keys) :], at_keys, left_out, tile)
        gap = at_rows - means
        value = NORMS[self.norm](gap if self.own else gap * found.unsqueeze(1))
        return value if step is None or self.every == 1 else self.every * value

    def drawn(self, coords: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the points x and X, (R, d) and (K, d), of a step; one tensor where both are all points of the step."""
        coords = self._checked(coords.detach())
        points = coords if self.points is None else self.points
        generator = generator_of(self.seed, step)
        rows = drawn("rows", points, self.rows, self.usual_rows, generator)
        return rows, drawn("keys", coords, self.keys, self.usual_keys, generator)

    def _checked(self, coords: Tensor) -> Tensor:
        """Refuse points of a step that the regulariser is not made for."""
        like = self.points
        if like is None and isinstance(self.attention, INR):
            own = next(self.attention.parameters())
            like = own.new_empty(0, self.attention.in_features)
        given = "the points of the fit are"
        if like is not None and coords.shape[1:] != like.shape[1:]:
            raise ValueError(f"KAR is made for {like.shape[1]} coordinates, and {given} {tuple(coords.shape)}")
        if like is not None and coords.dtype != like.dtype:
            raise TypeError(f"KAR is of {like.dtype}, and {given} {coords.dtype}; make it with that dtype")
        if like is not None and coords.device != like.device:
            raise ValueError(f"KAR is on {like.device}, and {given} on {coords.device}; move it (.to)")
        if len(coords) < 2:
            raise ValueError("KAR needs two training points in a step, since one alone is its own weighted mean; got 1")
        return coords

    def _fitting(self, net: nn.Module, calling: Calling, rows: Tensor, keys: Tensor) -> tuple[int, int] | None:
        """Return a tile of the attention that fits the budget, None being the usual one.

        Raises
        ------
        MemoryBudgetError
            None does.
        """
        size = (len(rows), len(keys))
        known = _FITTING.setdefault(self, {})
        if (id(net), size) not in known:
            few = self.memory_budget is None and sum(size) * self.r <= FEW
            known[id(net), size] = None if few else self._measured(net, calling, rows, keys)
        return known[id(net), size]

    def _measured(self, net: nn.Module, calling: Calling, rows: Tensor, keys: Tensor) -> tuple[int, int] | None:
        budget, item = budget_bytes(self.memory_budget, rows.device), rows.element_size()
        both = rows if rows is keys else torch.cat([rows, keys])
        taken = evaluated_bytes(net, calling, both)
        with points_taken(_attention_takes(both)):
            taken += evaluated_bytes(self.attention, Calling(), both)
        outputs = evaluated(twin(net), calling, both[:2].clone()).shape[1]
        beside: dict[Any, int] = {}
        for tile in (None, (ROWS, KEYS), (LEAST_ROWS, LEAST_KEYS)):
            beside[tile] = taken + attend_bytes(len(rows), len(keys), self.r, outputs, item, tile)
            if beside[tile] <= budget:
                return tile
        least = min(beside.values())
        share = max(int(budget / least * min(len(rows), len(keys))), 0)
        advice = f"rows={share}, keys={share} would fit" if share >= 2 else "fewer rows and keys would fit"
        what = f"the kernel alignment of {len(rows)} rows and {len(keys)} keys, one block of rows at a time,"
        raise over_budget(least, budget, what, f"{advice}, or a larger memory_budget")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KAR:
        """Move or convert the points too: they are settings, not state."""
        super()._apply(fn, recurse)
        if self.points is not None:
            self.points = fn(self.points)
        return self

    def extra_repr(self) -> str:
        points = "the step's" if self.points is None else len(self.points)
        rows, keys = self.rows or self.usual_rows, self.keys or self.usual_keys
        return f"points={points}, r={self.r}, rows={rows}, keys={keys}, norm={self.norm!r}"


def _places(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Collection):
        raise TypeError(f"detach must be a sequence out of {list(PLACES)}, got {given!r}")
    return tuple(check_choice("detach", place, PLACES) for place in given)


def _attention_takes(points: Tensor) -> str:
    return f"attention must take points (n, {points.shape[1]}) of {points.dtype}"
