"""Fig. 5: the triangle has full rank up to eps = h, exactly, and the initialiser makes that matrix."""

from fractions import Fraction

import pytest
import torch

from inrfast.experiments.inlet_rank_collapse import fig5
from inrfast.experiments.reproduce import reproduce


def exact_rank(rows):
    """Return the rank of a matrix of fractions by elimination."""
    rows, rank = [list(row) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for r in range(rank + 1, len(rows)):
            factor = rows[r][column] / rows[rank][column]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[rank], strict=True)]
        rank += 1
    return rank


@pytest.mark.parametrize(("shift", "lost"), [("1/1000", 0), ("1/2", 0), ("1", 0), ("2", 1), ("3", 2), ("4", 3)])
def test_exact_ranks(shift, lost):
    step, n = Fraction(shift), 12
    matrix = [[max(i - j + step, Fraction(0)) for j in range(n)] for i in range(n)]
    assert exact_rank(matrix) == n - lost
    in_fp64 = fig5.triangle(n, float(step)) * (n - 1) / 2
    torch.testing.assert_close(in_fp64, torch.tensor([[float(x) for x in row] for row in matrix], dtype=torch.float64))


def test_the_initialiser_makes_the_triangle():
    torch.testing.assert_close(fig5.inlet(20, torch.device("cpu")), fig5.triangle(20, 1.0), rtol=1e-12, atol=1e-12)


def test_figure(tmp_path):
    made = reproduce("inlet_rank_collapse", "fig5", tmp_path, progress=False)["fig5"]
    assert made["rows"][0][2] == "yes" and made["rows"][1][2] == f"{fig5.POINTS} of {fig5.POINTS}"
