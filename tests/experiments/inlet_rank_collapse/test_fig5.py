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


@pytest.mark.parametrize("shift", fig5.SHIFTS)
def test_a_condition_number_is_printed_only_where_rounding_leaves_it(shift):
    """The exact inverse in fractions, at a size at which some are resolved and some are not."""
    n, step = 40, Fraction(shift)
    own = torch.linalg.svdvals(fig5.triangle(n, shift))
    told = fig5.told_condition(float(own[0] / own[-1].clamp_min(1e-300)))
    if shift > 1:  # one row is a multiple of others at whole shifts, and at others the inverse is not triangular
        return
    first = [step + k for k in range(n)]  # the inverse of a Toeplitz triangle is one, by forward substitution
    inverse = [1 / first[0]]
    for k in range(1, n):
        inverse.append(-sum(first[j] * inverse[k - j] for j in range(1, k + 1)) / first[0])
    norms = [sum(float(x) ** 2 * (n - k) for k, x in enumerate(entries)) ** 0.5 for entries in (first, inverse)]
    product = norms[0] * norms[1]  # of Frobenius norms: at least the condition number, and at most n times it
    if told.startswith(">"):
        assert product > 1e13
    else:
        assert product / n <= float(told) * 1.06 and float(told) <= product * 1.06
