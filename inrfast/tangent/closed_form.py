"""Factors in closed form: which networks have them, which layer each belongs to, and the native pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from inrfast.calling import Select
from inrfast.layers import Factors, Layer
from inrfast.layers.linear import Linear
from inrfast.mlp import MLP
from inrfast.modulations import Modulation
from inrfast.ops.factor_pass import FactorPass, Target
from inrfast.ops.factor_pass import reason_against as reason_against_native
from inrfast.ops.factors import MLPFactors


def reason_against(
    described: MLP | str, layers: Iterable[Layer], select: Select, shared: Mapping[str, object]
) -> str | None:
    """Return why a network's factors have no closed form, or None.

    ``shared`` maps the names of shared parameters to what they are beside.
    """
    if isinstance(described, str):
        return described
    if select is not None:
        return "select= takes its output from what it returns"
    if shared:
        return f"its layers share {next(iter(shared))!r}"
    for module in described.modulations:
        if "derivative" not in vars(type(module)):
            return f"the filter {type(module).__name__} of the coordinates has no derivative() of its own"
    for layer in layers:
        if in_encoding(layer, described):
            continue
        if layer.module not in described.places and layer.module not in described.filter_places:
            return f"{layer.module!r} is none of its layers"
        if not layer.observed:
            return f"the parameters of {layer.module!r} have no handler of their own in inrfast.layers"
    return None


def in_encoding(layer: Layer, mlp: MLP) -> bool:
    """Return whether a layer is a part of the network's encoding."""
    return mlp.encoding is not None and f"{layer.module}.".startswith(f"{mlp.encoding_name}.")


def factors_of(layer: Layer, mlp: MLP, found: MLPFactors, coords: Tensor) -> Factors:
    """Return the factors of one layer out of those of its network at ``coords`` (n, d)."""
    if layer.module not in mlp.filter_places:
        is_norm, k = mlp.places[layer.module]
        norm = found.norms[k] if is_norm else None
        return layer.factors(*(norm or (found.features[k], [*found.sensitivities, None][k])))
    k = mlp.filter_places[layer.module]
    module, own = mlp.hidden[k].modulation, found.filters[k]
    assert isinstance(module, Modulation) and own is not None
    if layer.module == mlp.hidden[k].modulation_name:
        return layer.factors(layer.features(module, coords), own.values)
    return layer.factors(layer.features(module.get_submodule("linear"), coords), own.linear)


class NativePass:
    """The native pass of a network whose layers are linear ones, differentiated in their weights at least.

    Parameters
    ----------
    made
        The pass.
    places
        Which linear layer of the network each layer of the capture is.
    """

    def __init__(self, made: FactorPass, places: Sequence[int]) -> None:
        self.made, self.places = made, places

    def into(self, whole: Sequence[Factors], part: slice, inputs: Tensor) -> bool:
        """Write the factors at ``inputs`` (n, D_in) into the rows ``part`` of ``whole``; return whether they are there.

        See :meth:`inrfast.ops.factor_pass.FactorPass.into`.
        """
        targets: list[Target] = [(None, None)] * self.made.depth
        for place, factors in zip(self.places, whole, strict=True):
            targets[place] = factors.at(part)
        return self.made.into(inputs, targets)


def native_pass(layers: Sequence[Layer], mlp: MLP | None) -> NativePass | None:
    """Return the native pass of a network, or None where there is none that gives the factors of all these layers."""
    if mlp is None or reason_against_native(mlp) is not None:
        return None
    whole = all(type(layer) is Linear and layer.with_weight and layer.module in mlp.places for layer in layers)
    return NativePass(FactorPass.of(mlp), [mlp.places[layer.module][1] for layer in layers]) if whole else None
