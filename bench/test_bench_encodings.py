"""Steps of fits with a hash grid against the loop that everybody writes in PyTorch, taken in turns in one run.

The rival is ``nn.Embedding`` per level and ``torch.optim.Adam``, as PyTorch versions of Instant NGP have it. Its
gradients are compared with ours before anything is timed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.encodings import HashGrid

SIDE, WIDTH, OUTPUTS, BATCH = 256, 64, 3, 2**14
ROUNDS, WARMUP = 15, 3
PRIMES = (1, 2654435761, 805459861)


class Embeddings(nn.Module):
    """A table per level, whose rows are looked up corner by corner."""

    corners: Tensor

    def __init__(self, grid: HashGrid, d: int) -> None:
        super().__init__()
        self.cells, self.rows = grid.cells, grid.rows(d)
        self.tables = nn.ModuleList(nn.Embedding(rows, grid.features) for rows in self.rows)
        self.register_buffer("corners", torch.tensor(list(itertools.product((0, 1), repeat=d))))
        with torch.no_grad():
            for table, start in zip(self.tables, grid.table.detach().split(self.rows), strict=True):
                table.weight.copy_(start)  # type: ignore[union-attr, operator]

    def forward(self, coords: Tensor) -> Tensor:
        columns = []
        for cells, rows, table in zip(self.cells, self.rows, self.tables, strict=True):
            place = (coords + 1) / 2 * cells
            low = place.floor().clamp(0, cells - 1)
            share = (place - low)[:, None]
            corner = low.long()[:, None] + self.corners
            index = corner[..., 0]
            listed = rows == (cells + 1) ** coords.shape[1]
            if not listed:
                index = index * PRIMES[0]
            for axis in range(1, coords.shape[1]):
                own = corner[..., axis]
                index = index * (cells + 1) + own if listed else index ^ (own * PRIMES[axis])
            weight = torch.where(self.corners.bool(), share, 1 - share).prod(-1, keepdim=True)
            columns.append((table(index if listed else index % rows) * weight).sum(1))
        return torch.cat(columns, -1)


def signal(d: int) -> tuple[Tensor, Tensor]:
    points = torch.rand(SIDE**2, d, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coords = inr.grid((SIDE, SIDE)) if d == 2 else points
    waves = [(3 * k * coords[:, :1]).sin() * (9 * coords[:, 1:2]).cos() for k in range(1, OUTPUTS + 1)]
    return coords, 0.5 + 0.4 * torch.cat(waves, dim=1)


def rival_of(net: inr.INR, coords: Tensor, target: Tensor, batch: int | None) -> Callable[[], float]:
    """Return the rival's step, its gradients compared with those of ``net``."""
    assert isinstance(net.encoding, HashGrid)
    rival = nn.Sequential(Embeddings(net.encoding, coords.shape[1]))
    for index, layer in enumerate(net.layers):
        own = nn.Linear(layer.in_features, layer.out_features)  # type: ignore[arg-type]
        own.load_state_dict(layer.state_dict())
        rival.extend([own] if index == len(net.layers) - 1 else [own, nn.ReLU()])
    for one in (net, rival):
        F.mse_loss(one(coords), target).backward()
    theirs = torch.cat([table.weight.grad for table in rival[0].tables])  # type: ignore[misc, union-attr]
    torch.testing.assert_close(net.encoding.table.grad, theirs, rtol=1e-3, atol=1e-9)
    net.zero_grad()
    optimizer = torch.optim.Adam(rival.parameters(), lr=1e-2)

    def step() -> float:
        optimizer.zero_grad()
        chosen = slice(None) if batch is None else torch.randint(0, len(coords), (batch,))
        loss = F.mse_loss(rival(coords[chosen]), target[chosen])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@pytest.mark.benchmark(group="fit step with a hash grid, 16 levels x 2, 64-64-3")
@pytest.mark.parametrize(("d", "batch"), [(2, BATCH), (2, None), (3, BATCH)])
def test_hash_grid_step(benchmark: Any, d: int, batch: int | None) -> None:
    coords, target = signal(d)
    net = inr.INR(d, OUTPUTS, width=WIDTH, hidden_layers=2, encoding=HashGrid(), seed=0)
    rival = rival_of(net, coords, target, batch)
    seconds: dict[str, list[float]] = {"inrfast": [], "PyTorch": []}
    left: list[float] = []

    def turn(step: int) -> float:
        entered = time.perf_counter()
        if step > WARMUP:
            seconds["inrfast"].append(entered - left[-1])
        rival()
        left.append(time.perf_counter())
        if step >= WARMUP:
            seconds["PyTorch"].append(left[-1] - entered)
        return 1e-2

    def fit() -> Any:
        return inr.fit(net, coords, target, steps=ROUNDS, schedule=turn, batch_size=batch, eval_every=10**6, seed=0)

    benchmark.pedantic(fit, rounds=1)
    ratios = [slow / fast for slow, fast in zip(seconds["PyTorch"], seconds["inrfast"], strict=False)]
    benchmark.extra_info.update(
        targets={"PyTorch": 1.0},
        measured={"PyTorch": statistics.median(ratios)},
        quartiles={"PyTorch": statistics.quantiles(ratios, n=4)},
        median_seconds={name: statistics.median(times) for name, times in seconds.items()},
        threads=torch.get_num_threads(),
    )
    assert statistics.median(ratios) >= 1.0
