"""The one place through which everything leaves the command line: errors, warnings, signals and standard streams.

Imports nothing that takes time: a signal that comes while the libraries load finds it at its post.
"""

from __future__ import annotations

import _thread
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

from inrfast.words import one_line, shortened

EXIT_CODES = """\
exit codes:
  0    done
  1    the computation failed: a fit diverged, or found no surface, or met an error that inrfast does not foresee
       (INRFAST_TRACEBACK=1 shows where any error comes from)
  2    bad usage or bad input, or no room for the results: one line on stderr says what was given and what is accepted
  130  interrupted (Ctrl-C; SIGTERM: 143, SIGHUP: 129); no file is left half-written, and a fit keeps what it has
  141  nobody reads the output any more, as behind "| head"
"""

TRACEBACK = "INRFAST_TRACEBACK"
"""The variable of the environment that, set to anything but 0, shows tracebacks."""

INTERRUPTED = 130
"""The code of a command that was interrupted; :func:`orderly` puts the signal's own code in its place."""

INTERRUPTION = "interrupted; no file is left half-written"

BROKEN_PIPE = 128 + signal.SIGPIPE

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

AGAIN_SECONDS = 0.05

WORD_SECONDS = 5.0
"""After so long without a sign of life a command says what it is at."""


class UsageError(ValueError):
    """A command line that cannot be understood."""


class UnwritableError(OSError):
    """A standard stream that takes nothing more."""


# ---- words -------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line on stderr, if it takes one: a computation does not end because nobody listens."""
    if sys.stderr is not None:  # print would take stdout for it
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def complain(what: object, code: int) -> int:
    """Print one line on stderr and return ``code``."""
    say(f"inrfast: {'' if code == INTERRUPTED else 'error: '}{one_line(what)}")
    return code


@contextmanager
def at_work(what: str, quiet: bool = False) -> Iterator[None]:
    """Say on stderr what takes long, once it does: who sees nothing at all cannot tell work from a fault."""
    timer = threading.Timer(WORD_SECONDS, say, [f"inrfast: {one_line(what)} takes long; Ctrl-C ends it"])
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ---- the way out -------------------------------------------------------------------------------------------------


class Interrupts:
    """Signals that ask a command to end: SIGTERM and SIGHUP do what Ctrl-C does, with exit codes of their own.

    Before :meth:`begin` nothing has been done, and a signal ends the process at once; from then on it is a
    KeyboardInterrupt. Signals that are ignored, as under nohup, stay so.
    """

    def __init__(self, own: bool) -> None:
        self.own, self.came, self.begun = own, 0, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self.before[number] = signal.signal(number, self.take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            # A process that has said all dies of a signal without another word.
            signal.signal(number, signal.SIG_DFL if self.own else handler)

    def begin(self) -> None:
        """Let signals be exceptions from now on."""
        self.begun = True

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.own and not self.begun:
            with suppress(OSError):  # print may just be printing
                os.write(2, b"inrfast: interrupted before anything was done\n")
            os._exit(128 + number)  # an exception inside an import may get lost there
        self.came = number
        raise KeyboardInterrupt

    def again(self) -> None:
        """Send the signal once more, a moment later: it had hit a place where exceptions are swallowed."""
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), self.came or signal.SIGINT)

    def code(self, code: int) -> int:
        """Return the exit code of the signal in place of Ctrl-C's."""
        return 128 + self.came if code == INTERRUPTED and self.came else code


def orderly(work: Callable[[Interrupts], int], own: bool) -> int:
    """Return the exit code of ``work``; whatever it raises, or warns of, leaves as one line on stderr.

    Parameters
    ----------
    work
        Calls :meth:`Interrupts.begin` when its imports are done, and returns its exit code.
    own
        Whether the process is a command of its own, which ends with it: its standard streams and its handling of
        signals are then not put back.
    """
    if own:
        sys.excepthook = _last_word
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(own))
        stack.enter_context(_standard_streams(own))
        stack.enter_context(_one_line_warnings(interrupts))
        try:
            try:
                flush()  # where results cannot go, none are worked out
                code = work(interrupts)
            except SystemExit as stop:  # argparse has printed the help
                code = int(stop.code or 0)
            flush()
        except BaseException as error:
            code = _told(error, interrupts)
        if own:
            _let_go()
        return interrupts.code(code)


