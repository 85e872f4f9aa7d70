"""The examples run with small sizes, and what they print is what their first lines promise."""

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"(-?\d[\d,]*\.?\d*(?:e[+-]\d+)?)"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs an example with words on its command line and returns what it prints."""

    def of(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return of


def numbers(pattern, text):
    """The numbers of every line that fits a pattern, in which # stands for a number."""
    found = re.findall(re.escape(pattern).replace(r"\#", NUMBER), text)
    assert found, f"no {pattern!r} in:\n{text}"
    return [tuple(float(n.replace(",", "")) for n in ([row] if isinstance(row, str) else row)) for row in found]


def test_a_siren_of_one_s_own_gains_rank_with_omega(run):
    ranks = []
    for omega in (3, 30):
        text = run("diagnose_my_siren", omega)
        assert all(re.search(rf"^ *{layer} ", text, re.MULTILINE) for layer in (r"0\.linear", r"1\.linear", "2"))
        ranks.append(numbers("The NTK has # eigenvalues above 1e-2 lambda_1", text)[0][0])
    assert ranks[0] < ranks[1]


def test_a_cured_relu_field_has_more_rank_and_fits_better(run):
    text = run("fix_my_relu_field", 40)
    before, after = numbers("first layer's rank # of 128, NTK's rank # of 576, # dB", text)
    assert all(a < b for a, b in zip(before, after, strict=True))
    assert "0 (gets the coordinates): rank_expanding" in text


def test_regression_with_a_kernel_beats_the_mean(run):
    text = run("ntk_regression", 24)
    ((guess,),) = numbers("guess of the mean: # dB", text)
    found = numbers(": # dB on # unseen pixels", text)
    assert len(found) == 3
    assert all(psnr > guess + 1 for psnr, _ in found)


def test_a_poisson_problem_is_solved(run):
    text = run("pde_loss", 400)
    ((_, before), (_, after)) = (numbers(f"relative error {when} # steps: #", text)[0] for when in ("before", "after"))
    assert after < 0.5 * before


def test_a_large_omega_fits_what_it_sees_and_invents_the_rest(run):
    found = numbers("omega #: # dB on the pixels it saw, # dB on the others", squeezed(run("sweep_omega", 100)))
    omegas, seen, unseen = zip(*found, strict=True)
    assert seen[-2] > seen[0]
    assert omegas[0] < omegas[unseen.index(max(unseen))] < omegas[-1]


def test_omega_is_chosen_by_what_gradient_descent_will_do(run):
    text = squeezed(run("choose_omega", 1000))
    omegas, known, others = zip(*numbers("omega #: # dB on known pixels, # on others", text), strict=True)
    ((taken,),) = numbers("take omega #", text)
    assert taken == omegas[others.index(max(others))]
    assert omegas[0] < taken < omegas[-1]
    assert known[0] < known[-1]


@pytest.mark.filterwarnings("ignore")
def test_a_kernel_is_watched_in_a_loop_of_lightning_or_a_plain_one(run):
    text = run("watch_in_lightning", 3)
    assert ("a plain loop" in text) == (importlib.util.find_spec("lightning") is None)
    assert [int(step) for step in re.findall(r"^ *(\d+)  +[-\d]", text, re.MULTILINE)] == [0, 10]
    shares = re.findall(r"layers\.\d ([\d.]+) %", text)
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


def test_two_processes_print_the_spectrum_of_one(run):
    one = run("shared_spectrum", 20)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(EXAMPLES / "shared_spectrum.py"), "20"]
    two = subprocess.run([*words, *script], capture_output=True, text=True, check=False, timeout=300)
    assert two.returncode == 0, two.stderr
    ranks = [[line for line in text.splitlines() if line.startswith("rank ")] for text in (one, two.stdout)]
    assert len(ranks[0]) == 5
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize("name", ["compare_starts", "fit_image", "fit_many", "inpaint"])
def test_the_other_examples_run(run, name):
    assert run(name, 5).strip()


def test_every_example_is_run_here_and_says_what_it_shows():
    tested = Path(__file__).read_text()
    for script in sorted(EXAMPLES.glob("*.py")):
        assert f'"{script.stem}"' in tested, script.name
        assert ast.get_docstring(ast.parse(script.read_text())), script.name
        assert len(script.read_text().splitlines()) <= 75, script.name


def squeezed(text):
    return re.sub(" +", " ", text)
