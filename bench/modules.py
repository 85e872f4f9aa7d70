"""Whether ``fit`` is ever slower than the loop that everybody writes, for networks of any kind, on this processor.

    python bench/modules.py [--points 16384] [--steps 40] [--repeats 5] [--only WORD] [--clock cpu] [--out FILE]

The loop: ``zero_grad``, mean squared error, ``backward``, ``step`` of ``torch.optim.Adam`` over all points. Both take
the same steps from the same weights; the rounds are interleaved, and the median and the fastest of each are kept. No
time is written unless both ended on the same predictions, to a hundredth of the signal (dropout draws and is let be).
On a machine that others use too, ``--clock cpu`` counts the processor's time in place of the wall's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrfast as inr
from inrfast.ops import gemm

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

ALIKE = 1e-2
"""Standard deviations of the signal that the two ways' predictions may lie apart."""


class Siren(nn.Module):
    """Sine layers as a module of its own."""

    def __init__(self, width: int = 128, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 1)
        for index, layer in enumerate([*self.layers, self.head]):
            inr.init.siren_(layer, omega, first=index == 0)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


class HashGrid(nn.Module):
    """Tables of features at the corners of ever finer grids, found by a hash (Mueller et al., 2022), and an MLP."""

    def __init__(self, levels: int = 8, size: int = 2**17, features: int = 2, finest: float = 512.0) -> None:
        super().__init__()
        self.tables = nn.Parameter(1e-2 * torch.randn(levels, size, features))
        growth = (finest / 16) ** (1 / (levels - 1))
        self.resolutions = [16 * growth**level for level in range(levels)]
        self.mlp = nn.Sequential(nn.Linear(levels * features, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for table, resolution in zip(self.tables, self.resolutions, strict=True):
            place = (x + 1) / 2 * resolution
            low = place.floor()
            t, corner = place - low, low.long()
            value = 0
            for i in (0, 1):
                for j in (0, 1):
                    index = ((corner[:, 0] + i) ^ ((corner[:, 1] + j) * 2654435761)) % table.shape[0]
                    share = (t[:, 0] if i else 1 - t[:, 0]) * (t[:, 1] if j else 1 - t[:, 1])
                    value = value + share[:, None] * table[index]
            found.append(value)
        return self.mlp(torch.cat(found, 1))


class Embedded(nn.Module):
    """A row of a table for each cell of a fine grid, beside the coordinates."""

    def __init__(self, side: int = 512, columns: int = 16) -> None:
        super().__init__()
        self.side, self.table = side, nn.Embedding(side * side, columns)
        self.mlp = nn.Sequential(nn.Linear(columns + 2, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        cell = ((x + 1) / 2 * (self.side - 1)).round().long()
        return self.mlp(torch.cat([self.table(cell[:, 0] * self.side + cell[:, 1]), x], 1))


class Pointwise(nn.Module):
    """Convolutions of width 1 over the points, as image models do it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(2, width, 1), nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU())
        self.head = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x.t().unsqueeze(0)))[0].t()


class Residual(nn.Module):
    """Blocks that add to what they were given."""

    def __init__(self, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(2, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class TrainedFourier(nn.Module):
    """Fourier features whose frequencies are trained."""

    def __init__(self, count: int = 64, width: int = 128) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(3 * torch.randn(count, 2))
        self.mlp = nn.Sequential(nn.Linear(2 * count, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.frequencies.t()
        return self.head(self.mlp(torch.cat([phase.sin(), phase.cos()], 1)))


def mlp(width: int, layers: int, between: Callable[[int], list[nn.Module]]) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Linear(2, width), *between(width)]
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), *between(width)]
    return nn.Sequential(*parts, nn.Linear(width, 1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: mlp(256, 3, lambda width: [nn.ReLU()]),
    "siren": Siren,
    "hash grid": HashGrid,
    "embedding": Embedded,
    "conv1d": Pointwise,
    "layer norm": lambda: mlp(128, 3, lambda width: [nn.LayerNorm(width), nn.GELU()]),
    "batch norm": lambda: inr.INR(2, 1, width=128, hidden_layers=3, norm="batch", seed=0),
    "residual": Residual,
    "trained fourier": TrainedFourier,
    "many small layers": lambda: mlp(16, 20, lambda width: [nn.Tanh()]),
    "dropout": lambda: mlp(128, 2, lambda width: [nn.ReLU(), nn.Dropout(0.1)]),
    "inr": lambda: inr.INR(2, 1, width=128, hidden_layers=3, seed=0),
}


def signal(points: int) -> tuple[Tensor, Tensor]:
    coords = 2 * torch.rand(points, 2, generator=torch.Generator().manual_seed(0)) - 1
    return coords, 0.5 + 0.4 * torch.sin(6 * coords[:, :1]) * torch.cos(5 * coords[:, 1:])


def plain(net: nn.Module, coords: Tensor, target: Tensor, steps: int, clock: str = "wall") -> float:
    """Take the steps of the loop that everybody writes; return its seconds."""
    start = CLOCKS[clock]()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(net(coords), target).backward()
        optimizer.step()
    return CLOCKS[clock]() - start


def fitted(net: nn.Module, coords: Tensor, target: Tensor, steps: int, clock: str = "wall") -> tuple[float, str]:
    """Take the same steps by ``fit``; return its seconds and the way gradients were taken."""
    start = CLOCKS[clock]()
    result = inr.fit(net, coords, target, steps=steps, lr=1e-3, schedule="constant", progress=False, seed=0)
    return CLOCKS[clock]() - start, result.config["gradient"]


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, coords: Tensor, target: Tensor) -> float:
    """Return how far predictions in train mode lie apart, in standard deviations of the signal."""
    return float((one.train()(coords) - other.train()(coords)).square().mean().sqrt() / target.std())


def measure(name: str, points: int, steps: int, repeats: int, clock: str = "wall") -> dict[str, object]:
    torch.manual_seed(0)
    first = KINDS[name]()
    coords, target = signal(points)
    seconds: dict[str, list[float]] = {"plain": [], "fit": []}
    way = ""
    for round_ in range(repeats + 1):
        ours, theirs = copy.deepcopy(first), copy.deepcopy(first)
        pair = {"plain": plain(theirs, coords, target, steps, clock)}
        pair["fit"], way = fitted(ours, coords, target, steps, clock)
        if round_:  # the first one warms caches up
            for key, value in pair.items():
                seconds[key].append(value)
    apart = difference(ours, theirs, coords, target)
    if apart > ALIKE and not any(isinstance(module, nn.Dropout) for module in first.modules()):
        raise SystemExit(f"{name}: fit and the plain loop ended {apart:.2g} of the signal apart; no time is written")
    count = sum(parameter.numel() for parameter in first.parameters())
    found: dict[str, object] = {"kind": name, "gradient": way, "parameters": count, "apart": apart}
    for key, values in seconds.items():
        found[f"{key} ms per step"] = round(1e3 * statistics.median(values) / steps, 3)
        found[f"{key} ms per step, fastest"] = round(1e3 * min(values) / steps, 3)
    found["fit / plain"] = round(statistics.median(seconds["fit"]) / statistics.median(seconds["plain"]), 3)
    found["fit / plain, fastest"] = round(min(seconds["fit"]) / min(seconds["plain"]), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2**14)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    rows = []
    for name in KINDS:
        if arguments.only in name:
            rows.append(measure(name, arguments.points, arguments.steps, arguments.repeats, arguments.clock))
            print(json.dumps(rows[-1]), flush=True)
    regime = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": gemm.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "points": arguments.points,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "clock": arguments.clock,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"regime": regime, "modules": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
