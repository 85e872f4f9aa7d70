"""A fit that learned nothing says so; sines and FINER learn with the start that they get on the command line."""

import json

import numpy as np
import pytest

import inrfast as inr
from inrfast.cli import main
from inrfast.cli.network_words import words_of


@pytest.fixture
def smooth(tmp_path):
    x = np.linspace(-1, 1, 8)
    np.save(tmp_path / "cube.npy", (np.sin(3 * x)[:, None, None] + x[:, None] * x**2).astype(np.float32))
    return tmp_path / "cube.npy"


def test_a_fit_that_is_no_better_than_the_mean_says_what_to_try(smooth, tmp_path, capsys):
    argv = ["fit", str(smooth), "--width", "16", "--hidden-layers", "2", "--steps", "60", "--quiet"]
    argv += ["--activation", "relu", "--out", str(tmp_path / "o.npy")]
    assert main([*argv, "--lr", "1e-9"]) == 0
    err = capsys.readouterr().err
    assert "mean value alone" in err
    assert "--lr" in err
    assert err.count("\n") == 1
    assert main([*argv, "--lr", "1e-2"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "init"),
    [
        (["--activation", "sine"], ["siren", "siren"]),
        (["--activation", "finer:5"], ["siren", "siren"]),
        (["--activation", "wire"], ["default", "default"]),
        (["--activation", "sine", "--init", "default"], ["default", "default"]),
        (["--activation", "sine", "--hidden-init", "xavier"], ["siren", "xavier"]),
        (["--first-activation", "sine"], ["siren", "default"]),
        (["--first-activation", "relu", "--activation", "finer"], ["default", "siren"]),
    ],
)
def test_sines_and_finer_have_a_start_of_their_own(options, init, capsys):
    argv = ["ntk", "--width", "8", "--hidden-layers", "2", "--grid", "5x4", "--quiet", "--json", *options]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)["network"]["init"]
    both = [found["first"], found["hidden"]] if isinstance(found, dict) and "first" in found else [found, found]
    assert [own["name"] if isinstance(own, dict) else own for own in both] == init


def test_words_name_an_initialisation_that_is_not_the_usual_one():
    for init in ("default", "siren"):
        words = words_of(inr.INR(2, 1, width=8, hidden_layers=2, activation="sine", init=init))
        assert words[words.index("--init") + 1] == init
    assert "--init" not in words_of(inr.INR(2, 1, width=8, hidden_layers=2))
