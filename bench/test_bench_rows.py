"""Rows of the Jacobian against a fill of the same memory and against plain torch, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import inrfast as inr
from inrfast.memory import empty

POINTS = 512
"""Points of a call: about 270 MB of rows for one output."""

PAIRS = 11


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def broadcast(J: inr.jacobians.LayerwiseJacobian, points: slice) -> Tensor:
    """What one writes by hand: each parameter's rows by one broadcast product, into its columns."""
    outputs = J.capture.outputs
    out = torch.empty(points.stop - points.start, outputs, J.shape[1])
    column = 0
    for z, s in J.store.at(points):
        assert z is not None
        s = torch.eye(outputs).expand(len(z), -1, -1) if s is None else s
        b, a = s.shape[2], z.shape[1] - 1
        into = out[:, :, column : column + a * b].unflatten(2, (b, a))
        torch.mul(s.unsqueeze(3), z[:, None, None, :-1], out=into)
        out[:, :, column + a * b : column + a * b + b] = s
        column += a * b + b
    return out.flatten(0, 1)


@pytest.mark.benchmark(group="Jacobian rows, 2-256-256-256-M, high, factors kept")
@pytest.mark.parametrize("outputs", [1, 3])
def test_rows_against_a_fill(benchmark: Any, outputs: int) -> None:
    """Near the bandwidth of a fill of the same kind of memory, and no slower than the broadcast."""
    net, coords = inr.INR(2, outputs, width=256, hidden_layers=3, seed=0), inr.grid((64, 64))
    J = inr.jacobian(net, coords)
    J.store.all()
    points = slice(1000, 1000 + POINTS // outputs)
    rows = J.rows(points)
    exact = inr.jacobian(net, coords, precision="highest").rows(slice(1000, 1004))
    close = rows[: len(exact)] - exact
    assert (close.abs() <= 1e-6 * exact.norm(dim=1, keepdim=True)).all()
    assert torch.equal(rows, broadcast(J, points))
    shape, dtype = rows.shape, rows.dtype
    warm = empty(shape, dtype).zero_()
    cases: dict[str, Callable[[], Any]] = {
        "rows": lambda: J.rows(points),
        "broadcast": lambda: broadcast(J, points),
        "fill, fresh memory": lambda: empty(shape, dtype).fill_(1),
        "fill, fresh memory of torch": lambda: torch.empty(shape, dtype=dtype).fill_(1),
        "fill, warm memory": lambda: warm.fill_(1),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(PAIRS):
        for name, function in cases.items():
            times[name].append(seconds(function))

    def ratio(name: str) -> list[float]:
        return [other / own for own, other in zip(times["rows"], times[name], strict=True)]

    benchmark.extra_info.update(
        target=1.0,
        measured=statistics.median(ratio("broadcast")),
        quartiles=statistics.quantiles(ratio("broadcast"), n=4),
        of_a_fill={name: statistics.median(ratio(name)) for name in cases if name.startswith("fill")},
        bytes_per_second={name: warm.numel() * 4 / statistics.median(t) for name, t in times.items()},
        pairs=PAIRS,
    )
    benchmark.pedantic(lambda: J.rows(points), rounds=5, warmup_rounds=1)
