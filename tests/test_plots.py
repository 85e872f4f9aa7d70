"""Figures: what is drawn is what was given, bad input is named, and files are written whole or not at all."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from inrfast import plots

RTOLS = (1e-2, 1e-4, 1e-3)


def test_ranks_are_drawn_from_large_to_small_tolerance():
    axes = plots.rank_against_tolerance(
        RTOLS, {"one": [(1, 1), (5, 7), (3, 3)], "two": [(2, 2)] * 3}, full_rank=9, title="ranks"
    )
    one = axes.get_lines()[0]
    np.testing.assert_allclose(one.get_xdata(), [1e-2, 1e-3, 1e-4])
    np.testing.assert_allclose(one.get_ydata(), [1, 3, 6])
    assert axes.xaxis_inverted()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert len(axes.collections) == 1  # one curve has an interval to shade
    assert axes.get_xlabel() and axes.get_ylabel() == "numerical rank" and axes.get_title() == "ranks"


def test_spectra_are_relative_to_the_largest_or_to_what_is_given():
    curves = {"a": torch.tensor([4.0, 2.0, 1.0]), "b": [8.0, 2.0]}
    own = plots.spectra(curves)
    np.testing.assert_allclose(own.get_lines()[0].get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(own.get_lines()[1].get_ydata(), [1, 0.25])
    common = plots.spectra(curves, quantity="lambda", relative_to=16.0)
    np.testing.assert_allclose(common.get_lines()[0].get_ydata(), [0.25, 0.125, 0.0625])
    assert own.get_yscale() == "log"


def test_dashed_curves_repeat_the_colours_and_black_ones_take_none():
    curves = {name: [1.0] for name in ("sum", "z0", "z1", "w0", "w1")}
    lines = plots.spectra(curves, dashed=["w0", "w1"], black=["sum"]).get_lines()
    colours = [line.get_color() for line in lines]
    assert colours[0] == plots.BLACK
    assert colours[1:3] == colours[3:5] == list(plots.PALETTE[:2])
    assert [line.get_linestyle() for line in lines] == ["-", "-", "-", "--", "--"]


def test_curves_beyond_the_palette_can_still_be_told_apart():
    lines = plots.spectra({str(k): [1.0] for k in range(2 * len(plots.PALETTE))}).get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)


def test_functions_draw_on_given_axes():
    left, right = Figure().subplots(1, 2)
    assert plots.rank_against_tolerance((1e-2,), {"a": [(1, 1)]}, left, legend=False) is left
    assert plots.spectra({"a": [1.0]}, right, legend=False) is right
    assert left.get_legend() is None


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_reconstructions_stand_side_by_side_with_their_psnr(shape):
    target = torch.rand(shape)
    axes = plots.reconstructions({"default": (target + 1, 12.345), "siren": (target.numpy(), 30.0)}, target)
    assert [panel.get_title() for panel in axes] == ["target", "default\n12.35 dB", "siren\n30.00 dB"]
    drawn = [np.asarray(panel.get_images()[0].get_array()) for panel in axes]
    np.testing.assert_allclose(drawn[0], target.double().numpy().squeeze(), rtol=1e-6)
    np.testing.assert_allclose(drawn[1], np.ones_like(drawn[1]))  # clipped


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.rank_against_tolerance(RTOLS, {}), ValueError, "at least one"),
        (lambda: plots.rank_against_tolerance(RTOLS, [[(1, 1)]]), TypeError, "curves"),
        (lambda: plots.rank_against_tolerance(RTOLS, {"a": [(1, 1)]}), ValueError, "one rank per tolerance"),
        (lambda: plots.rank_against_tolerance((0.0,), {"a": [(1, 1)]}), ValueError, "rtols"),
        (lambda: plots.rank_against_tolerance(RTOLS, {"a": [(1, 1)] * 3}, quantity="sigm"), ValueError, "'sigma'"),
        (lambda: plots.spectra({}), ValueError, "at least one"),
        (lambda: plots.spectra({"a": []}), ValueError, "'a'"),
        (lambda: plots.spectra({"a": [1.0, math.nan]}), ValueError, "finite"),
        (lambda: plots.spectra({"a": [0.0]}), ValueError, "positive"),
        (lambda: plots.spectra({"a": [1.0]}, smallest=0), ValueError, "smallest"),
        (lambda: plots.reconstructions({}, torch.rand(2, 2)), ValueError, "at least one"),
        (lambda: plots.reconstructions({"a": (torch.rand(3, 2), 1.0)}, torch.rand(2, 2)), ValueError, "shape"),
        (lambda: plots.reconstructions({"a": (torch.rand(2), 1.0)}, torch.rand(2)), ValueError, "target"),
        (
            lambda: plots.reconstructions({"a": (torch.rand(2, 2), 1.0)}, torch.full((2, 2), math.nan)),
            ValueError,
            "NaN",
        ),
        (lambda: plots.over_steps([1, 2], {"a": [1.0]}, label="rank"), ValueError, "one number per step"),
        (lambda: plots.over_steps([1], {}, label="rank"), ValueError, "at least one"),
        (lambda: plots.save(Figure(), "figure.bmp"), ValueError, r"\.png"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_figures_are_written(suffix, tmp_path):
    plots.save(plots.spectra({"a": [1.0, 0.5]}).figure, tmp_path / f"figure{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"figure{suffix}"]
    assert (tmp_path / f"figure{suffix}").stat().st_size > 1000


def test_energies_are_drawn_from_large_to_small_threshold_with_their_bounds():
    axes = plots.energy(RTOLS, {"one": ([0.1, 0.5, 0.2], [0.1, 0.7, 0.2]), "two": (torch.zeros(3), torch.ones(3))})
    one = axes.get_lines()[0]
    np.testing.assert_allclose(one.get_xdata(), [1e-2, 1e-3, 1e-4])
    np.testing.assert_allclose(one.get_ydata(), [0.1, 0.2, math.nan])  # no line for a wide band
    band = axes.collections[0].get_paths()[0].vertices
    assert {(1e-4, 0.5), (1e-4, 0.7)} <= {(float(x), float(y)) for x, y in band}
    assert axes.xaxis_inverted()
    for curves, message in (({}, "at least one"), ({"a": ([0.1], [0.1])}, "one bound per threshold")):
        with pytest.raises(ValueError, match=message):
            plots.energy(RTOLS, curves)
    with pytest.raises(ValueError, match="thresholds must be positive"):
        plots.energy([0.0], {"a": ([0.1], [0.1])})


def test_numbers_over_steps_leave_gaps_where_there_are_none():
    axes = plots.over_steps([0, 5, 9], {"a": [1.0, 0.0, 2.0], "b": [math.nan, 3.0, 4.0]}, label="rank", log=True)
    one, two = axes.get_lines()
    np.testing.assert_array_equal(one.get_xdata(), [0, 5, 9])
    np.testing.assert_allclose(one.get_ydata(), [1.0, math.nan, 2.0])
    np.testing.assert_allclose(two.get_ydata(), [math.nan, 3.0, 4.0])
    assert axes.get_yscale() == "log" and (axes.get_xlabel(), axes.get_ylabel()) == ("step", "rank")
    zeros = plots.over_steps([0, 1], {"a": [0.0, 0.0]}, label="rank", log=True, black=["a"])
    assert zeros.get_yscale() == "linear" and zeros.get_lines()[0].get_color() == plots.BLACK


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_a_field_is_drawn_as_it_is_with_its_point(shape):
    values = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    axes = plots.field(values, Figure().subplots(), at=[1] * len(shape), title="x")
    drawn = axes.get_lines()[0].get_ydata() if len(shape) == 1 else axes.get_images()[0].get_array()
    np.testing.assert_array_equal(drawn, values[1] if len(shape) == 3 else values)
    (x,), (y,) = axes.get_lines()[-1].get_data()
    assert (x, y) == ((1, float(values[1])) if len(shape) == 1 else (1, 1))


def test_a_field_of_both_signs_has_a_scale_around_zero():
    (image,) = plots.field([[-1.0, 3.0]], Figure().subplots()).get_images()
    assert image.get_clim() == (-3, 3) and image.get_cmap().name == "RdBu_r"
    (image,) = plots.field([[1.0, 3.0]], Figure().subplots(), ends=(0.0, 4.0)).get_images()
    assert image.get_clim() == (0, 4)
    for bad in ([], [[math.nan]], 1.0):
        with pytest.raises(ValueError, match="values must be finite"):
            plots.field(bad, Figure().subplots())


def test_pictures_stand_side_by_side_by_name():
    axes = plots.pictures({"one": torch.rand(3, 4), "two": torch.rand(3, 4, 3)})
    assert [own.get_title() for own in axes] == ["one", "two"]
    with pytest.raises(ValueError, match=r"images\['two'\] must have shape"):
        plots.pictures({"one": torch.rand(3, 4), "two": torch.rand(3)})


def test_a_table_says_every_number():
    axes = plots.table_of([[1.0, -2.0], [0.5, 0.0]], ["a", "b"], ["c", "d"], title="pairs")
    assert [text.get_text() for text in axes.texts] == ["1", "-2", "0.5", "0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match=r"values must be finite, of shape \(1, 2\), got \(2, 2\)"):
        plots.table_of(torch.ones(2, 2), ["a"], ["c", "d"])
