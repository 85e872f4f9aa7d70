"""What may be captured: a network's parameter layers, and the refusals of everything that two factors cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from inrfast.errors import UnsupportedModuleError, nearest
from inrfast.nn import FusedLinear

# Torch's common base classes of these are private.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class LayerSpec:
    """One parameter layer: its qualified name, kind (``"linear"`` or ``"affine"``), sizes, and its columns of J.

    ``parameters`` maps the differentiated parameters' qualified names, weight before bias, to their columns.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    has_bias: bool
    parameters: Mapping[str, slice]

    @property
    def columns(self) -> int:
        """Number of differentiated parameters."""
        return sum(columns.stop - columns.start for columns in self.parameters.values())

    @property
    def with_weight(self) -> bool:
        """Whether the weight is differentiated."""
        return f"{self.name}.weight".removeprefix(".") in self.parameters

    @property
    def with_bias(self) -> bool:
        """Whether the bias is differentiated."""
        return f"{self.name}.bias".removeprefix(".") in self.parameters

    @property
    def block(self) -> tuple[int, int]:
        """Shape (b, a) of the parameters: ``[W, b]`` of a linear layer, stacked ``w`` and ``b`` of an affine one."""
        if self.kind == "affine":
            return self.columns, 1
        return self.out_features, self.with_weight * self.in_features + self.with_bias

    def to_block(self, flat: Tensor) -> Tensor:
        """Gather this layer's block (k, b, a) from parameter vectors (k, P)."""
        return self.join([flat[:, columns] for columns in self.parameters.values()])

    def join(self, parts: list[Tensor]) -> Tensor:
        """Return the block (k, b, a) from its parameters, each (k, number of its entries)."""
        if self.kind == "affine":
            return torch.cat(parts, dim=1).unsqueeze(-1)
        return torch.cat([part.reshape(len(part), self.out_features, -1) for part in parts], dim=2)

    def from_block(self, block: Tensor, flat: Tensor) -> None:
        """Scatter this layer's block (k, b, a) into parameter vectors (k, P); the mirror of :meth:`to_block`."""
        start = 0
        for columns in self.parameters.values():
            count = columns.stop - columns.start
            if self.kind == "affine":
                part, start = block[:, start : start + count, 0], start + count
            else:
                width = count // self.out_features
                part, start = block[:, :, start : start + width], start + width
            flat[:, columns] = part.reshape(len(flat), count)


def check_tensors(net: nn.Module, device: torch.device) -> None:
    """Raise for parameters and buffers on another device, without numbers or complex, and parameters of NaN or Inf.

    A buffer may hold -Inf, as masks of attention do. A GPU is waited for once: a sum of finite numbers is finite, as a
    rule, and where it is not, the parameters are looked at one by one.
    """
    floating: dict[str, Tensor] = {}
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            raise UnsupportedModuleError(f"{name!r} holds no numbers yet ({type(tensor).__name__} on {tensor.device})")
        if tensor.device != device:
            raise ValueError(f"net is spread over devices: {name!r} is on {tensor.device}, others are on {device}")
        if tensor.is_complex():
            raise UnsupportedModuleError(f"{name!r} is complex; only real networks are supported")
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
    """Return the names of the parameters to differentiate, in parameters_to_vector order."""
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    if params is None:
        if not trainable:
            raise UnsupportedModuleError("net has no trainable parameters: all are frozen")
        return trainable
    if isinstance(params, str):
        raise TypeError(f"params must be a list of names, got the string {params!r}; write [{params!r}]")
    asked = list(params)
    chosen = set()
    for entry in asked:
        if not isinstance(entry, str):
            raise TypeError(f"params must hold names, got {entry!r}")
        found = [name for name in trainable if name == entry or name.startswith(entry + ".")]
        if not found:
            modules = {name.rpartition(".")[0] for name in trainable}
            raise ValueError(
                f"params names {entry!r}, which is no trainable parameter or module with one."
                f"{nearest(entry, [*trainable, *modules])}"
            )
        chosen.update(found)
    if not chosen:
        raise ValueError("params must name at least one parameter, got an empty list")
    return [name for name in trainable if name in chosen]


def _supported_kind(module: nn.Module) -> str | None:
    """Return how a module's parameters are captured, or None."""
    kind = type(module)
    if isinstance(module, nn.Linear) and kind.forward in (nn.Linear.forward, FusedLinear.forward):
        return "linear"
    if kind in (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm):
        return "affine"
    return None


def refuse(net: nn.Module, chosen: list[str]) -> None:
    """Raise for everything that would make the factors wrong, naming it."""
    owners: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        other = owners.setdefault(id(parameter), name)
        if other != name and parameter.requires_grad:
            raise UnsupportedModuleError(
                f"{other!r} and {name!r} share one parameter; its gradient is a sum over both uses, which two factors "
                "cannot hold. Untie them or freeze it"
            )
    for name, module in net.named_modules():
        shown = name or type(net).__name__
        if is_parametrized(module):
            raise UnsupportedModuleError(
                f"module {shown!r} is parametrised (weight norm, spectral norm, ...); bake it in with "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if any(type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in module._forward_pre_hooks.values()):
            raise UnsupportedModuleError(
                f"module {shown!r} is weight- or spectral-normed; remove it with torch.nn.utils.remove_weight_norm"
            )
        if isinstance(module, DROPOUTS) and module.training and module.p > 0:
            raise UnsupportedModuleError(f"module {shown!r} drops units at random in train mode; call net.eval()")
        if isinstance(module, BATCH_NORMS):
            _refuse_batchnorm(shown, module)
    modules = dict(net.named_modules())
    for name in chosen:
        owner, _, leaf = name.rpartition(".")
        kind = _supported_kind(modules[owner])
        if kind is None or leaf not in ("weight", "bias"):
            raise UnsupportedModuleError(
                f"parameter {name!r} belongs to {type(modules[owner]).__name__}, which has no two-factor form; "
                "supported are nn.Linear, nn.BatchNorm1d with frozen statistics, nn.LayerNorm and nn.RMSNorm. "
                "Freeze it or leave it out with params="
            )


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


def layer_specs(net: nn.Module, chosen: list[str]) -> tuple[LayerSpec, ...]:
    """Return the layers of the chosen parameters, each with its columns, in parameters_to_vector order."""
    tensors, modules = dict(net.named_parameters()), dict(net.named_modules())
    slices: dict[str, dict[str, slice]] = {}
    start = 0
    for name in chosen:
        stop = start + tensors[name].numel()
        slices.setdefault(name.rpartition(".")[0], {})[name] = slice(start, stop)
        start = stop
    specs = []
    for owner, parameters in slices.items():
        module = modules[owner]
        kind = _supported_kind(module)
        assert kind is not None
        if isinstance(module, nn.Linear):
            sizes = module.in_features, module.out_features
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            sizes = weight.numel(), weight.numel()
        ordered = dict(sorted(parameters.items(), key=lambda item: item[0].endswith("bias")))
        has_bias = getattr(module, "bias", None) is not None
        specs.append(LayerSpec(owner, kind, *sizes, has_bias, ordered))
    return tuple(specs)
