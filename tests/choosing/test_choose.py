"""A choice keeps its order under changes that change no network's task, and is what its lines say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import inrfast as inr
from inrfast.choosing.candidates import rate_of
from inrfast.choosing.samples import samples_of
from inrfast.signals.kinds import Signal

SINES = [{"activation": "sine", "omega": omega, "init": "siren"} for omega in (2.0, 10.0, 300.0)]
OTHERS = [
    {},
    {"encoding": inr.RandomFourier(8, 2.0)},
    {"encoding": inr.PositionalEncoding(2).config()},
    {"encoding": inr.encodings.Concatenate(inr.encodings.Identity(), inr.RandomFourier(4, 1.0))},
    {"activation": {"name": "wire", "omega": 5.0, "sigma": 3.0}, "init": {"first": "siren", "hidden": "xavier"}},
    {"activation": {"first": "sine", "hidden": "relu"}, "omega": [8.0, 1.0], "hidden_layers": 2, "bias": False},
    lambda seed: inr.INR(1, 2, width=5, activation="tanh", dtype=torch.float64, seed=seed),
]


WILD = [{"activation": "sine", "omega": 1e9, "init": "siren"}]
"""Whose kernel no precision determines."""


def tones(points, *rates):
    x = inr.grid(points)
    return torch.cat([torch.sin(rate * x + 0.3) for rate in rates], dim=1)


def order(choice):
    return [candidate.name for candidate in choice.candidates]


def chosen(signal, coords=None, candidates=SINES, **given):
    return inr.choose(signal, coords, candidates, **{"width": 32, "hidden_layers": 2, "progress": False, **given})


def test_a_line_and_a_network_are_the_same_and_all_is_plain():
    choice = chosen(tones(96, 9.0, 4.0), candidates=[*SINES, *OTHERS], width=8)
    assert len(choice.candidates) == len(SINES) + len(OTHERS)
    for candidate in choice.candidates:
        written = eval(candidate.line, {"inr": inr})
        made = candidate.network()
        assert written.config() == made.config()
        for one, other in zip(written.state_dict().values(), made.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        assert candidate.lr == float(f"{rate_of(made, candidate.psnr):.2g}")
    again = json.loads(json.dumps(choice.to_dict()))
    assert [entry["line"] for entry in again["candidates"]] == [candidate.line for candidate in choice.candidates]
    assert choice.line == choice.candidates[0].line
    assert choice.network(3).config()["seed"] == 3


def test_the_best_omega_goes_with_the_frequency_of_the_signal():
    x = inr.grid(400)
    best = [chosen(torch.sin(rate * x), candidates=SINES).best.arguments["omega"] for rate in (1.5, 300.0)]
    assert best[0] < best[1]


def test_offset_sign_and_order_of_points_change_no_order():
    x = inr.grid((14, 14))
    y = torch.sin(7 * x[:, :1]) * torch.cos(3 * x[:, 1:])
    first = chosen(y, x, data_range=1.0)
    with pytest.warns(RuntimeWarning, match=r"without its mean \(5\)"):
        moved = chosen(5 - y, x, data_range=1.0)
    assert moved.offset == pytest.approx(5, abs=0.1)
    assert "Predicted for the signal without its mean (5)" in " ".join(str(moved).split())
    assert order(moved) == order(first)
    psnrs = [[candidate.psnr for candidate in choice.candidates] for choice in (first, moved)]
    np.testing.assert_allclose(*psnrs, atol=1e-3)
    halved = chosen(y, x, data_range=0.5).candidates[0].psnr
    assert halved == pytest.approx(psnrs[0][0] - 20 * np.log10(2))
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert set(order(chosen(y[shuffled], x[shuffled]))) == set(order(first))


def test_a_signal_is_the_same_as_a_tensor_a_file_or_with_its_points(tmp_path):
    values = tones(300, 11.0)
    path = tmp_path / "tone.wav"
    inr_audio = pytest.importorskip("inrfast.signals.audio")
    inr_audio.save_audio(0.5 * values, path, 8000)
    by_tensor, by_points = chosen(values), chosen(values, inr.grid(300))
    by_signal = chosen(Signal(inr.grid(300), values, {"shape": [300], "scale": 1.0, "offset": 0.0}))
    assert order(by_tensor) == order(by_points) == order(by_signal) == order(chosen(path))
    assert [c.psnr for c in by_tensor.candidates] == [c.psnr for c in by_points.candidates]


def test_the_search_finds_more_than_the_coarse_list_and_stops_when_told():
    choice = inr.choose(tones(80, 30.0), width=8, hidden_layers=1, progress=False)
    psnrs = [candidate.psnr for candidate in choice.candidates]
    assert psnrs == sorted(psnrs, reverse=True)
    assert len(psnrs) > 20
    assert choice.stopped == "done"
    short = inr.choose(tones(80, 30.0), width=8, hidden_layers=1, seconds=1e-9, progress=False)
    assert (len(short.candidates), short.stopped) == (1, "time")


def test_an_interrupt_returns_what_is_known_and_raises_before(monkeypatch):
    calls = []

    def interrupted(seed):
        calls.append(seed)
        if len(calls) > 1:  # the first call is at the door
            raise KeyboardInterrupt
        return inr.INR(1, 1, width=4, seed=seed)

    with pytest.warns(RuntimeWarning, match="interrupted after 1 candidates"):
        choice = chosen(tones(80, 5.0), candidates=[{}, interrupted])
    assert (len(choice.candidates), choice.stopped) == (1, "interrupted")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        chosen(tones(80, 5.0), candidates=[interrupted])


def test_checked_candidates_come_in_the_order_of_their_fits():
    choice = chosen(tones(120, 8.0), check=2, width=8)
    fitted = [candidate.fitted for candidate in choice.candidates]
    assert fitted[0] >= fitted[1]
    assert fitted[2] is None


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize(
    ("signal", "given", "words"),
    [
        (torch.ones(100, 1), {}, "constant"),
        (tones(20, 3.0), {}, "at least 64 samples"),
        (torch.full((100, 1), torch.nan), {}, "finite"),
        (torch.zeros(100), {}, "values last"),
        (torch.rand(4, 20, 30), {}, r"at most 16 .*signal\[\.\.\., None\]"),
        (
            Image.new("L", (16, 20)),
            {},
            r"wider than 16 pixels .* 20 samples of 16 values; give numpy.asarray\(image\)\[",
        ),
        (
            tones(100, 3),
            {"candidates": [{"bounds": (0, 1)}]},
            r"candidates\[0\] must state no bounds, got \(\(0.0, 1.0\),",
        ),
        (
            tones(100, 3),
            {"candidates": [lambda seed: inr.INR(1, 1, bounds=(0, 1), seed=seed)]},
            r"candidates\[0\] must state no bounds",
        ),
        (torch.zeros(20, 20, 3, dtype=torch.int32), {}, r"int32; give signal\.float\(\) / 255"),
        (np.zeros((20, 20, 3), np.int32), {}, r"int32; give signal\.astype\(\"float32\"\) / 255"),
        (tones(100, 3.0), {"coords": torch.zeros(100, 1)}, "coords must hold at least 64 different points, got 1 "),
        (tones(100, 3.0), {"candidates": WILD}, r"omega=1e\+09"),
        (tones(100, 3.0), {"coords": torch.zeros(99, 1)}, "one point a value"),
        (tones(100, 3.0), {"coords": torch.zeros(100)}, r"shape \(N, d\)"),
        (tones(100, 3.0), {"candidates": []}, "empty"),
        (tones(100, 3.0), {"candidates": {"a": 1}}, "sequence"),
        (tones(100, 3.0), {"candidates": [{}, {"activation": "sinus"}]}, r"candidates\[1\].*sin"),
        (tones(100, 3.0), {"candidates": [{"omegas": 3.0}]}, r"candidates\[0\].*omegas"),
        (tones(100, 3.0), {"candidates": [3]}, r"candidates\[0\]"),
        (tones(100, 3.0), {"candidates": [{"norm": "batch"}]}, r"candidates\[0\].*norm"),
        (tones(100, 3.0), {"candidates": [lambda seed: inr.INR(2, 1, width=3)]}, "1 coordinates and 1 outputs"),
        (tones(100, 3.0), {"candidates": [lambda seed: torch.nn.Linear(1, 1)]}, "INR"),
        (tones(100, 3.0), {"points": 3}, "points"),
        (tones(100, 3.0), {"width": 0}, "width"),
        (tones(100, 3.0), {"seconds": -1.0}, "seconds"),
        (tones(100, 3.0), {"check": -1}, "check"),
        (tones(100, 3.0), {"data_range": 0.0}, "data_range"),
        ("missing.png", {}, "missing"),
        (3, {}, "signal"),
    ],
)
def test_bad_input_is_refused_at_the_door(signal, given, words):
    coords, candidates = given.pop("coords", None), given.pop("candidates", SINES)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=words):
        chosen(signal, coords, candidates, **given)


def test_a_kernel_beyond_the_budget_is_refused():
    with pytest.raises(inr.errors.MemoryBudgetError, match="lower points") as raised:
        chosen(tones(200, 3.0), memory_budget=30000)
    assert "memmap" not in str(raised.value)
    with pytest.raises(inr.errors.MemoryBudgetError, match=r"signal of 200 samples.*fewer samples"):
        chosen(tones(200, 3.0), memory_budget=5000, points=100)


def test_values_at_points_may_come_without_an_axis_of_channels():
    x = inr.grid((9, 10))
    y = torch.sin(3 * x[:, :1]) + x[:, 1:]
    first = chosen(y, x, SINES[:1]).best.psnr
    for shape in ((90,), (9, 10), (9, 10, 1)):
        assert chosen(y.reshape(shape), x, SINES[:1]).best.psnr == first
    assert chosen(y.reshape(9, 10, 1), candidates=SINES[:1]).best.psnr == first


def test_a_candidate_that_cannot_be_predicted_is_named_and_others_go_on():
    choice = chosen(tones(100, 3.0), candidates=[*WILD, {}])
    assert [own.name for own in choice.candidates] == ["relu"]
    ((name, reason),) = choice.refused
    assert name == "sine(omega=1e+09), siren"
    assert "ill-conditioned" in reason
    assert name in str(choice)


def test_candidates_that_differ_in_size_have_names_that_differ():
    choice = chosen(tones(100, 3.0), candidates=[{}, {"width": 8}])
    assert {own.name for own in choice.candidates} == {"relu, width=32", "relu, width=8"}


def test_few_places_of_many_points_are_enough():
    x = torch.cat([inr.grid(80), torch.zeros(3000, 1)])
    assert len(chosen(torch.sin(3 * x), x, SINES[:1], points=300).candidates) == 1
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    assert len(chosen(x.sum(1), x, SINES[:1], points=64).candidates) == 1


def test_noise_is_not_said_to_be_better_than_its_mean():
    noise = torch.randn(150, 1, generator=torch.Generator().manual_seed(0))
    choice = chosen(noise)
    deviation = float(noise.double().std(correction=0)) / choice.data_range
    assert choice.mean_psnr == choice.to_dict()["mean_psnr"] == pytest.approx(-20 * np.log10(deviation))
    assert "No network is predicted to do better than the mean" in " ".join(str(choice).split())
    said = str(chosen(tones(150, 3.0)))
    assert "The mean alone:" in said
    assert "No network" not in said


@pytest.mark.filterwarnings("ignore:.*pixels of")
@pytest.mark.parametrize("width", [24, 8])
def test_pixels_mean_what_their_values_mean(width):
    pixels = torch.randint(
        0, 256, (24 * 24 // width, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    same = [pixels, pixels / 255, pixels.numpy()]
    same += [pixels[..., None], Image.fromarray(pixels.numpy())] if width > 16 else []
    found = [samples_of(own, data_range=1) for own in same]
    for own in found:
        assert torch.equal(own.values, found[0].values) and own.shape == found[0].shape
    assert found[0].shape == ((24, 24) if width > 16 else (72,))
    assert samples_of(pixels).data_range == 1
