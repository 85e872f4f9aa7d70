"""Small tensors between a GPU and the host, neither of which waits for more than it must.

A blocked factorisation diagonalises small matrices on the host: LAPACK is faster there than solvers on a GPU, and how
many directions are kept must be known on the host in any case. Ordinary copies would wait until the device has done
everything it was given; these leave it the work that needs no result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fetched(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Start copies of tensors of one device to the host; return a function that waits for them and returns them.

    It waits for what was launched on the current stream before, not for what came after. Tensors of the CPU are
    returned as they are, no copies.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return lambda: tensors
    copies = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))

    def wait() -> tuple[Tensor, ...]:
        arrived.synchronize()
        return copies

    return wait


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; what is launched there next finds it, and the host goes on at once."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
    return pinned.to(device, non_blocking=True)  # its memory is used again only after the copy
