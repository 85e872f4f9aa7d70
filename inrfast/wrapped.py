"""Networks inside other modules that only run them: taken out; and networks held in pieces: refused by name."""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from inrfast.arrays import is_distributed
from inrfast.errors import UnsupportedModuleError

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
"""Classes of torch that hold a network as ``module`` and compute what it does."""

GATHER = (
    "Gather it in every process, state = torch.distributed.checkpoint.state_dict.get_model_state_dict(net, "
    "options=StateDictOptions(full_state_dict=True)), and load that into a copy of the network that is not sharded"
)


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel``, ``DataParallel``, ``AveragedModel`` or ``torch.compile``.

    Another module is returned as it is, also a wrapper with forward hooks of its own, which may change its outputs.
    """
    while (inner := _inner(net)) is not None and not (net._forward_hooks or net._forward_pre_hooks):
        net = inner
    return net


def _inner(net: nn.Module) -> nn.Module | None:
    if type(net) in WRAPPERS:
        return net._modules["module"]
    return net._modules.get("_orig_mod") if type(net).__name__ == "OptimizedModule" else None  # slow to import


def refuse_pieces(net: nn.Module, argument: str = "net") -> None:
    """Raise for a network whose parameters are spread over processes, by FSDP or as ``DTensor``.

    Raises
    ------
    UnsupportedModuleError
        With the name of the module or parameter, and how the whole network is got.
    """
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)  # slow to import
    for name, module in net.named_modules():
        if sharded is not None and isinstance(module, sharded):
            place = f"{argument}.{name}" if name else argument
            raise UnsupportedModuleError(
                f"{place} is a FullyShardedDataParallel, of which each process holds a piece. {GATHER}"
            )
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_distributed(tensor):
            raise UnsupportedModuleError(
                f"{argument}.{name} is a DTensor (fully_shard, tensor parallelism), of which each process may hold a "
                f"piece. {GATHER}"
            )


def refuse_processes(net: nn.Module, argument: str = "net") -> None:
    """Raise for ``DistributedDataParallel`` over several processes, whose backward passes wait for each other.

    Raises
    ------
    UnsupportedModuleError
        A fit decides by its own losses when to stop, and which way to take.
    """
    for module in net.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel) and dist.get_world_size(module.process_group) > 1:
            raise UnsupportedModuleError(
                f"{argument} shares its gradients with other processes (DistributedDataParallel), and a fit is run by "
                f"one: give {argument}.module, which each process then fits by itself to the points it gives, or train "
                "it in a loop of your own"
            )


def computes_itself(tensor: Tensor) -> bool:
    """Return whether a tensor is of a class with operations of its own (quantised, masked, distributed numbers)."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
