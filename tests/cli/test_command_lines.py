"""Whatever is typed: a documented exit code, at most one line of error, no traceback, and an end in time."""

import os
import random

import pytest
from command_lines import CODES, OPTIONS, check, command_line, kept_by_a_child, workplace

from inrfast.cli import COMMANDS, EXIT_CODES


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("seed", range(10))
def test_random_command_lines_keep_the_law(place, monkeypatch, seed):
    monkeypatch.chdir(place)
    draws = random.Random(seed)
    for _ in range(8):
        kept_by_a_child(command_line(draws, place))
    assert not [name for name in os.listdir(place) if name.startswith(".")]


def test_the_law_tells_what_breaks_it():
    """The law itself is tried on what the command line must never say."""
    check(["info"], 0, "", 0.1)
    check(["fit"], 2, "inrfast: error: there is no file\n", 0.1)
    for code, err, took in (
        (3, "", 0.1),
        (2, "", 0.1),
        (0, "inrfast: error: it failed\n", 0.1),
        (2, "inrfast: error: one\ninrfast: error: two\n", 0.1),
        (2, f"inrfast: error: {'long ' * 100}\n", 0.1),
        (1, "inrfast: error: unforeseen KeyError\n", 0.1),
        (2, "Traceback (most recent call last):\ninrfast: error: it failed\n", 0.1),
        (0, "", 1000.0),
    ):
        with pytest.raises(AssertionError):
            check(["fit"], code, err, took)


def test_the_generator_knows_every_option_and_every_code(capsys):
    from inrfast.cli import main

    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        words = {word.strip("[],;") for word in capsys.readouterr().out.partition("examples:")[0].split()}
        options = {word for word in words if word.startswith("--")} - {"--help", "--steps", "--quick"}
        assert options == set(OPTIONS[command]), command
    assert all(str(code) in EXIT_CODES for code in CODES)
