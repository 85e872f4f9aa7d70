"""Registries: the things of one kind by name; to add one is to add a file to the package of its kind."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor

from inrfast.errors import check_choice, check_float, nearest

Item = TypeVar("Item")


def name_and_numbers(argument: str, given: Any) -> tuple[Any, dict[str, Any]]:
    """Return the name of a thing and its numbers, from a name or ``{"name": ..., **numbers}``; neither is checked."""
    if not isinstance(given, Mapping):
        return given, {}
    numbers = {str(key): value for key, value in given.items()}
    if "name" not in numbers:
        raise ValueError(f"{argument} as a mapping needs a 'name', got keys {sorted(numbers)}")
    return numbers.pop("name"), numbers


def check_number_known(called: str, number: str, numbers: Collection[str]) -> None:
    """Raise if a thing of these ``numbers``, as an error calls it, has none of the name ``number``."""
    if number not in numbers:
        known = f"its numbers are {sorted(numbers)}" if numbers else "it has no numbers"
        raise ValueError(f"{called} has no number {number!r}; {known}.{nearest(number, numbers)}")


class Registry(Mapping[str, Item]):
    """The known things of one kind, by name.

    The modules of ``package`` add theirs when they are imported, which the first look into the registry does for all of
    them. A user's own are added in the same way, from anywhere, and refused where they are no such thing.

    Parameters
    ----------
    kind
        What it holds, as an error calls it: ``"activation"``.
    package
        The package whose modules add to it, such as ``"inrfast.activations"``.
    base
        The class of all that it holds.
    classes
        Whether it holds subclasses of ``base`` instead of its instances.
    called
        The attribute by which a thing knows its own name, which must be the one it is added under; None: it has none.
    check
        ``check(name, item)`` raises for a user's item that cannot stand beside those that there are; None takes all.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        base: Any,
        *,
        classes: bool = False,
        called: str | None = None,
        check: Callable[[str, Item], None] | None = None,
    ) -> None:
        self.kind, self.package, self.base, self.classes, self.called = kind, package, base, classes, called
        self.check = check
        self._items: dict[str, Item] = {}
        self._built_in: set[str] = set()
        self._complete = False

    def add(self, name: str, item: Item, replace: bool = False) -> Item:
        """Add ``item`` under ``name`` and return it.

        Parameters
        ----------
        name
            An identifier; where the item knows its own name, that one.
        item
            A thing of the registry's kind.
        replace
            Whether it takes the place of another of your own with this name. What was made with that one keeps it.

        Raises
        ------
        TypeError
            The item is no such thing, or is a class that lacks methods.
        ValueError
            The name is no identifier, is not the item's own, or is taken; or the item takes something else that another
            thing of its kind has.
        """
        self._check(item)
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the name of {self._a_kind} must be an identifier, got {name!r}")
        own = name if self.called is None else getattr(item, self.called, None)
        if own != name:
            raise ValueError(f"{self._a_kind} must be added under its own name, {self.called}={own!r}, got {name!r}")
        if _imports(self.package, sys._getframe(1)):
            self._built_in.add(name)
        else:
            self._completed()  # or a name of the library's own would be free until the first look
            if self.check is not None:
                self.check(name, item)
        if self._items.setdefault(name, item) is not item:
            if not replace or name in self._built_in:
                way = (
                    "take another name" if name in self._built_in else "take another name, or add it with replace=True"
                )
                raise ValueError(f"there is {self._a_kind} called {name!r} already; {way}")
            self._items[name] = item
        return item

    def _check(self, item: object) -> None:
        """Raise ``TypeError`` for what is no thing of this kind."""
        public = getattr(sys.modules.get(self.package), self.base.__name__, None) is self.base
        place = f"{self.package if public else self.base.__module__}.{self.base.__name__}"
        if not self.classes:
            if not isinstance(item, self.base):
                wanted = "a function" if self.base is Callable else f"an instance of {place}"
                raise TypeError(f"{self._a_kind} must be {wanted}, got {item!r}")
            return
        if not (isinstance(item, type) and issubclass(item, self.base) and item is not self.base):
            raise TypeError(f"{self._a_kind} must be a subclass of {place}, got {item!r}")
        if inspect.isabstract(item):
            missing = ", ".join(sorted(item.__abstractmethods__))  # type: ignore[attr-defined]
            raise TypeError(f"{self._a_kind} must define all methods of {place}; {item.__name__} misses {missing}")

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
        return _a(self.kind)

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


def _imports(package: str, frame: FrameType | None) -> bool:
    """Return whether a module of the package is being imported in this frame or one that has led to it."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>" and f"{module}.".startswith(f"{package}."):
            return True
        frame = frame.f_back
    return False


def check_fields(kind: Any, functions: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Check what things with ``name`` and ``numbers`` have in common, and that the named fields are functions.

    Those of ``optional`` may be None.

    Raises
    ------
    ValueError, TypeError
        The first field that is no such thing.
    """
    if not isinstance(kind.name, str) or not kind.name.isidentifier():
        raise ValueError(f"the name of {_a(type(kind).__name__.lower())} must be an identifier, got {kind.name!r}")
    for field in (*functions, *optional):
        function = getattr(kind, field)
        if not (callable(function) or (function is None and field in optional)):
            raise TypeError(f"{field} of {kind.name} must be a function, got {function!r}")
    if not isinstance(kind.numbers, Mapping):
        raise TypeError(f"numbers of {kind.name} must be a mapping of names to defaults, got {kind.numbers!r}")
    for number, value in kind.numbers.items():
        if not isinstance(number, str) or not number.isidentifier() or number == "name":
            raise ValueError(f"a number of {kind.name} must be called by an identifier, got {number!r}")
        check_float(f"the number {number!r} of {kind.name}", value)


def check_function(kind: Any, field: str, known: Mapping[str, int]) -> None:
    """Check that a field of a thing with ``numbers`` is None or a known function of as many numbers.

    Raises
    ------
    ValueError, TypeError
        An unknown name, with the nearest match; a function of another count of numbers.
    """
    name = getattr(kind, field)
    if name is None:
        return
    wanted = known[check_choice(f"{field} of {kind.name}", name, known)]
    if len(kind.numbers) != wanted:
        raise ValueError(
            f"{field}={name!r} of {kind.name} is a function of {wanted} numbers, but it has {len(kind.numbers)}: "
            f"{', '.join(kind.numbers) or 'none'}"
        )


def check_like(what: str, found: Any, given: Tensor, dtype: bool = False) -> Tensor:
    """Return what a function of the user's made of a tensor, if it has that one's shape and, if asked, its dtype.

    Raises
    ------
    ValueError, TypeError
        Another shape or dtype; no tensor.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"{what} must return a tensor of shape {tuple(given.shape)}, got {type(found).__name__}")
    if found.shape != given.shape:
        raise ValueError(f"{what} must return a tensor of shape {tuple(given.shape)}, got {tuple(found.shape)}")
    if dtype and found.dtype != given.dtype:
        raise TypeError(f"{what} must return {given.dtype}, as it was given, got {found.dtype}")
    return found


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
