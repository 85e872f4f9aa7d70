"""Networks in words: those of a candidate of ``inrfast choose``, and the options of ``inrfast fit`` that make one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inrfast.activations import ACTIVATIONS, BoundActivation
from inrfast.cli.options import Parser, network_arguments, network_options, start_of
from inrfast.cli.shell import UsageError
from inrfast.encodings import spelling as encoding_spelling
from inrfast.errors import nearest
from inrfast.initialisers import INITIALISERS
from inrfast.nn import INR

OPTIONS = (
    "activation",
    "first-activation",
    "omega",
    "init",
    "hidden-init",
    "encoding",
)
"""Options of a network that a candidate may name itself, as in ``first-activation=sine:60``. There are no norms: a
kernel is that of a network whose outputs do not hang on the other points of a batch."""


def candidate(text: str, axes: int, sizes: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`inrfast.INR` that a candidate's words describe, as ``inrfast fit`` would.

    A word is an activation, an encoding or an initialisation, as the options of ``fit`` write it, or an option
    and its value: ``"sine:30 siren"``, ``"fourier:256:10"``, ``"relu rank_expanding hidden-init=kaiming"``.

    Parameters
    ----------
    text
        The words.
    axes
        Coordinates of a point of the signal.
    sizes
        Has ``width`` and ``hidden_layers``, which all candidates share.

    Raises
    ------
    UsageError, ValueError
        No words, a word that is none of these, two for one option, or a network that there is not; the text is named.
    """
    given: dict[str, str] = {}
    parser = Parser(prog="inrfast choose", add_help=False, parents=[network_options()])
    try:
        for word in text.split():
            option, value = _meant(word)
            if option in given:
                raise UsageError(f"{option} is given twice, {given[option]!r} and {value!r}")
            given[option] = value
        if not given:
            raise UsageError("takes words such as 'sine:30 siren' or 'fourier:256:10'")
        described = parser.parse_args([f"--{option}={value}" for option, value in given.items()])
        described.width, described.hidden_layers = sizes.width, sizes.hidden_layers
        found = network_arguments(described)
        INR(axes, 1, **found)
        return found
    except ValueError as error:
        reason = str(error).removeprefix("argument --").removesuffix(f" (see {parser.prog} --help)")
        raise UsageError(f"--candidate {text!r}: {reason}") from None


def _meant(word: str) -> tuple[str, str]:
    """Return the option that a word stands for, and its value."""
    option, equals, value = word.partition("=")
    if equals and option in OPTIONS:
        return option, value
    if encoding_spelling.BESIDE.search(word) or encoding_spelling.THEN.search(word):
        return "encoding", word
    name = word.partition(":")[0]
    known = {
        "activation": tuple(ACTIVATIONS),
        "encoding": encoding_spelling.names(),
        "init": tuple(INITIALISERS),
    }
    kinds = [option for option, names in known.items() if name in names]
    if len(kinds) == 1:
        return kinds[0], word
    if kinds:
        raise UsageError(f"{word!r} may be {' or '.join(f'{kind}={word}' for kind in kinds)}; write which")
    every = [name for names in known.values() for name in names]
    raise UsageError(
        f"{word!r} is no activation, encoding or initialisation, nor an option of a network and its value such "
        f"as init=siren.{nearest(name, every)}"
    )


def words_of(net: INR) -> list[str] | None:
    """Return the options of ``inrfast fit`` that make this network, or None where they cannot say all that it is."""
    first, *hidden = net.bound_activations
    inits = _inits(net.init)
    encoding = None if net.encoding is None else encoding_spelling.written(net.encoding)
    biased = all(layer.bias is not None for layer in net.layers)
    if inits is None or not biased or len(set(hidden)) > 1 or any(net.norm_names) or net.modulation_configs:
        return None
    if net.encoding is not None and encoding is None:
        return None
    usual = hidden[0] if hidden else first
    words = ["--width", str(net.width), "--hidden-layers", str(net.hidden_layers), "--activation", _spelled(usual)]
    words += ["--first-activation", _spelled(first)] if first != usual else []
    words += ["--encoding", encoding] if encoding is not None else []
    said = {*inits, start_of(first.name), start_of(usual.name)} != {"default"}
    words += ["--init", inits[0]] if said else []
    words += ["--hidden-init", inits[1]] if inits[1] != inits[0] else []
    return words


def _spelled(activation: BoundActivation) -> str:
    return ":".join([activation.name, *(repr(number).removesuffix(".0") for number in activation.numbers)])


def _inits(rule: Any) -> tuple[str, str] | None:
    """Return the names of the first and the hidden layers' initialisations; None if one has options of its own."""
    both = [rule, rule]
    if isinstance(rule, Mapping) and "name" not in rule:
        both = [rule.get("first", "default"), rule.get("hidden", "default")]
    names = [own["name"] if isinstance(own, Mapping) and set(own) == {"name"} else own for own in both]
    known = [name for name in names if isinstance(name, str)]
    return (known[0], known[1]) if len(known) == 2 else None


def quoted(words: Sequence[str | Path]) -> str:
    """Return words as a line for a shell (POSIX), whatever bytes a path among them has, printable on one line."""
    return " ".join(map(_quoted, words))


def _quoted(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    data = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\{b:03o}" for b in data) + "'"
