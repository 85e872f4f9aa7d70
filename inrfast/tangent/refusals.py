"""Refusals: networks that have no exact Jacobian here, each named with its way out; and the parameters that count."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from inrfast.errors import UnsupportedModuleError, nearest
from inrfast.layers import LAYERS
from inrfast.layers.calls import CallLayer
from inrfast.wrapped import computes_itself, refuse_pieces

# Torch's common base classes of these are private.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_tensors(net: nn.Module, device: torch.device) -> None:
    """Raise for parameters and buffers on another device or without numbers, and complex parameters, or of NaN or Inf.

    A buffer may hold -Inf, as masks of attention do, and complex numbers. A GPU is waited for once: a sum of finite
    numbers is finite, as a rule, and where it is not, the parameters are looked at one by one.
    """
    refuse_pieces(net)
    floating: dict[str, Tensor] = {}
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            cure = (
                "run net once" if is_lazy(tensor) else "net.to_empty(device=...) and initialise it, or load_state_dict"
            )
            raise UnsupportedModuleError(
                f"{name!r} holds no numbers yet ({type(tensor).__name__} on {tensor.device}); {cure}"
            )
        if computes_itself(tensor):
            raise UnsupportedModuleError(
                f"{name!r} is a {type(tensor).__name__}, a tensor with operations of its own (quantised, masked); only "
                "plain numbers are supported"
            )
        if tensor.device != device:
            raise ValueError(
                f"net is spread over devices: {name!r} is on {tensor.device}, others are on {device}; "
                "net.to(device) moves it to one"
            )
        if tensor.is_complex() and isinstance(tensor, nn.Parameter):
            raise UnsupportedModuleError(
                f"{name!r} is complex; only real parameters are supported. Hold it as real and imaginary part "
                "(torch.view_as_real) and join them in the forward pass (torch.view_as_complex)"
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            floating[name] = tensor.detach()
    if not floating:
        return
    sums = torch.stack([tensor.sum(dtype=torch.float64) for tensor in floating.values()])
    if math.isfinite(float(sums.sum())):
        return
    for name, tensor in floating.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"net holds NaN or Inf in {name!r}")


def chosen_parameters(net: nn.Module, params: Iterable[str] | None) -> list[str]:
    """Return the names of the parameters to differentiate, in parameters_to_vector order; none without entries."""
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    empty = {name for name, p in net.named_parameters() if p.numel() == 0}
    if params is None:
        if not trainable:
            raise UnsupportedModuleError("net has no trainable parameters: all are frozen")
        if empty.issuperset(trainable):
            raise UnsupportedModuleError(f"net has no trainable numbers: {trainable[0]!r} and all others have size 0")
        return [name for name in trainable if name not in empty]
    if isinstance(params, str):
        raise TypeError(f"params must be a list of names, got the string {params!r}; write [{params!r}]")
    asked = list(params)
    chosen = set()
    for entry in asked:
        if not isinstance(entry, str):
            raise TypeError(f"params must hold names, got {entry!r}")
        found = [name for name in trainable if name == entry or name.startswith(entry + ".")]
        if not found:
            modules = {name.rpartition(".")[0] for name in trainable if "." in name}
            raise ValueError(
                f"params names {entry!r}, which is no trainable parameter or module with one."
                f"{nearest(entry, [*trainable, *modules])}"
            )
        chosen.update(found)
    if not chosen:
        raise ValueError("params must name at least one parameter, got an empty list")
    if empty.issuperset(chosen):
        raise ValueError(f"params must name at least one parameter with numbers, but {min(chosen)!r} has size 0")
    return [name for name in trainable if name in chosen and name not in empty]


def shared_parameters(net: nn.Module) -> dict[str, str]:
    """Return the trainable parameters that the network has under several names: the first name, and another one."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name and parameter.requires_grad:
            found.setdefault(known, name)
    return found


def kinds_refused(net: nn.Module, chosen: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return those of the chosen parameters that a network has under several names, with the reason why the layers of
    modules, by kind, do not take them."""
    kinds = [handler.kind for handler in LAYERS.values() if handler.observed and not issubclass(handler, CallLayer)]
    others = shared_parameters(net)
    return {name: dict.fromkeys(kinds, f"it is also {others[name]!r}") for name in chosen if name in others}


def refuse(net: nn.Module) -> None:
    """Raise for everything that would make the Jacobian wrong whatever its parameters are, naming it."""
    for name, module in net.named_modules():
        shown = name or type(net).__name__
        if is_parametrized(module):
            raise UnsupportedModuleError(
                f"module {shown!r} is parametrised (weight norm, spectral norm, ...); bake it in with "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        for hook in module._forward_pre_hooks.values():
            remove = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}.get(
                type(hook).__name__
            )
            if remove is not None:
                raise UnsupportedModuleError(
                    f"module {shown!r} is weight- or spectral-normed; bake it in with torch.nn.utils.{remove} first"
                )
        if isinstance(module, DROPOUTS) and module.training and module.p > 0:
            raise UnsupportedModuleError(f"module {shown!r} drops units at random in train mode; call net.eval()")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
            raise UnsupportedModuleError(
                f"embedding {shown!r} divides its gradient by how often a batch reads a row (scale_grad_by_freq=True), "
                "which is no derivative; set scale_grad_by_freq=False"
            )
        if isinstance(module, BATCH_NORMS):
            _refuse_batchnorm(shown, module)


def _refuse_batchnorm(name: str, module: Any) -> None:
    if not module.track_running_stats or module.running_mean is None:
        raise UnsupportedModuleError(
            f"batch norm {name!r} keeps no running statistics, so it couples samples in every mode"
        )
    if module.num_batches_tracked is not None and int(module.num_batches_tracked) == 0:
        raise UnsupportedModuleError(
            f"batch norm {name!r} has seen no batch: in eval mode it is the identity and would seem to do nothing. "
            "Call inrfast.calibrate_batchnorm_(net, coords) (full-grid statistics) first, then net.eval()"
        )
    if module.training:
        raise UnsupportedModuleError(
            f"batch norm {name!r} is in train mode, which couples samples; call net.eval() (and "
            "inrfast.calibrate_batchnorm_(net, coords) for full-grid statistics)"
        )
