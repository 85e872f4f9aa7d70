"""Options that kinds of signals take; several kinds may share one, and the kind of the file reads its value."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from inrfast.cli.output import progress, reading
from inrfast.cli.shell import UsageError
from inrfast.signals.kinds import SIGNALS, Option, Signal, kind_of, load_signal
from inrfast.signals.paths import readable
from inrfast.spelling import choice

Which = Literal["options", "render_options"]
"""The attribute of a kind: its options of ``fit``, or of ``render``."""


def add_kind_option(parser: argparse._ActionsContainer) -> None:
    """Add the option that names the kind of the signal."""
    parser.add_argument(
        "--as",
        dest="kind",
        type=choice("--as", SIGNALS),
        help=f"the kind of the signal, where the file does not tell: {', '.join(SIGNALS)}",
    )


def kind_given(arguments: argparse.Namespace) -> str:
    """Return the kind of the signal that a command is given: as asked for, or else by the file.

    An option of the kind to which the suffix belongs says so too: ``--page`` of an animation asks for an image.
    """
    found = kind_of(arguments.signal, arguments.kind)
    if arguments.kind is None and not os.path.isdir(arguments.signal):
        suffix = arguments.signal.suffix.lower()
        for name in (name for name, kind in SIGNALS.items() if suffix in kind.readable() and name != found):
            own = set(SIGNALS[name].options) - set(SIGNALS[found].options)
            if any(getattr(arguments, option.replace("-", "_")) is not None for option in own):
                return name
    return found


def add_signal_options(parser: argparse._ActionsContainer, which: Which) -> None:
    """Add the options of all kinds; values are texts until :func:`given_options` knows the kind.

    Raises
    ------
    ValueError
        An option is a switch for one kind and takes a value for another.
    """
    for option, takers in _by_option(which).items():
        texts = list(dict.fromkeys(taker.help for taker in takers.values()))
        switches = {taker.type is None for taker in takers.values()}
        if len(switches) > 1:
            raise ValueError(f"--{option} must take a value for all of {', '.join(takers)}, or for none")
        named = [f"{', '.join(n for n, taker in takers.items() if taker.help == text)}: {text}" for text in texts]
        about = "; ".join(named).replace("%", "%%")
        if switches == {True}:
            parser.add_argument(f"--{option}", action="store_true", default=None, help=about)
        else:
            parser.add_argument(f"--{option}", help=about)


def given_options(arguments: argparse.Namespace, kind: str, which: Which, file: Path) -> dict[str, Any]:
    """Return the options that were given, as the kind reads them.

    Raises
    ------
    ValueError
        One that the kind of ``file`` does not take.
    UsageError
        A text that the kind cannot read.
    """
    given = {}
    for option, takers in _by_option(which).items():
        text = getattr(arguments, option.replace("-", "_"))
        if text is None:
            continue
        if kind not in takers:
            others = " or ".join(takers)
            own = ", ".join(f"--{name}" for name in getattr(SIGNALS[kind], which)) or "no such option"
            raise ValueError(f"--{option} goes with a signal of the kind {others}; {file} is of {kind}, with {own}")
        given[option.replace("-", "_")] = _read(option, takers[kind], text)
    return given


def given_words(arguments: argparse.Namespace, kind: str, which: Which) -> list[str]:
    """Return the options that were given, as they were given, for another command line."""
    words = [] if arguments.kind is None else ["--as", arguments.kind]
    for option in getattr(SIGNALS[kind], which):
        text = getattr(arguments, option.replace("-", "_"))
        words += [] if text is None else [f"--{option}"] if text is True else [f"--{option}", text]
    return words


def load_given(arguments: argparse.Namespace, kind: str, options: Mapping[str, Any]) -> Signal:
    """Return the signal in the file of a command line."""
    with reading(arguments, arguments.signal):
        return load_signal(
            kind,
            arguments.signal,
            seed=arguments.seed,
            memory_budget=arguments.memory_budget,
            progress=progress(arguments),
            **options,
        )


def files_read(signal: Path, kind: str, options: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files that are read, the signal and those of its options, by what each is called, if all are files.

    Raises
    ------
    OSError, ValueError
        One is missing, is no file, or has a name that no file has.
    """
    read = {"the signal": signal}
    read |= {f"--{option}": value for option, value in options.items() if isinstance(value, Path)}
    for what, file in read.items():
        if what == "the signal" and SIGNALS[kind].folders and os.path.isdir(file):
            continue
        readable(file, SIGNALS[kind].called if what == "the signal" else f"a {what}")
    return read


def _read(option: str, taker: Option, text: Any) -> Any:
    if taker.type is None:
        return text
    try:
        return taker.type(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"argument --{option}: {error}") from None


def _by_option(which: Which) -> Mapping[str, dict[str, Option]]:
    """Return, for each option, the kinds that take it."""
    found: dict[str, dict[str, Option]] = {}
    for name, kind in SIGNALS.items():
        for option, taker in getattr(kind, which).items():
            found.setdefault(option, {})[name] = taker
    return found
