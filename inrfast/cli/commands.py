"""How a command line is taken apart: the parser, and the help of subcommands. Nothing here is slow to import."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any, NoReturn

from inrfast import __version__
from inrfast.cli import COMMANDS
from inrfast.cli.shell import EXIT_CODES, UsageError, print_out, say
from inrfast.words import check_choice, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are those of :mod:`inrfast.cli.shell`."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, as an exception."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help as results are printed, since argparse ignores a full stdout."""
        print_out(self.format_help().rstrip())


class _Version(argparse.Action):
    """Print the version and end."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        print_out(f"{parser.prog} {__version__}")
        parser.exit()


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the arguments of a command line; only the module of its subcommand is imported.

    Raises
    ------
    UsageError, ValueError
        It cannot be understood.
    SystemExit
        It asked for help or the version, which has been printed.
    """
    if words and not words[0].startswith("-"):
        check_choice("command", words[0], COMMANDS)
    for word in words:
        if word.startswith("--") and word.endswith("=--"):  # argparse drops the -- and then finds no value
            raise UsageError(f"{word.removesuffix('=--')} takes a value, got '--'")
    parser = Parser(
        prog="inrfast",
        description="See where an implicit neural representation loses rank, cure it, and fit it fast.",
        epilog="Try:  inrfast demo\n      inrfast fit --help\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    if words and words[0] in COMMANDS:
        importlib.import_module(f"inrfast.cli.{words[0]}").add(commands)
    else:  # help, the version, or a mistake
        for name, summary in COMMANDS.items():
            commands.add_parser(name, help=summary, add_help=False)
    if not words:
        say(parser.format_help().rstrip() + "\n")
        raise UsageError("a command is required, such as inrfast demo; all of them are listed above")
    found, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(unknown, commands.choices[found.command])
    return found


def _refuse(unknown: list[str], command: argparse.ArgumentParser) -> NoReturn:
    """Say which words of a command line are none of a command's, and the nearest option."""
    options = {own.lstrip("-").replace("-", "_"): own for own in command._option_string_actions}
    first = next((word for word in unknown if word.startswith("-")), "")
    hint = nearest(first.partition("=")[0].lstrip("-").replace("-", "_"), options) if first else ""
    for name, own in options.items():
        hint = hint.replace(repr(name), own)
    told = f"unrecognized arguments: {' '.join(unknown)}"
    command.error(f"{told}.{hint}" if hint else told)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], parents: list[Parser], examples: str
) -> Parser:
    """Add a subcommand with its help, examples and exit codes."""
    summary = COMMANDS[name]
    added: Parser = commands.add_parser(
        name,
        parents=parents,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added
