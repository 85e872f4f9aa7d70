"""Registries: the things of one kind by name; to add one is to add a file to the package of its kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from inrfast.errors import check_choice

Item = TypeVar("Item")


class Registry(Mapping[str, Item]):
    """The known things of one kind, by name.

    The modules of ``package`` add theirs when they are imported, which the first look into the registry does for all of
    them. A user's own are added in the same way, from anywhere.

    Parameters
    ----------
    kind
        What it holds, as an error calls it: ``"activation"``.
    package
        The package whose modules add to it, such as ``"inrfast.activations"``.
    check
        ``check(name, item)`` raises for an item that cannot stand beside those that there are; None takes all.
    """

    def __init__(self, kind: str, package: str, check: Callable[[str, Item], None] | None = None) -> None:
        self.kind, self.package, self.check = kind, package, check
        self._items: dict[str, Item] = {}
        self._complete = False

    def add(self, name: str, item: Item) -> Item:
        """Add ``item`` under ``name`` and return it.

        Raises
        ------
        ValueError
            The name is no identifier, or another thing has it, or something else that its kind has alone.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the name of {self._a_kind} must be an identifier, got {name!r}")
        if self.check is not None:
            self.check(name, item)
        if self._items.setdefault(name, item) is not item:
            raise ValueError(f"there is {self._a_kind} called {name!r} already; take another name")
        return item

    def find(self, argument: str, name: object) -> Item:
        """Return the thing called ``name``, given as ``argument``; another name raises with the nearest match.

        Raises
        ------
        ValueError, TypeError
            An unknown name, or no string.
        """
        return self[check_choice(argument, name, self)]

    @property
    def _a_kind(self) -> str:
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"

    def _completed(self) -> dict[str, Item]:
        if not self._complete:
            package = importlib.import_module(self.package)
            for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
                importlib.import_module(f"{self.package}.{module}")
            self._complete = True
        return self._items

    def __getitem__(self, name: str) -> Item:
        return self._completed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._completed())

    def __len__(self) -> int:
        return len(self._completed())
