"""Tangent kernels shared by several processes: each holds the factors of its part of the grid.

Start one process per device (``torchrun --nproc-per-node=2 script.py``), each with the same network and coordinates,
and call :func:`ntk` in all of them. The calls of the kernel are those of :class:`inrfast.NTK`; every process must make
each of them, with the same arguments, and all get the same results.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.calling import Select
from inrfast.errors import NotAvailableError
from inrfast.memory import budget_bytes
from inrfast.modes import in_own_modes
from inrfast.pointwise import spread_points
from inrfast.tangent.agreement import Agreement, digest
from inrfast.tangent.capture import Capture
from inrfast.tangent.local import check_output
from inrfast.tangent.network import PASS_DTYPE
from inrfast.tangent.sharded import Sharded, ShardedNTK, SharedNetwork
from inrfast.tangent.store import backend_for

COMBINATIONS = 7
"""Combinations of outputs by which processes compare their networks."""

OUTPUT_TOLERANCE = 1e-6
"""Difference of these, relative to the size of the outputs, that rounding on other devices may make."""


@in_own_modes
def ntk(
    net: nn.Module,
    coords: ArrayLike,
    output: str | int = "trace",
    params: Iterable[str] | None = None,
    select: Select = None,
    precision: str = "high",
    backend: str = "auto",
    memory_budget: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> ShardedNTK:
    """Return the tangent kernel of ``net`` on ``coords``, its rows shared by the processes of ``group``.

    Parameters
    ----------
    net, coords, output, params, select, precision, backend
        As of :func:`inrfast.ntk`, the same in every process: the network on the process's own device, all coordinates.
    memory_budget
        Bytes for this process; None: half of what is free, shared evenly by the processes of this machine. The
        smallest of all processes' counts, so that all choose the same methods, or refuse together.
    group
        A process group; None: all processes.

    Raises
    ------
    NotAvailableError
        ``torch.distributed`` is not initialised.
    ValueError
        The processes give different networks, coordinates or options (``memory_budget`` may differ; functions given
        as ``select`` are compared by the outputs at a few points); fewer points than processes. What one process
        refuses is raised in all of them.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise NotAvailableError(
            "torch.distributed is not initialised: start with torchrun and call "
            "torch.distributed.init_process_group('gloo') ('nccl' on GPUs) first"
        )
    given = coords.device if isinstance(coords, Tensor) else torch.device("cpu")
    agreement = Agreement(group, given)
    with agreement.all_or_none():
        capture = Capture(net, coords, params, select, precision, memory_budget)
        coords = capture.points("coords", coords)
        output = check_output(output, capture.outputs)
        backend = backend_for(capture, backend)
        if memory_budget is None and capture.device.type == "cpu":
            budget = budget_bytes(None) // agreement.processes
        else:
            budget = budget_bytes(memory_budget, capture.device)
        if len(coords) < agreement.processes:
            raise ValueError(
                f"coords must hold at least one point per process, got {len(coords)} "
                f"points for {agreement.processes} processes"
            )
        options = {
            "net": net,
            "coords": coords,
            "params": [name for layer in capture.layers for name in layer.parameters],
            "output": output,
            "precision": precision,
            "backend": backend,
            "the number of outputs of net": capture.outputs,
            "the form of the layers of net": [[layer.kind, *layer.block] for layer in capture.layers],
        }
        shown = _shown_outputs(capture, coords)
    digests = agreement.check(options)
    _check_outputs(agreement, shown)
    partition = Sharded(len(coords), capture.outputs if output == "full" else 1, agreement)
    budget = partition.smallest(budget, coords.device)
    network = SharedNetwork(capture, coords, output, budget, backend, partition, digest(digests))
    return ShardedNTK(network, precision)


def _shown_outputs(capture: Capture, coords: Tensor) -> Tensor:
    """Return combinations of the outputs at a few points and, last, the size of these outputs."""
    values = capture.network.outputs(spread_points(coords.to(PASS_DTYPE), 4)).flatten()
    places = torch.arange(1, len(values) + 1, dtype=PASS_DTYPE, device=values.device)
    angles = torch.arange(1, COMBINATIONS + 1, dtype=PASS_DTYPE, device=values.device).unsqueeze(1) * places
    return torch.cat([torch.sin(angles) @ values, values.abs().sum().unsqueeze(0)])


def _check_outputs(agreement: Agreement, shown: Tensor) -> None:
    """Raise in every process if their networks, or what ``select=`` takes from them, have other outputs."""
    every = torch.stack(agreement.exchange(shown))
    if bool(((every - every[0]).abs() > OUTPUT_TOLERANCE * every[0, -1]).any()):
        raise ValueError(
            "select, and what net computes, must be the same in every process, got other outputs at a few points"
        )
