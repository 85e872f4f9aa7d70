"""What every case must obey, and the watch over the process that runs it.

A call may return or refuse. A refusal is a documented exception whose message is one sentence that names what was
refused. On the way it starts no program, runs no code of a pickle, writes no file that it was not asked for, and the
process grows by no more than the case allows. What it returns is then checked. (Time is kept from outside, by
``runner``: a process that hangs cannot be trusted to say so.)
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import re
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 20.0
"""A call that takes longer hangs."""

GROWTH = 400 * 2**20
"""Bytes by which a call on a file of some kilobytes may grow the process."""

ADDRESSES = 3 * 2**30
"""Bytes of addresses that a process may reserve beyond those it starts with: the machine outlives a case that grows."""

LONGEST = 600
"""Characters of a message, without the names of files in it."""


class CommandRefused(Exception):
    """A command line ended with the exit code of bad input; the text is what it said."""


class LawBroken(Exception):
    """What a case did against a law that only its target knows; the text says what."""


@dataclass(frozen=True)
class Case:
    """A call, and what is known about it beforehand.

    Attributes
    ----------
    call
        What is under test.
    files
        The files that it reads: kept if it breaks a law.
    named
        What a refusal has to name, such as the file; None if that depends.
    check
        Takes what the call returned and raises :class:`LawBroken` if it should not have.
    refusals
        The exceptions that may leave the call.
    folder
        Where it may write files; None for nowhere.
    growth
        Bytes by which the process may grow.
    words
        The case in words: a command line, the settings of a call.
    """

    call: Callable[[], Any]
    files: tuple[Path, ...] = ()
    named: str | None = None
    check: Callable[[Any], None] = lambda result: None
    refusals: tuple[type[BaseException], ...] = (ValueError, OSError)
    folder: Path | None = None
    growth: int = GROWTH
    words: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``"accepted"``, ``"refused"`` or ``"broken"``; then which law, how, and where in the code."""

    kind: str
    law: str = ""
    detail: str = ""
    place: str = ""


@dataclass(frozen=True)
class Target:
    """A name, how a case is made, and the share of cases where their number is fixed: below 1 for what is slow."""

    name: str
    make: Callable[[random.Random, Path], Case]
    share: float = 1.0


# ---- the watch ---------------------------------------------------------------------------------------------------

PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CHANGES = ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod")
FOREIGN = ("pickle.find_class", "socket.connect", "marshal.loads", "ctypes.call_function")


@dataclass
class Watch:
    """Hears the interpreter's audit events while a call runs."""

    folder: str | None = None
    armed: bool = False
    heard: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in PROGRAMS:
            self.heard.append(("starts a program", f"{event} {arguments!r:.200}"))
        elif event in FOREIGN and "importlib" not in _caller():
            self.heard.append(("runs foreign code", f"{event} {arguments!r:.200}"))
        else:
            for place in _changed(event, arguments):
                if not self._allowed(os.fsdecode(place)):
                    self.heard.append(("writes a file", f"{event} {os.fsdecode(place)}"))

    def _allowed(self, place: str) -> bool:
        if place == os.devnull or place.startswith("/proc/self/fd/"):  # a file that is open already
            return True
        if os.path.basename(place).startswith("torchinductor_"):  # a cache of torch
            return True
        return self.folder is not None and os.path.abspath(place).startswith(self.folder)


def _changed(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    """Return the paths that an event makes, changes or removes."""
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        found = arguments[:1] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) else ()
    elif event in ("os.link", "os.symlink"):
        found = arguments[1:2]
    elif event == "os.rename":
        found = arguments[:2]
    elif event == "os.mkdir" and os.path.isdir(arguments[0]):  # it is refused, or passed over
        found = ()
    else:
        found = arguments[:1] if event in CHANGES else ()
    return [place for place in found if isinstance(place, (str, bytes, os.PathLike))]


def _caller() -> str:
    """Return the file of the code that raised an event: imports read their own marshalled code."""
    frame = sys._getframe(2)
    return frame.f_code.co_filename


