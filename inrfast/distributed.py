"""Tangent kernels shared by several processes: each holds the factors of its part of the grid.

Start one process per device (``torchrun --nproc-per-node=2 script.py``), each with the same network and coordinates,
and call :func:`ntk` in all of them. The calls of the kernel are those of :class:`inrfast.NTK`, and give every process
the same results.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inrfast.errors import NotAvailableError
from inrfast.memory import budget_bytes
from inrfast.modes import in_own_modes
from inrfast.tangent.capture import Capture
from inrfast.tangent.local import check_output
from inrfast.tangent.network import Select
from inrfast.tangent.sharded import Sharded, ShardedNTK, SharedNetwork
from inrfast.tangent.store import backend_for


@in_own_modes
def ntk(
    net: nn.Module,
    coords: Tensor,
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
        The processes hold different networks or coordinates; fewer points than processes.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise NotAvailableError(
            "torch.distributed is not initialised: start with torchrun and call "
            "torch.distributed.init_process_group('gloo') ('nccl' on GPUs) first"
        )
    capture = Capture(net, coords, params, select, precision, memory_budget)
    output = check_output(output, capture.outputs)
    partition = Sharded(len(coords), capture.outputs if output == "full" else 1, group)
    if len(coords) < partition.processes:
        raise ValueError(
            f"coords must hold at least one point per process, got {len(coords)} "
            f"points for {partition.processes} processes"
        )
    _check_same(net, coords, partition)
    backend = backend_for(capture, backend)
    if memory_budget is None and capture.device.type == "cpu":
        budget = budget_bytes(None) // partition.processes
    else:
        budget = budget_bytes(memory_budget, capture.device)
    network = SharedNetwork(
        capture, coords.detach().clone(), output, partition.smallest(budget, coords.device), backend, partition
    )
    return ShardedNTK(network, precision)


def _check_same(net: nn.Module, coords: Tensor, partition: Sharded) -> None:
    """Raise if the processes do not hold the same numbers, by sums in which every place has a weight of its own."""
    state = [t.detach().double().flatten() for t in net.state_dict().values() if t.is_floating_point()]
    sums = []
    for numbers in (torch.cat([s.to(coords.device) for s in state]), coords.detach().double().flatten()):
        places = torch.arange(1, len(numbers) + 1, dtype=torch.float64, device=coords.device)
        sums.append((numbers * torch.sin(places)).sum())
    found = torch.stack(sums)
    differ = (partition.agree(found) != found).to(torch.float64)
    differ = partition.total(differ)
    for what, count in zip(("networks", "coordinates"), differ.tolist(), strict=True):
        if count > 0:
            raise ValueError(f"{what} differ between processes: build them from the same seed in each")
