"""Which layers a network has: every parameter by the first kind of layer that knows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from inrfast.layers.base import LAYERS, Layer
from inrfast.layers.calls import Call, CallLayer


def layers_of(
    net: nn.Module,
    chosen: Sequence[str],
    refused: Mapping[str, Collection[str]] | None = None,
    uses: Mapping[str, Sequence[Call]] | None = None,
) -> tuple[Layer, ...]:
    """Return the layers of the ``chosen`` parameters, each with its columns, by the first handler that knows them.

    Parameters
    ----------
    net
        The network.
    chosen
        Names of parameters in the order of the columns.
    refused
        The kinds of layers that some of them, by name, are not; automatic differentiation takes every parameter.
    uses
        The calls of torch functions that take some of them, by name, for kinds of layers that look at these.
    """
    return _Finding(net, chosen, refused or {}).found(uses or {})


class _Finding:
    """Parameters that are still to be taken, and the layers of those that are."""

    def __init__(self, net: nn.Module, chosen: Sequence[str], refused: Mapping[str, Collection[str]]) -> None:
        self.tensors, self.modules = dict(net.named_parameters()), dict(net.named_modules())
        self.refused, self.left, self.layers = refused, list(chosen), list[Layer]()
        self.columns, start = {}, 0
        for name in chosen:
            self.columns[name] = slice(start, start + self.tensors[name].numel())
            start = self.columns[name].stop
        self.sizes = {owner: len(names) for owner, names in self._by_owner().items()}

    def found(self, uses: Mapping[str, Sequence[Call]]) -> tuple[Layer, ...]:
        """Return all layers, in the order of their first columns."""
        for handler in sorted(LAYERS.values(), key=lambda handler: handler.order):
            if issubclass(handler, CallLayer):
                own = {name: uses[name] for name in self._asked(handler) if name in uses}
                for names, numbers in handler.claims(own) if own else ():
                    self._take(handler, names, **numbers)
                continue
            for owner, names in self._by_owner(self._asked(handler)).items():
                leaves = [name.rpartition(".")[2] for name in names]
                taken = [f"{owner}.{leaf}" if owner else leaf for leaf in handler.takes(self.modules[owner], leaves)]
                # A module's name stands for one layer; what is left of its parameters, and the root's, go by their own.
                if not handler.observed and (owner == "" or len(taken) < self.sizes[owner]):
                    for name in taken:
                        self._take(handler, [name])
                elif taken:
                    known = any(layer.name == owner for layer in self.layers)
                    self._take(handler, taken, None if known else owner)
        return tuple(sorted(self.layers, key=lambda layer: min(own.start for own in layer.parameters.values())))

    def _asked(self, handler: type[Layer]) -> list[str]:
        """Return the parameters that a handler may take."""
        return [name for name in self.left if not handler.observed or handler.kind not in self.refused.get(name, ())]

    def _by_owner(self, names: Sequence[str] | None = None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.left if names is None else names:
            found.setdefault(name.rpartition(".")[0], []).append(name)
        return found

    def _take(self, handler: type[Layer], names: Sequence[str], name: str | None = None, **numbers: int) -> None:
        """Add a layer of some parameters, called by their module if it has no others, else by the first of them."""
        owner = names[0].rpartition(".")[0]
        if name is None:
            whole = owner and len(names) == self.sizes[owner] and all(n.rpartition(".")[0] == owner for n in names)
            name = owner if whole else names[0]
        own, shapes = {n: self.columns[n] for n in names}, {n: self.tensors[n].shape for n in names}
        self.layers.append(handler(name, owner, own, shapes, **numbers))
        self.left = [n for n in self.left if n not in names]
