"""The bytes of the step's report: those of one tile, multiplied, are those of a whole step, counted."""

import sys
from pathlib import Path

import pytest
import torch

from inrfast.training.optimizers.adam import Adam

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import step_report


@pytest.mark.parametrize(
    "problem",
    [
        step_report.Problem(16, 48, activation="sine"),
        step_report.Problem(16, 150),
        step_report.Problem(16, 40, precision="high"),
    ],
    ids=lambda problem: problem.title,
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="bytes are counted by interpretation")
def test_bytes_of_a_tile_stand_for_all(problem, monkeypatch):
    monkeypatch.setattr(step_report, "MULTIPROCESSORS", 1)  # as many ranges of points as on the CPU
    asked = step_report.asked_for(problem)
    step = step_report.engine(problem, problem.points)
    whole = slice(0, problem.points)
    zeros = [torch.zeros_like(step.parameters) for _ in range(3)]
    launches = {
        "mlp_forward": lambda: step.forward(whole, None, True, None, 0),
        "mlp_backward": lambda: step.backward(whole, None, 0),
        "mlp_weight_gradients": lambda: step.weight_gradients(whole, None, 0),
        "mlp_update": lambda: step.update(*zeros, Adam.kernel, True, 0),
    }
    assert tuple(launches) == step_report.KERNELS
    for name, launch in launches.items():
        with step_report.counted() as found:
            launch()
        # The first program alone adds up the loss, and a block of its table counts whole.
        assert asked[name]["loaded"] == pytest.approx(found["loaded"], rel=0.01), name
        assert asked[name]["stored"] == pytest.approx(found["stored"], rel=0.01), name


def test_the_report_names_every_kernel_and_its_floor():
    problem = step_report.Problem(64, 64)
    counts = dict.fromkeys(("ALL", *step_report.MIX), 7)
    row = {"registers": 120, "warps": 8, "shared": 50_000, "instructions": counts}
    asked = {name: {"loaded": 5.5e6, "stored": 0.0, "programs": 32} for name in step_report.KERNELS}
    page = step_report.render([(problem, asked, dict.fromkeys(step_report.KERNELS, row))])
    assert all(page.count(f"| {name} |") == 2 for name in step_report.KERNELS)
    assert step_report.resident(row) == 2
    products = sum(step_report.flops(problem).values()) / step_report.PRODUCTS
    memory = sum(step_report.unavoidable(problem).values()) / step_report.MEMORY
    assert f"Floor {1e6 * (products + memory):.0f} us" in page
    assert "take 4 us of the cache" in page