def _last_word(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Take what comes while the last word is said: a second Ctrl-C."""
    complain(INTERRUPTION if issubclass(kind, KeyboardInterrupt) else error, INTERRUPTED)


def flush() -> None:
    """Bring out what was printed.

    Raises
    ------
    UnwritableError
        stdout is closed, or full.
    BrokenPipeError
        Nobody reads it any more.
    """
    if sys.stdout is None:
        raise UnwritableError("stdout is closed, and the results go there; use > /dev/null to drop them")
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableError(f"stdout takes no more of the results: {error.strerror or error}") from error


def print_out(text: str) -> None:
    """Print results on stdout, and bring them out: errors as of :func:`flush`."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableError(f"stdout takes no more of the results: {error.strerror or error}") from error
    flush()


def _told(error: BaseException, interrupts: Interrupts) -> int:
    """Say in one line what ended the work, and return its exit code."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt):
        return complain(INTERRUPTION, INTERRUPTED)
    errors = sys.modules.get("inrfast.errors")  # where it is not imported, nothing of it was raised
    if errors is not None and isinstance(error, errors.DivergedError):
        return complain(error, 1)
    if isinstance(error, (ValueError, OSError)) or (errors is not None and isinstance(error, errors.InrfastError)):
        return complain(_words(error), 2)
    first = shortened((str(error).strip().splitlines() or [""])[0], 150)
    memory = sys.modules.get("inrfast.memory")
    if isinstance(error, MemoryError) or (memory is not None and memory.is_refusal(error)):
        asked = re.search(r"allocate (\S+ ?\w+)", str(error))  # torch's words, and NumPy's
        return complain(f"memory ended{f' at a request of {asked[1]}' if asked else ''}; ask for smaller sizes", 2)
    if interrupts.came:  # what an interrupt became inside a library
        return complain(INTERRUPTION, INTERRUPTED)
    name = type(error).__name__
    return complain(f"unforeseen {name}: {first}; {TRACEBACK}=1 shows where, which is worth a report", 1)


def _words(error: Exception) -> str:
    """Return what an error says, an operating system's without its number."""
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{error.strerror}"
    return str(error) or type(error).__name__


# ---- streams and warnings ----------------------------------------------------------------------------------------


@contextmanager
def _standard_streams(own: bool) -> Iterator[None]:
    """Let every character leave stdout and stderr, escaped where their encoding lacks it."""
    if own:
        _fill_closed()
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream, _ in before:
        _escape(stream, "backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            if not own:
                _escape(stream, errors)


def _escape(stream: Any, errors: str | None) -> None:
    with suppress(OSError, ValueError):  # it is flushed, and may be full; who prints next is told
        stream.reconfigure(errors=errors)


def _fill_closed() -> None:
    """Put /dev/null where the shell closed a standard stream, or the next file would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _let_go() -> None:
    """Give the interpreter nothing more to bring out at its end, where it could only fail with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _one_line_warnings(interrupts: Interrupts) -> Iterator[None]:
    """Print warnings, and what is raised where nobody can catch it, as single lines."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(f"inrfast: warning: {one_line(message)}")

    def unraisable(caught: Any) -> None:
        try:
            if not isinstance(caught.exc_value, KeyboardInterrupt):
                return say(f"inrfast: warning: {one_line(f'ignored {caught.exc_value!r} in {caught.object!r}')}")
        except KeyboardInterrupt:
            pass
        _thread.start_new_thread(interrupts.again, ())

    before = sys.unraisablehook
    with warnings.catch_warnings():
        warnings.showwarning = show
        sys.unraisablehook = unraisable
        try:
            yield
        finally:
            sys.unraisablehook = before
