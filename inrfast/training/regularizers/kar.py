"""The Kernel Alignment Regulariser: a network's values are weighted means of its values at the training points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.calling import Calling, Select
from inrfast.errors import check_choice, check_coords, check_flag, check_int, check_seed, check_tensor
from inrfast.nn import INR
from inrfast.training.regularizers.attention import attend
from inrfast.training.regularizers.drawing import Part, check_part, drawn, generator_of, same_points

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda gap: torch.linalg.vector_norm(gap, dim=1).mean(),
    "squared": lambda gap: gap.square().sum(1).mean(),
    "rms": lambda gap: torch.linalg.vector_norm(gap) / len(gap) ** 0.5,
    "l1": lambda gap: gap.abs().sum(1).mean(),
}
"""Of gaps (R, M) between the values of a network and the weighted means: one number."""

PLACES = ("rows", "attention", "keys")
"""Where the gradient goes: f(x), A, f(X)."""


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
    width, hidden_layers, omega
        Of g, a SIREN without encoding.
    attention
        A module (n, d) to (n, r) of your own in its place.
    rows, keys
        How many of the points x, and of the training points X, take part in a step: a number, or ``"all"``. A number
        above what there is takes all of the step's.
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
    seed
        Of g, and of the points that are drawn: they hang on seed and step alone.
    device, dtype
        Of g; those of ``points``, or fp32 on the CPU.

    Source: PEAK (Li et al.), equations 10 to 12. The paper's lambda multiplies a sum over G points beside a sum of
    squared errors over N points; with the loss ``"mse"``, a mean over N points and M outputs, ``norm="l2"`` and the
    factor ``lambda G / (N M)`` give the same minima.
    """

    points: Tensor | None

    def __init__(
        self,
        points: ArrayLike | None = None,
        *,
        r: int = 100,
        width: int = 100,
        hidden_layers: int = 4,
        omega: float = 30.0,
        attention: nn.Module | None = None,
        rows: Part = 1024,
        keys: Part = 1024,
        norm: str = "l2",
        own: bool = False,
        detach: Sequence[str] = (),
        in_features: int | None = None,
        select: Select = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.r = check_int("r", r, minimum=1)
        self.rows, self.keys = check_part("rows", rows), check_part("keys", keys, minimum=2)
        self.norm = check_choice("norm", norm, NORMS)
        self.own = check_flag("own", own)
        self.detach = tuple(check_choice("detach", place, PLACES) for place in detach)
        self.seed = check_seed("seed", seed)
        if points is None and in_features is None and attention is None:
            raise ValueError("KAR needs points, or in_features, the number of coordinates of the points of a step")
        self.points, self.calling = None, Calling(select)
        if points is not None:
            shaped = check_tensor("points", points, finite=False)
            self.points = check_coords("points", shaped, in_features).detach()
            self.calling = Calling(select, shaped.ndim)
            in_features, device, dtype = self.points.shape[1], device or self.points.device, dtype or self.points.dtype
            self.points = self.points.to(device=device, dtype=dtype)
        if attention is None:
            assert in_features is not None
            attention = INR(
                in_features,
                self.r,
                width=width,
                hidden_layers=hidden_layers,
                activation="sine",
                omega=omega,
                init="siren",
                seed=self.seed,
                device=device,
                dtype=dtype,
            )
        self.attention = attention

    def forward(self, net: nn.Module, coords: Tensor, step: int | None = None) -> Tensor:
        """Return R, a tensor of one element, of a network and training points (N, d), by part as ``step`` draws them.

        Without a step they are drawn from PyTorch's generator.
        """
        rows, keys = self.drawn(coords, step)
        left_out = None if self.own else same_points(rows, keys)
        both = torch.cat([rows, keys])
        axes = 2 if isinstance(net, INR) else self.calling.axes
        values = Calling(self.calling.select, axes).predicted(net, both)
        features = self.attention(both)
        at_rows, at_keys = values[: len(rows)], values[len(rows) :]
        if "rows" in self.detach:
            at_rows = at_rows.detach()
        if "keys" in self.detach:
            at_keys = at_keys.detach()
        if "attention" in self.detach:
            features = features.detach()
        means, found = attend(features[: len(rows)], features[len(rows) :], at_keys, left_out)
        gap = at_rows - means
        return NORMS[self.norm](gap if self.own else gap * found.unsqueeze(1))

    def drawn(self, coords: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the points x and X, (R, d) and (K, d), of a step."""
        coords = coords.detach()
        points = coords if self.points is None else self.points
        generator = generator_of(self.seed, step)
        some = [drawn(len(own), part, generator) for own, part in ((points, self.rows), (coords, self.keys))]
        rows, keys = (
            own if index is None else own[index.to(own.device)]
            for own, index in zip((points, coords), some, strict=True)
        )
        return rows, keys

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KAR:
        """Move or convert the points too: they are settings, not state."""
        super()._apply(fn, recurse)
        if self.points is not None:
            self.points = fn(self.points)
        return self

    def extra_repr(self) -> str:
        rows, keys = ("all" if part is None else part for part in (self.rows, self.keys))
        points = "the step's" if self.points is None else len(self.points)
        return f"points={points}, r={self.r}, rows={rows}, keys={keys}, norm={self.norm!r}"
