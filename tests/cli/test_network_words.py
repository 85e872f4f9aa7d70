"""Networks in words: what is written is read as the same network, and what a shell reads is what was meant."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.cli.network_words import candidate, quoted, words_of
from inrfast.cli.options import Parser, network_arguments, network_options
from inrfast.encodings import spelling
from inrfast.initialisers import INITIALISERS

SIZES = SimpleNamespace(width=8, hidden_layers=2)

numbers = st.floats(1e-3, 1e20)
activations = st.one_of(
    st.sampled_from(sorted(ACTIVATIONS)),
    st.builds(lambda omega: {"name": "sine", "omega": omega}, numbers),
    st.builds(lambda omega, sigma: {"name": "wire", "omega": omega, "sigma": sigma}, numbers, numbers),
)
encodings = st.recursive(
    st.one_of(
        st.just(inr.encodings.Identity()),
        st.builds(inr.RandomFourier, st.integers(1, 5), numbers, trainable=st.booleans()),
        st.builds(inr.PositionalEncoding, st.integers(1, 5)),
        st.builds(inr.Polynomial, st.integers(1, 3), trainable=st.booleans()),
        st.builds(inr.RandomFourier, frequencies=st.just([[1.0, 2.0]])),  # no word says these
        st.builds(inr.Polynomial, st.just(1), st.just([1.0, 0.5])),
    ),
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(lambda own: inr.encodings.Concatenate(*own)),
        st.lists(parts, min_size=1, max_size=2).map(lambda own: inr.encodings.Compose(*own)),
    ),
    max_leaves=4,
)


def parsed(words):
    return network_arguments(Parser(parents=[network_options()]).parse_args(words))


@settings(deadline=None, max_examples=15)
@given(encodings)
def test_a_written_encoding_is_read_as_the_same(encoding):
    text = spelling.written(encoding)
    if text is not None:
        assert spelling.spelled(text).config() == encoding.config()
    elif not isinstance(encoding, (inr.encodings.Concatenate, inr.encodings.Compose)):
        assert "frequencies" in encoding.config() or "coefficients" in encoding.config()


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_the_words_of_a_network_make_the_same_network(data):
    depth = data.draw(st.integers(1, 3))
    first, hidden = data.draw(activations), data.draw(activations)
    encoding = data.draw(st.sampled_from([None, inr.RandomFourier(3, 0.1), inr.PositionalEncoding(2)]))
    inits = sorted(set(INITIALISERS) - {"rank_expanding"} if encoding else INITIALISERS)
    arguments = {
        "width": data.draw(st.integers(1, 9)),
        "hidden_layers": depth,
        "activation": [first] + [hidden] * (depth - 1),
        "omega": data.draw(st.sampled_from([None, 1.5])),
        "encoding": encoding,
        "init": {
            "first": data.draw(st.sampled_from(inits)),
            "hidden": data.draw(st.sampled_from(sorted(INITIALISERS)[:2])),
        },
    }
    net = inr.INR(2, 1, **arguments)
    again = inr.INR(2, 1, **parsed(words_of(net)))
    assert again.bound_activations == net.bound_activations
    for name, tensor in net.state_dict().items():
        assert again.state_dict()[name].equal(tensor)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias": False},
        {"activation": ["relu", "sine", "tanh"]},
        {"norm": "layer"},
        {"encoding": inr.RandomFourier(frequencies=[[1.0, 2.0]])},
        {"init": {"name": "rank_expanding", "bounds": (0, 1)}},
    ],
)
def test_a_network_that_no_options_describe_has_no_words(arguments):
    assert words_of(inr.INR(2, 1, **arguments, width=4)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sine:30 siren", "--activation sine:30 --init siren"),
        ("siren sine omega=30", "--activation sine --omega 30 --init siren"),
        ("fourier:8:1+identity wire:omega=5", "--encoding fourier:8:1+identity --activation wire:5"),
        ("rank_expanding hidden-init=kaiming", "--init rank_expanding --hidden-init kaiming"),
        ("encoding=identity activation=identity", "--encoding identity --activation identity"),
    ],
)
def test_a_candidate_is_the_network_of_the_same_options(text, words):
    got = inr.INR(2, 1, **candidate(text, 2, SIZES))
    expected = inr.INR(2, 1, **parsed(f"--width 8 --hidden-layers 2 {words}".split()))
    assert got.config() == expected.config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["such as"]),
        ("sinee:30", ["sinee:30", "Did you mean 'sine'?"]),
        ("sine batch", ["'batch'"]),
        ("sine relu", ["activation is given twice"]),
        ("identity", ["activation=identity or encoding=identity"]),
        ("fourier:8:1 rank_expanding", ["behind an encoding"]),
        ("omega=3", ["--omega", "got 3"]),
        ("width=3", ["width=3"]),
        ("init=sirn", ["Did you mean 'siren'?"]),
        ("sine:-1", ["omega must be above 0"]),
    ],
)
def test_a_candidate_that_is_none_is_named(text, words):
    with pytest.raises(ValueError, match="--candidate") as caught:
        candidate(text, 2, SIZES)
    assert all(word in str(caught.value) for word in [repr(text), *words])


def test_a_shell_reads_what_was_quoted():
    names = [
        "a b.png",
        "it's",
        "-x.png",
        "a\nb",
        "$(touch hacked)",
        "`id`;&|<>*?[]{}!#~\\",
        "é",
        "\x1b[31m",
        "a\udcffb",
        "\\'\n",
    ]
    line = quoted([*map(Path, names), "$HOME", ""])
    assert line.isprintable()
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, env={})
    read = shell.stdout.split(b"\0")[:-1]
    expected = [name if not name.startswith("-") else f"./{name}" for name in names] + ["$HOME", ""]
    assert read == [name.encode("utf-8", "surrogateescape") for name in expected]
