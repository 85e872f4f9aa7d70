"""A format of files: how one is made, mutated, read here, and read by others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.laws import GROWTH, Case, LawBroken
from fuzz.mutations import Mutation, mutate_bytes
from fuzz.readers import KNOWN, Disagreement, Reader


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes
    ----------
    name, suffix
        Of the target, and of its files.
    files
        Valid files, as bytes.
    read
        The product's reader, from a path to what is compared.
    others
        Independent readers by name: each may refuse.
    agree
        Says how what was read here and there differ; None where it does not. Without it nothing is compared.
    mutations
        Any of them makes a case; twice in the list counts twice.
    repair
        Makes checksums and lengths right after a mutation, in half of the cases: else nothing behind them is reached.
    refusals
        The exceptions that are documented.
    growth
        Bytes by which reading one may grow the process, as a function: a budget depends on what is free.
    known
        The disagreements that are justified.
    """

    name: str
    suffix: str
    files: Callable[[], Sequence[bytes]]
    read: Callable[[Path], Any]
    others: dict[str, Reader] = field(default_factory=dict)
    agree: Callable[[Any, Any], str | None] | None = None
    mutations: tuple[Mutation, ...] = (mutate_bytes,)
    repair: Callable[[bytes], bytes] | None = None
    refusals: tuple[type[BaseException], ...] = (ValueError, OSError)
    growth: Callable[[], int] = lambda: GROWTH
    known: tuple[Disagreement, ...] = KNOWN

    def make(self, rng: random.Random, folder: Path) -> Case:
        """Return the case of one mutated file (one in fifty is left as it is)."""
        data, other = rng.choice(self.files()), rng.choice(self.files())
        if rng.random() > 0.02:
            data = rng.choice(self.mutations)(data, other, rng)
        if self.repair is not None and rng.random() < 0.5:
            data = self.repair(data)
        path = folder / f"case{self.suffix}"
        path.write_bytes(data)
        return Case(
            lambda: self.read(path),
            (path,),
            named=str(path),
            check=lambda found: self.compare(found, data),
            refusals=self.refusals,
            growth=self.growth(),
        )

    def compare(self, found: Any, data: bytes) -> None:
        """Check what was read against every other reader."""
        for name, read in self.others.items():
            try:
                theirs, complaint = read(data), None
            except Exception as error:  # another program may refuse in any way
                theirs, complaint = None, f"{type(error).__name__}: {error}"
            if complaint is None and theirs is not None and self.agree is not None:
                complaint = self.agree(found, theirs)
            if complaint is not None and not self.is_known(name, complaint):
                raise LawBroken(f"{name} does not agree: {complaint}")

    def is_known(self, reader: str, complaint: str) -> bool:
        """Return whether a complaint of another reader is in the table of known ones."""
        return any(known.covers(self.name, reader, complaint) for known in self.known)
