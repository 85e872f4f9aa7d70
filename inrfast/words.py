"""Messages: one printable line of bounded length, whatever was typed, named or found in a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

MOST, MOST_WORD = 300, 150
"""Characters of a message on one line, and of one word in it: a path, or what was typed."""


def one_line(what: object, most: int = MOST) -> str:
    """Return a message as one printable line of at most ``most`` characters; what is cut is cut in the middle."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(what).strip())
    line = re.sub(rf"\S{{{MOST_WORD + 1},}}", lambda word: shortened(word[0], MOST_WORD), line)
    return shortened(line, most)


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, cut in the middle."""
    if len(text) <= most:
        return text
    tail = (most - 3) // 2
    return f"{text[: most - 3 - tail]}...{text[-tail:]}"


NEAR = 0.75
"""Share of letters in common from which on a name is taken for another one mistyped."""


SYNONYMS = {
    "learning_rate": "lr",
    "epochs": "steps",
    "iterations": "steps",
    "num_steps": "steps",
    "max_iter": "steps",
    "values": "target",
    "image": "target",
    "y": "target",
    "x": "coords",
    "model": "net",
    "verbose": "progress",
    "criterion": "loss",
    "hidden_features": "width",
    "hidden_dim": "width",
    "hidden_size": "width",
    "num_layers": "hidden_layers",
    "n_layers": "hidden_layers",
    "depth": "hidden_layers",
    "nonlinearity": "activation",
    "w0": "omega",
    "omega_0": "omega",
    "first_omega_0": "omega",
    "in_dim": "in_features",
    "out_dim": "out_features",
    "in_channels": "in_features",
    "out_channels": "out_features",
    "random_state": "seed",
    "siren": "sine",
    "gabor": "wire",
    "rbf": "gaussian",
    "l2": "mse",
    "mae": "l1",
    "cross_entropy": "bce",
    "logistic": "bce",
}
"""What other libraries call arguments and choices of this one, and their names here."""


def nearest(got: object, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the choice nearest to ``got``, or an empty string.

    A choice is near that other libraries call so, that has three quarters of its letters in common, or the same ones in
    another order, or that ``got`` begins with or begins.
    """
    word = str(got).lower()
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word, lowered, n=1, cutoff=NEAR)
    swapped = [low for low in lowered if sorted(low) == sorted(word)]
    begun = [low for low in lowered if min(len(low), len(word)) > 2 and (low.startswith(word) or word.startswith(low))]
    same = [SYNONYMS[word]] if word not in lowered and SYNONYMS.get(word) in lowered else []
    found = [*same, *close, *swapped, *sorted(begun, key=len, reverse=True)]
    return f" Did you mean {lowered[found[0]]!r}?" if found else ""


def check_choice(argument: str, got: object, choices: Collection[str]) -> str:
    """Return ``got`` if it is one of ``choices``; otherwise name the nearest match."""
    if not isinstance(got, str):
        raise TypeError(f"{argument} must be a name out of {sorted(choices)}, got {type(got).__name__}")
    if got not in choices:
        raise ValueError(f"{argument} must be one of {sorted(choices)}, got {got!r}.{nearest(got, choices)}")
    return got