WATCH = Watch()


def prepare_process() -> None:
    """Set the watch and the limits of a process that runs cases; there is no way back."""
    sys.dont_write_bytecode = True
    sys.addaudithook(WATCH)
    limit_addresses()


def limit_addresses() -> None:
    """Let the process reserve :data:`ADDRESSES` more than it has now."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _memory("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _memory(entry: str) -> int:
    """Return ``VmRSS``, ``VmHWM`` or ``VmSize`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    """Give free memory back, and let ``VmHWM`` start anew where the system can."""
    gc.collect()
    gc.freeze()  # what is left is of the process, and need not be looked through again
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---- the laws ----------------------------------------------------------------------------------------------------


def obey(case: Case, begun: Callable[[], None] = lambda: None, ended: Callable[[], None] = lambda: None) -> Outcome:
    """Run a case under watch and return how it ended; ``begun`` and ``ended`` are called around the call itself."""
    WATCH.heard.clear()
    WATCH.folder = None if case.folder is None else str(case.folder)
    _reset_peak()
    before, result, error = _memory("VmRSS"), None, None
    begun()
    WATCH.armed = True
    try:
        result = case.call()
    except KeyboardInterrupt:
        raise
    except BaseException as caught:
        error = caught
    finally:
        WATCH.armed = False
    ended()
    grown = max(_memory("VmHWM"), _memory("VmRSS")) - before
    if WATCH.heard:
        law, what = WATCH.heard[0]
        return Outcome("broken", law, what, what.split()[0])
    if grown > case.growth:
        what = f"grew by {grown / 2**20:.0f} MiB where {case.growth / 2**20:.0f} are allowed"
        return Outcome("broken", "memory", what if error is None else f"{what}; then {_words(error)}", "growth")
    return _judged(case, result) if error is None else _refusal(case, error)


def _judged(case: Case, result: Any) -> Outcome:
    try:
        case.check(result)
    except LawBroken as broken:
        return Outcome("broken", "accepted", str(broken), _kind(broken))
    return Outcome("accepted")


def _refusal(case: Case, error: BaseException) -> Outcome:
    if isinstance(error, LawBroken):
        return Outcome("broken", "command", str(error), _kind(error))
    if not isinstance(error, (*case.refusals, CommandRefused)):
        kind = "memory" if isinstance(error, MemoryError) else "exception"
        trace = "".join(traceback.format_exception(error)[-12:])
        return Outcome("broken", kind, f"{_words(error)}\n{trace}", f"{type(error).__name__} {_place(error)}")
    complaint = wrong_message(str(error), case)
    if complaint is None:
        return Outcome("refused", detail=str(error))
    where = f"{complaint[:30]} {_place(error)}"
    return Outcome("broken", "message", f"{complaint}: {type(error).__name__}: {str(error)[:2000]!r}", where)


def wrong_message(message: str, case: Case) -> str | None:
    """Return what is wrong with the message of a refusal, None if nothing."""
    bare = message
    for path in sorted(map(str, case.files), key=len, reverse=True):
        bare = bare.replace(path, "")
    if not says_something(bare):
        return "says nothing"
    if case.named is not None and case.named not in message:
        return f"does not name {Path(case.named).name}"
    if not message.isprintable():
        return "has line ends or control characters"
    if len(bare) > LONGEST:
        return f"has {len(bare)} characters"
    return None


def says_something(text: str) -> bool:
    """Return whether a text says something: three words of letters at least."""
    return sum(any(sign.isalpha() for sign in word) for word in text.split()) >= 3


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


def _kind(error: BaseException) -> str:
    """Return the first words of a complaint without its numbers: what complaints of one kind have in common."""
    return re.sub(r"[\d.]+|b?'.*?'", "_", str(error))[:60]


def _place(error: BaseException) -> str:
    """Return the innermost line of the project in an exception's traceback, else the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}inrfast{os.sep}" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
