"""Aliasing: tones are found where they are, fold to where the coarser samples show them, and their energy is shared."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import inrfast as inr


class Tones(torch.nn.Module):
    """A sum of sinusoids and a mean: everything that is asked of it is known."""

    def __init__(self, tones, mean=0.0, outputs=1):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.tones, self.outputs = tones, outputs

    def forward(self, coords):
        waves = [
            amplitude * torch.cos(2 * math.pi * (coords @ torch.tensor(frequency, dtype=torch.float64)) + phase)
            for frequency, amplitude, phase in self.tones
        ]
        return sum(waves, self.mean + 0 * coords[:, 0])[:, None].repeat(1, self.outputs)


def test_a_tone_above_nyquist_is_told_with_its_amplitude_and_energy():
    net = Tones([((23.0,), 1.0, 0.4), ((105.0,), 0.3, 2.0)], mean=5.0)
    found = inr.aliasing(net, 128, 256)
    (peak,) = found.peaks
    assert (peak.frequency, peak.folded) == ((105.0,), (23.0,))
    assert peak.amplitude == pytest.approx(0.3) and peak.level == pytest.approx(20 * math.log10(0.3))
    assert found.share == pytest.approx(0.09 / 1.09)
    assert found.amplitudes_test[found.frequencies_test[0] == 0] == pytest.approx(5.0)
    assert "peak at 105, -10.5 dB, which folds to 23; 8.26 % of the energy (without the mean)" in str(found)
    assert repr(found) == "Aliasing(fs=128, fs_test=256, peaks=1, share=0.0826)"
    assert inr.aliasing(net, 128, 256, floor=-10.0).peaks == ()


def test_without_anything_above_there_is_neither_peak_nor_energy():
    for net in (Tones([((23.0,), 1.0, 0.4)]), Tones([], mean=3.0), Tones([], mean=0.0)):
        found = inr.aliasing(net, 128, 512)
        assert found.peaks == () and found.share < 1e-25
        assert str(found).startswith("no peak above fs / 2")


@given(st.data())
@settings(max_examples=40)
def test_a_tone_folds_to_where_the_coarser_samples_show_it(data):
    """On one or two axes of their own rates and bounds, over two outputs."""
    d = data.draw(st.integers(1, 2))
    sizes = data.draw(st.lists(st.integers(4, 12), min_size=d, max_size=d))
    times = data.draw(st.lists(st.integers(2, 4), min_size=d, max_size=d))
    periods = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=d, max_size=d))
    bins = [data.draw(st.integers(-((n * m - 1) // 2), (n * m - 1) // 2)) for n, m in zip(sizes, times, strict=True)]
    assume(any(abs(k) > n / 2 for k, n in zip(bins, sizes, strict=True)))
    frequency = tuple(k / period for k, period in zip(bins, periods, strict=True))
    rates = [n / period for n, period in zip(sizes, periods, strict=True)]
    found = inr.aliasing(
        Tones([(frequency, 0.7, 0.3)], outputs=2), rates, [rate * m for rate, m in zip(rates, times, strict=True)],
        bounds=[(-period / 4, 3 * period / 4) for period in periods],
    )  # fmt: skip
    (peak,) = found.peaks
    assert peak.frequency in (frequency, tuple(-f for f in frequency))
    assert found.share == pytest.approx(1.0) and peak.amplitude == pytest.approx(0.7 * 2**0.5)
    shown = np.unravel_index(found.amplitudes.argmax(), found.amplitudes.shape)
    shown = np.array([own[place] for own, place in zip(found.frequencies, shown, strict=True)])
    off = [(shown - sign * np.array(peak.folded)) * periods / np.array(sizes) for sign in (1, -1)]
    assert any(np.allclose(one, one.round(), atol=1e-9) for one in off)  # alike but for a multiple of the rates
    assert all(abs(f) <= rate / 2 * (1 + 1e-9) for f, rate in zip(peak.folded, rates, strict=True))


def test_a_jump_between_the_ends_is_warned_of_and_faded_out_by_a_window():
    net = Tones([((2.3,), 1.0, 0.0)])
    with pytest.warns(RuntimeWarning, match="window='hann'"):
        hard = inr.aliasing(net, 16, 256)
    soft = inr.aliasing(net, 16, 256, window="hann")
    assert hard.share > 100 * soft.share
    loud = inr.aliasing(Tones([((23.0,), 1.0, 0.4), ((105.0,), 0.3, 2.0)]), 128, 256, window="hann")
    assert [peak.frequency for peak in loud.peaks] == [(105.0,)]
    assert loud.peaks[0].amplitude == pytest.approx(0.3) and loud.share == pytest.approx(0.09 / 1.09)


@pytest.mark.parametrize("d", [1, 2])
def test_both_spectra_are_drawn(d, tmp_path):
    found = inr.aliasing(Tones([((5.0,) * d, 1.0, 0.0)]), (8,) * d, (16,) * d)
    figure = found.plot(tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").stat().st_size > 1000
    assert figure.axes[0].get_title().startswith("sampled at")
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[0].startswith("fs / 2") or named == ["peak above fs / 2", "fs / 2: half of the coarser rate"]
    with pytest.raises(ValueError, match="one or two coordinates"):
        inr.aliasing(Tones([((1.0, 0.0, 0.0), 1.0, 0.0)]), (4,) * 3, (8,) * 3).plot()


def test_a_network_in_train_mode_keeps_its_mode_and_is_evaluated():
    net = inr.INR(1, 1, width=8, norm="batch")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inr.aliasing(net.train(), 8, 16, window="hann")
    assert net.training and all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"net": 3}, "net"),
        ({"net": torch.nn.Linear(2, 1), "fs": (8, 8, 8)}, "fs"),
        ({"fs": 0}, "fs"),
        ({"fs": 12.5}, "fs"),
        ({"fs": (8, 8)}, "fs"),
        ({"fs_test": 8}, "fs_test"),
        ({"fs_test": "16"}, "fs_test"),
        ({"bounds": (1, 0)}, "bounds"),
        ({"window": "han"}, "window"),
        ({"floor": math.nan}, "floor"),
        ({"memory_budget": 0}, "memory_budget"),
    ],
)
def test_bad_input_is_named_at_the_door(arguments, told):
    with pytest.raises((ValueError, TypeError), match=rf"^{told} must"):
        inr.aliasing(**{"net": inr.INR(1, 1, width=4), "fs": 8, "fs_test": 16, **arguments})


class Calls(torch.nn.Module):
    """A module of one parameter and any function."""

    def __init__(self, function):
        super().__init__()
        self.scale, self.function = torch.nn.Parameter(torch.ones(1)), function

    def forward(self, coords):
        return self.function(self.scale * coords)


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (torch.nn.Sequential(torch.nn.Linear(2, 1)), r"^net must take points \(N, 1\).* fs .*RuntimeError: mat1"),
        (Calls(lambda x: x[:, :0]), r"^net must return values \(N, M\), .*got \(8, 0\) for points \(8, 1\)"),
        (Calls(lambda x: x[:, 0]), r"^net must return .*got \(8,\)"),
        (Calls(lambda x: x[:4]), r"^net must return .*got \(4, 1\)"),
        (Calls(lambda x: x.int()), r"^net must return real values .*int32"),
        (Calls(lambda x: x / 0), r"^net must return 8 rows without NaN"),
    ],
)
def test_a_module_that_does_not_fit_the_points_is_told_with_their_shape(net, told):
    with pytest.raises((ValueError, TypeError), match=told):
        inr.aliasing(net, 8, 16)
