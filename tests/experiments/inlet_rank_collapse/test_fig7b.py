"""Fig. 7B: for every method the certified spectrum is that of the dense kernel, whose entries autograd gives."""

import numpy as np
import pytest
import torch

from inrfast.experiments.inlet_rank_collapse import fig7b, fig7b_settings
from inrfast.experiments.inlet_rank_collapse.spectra import network
from inrfast.experiments.reproduce import reproduce
from inrfast.tangent.local import ntk

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", fig7b.ALL)
def test_the_certified_spectrum_is_that_of_the_dense_kernel(name):
    net, coords = network(fig7b.ALL[name], 9, 1, CPU)
    kernel = ntk(net, coords, output=0, precision="highest")
    found = fig7b.agreement(kernel, (1e-1, 1e-3, 1e-5), 0, False)
    assert found["contained"] == found["intervals"] == 6
    assert found["relative"] < 1e-7 and found["relative_to_largest"] <= found["stated"]
    assert found["compared"] >= found["dense_ranks"][-1]


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_cell_holds_the_eigenvalues_of_gradients_by_autograd(outputs):
    method, rtols = fig7b.ALL["ours-he"], (1e-1, 1e-3)
    cell = fig7b.kernel_cell("kernel", method, outputs, 4, rtols, 7)
    found = cell.run(fig7b.Work(CPU, None, False))
    net, coords = network(method, 4, 7, CPU, outputs)
    rows = []
    for value in net(coords).flatten():
        gradients = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    values = torch.linalg.eigvalsh(jacobian @ jacobian.t()).flip(0).numpy()
    assert found.numbers["largest"] == pytest.approx(values[0], rel=1e-9)
    assert found.numbers["trace"] == pytest.approx(values.sum(), rel=1e-9)
    kept = found.arrays["values"]
    assert kept == pytest.approx(values[: len(kept)] / values[0], rel=1e-5)
    for rtol, (low, high) in zip(rtols, found.numbers["ranks"], strict=True):
        assert low <= (values > rtol * values[0]).sum() <= high


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(fig7b, "QUICK", fig7b.Sizes(6, 2, (1e-1, 1e-3), 3, (1e-1, 1e-2), 4))
    monkeypatch.setattr(fig7b_settings, "SIDE", {True: 4, False: 4})
    monkeypatch.setattr(fig7b_settings, "RUNS", {True: 1, False: 1})
    monkeypatch.setattr(fig7b_settings, "INDEX", 3)
    monkeypatch.setattr(fig7b_settings, "SETTINGS", {name: fig7b_settings.SETTINGS[name] for name in ("base", "he")})
    monkeypatch.setattr(fig7b.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest


def test_figure_of_one_run(tmp_path, small):
    made = reproduce("inlet_rank_collapse", "fig7b", tmp_path, runs=1, progress=False)["fig7b"]
    assert made["drawings"] == ["fig7b", "fig7b-hidden"]
    assert "±" not in str(made) and "nan" not in str(made)
    assert made["cells"] == 3 * len(fig7b.ALL) + 2 * len(fig7b_settings.SETTINGS)
    agreed = next(rows for title, _, rows in made["tables"] if "LAPACK" in title)
    assert [row[-1] for row in agreed] == ["6 of 6"] * len(fig7b.ALL)
    head = next(head for title, head, _ in made["tables"] if "LAPACK" in title)
    difference, stated = (next(i for i, word in enumerate(head) if word.startswith(f"{what} / lambda_1"))
                          for what in ("largest difference", "stated error"))  # fmt: skip
    assert all(float(row[difference]) <= float(row[stated]) for row in agreed), "of one unit, a bound holds as printed"


def test_numbers_of_a_spectrum_that_resolves_little():
    """Eigenvalues below the floor are not drawn, and an open rank ends at the order."""
    spectrum = fig7b.Spectrum(torch.tensor([1.0, 0.5, 0.01]).double(), None, 0.0, 0.1, 9, 2.0, 9, 1e-3, "cholesky", 0.1)
    numbers, values = fig7b.spectrum_numbers(spectrum, (0.3, 1e-3))
    assert numbers["ranks"] == [[2, 2], [3, 9]] and values.tolist() == [1.0, 0.5]
    assert np.isfinite(numbers["floor"]) and numbers["ratio"] is None
