"""The command line: ``inrfast demo | reproduce | diagnose | ntk | variance | choose | fit | render | ...``.

Results go to stdout (text, or with ``--json`` JSON alone), progress and errors to stderr. Slow imports happen
inside :func:`main`, once a subcommand is known: help, version and mistakes do without them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from inrfast.cli.shell import EXIT_CODES, Interrupts, orderly

__all__ = ["COMMANDS", "EXIT_CODES", "main"]

COMMANDS: Mapping[str, str] = {
    "demo": "fit six starts of one network to a photograph, diagnose them, write numbers, text and figures",
    "reproduce": "make the figures and tables of a paper, with the paper's numbers beside those measured here",
    "diagnose": "measure the numerical ranks of a network's layers and of its tangent kernel at several tolerances",
    "ntk": "print the cost, trace, Frobenius norm and ranks of a tangent kernel, or write the kernel itself",
    "variance": "measure mean and variance of the eigenvalues of a tangent kernel, by layer",
    "choose": "choose omega, sigma, encoding, activation, initialisation and learning rate for a signal before any "
    "training",
    "fit": "fit a network to an image, sound, volume, mesh, cloud or video; write result, reports and model",
    "render": "write the image, sound, volume or mesh that a fitted network stands for, on any grid",
    "inpaint": "fill in the missing pixels of a picture; known pixels stay as they are",
    "upscale": "enlarge a picture; averaged back over areas it is the picture again, if the factor is whole",
    "info": "say what is installed, how the extension was built, and which backends run here",
}
"""What each subcommand does. It is a module of this package with its name: ``add(commands)`` describes its arguments,
``run(arguments)`` returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code (see :data:`EXIT_CODES`).

    Without ``argv`` the words are those of the process, which is to end with the code.
    """
    words = sys.argv[1:] if argv is None else list(argv)

    def work(interrupts: Interrupts) -> int:
        from inrfast.cli.commands import parsed
        from inrfast.cli.early import check_early

        check_early(words)
        arguments = parsed(words)
        interrupts.begin()
        return int(arguments.run(arguments))

    return orderly(work, own=argv is None)
