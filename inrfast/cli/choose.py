"""``inrfast choose``: which network, and which learning rate, a signal asks for, before any training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inrfast.cli.commands import add_command
from inrfast.cli.network_words import candidate, quoted, words_of
from inrfast.cli.options import common_options, memory_option, seed_option, size_options
from inrfast.cli.output import (
    bar,
    check_apart,
    check_file,
    check_target,
    make_folder,
    print_result,
    progress,
)
from inrfast.cli.shell import INTERRUPTED, complain
from inrfast.cli.signal_options import (
    add_kind_option,
    add_signal_options,
    files_read,
    given_options,
    given_words,
    kind_given,
    load_given,
)
from inrfast.errors import warn
from inrfast.plots import SUFFIXES, check_drawable
from inrfast.signals.kinds import SIGNALS, Signal
from inrfast.spelling import level, path, whole

if TYPE_CHECKING:
    from inrfast.choosing.choice import Choice


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "choose",
        run,
        [common_options(device_option=False), seed_option()],
        "  inrfast choose photo.jpg\n"
        "  inrfast choose photo.jpg --size 128 --grey --width 128 --check 3 --out out/choice.png\n"
        "  inrfast choose speech.wav --seconds 60\n"
        '  inrfast choose photo.jpg --candidate "sine:30 siren" --candidate "sine:60 siren" --candidate fourier:128:4\n'
        '  inrfast choose bunny.obj --candidate "relu rank_expanding" --candidate "identity+fourier:64:1" --json\n',
    )
    parser.add_argument(
        "signal",
        type=path,
        help=f"the file: {', '.join(SIGNALS)}; as inrfast fit takes it",
    )
    add_kind_option(parser)
    add_signal_options(parser.add_argument_group("signal"), "options")
    group = parser.add_argument_group("networks")
    size_options(group)
    group.add_argument(
        "--candidate",
        action="append",
        metavar="WORDS",
        help="a network to consider in place of the search; may be given again. Words as the options of inrfast fit "
        'write them: an activation, an encoding, an initialisation, such as "sine:30 siren"; or an option and '
        'its value, such as "sine:30 siren first-activation=sine:60"',
    )
    group = parser.add_argument_group("effort")
    group.add_argument("--points", type=whole(), default=2400, help="samples that are looked at, at most (%(default)s)")
    group.add_argument("--check", type=whole(0), default=0, help="fit so many of the best for a short time (0)")
    group.add_argument("--seconds", type=level, help="begin no further network after this time (no limit)")
    memory_option(group)
    parser.add_argument("--out", type=path, help="figure to write (.png, .pdf, .svg), and a report (.json) beside it")


def run(arguments: argparse.Namespace) -> int:
    """Choose, print the table, and write figure and report where a file is named."""
    from inrfast.choosing.choose import choose

    name = kind_given(arguments)
    options = given_options(arguments, name, "options", arguments.signal)
    _check_files(arguments, name, options)
    given = arguments.candidate and [candidate(text, SIGNALS[name].axes, arguments) for text in arguments.candidate]
    signal = load_given(arguments, name, options)
    if signal.enlarged:
        warn(enlarged_told(arguments.signal, signal))
    with bar(arguments, "the choice"):
        choice = choose(
            signal,
            candidates=given,
            width=arguments.width,
            hidden_layers=arguments.hidden_layers,
            points=arguments.points,
            check=arguments.check,
            seconds=arguments.seconds,
            seed=arguments.seed,
            memory_budget=arguments.memory_budget,
            progress=progress(arguments),
        )
    command = fit_command(arguments, choice, given_words(arguments, name, "options"))
    found = {
        "schema": "inrfast.choose/1",
        "signal": str(arguments.signal),
        "kind": name,
        "command": command,
        "choice": told(choice),
        "out": None if arguments.out is None else str(arguments.out),
    }
    text = str(choice) if command is None else f"{choice}\n\nor: {command}"
    if arguments.out is not None:
        _write(arguments.out, choice, found)
        text += f"\n\nwrote {arguments.out} and {arguments.out.with_suffix('.json')}"
    print_result(arguments, found, text)
    if choice.stopped == "interrupted":
        return complain("interrupted; kept what was predicted so far", INTERRUPTED)
    return 0


def spelled(size: Sequence[int]) -> str:
    """Return a size as ``--size`` takes it."""
    return "x".join(map(str, size))


def enlarged_told(file: Path, signal: Signal) -> str:
    """Return what a signal that was enlarged does to a prediction, and what to do."""
    assert signal.stored is not None
    own, size = spelled(signal.stored), spelled(signal.about["shape"])
    return (
        f"{file} has {own} pixels and is enlarged to {size}: what is predicted between them is too high; "
        f"take it at its own size, --size {own}"
    )


def told(choice: Choice) -> dict[str, Any]:
    """Return a choice for a report, as JSON holds it (without infinite numbers), with what makes the best."""
    return {**choice.to_dict(), "line": choice.line, "lr": choice.lr}


def fit_command(arguments: argparse.Namespace, choice: Choice, signal_words: list[str]) -> str | None:
    """Return the command that fits the best network, for a shell; None where no options describe that network."""
    words = words_of(choice.network(seed=0))
    if words is None:
        return None
    seed = ["--seed", str(arguments.seed)] if arguments.seed else []
    rate = ["--lr", repr(choice.lr)]
    return quoted(["inrfast", "fit", arguments.signal, *signal_words, *words, *rate, *seed])


def _check_files(arguments: argparse.Namespace, name: str, options: dict[str, Any]) -> None:
    """Refuse files that cannot be read or written before anything takes time."""
    read = files_read(arguments.signal, name, options)
    if arguments.out is None:
        return
    check_file(arguments.out, SUFFIXES, " or ".join(SUFFIXES))
    check_drawable(arguments.out)
    report = arguments.out.with_suffix(".json")
    check_target("--out", report)
    check_apart((arguments.out, report), read)


def _write(out: Path, choice: Choice, found: dict[str, Any]) -> None:
    """Write the figure and the report beside it, both or neither."""
    from inrfast.files import whole_file

    make_folder(out)
    with whole_file(out.with_suffix(".json")) as file:
        file.write((json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
        choice.plot(out)
