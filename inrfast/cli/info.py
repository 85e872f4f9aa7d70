"""``inrfast info``: what is installed here and what runs."""

from __future__ import annotations

import argparse
from typing import Any

from inrfast.cli.commands import add_command
from inrfast.cli.output import print_result


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "info",
        run,
        [],
        "  inrfast info\n  inrfast info --json\n",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print what is here."""
    from inrfast import info

    found = info.info()
    print_result(arguments, found, info.render(found))
    return 0
