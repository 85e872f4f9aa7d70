"""The command line: ``inrfast demo | diagnose | ntk | fit | render | info``.

Results go to stdout (text, or with ``--json`` JSON alone), progress and errors to stderr. What one subcommand alone
needs is imported when that one runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from inrfast.cli import demo, diagnose, fit, info, ntk, render
from inrfast.cli.options import EXIT_CODES, Parser
from inrfast.cli.output import complain
from inrfast.errors import DivergedError, InrfastError, check_choice

__all__ = ["COMMANDS", "EXIT_CODES", "main"]

MODULES: dict[str, ModuleType] = {
    "demo": demo,
    "diagnose": diagnose,
    "ntk": ntk,
    "fit": fit,
    "render": render,
    "info": info,
}
"""One module a subcommand: ``add(commands)`` describes its arguments, its ``run(arguments)`` returns the exit code."""

COMMANDS = tuple(MODULES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code (see :data:`EXIT_CODES`)."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words and not words[0].startswith("-"):
            check_choice("command", words[0], COMMANDS)
        arguments = _parser().parse_args(words)
        return int(arguments.run(arguments))
    except SystemExit as stop:  # argparse has printed the help, or the error
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return complain("interrupted; no file is left half-written", 130)
    except DivergedError as error:
        return complain(error, 1)
    except (ValueError, OSError, InrfastError) as error:
        return complain(error, 2)


def _parser() -> Parser:
    parser = Parser(
        prog="inrfast",
        description="See where an implicit neural representation loses rank, cure it, and fit it fast.",
        epilog="Try:  inrfast demo\n      inrfast fit --help\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for module in MODULES.values():
        module.add(commands)
    return parser
