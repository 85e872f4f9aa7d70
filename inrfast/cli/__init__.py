"""The command line: ``inrfast demo | reproduce | diagnose | ntk | choose | fit | render | inpaint | upscale | info``.

Results go to stdout (text, or with ``--json`` JSON alone), progress and errors to stderr. Slow imports happen
inside :func:`main`, and those that only one subcommand needs when that one runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from inrfast.cli.shell import EXIT_CODES, Interrupts, orderly

__all__ = ["COMMANDS", "EXIT_CODES", "main"]

COMMANDS = ("demo", "reproduce", "diagnose", "ntk", "choose", "fit", "render", "inpaint", "upscale", "info")
"""Subcommands, one module each: ``add(commands)`` describes its arguments, ``run(arguments)`` returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code (see :data:`EXIT_CODES`).

    Without ``argv`` the words are those of the process, which is to end with the code.
    """
    words = sys.argv[1:] if argv is None else list(argv)

    def work(interrupts: Interrupts) -> int:
        from inrfast.cli.options import parsed

        arguments = parsed(words, COMMANDS)
        interrupts.begin()
        return int(arguments.run(arguments))

    return orderly(work, own=argv is None)
