"""What the parts of ``bench/gpu.py`` measure with: a device, sizes, clocks, and a judge of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inrfast as inr
from inrfast.backends import capturing


class WrongResult(AssertionError):
    """A result is further from fp64 than it may be: no time is reported."""


@dataclasses.dataclass
class Bench:
    """Where one part runs, how large it is, and what it found.

    ``rehearsal``: ``""`` on a GPU; ``"interpret"`` or ``"compile"`` on the pretend one, where everything is tiny, no
    time means anything, and with ``"compile"`` no result does. ``results``: those of the parts before this one.
    """

    grid: int
    width: int
    repeats: int
    rehearsal: str
    deadline: float
    out: Path
    results: dict[str, Any]
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cuda", 0))

    @property
    def large(self) -> bool:
        """Whether this is a GPU, with room and speed for full sizes."""
        return not self.rehearsal

    @property
    def late(self) -> bool:
        """Whether the time of this part is nearly over."""
        return time.monotonic() > self.deadline

    def rate(self, name: str, what: str = "flops_per_second") -> float | None:
        """Return what the machine's own libraries reached, or None where that was not measured."""
        entry = self.results.get("machine", {}).get(name, {})
        return entry.get(what)

    def save(self) -> None:
        """Write what was found so far: a crash or a time limit loses nothing."""
        new = self.out.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(new, self.out)

    def check(self, holds: bool, message: str) -> None:
        """Raise if a result is wrong; results of kernels that were compiled and not run are not looked at."""
        if not holds and self.rehearsal != "compile":
            raise WrongResult(f"{message}: no time is reported")

    def seconds(
        self,
        function: Callable[..., Any],
        repeats: int | None = None,
        prepare: Callable[[], Any] | None = None,
        untimed: int = 2,
    ) -> dict[str, Any]:
        """Return the median, quartiles and number of timed calls, after ``untimed`` ones on a GPU.

        ``prepare`` makes the argument of each call, untimed. The host's share of a call is in its time.
        """
        self.save()
        times = []
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(untimed if self.large else 0):
            function(*(() if prepare is None else (prepare(),)))
        for _ in range((repeats or self.repeats) if self.large else 1):
            given = () if prepare is None else (prepare(),)
            torch.cuda.synchronize()
            start.record()
            function(*given)
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
            if self.late:
                break
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        return {"seconds": statistics.median(times), "quartiles": [quartiles[0], quartiles[2]], "repeats": len(times)}

    def graph(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return the replay of a CUDA graph of one call, after three calls that let everything compile."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3 if self.large else 1):
                function()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, self.device):
            function()
        return graph.replay

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Take down one figure of a rival or a candidate; its failure is recorded and stops nothing."""
        try:
            self.found[name] = measure()
        except Exception as error:
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            with contextlib.suppress(Exception):
                torch.cuda.synchronize()
        self.save()

    def profile(self, name: str, function: Callable[[], Any]) -> None:
        """Take down where the time of one call goes: the kernels that take most, all launches, and the waits."""
        if not self.large:
            return
        from torch.profiler import ProfilerActivity, profile

        def measure() -> dict[str, Any]:
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                function()
                torch.cuda.synchronize()
            events = seen.key_averages()
            kernels = [e for e in events if str(e.device_type).endswith("CUDA")]
            kernels.sort(key=lambda e: -e.self_device_time_total)
            waits = sum(e.count for e in events if "Synchronize" in e.key)
            return {
                "kernels": sum(e.count for e in kernels),
                "waits": waits,
                "on the device": sum(e.self_device_time_total for e in kernels) / 1e6,
                "most": {e.key[:80]: [e.count, e.self_device_time_total / 1e6] for e in kernels[:10]},
            }

        self.attempt(name, measure)


def network(bench: Bench, activation: str, outputs: int = 1) -> inr.INR:
    """Return the network that is measured: 2 coordinates, 3 hidden layers."""
    kwargs: dict[str, Any] = {"init": "siren"} if activation == "sine" else {}
    net = inr.INR(2, outputs, width=bench.width, hidden_layers=3, activation=activation, seed=0, **kwargs)
    return net.to(bench.device)


def corners(n: int) -> list[tuple[slice, slice]]:
    """Return a few blocks of an n x n matrix off and on its diagonal."""
    size = max(n // 8, 1)
    starts = (0, max(n // 2 - 3, 0), n - size)
    return [(slice(a, a + size), slice(b, b + size)) for a in starts for b in starts]


def relative(result: Tensor, truth: Tensor) -> float:
    """Return the distance of a result from the truth, relative to the truth's largest entry."""
    truth = truth.double().cpu()
    return float((result.detach().double().cpu() - truth).abs().max() / truth.abs().max())
