"""How a command ends: exit codes, one-line errors and warnings, signals, standard streams.

Imports nothing slow, so that signals are handled while the libraries load.
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

from inrfast.system import INTERRUPTS
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
"""Environment variable that, set to anything but 0, shows tracebacks."""

INTERRUPTED = 130
"""Exit code of an interrupted command; :func:`orderly` replaces it by the signal's own."""

INTERRUPTION = "interrupted; no file is left half-written"

BROKEN_PIPE = 128 + 13
"""Exit code where nobody reads the output: that of SIGPIPE, which not every system has."""

AGAIN_SECONDS = 0.05

WORD_SECONDS = 5.0
"""After so many silent seconds a command says what it is doing."""


class UsageError(ValueError):
    """A command line that cannot be understood."""


class UnwritableError(OSError):
    """A standard stream that is closed or full."""


# ---- words -------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line on stderr; errors of stderr are ignored, so that a closed stream does not end a computation."""
    if sys.stderr is not None:  # print would write to stdout instead
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def complain(what: object, code: int) -> int:
    """Print one line on stderr and return ``code``."""
    say(f"inrfast: {'' if code == INTERRUPTED else 'error: '}{one_line(what)}")
    return code


@contextmanager
def at_work(what: str, quiet: bool = False, advice: str = "") -> Iterator[None]:
    """Say on stderr what is running once it has taken :data:`WORD_SECONDS`, so that work is not taken for a fault.

    ``advice`` says how it would take less.
    """
    told = f"inrfast: {one_line(what)} takes long; Ctrl-C ends it{advice and '; '}{advice}"
    timer = threading.Timer(WORD_SECONDS, say, [told])
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ---- the way out -------------------------------------------------------------------------------------------------


class Interrupts:
    """Handling of SIGINT, SIGTERM and SIGHUP: all three interrupt alike, each with its own exit code.

    Before :meth:`begin` a signal ends the process at once, since nothing has been done; afterwards it raises
    KeyboardInterrupt. Signals that are ignored, as under nohup, stay ignored.
    """

    def __init__(self, own: bool) -> None:
        self.own, self.came, self.begun = own, 0, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self.before[number] = signal.signal(number, self.take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            # The process is about to end: from here a signal ends it silently.
            signal.signal(number, signal.SIG_DFL if self.own else handler)

    def begin(self) -> None:
        """Let signals raise KeyboardInterrupt from now on."""
        self.begun = True

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.own and not self.begun:
            with suppress(OSError):  # print is not reentrant
                os.write(2, b"inrfast: interrupted before anything was done\n")
            os._exit(128 + number)  # an exception inside an import may be swallowed
        self.came = number
        raise KeyboardInterrupt

    def again(self) -> None:
        """Send the signal again a moment later, since its exception was swallowed."""
        time.sleep(AGAIN_SECONDS)
        if os.name == "posix":  # it also ends a wait in the system
            os.kill(os.getpid(), self.came or signal.SIGINT)
        else:  # where os.kill ends the process at once
            _thread.interrupt_main(signal.Signals(self.came or signal.SIGINT))

    def code(self, code: int) -> int:
        """Return the exit code of the signal in place of Ctrl-C's."""
        return 128 + self.came if code == INTERRUPTED and self.came else code


def orderly(work: Callable[[Interrupts], int], own: bool) -> int:
    """Return the exit code of ``work``; whatever it raises or warns of becomes one line on stderr.

    Parameters
    ----------
    work
        Calls :meth:`Interrupts.begin` when its imports are done, and returns its exit code.
    own
        Whether the process ends with this command: then standard streams and signal handlers are not restored.
    """
    if own:
        sys.excepthook = _last_word
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(own))
        stack.enter_context(_standard_streams(own))
        stack.enter_context(_one_line_warnings(interrupts))
        try:
            try:
                flush()  # fail before the work if stdout is closed
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
    """Handle an exception during the exit itself, such as a second Ctrl-C."""
    complain(INTERRUPTION if issubclass(kind, KeyboardInterrupt) else error, INTERRUPTED)


def flush() -> None:
    """Flush stdout.

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
    """Print results on stdout and flush; errors as :func:`flush`."""
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
        return complain("; ".join([INTERRUPTION, *map(str, error.args)]), INTERRUPTED)
    errors = sys.modules.get("inrfast.errors")  # if it is not imported, none of its errors was raised
    if errors is not None and isinstance(error, errors.DivergedError):
        return complain(error, 1)
    if isinstance(error, (ValueError, OSError)) or (errors is not None and isinstance(error, errors.InrfastError)):
        return complain(_words(error), 2)
    first = shortened((str(error).strip().splitlines() or [""])[0], 150)
    memory = sys.modules.get("inrfast.memory")
    if isinstance(error, MemoryError) or (memory is not None and memory.is_refusal(error)):
        asked = re.search(r"allocate (\S+ ?\w+)", str(error))  # the wording of torch and of NumPy
        return complain(f"memory ended{f' at a request of {asked[1]}' if asked else ''}; ask for smaller sizes", 2)
    if interrupts.came:  # a library turned the interrupt into another error
        return complain(INTERRUPTION, INTERRUPTED)
    name = type(error).__name__
    return complain(f"unforeseen {name}: {first}; {TRACEBACK}=1 shows where, which is worth a report", 1)


def _words(error: Exception) -> str:
    """Return an error's message; that of an OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{error.strerror}"
    return str(error) or type(error).__name__


# ---- streams and warnings ----------------------------------------------------------------------------------------


@contextmanager
def _standard_streams(own: bool) -> Iterator[None]:
    """Let stdout and stderr escape characters that their encoding lacks."""
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
    with suppress(OSError, ValueError):  # reconfigure flushes, and the stream may be full; the next print reports it
        stream.reconfigure(errors=errors)


def _fill_closed() -> None:
    """Open /dev/null for closed standard streams; otherwise the next opened file would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _let_go() -> None:
    """Flush, or redirect to /dev/null: a failing flush at interpreter exit would print a traceback."""
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
    """Print warnings and unraisable exceptions as single lines."""

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
