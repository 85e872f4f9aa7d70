"""Certified ranks of random and adversarial cases against dense fp64 eigenvalues: does every interval hold the rank?

    python bench/rank_truth.py [--cases N] [--seed S]    # 400 cases; writes bench/results/rank-truth.json
    python bench/rank_truth.py --hunt SECONDS            # cases for so long; failing ones are made simpler
    python bench/rank_truth.py --spec '{...}'            # one case, as a failing one was printed

A case is a kernel of a network or a matrix of a chosen spectrum, both often distorted, and a question: relative or
absolute levels, often next to an eigenvalue, or the largest eigenpairs. What is certified of it is compared with the
eigenvalues by LAPACK: counts at the levels asked and at others, bounds of single eigenvalues, residuals of
eigenvectors. Within :func:`rounding` of a level an eigenvalue may count or not. A certificate that cannot be had (an
error, or no upper bound) is not wrong, but unresolved. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

import inrfast as inr
from inrfast.errors import MemoryBudgetError, RangeError, ResolutionError, UnsupportedModuleError
from inrfast.linalg import certified, eigenvalues
from inrfast.linalg.certified import certified_spectrum
from inrfast.linalg.demands import Ranks
from inrfast.linalg.operators import UNIT, DenseOperator
from inrfast.linalg.rank_proof import RankProof
from inrfast.linalg.spectrum import Spectrum
from inrfast.ops.gemm import processor
from inrfast.tangent import rounded
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.kernel_operator import KernelOperator, RoundedOperator

Spec = dict[str, Any]

STARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "kaiming": {"init": "kaiming"},
    "rank_expanding": {"init": "rank_expanding"},
    **{f"siren-{omega:g}": {"activation": "sine", "init": "siren", "omega": omega} for omega in (1.0, 6.0, 30.0, 90.0)},
    "tanh": {"activation": "tanh"},
    "gaussian": {"activation": "gaussian", "omega": 2.0},
    "finer": {"activation": "finer", "omega": 5.0},
    "gelu": {"activation": "gelu"},
    "fourier-1": {"encoding": inr.RandomFourier(32, 1.0)},
    "fourier-10": {"encoding": inr.RandomFourier(64, 10.0)},
    "layer norm": {"norm": "layer"},
    "sphere": {"norm": "sphere"},
    "topk": {"norm": "topk"},
}

DISTORTIONS = ("none", "scaled", "layers scaled", "units scaled", "dead", "duplicated", "near copies", "zero head")
POINTS = ("grid", "line", "random", "repeated", "near copies", "cluster", "wide")
SPECTRA = (
    "power",
    "geometric",
    "stairs",
    "cluster",
    "plateau",
    "floor",
    "flat",
    "huge",
    "low rank",
    "rank one",
    "zero",
)
VECTORS = ("random", "reflected", "coordinates")
BUDGETS = (1 << 30, 160_000_000, 40_000_000, 10_000_000)
"""Bytes: the smaller ones make blocks of fewer pivots, or end the work early."""


def drawn(rng: random.Random, order: int | None = None) -> Spec:
    """Return a random case as plain values."""
    spec: Spec = {"order": order or rng.choice((rng.randint(40, 300), *[rng.randint(300, 1800)] * 8, 2500))}
    spec |= {"seed": rng.getrandbits(31), "budget": BUDGETS[0] if order else rng.choice(BUDGETS)}
    if rng.random() < 0.55:
        outputs = rng.choice((1, 1, 2, 3))
        spec |= {"start": rng.choice(list(STARTS)), "width": rng.choice((8, 32, 64, 128)), "hidden": rng.randint(1, 4)}
        spec |= {"points": rng.choice(POINTS), "distortion": rng.choice(DISTORTIONS), "power": rng.uniform(-8, 8)}
        spec |= {"outputs": outputs, "output": rng.choice(("trace", "full", outputs - 1))}
        spec |= {"double": rng.random() < 0.2, "layer": rng.choice((None, None, rng.randint(0, spec["hidden"])))}
    else:
        spec |= {
            "spectrum": rng.choice(SPECTRA + ("power",) * 6),
            "vectors": rng.choice(VECTORS),
            "decay": rng.uniform(0, 1),
        }
        spec |= {"level": 10 ** rng.uniform(-10, -0.5), "gap": rng.choice((0.0, 1e-9, 1e-6, 1e-3, 0.1))}
        spec |= {"scale": 10 ** rng.uniform(*rng.choice(((0, 0), (-30, 30), (-100, 100))))}
    spec |= {"ask": rng.choice(("rtol", "near rtol", "near rtol", "level", "near level", "near level", "pairs"))}
    spec |= {"way": rng.choice(("cholesky", "cholesky", "counts", "auto")), "levels": rng.choice((1, 1, 1, 2, 4))}
    spec |= {"eager": rng.random() < 0.75}
    return spec | {"next to": rng.choice((-1, 1)) * rng.choice((1e-3, 1e-3, 1e-6, 1e-9, 0.0))}


# ---- networks and matrices -------------------------------------------------------------------------------------------


def network(spec: Spec, generator: torch.Generator) -> inr.INR:
    """Return a network, distorted as the case says."""
    net = inr.INR(
        2,
        spec["outputs"],
        width=spec["width"],
        hidden_layers=spec["hidden"],
        seed=spec["seed"],
        dtype=torch.float64 if spec["double"] else torch.float32,
        **STARTS[spec["start"]],
    )
    scale, kind = 10.0 ** spec["power"], spec["distortion"]
    for number, layer in enumerate(net.layers):
        weight, bias, half = layer.weight.data, layer.bias.data, len(layer.bias) // 2
        if kind == "scaled" or (kind == "zero head" and number == len(net.layers) - 1):
            factor = scale if kind == "scaled" else 0.0
            weight.mul_(factor), bias.mul_(factor)
        elif kind == "layers scaled":
            weight.mul_(scale if number % 2 else 1 / scale)
        elif number == len(net.layers) - 1:
            continue
        elif kind == "units scaled":
            factors = (abs(scale) ** torch.rand(len(bias), generator=generator)).to(weight)
            weight.mul_(factors[:, None]), bias.mul_(factors)
        elif kind == "dead":
            weight[half:], bias[half:] = 0.0, -1.0
        elif kind in ("duplicated", "near copies"):
            weight[half : 2 * half], bias[half : 2 * half] = weight[:half], bias[:half]
            if kind == "near copies":
                weight[half:] *= 1 + 1e-6
    return net


def points(spec: Spec, count: int, generator: torch.Generator) -> Tensor:
    """Return points (count, 2), about as many for a grid."""
    drawn = 2 * torch.rand(count, 2, generator=generator) - 1
    kind, half = spec["points"], count // 2
    if kind == "grid":
        return inr.grid((max(2, math.isqrt(count)), max(2, math.isqrt(count))))
    if kind == "line":
        drawn[:, 0], drawn[:, 1] = torch.linspace(-1, 1, count), 0.5
    elif kind in ("repeated", "near copies"):
        drawn[half : 2 * half] = drawn[:half] * (1 if kind == "repeated" else 1 + 1e-6)
    elif kind == "cluster":
        drawn[half:] = drawn[0] + 1e-4 * drawn[half:]
    elif kind == "wide":
        drawn *= 100.0 ** torch.rand(count, 1, generator=generator)
    return drawn


def matrix(spec: Spec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a matrix of a chosen spectrum whose level ``spec["level"]`` is a hard one, and its eigenvalues."""
    n, kind, level, gap, decay = (spec[name] for name in ("order", "spectrum", "level", "gap", "decay"))
    index = torch.arange(n, dtype=torch.float64)
    values = (index + 1) ** -(0.2 + 4 * decay)
    part = max(1, int(n * (0.05 + 0.5 * decay)))
    if kind == "geometric":
        values = 10.0 ** (-14 * decay * index / n)
    elif kind == "stairs":
        values = 10.0 ** -((1 + 2 * decay) ** (index * 8 // n))
    elif kind == "cluster":  # on both sides of the level, as near as the gap
        values[1:part] = level * (1 + gap * torch.linspace(-1, 1, part, dtype=torch.float64)[1:])
        values[part:] = level * 1e-3 * values[part:]
    elif kind in ("plateau", "floor"):  # the rest at the level, or a little below it
        values = torch.where(index < part, level ** (index / part), level * (1.0 if kind == "plateau" else 1 - gap))
    elif kind == "flat":
        values = 1 - gap * torch.rand(n, generator=generator, dtype=torch.float64)
    elif kind == "huge":
        values[1:] *= 1e-12
    elif kind == "low rank":
        values[part:] = 0.0
    elif kind in ("rank one", "zero"):
        values[int(kind == "rank one") :] = 0.0
    values = values.sort(descending=True).values * spec["scale"]
    if spec["vectors"] == "coordinates":
        return torch.diag(values[torch.randperm(n, generator=generator)]), values
    drawn = torch.randn(n, n if spec["vectors"] == "random" else 1, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(drawn).Q
    if spec["vectors"] == "reflected":
        q = torch.eye(n, dtype=torch.float64) - 2 * q @ q.t()
    found = (q * values) @ q.t()
    return (found + found.t()) / 2, values


def rounding(n: int, largest: float) -> float:
    """Return how far dense fp64 eigenvalues may be off; LAPACK guarantees a multiple of ``n u lambda_1`` alone."""
    return 8 * math.sqrt(n) * UNIT * largest


class Problem:
    """A case made: what is asked of which operator, and the eigenvalues as LAPACK finds them, descending."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        generator = torch.Generator().manual_seed(spec["seed"])
        self.kernel: inr.NTK | None = None
        self.of_rounded = False
        if "start" in spec:
            net = network(spec, generator)
            coords = points(spec, spec["order"] // (spec["outputs"] if spec["output"] == "full" else 1), generator)
            coords = coords.to(net.layers[0].weight.dtype)
            whole, tested = (
                inr.ntk(net, coords, output=spec["output"], precision="highest", memory_budget=budget)
                for budget in (None, spec["budget"])
            )
            name = None if spec["layer"] is None else f"layers.{spec['layer']}"
            self.kernel = tested if name is None else tested.layers[name]
            self.dense = (whole if name is None else whole.layers[name]).to_dense()
            known, level = None, 1e-6 * float(torch.linalg.eigvalsh(whole.to_dense())[-1]) if name else None
        else:
            self.dense, known = matrix(spec, generator)
            level = spec["level"] * spec["scale"]
        self.exact = torch.linalg.eigvalsh(self.dense).flip(0)
        self.n, self.error = len(self.exact), rounding(len(self.exact), float(self.exact[0].abs()))
        if known is not None and spec["vectors"] == "coordinates":
            self.exact, self.error = known, 0.0
        self.rtols, self.levels = self.asked(level)
        self.questions = [] if spec["ask"] == "pairs" else list(self.levels or self.rtols)

    def asked(self, level: float | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the relative tolerances and the absolute levels; ``level`` is one of interest."""
        rng, largest = random.Random(self.spec["seed"]), float(self.exact[0])
        if largest <= 0:
            return (1e-6,), ()
        ask, several = self.spec["ask"], range(self.spec["levels"])
        ratios = [10 ** rng.uniform(-9, -1) for _ in several]
        if ask.startswith("near"):
            last = max(int((self.exact > 1e-11 * largest).sum()), 1)
            near = [float(self.exact[rng.randrange(last)]) for _ in several]
            if level is not None and rng.random() < 0.7:
                near[0] = level
            ratios = [value / largest * (1 + self.spec["next to"]) for value in near]
        if ask.endswith("level"):
            return (1e-6,), tuple(ratio * largest for ratio in ratios if ratio * largest > 0)
        return tuple(min(max(ratio, 1e-13), 0.999) for ratio in ratios), ()

    def spectrum(self) -> Spectrum:
        """Return what is certified: of single eigenvalues too, or (``"counts"``) by pivots and of counts alone."""
        pairs, seed, budget = self.spec["ask"] == "pairs", self.spec["seed"], self.spec["budget"]
        k = max(1, min(self.n, 5 + seed % 200)) if pairs else None
        rtol, levels = (max(self.rtols), ()) if pairs else (self.rtols, self.levels)
        operator = DenseOperator(self.dense) if self.kernel is None else KernelOperator(self.kernel)
        if self.spec["way"] == "counts" and not pairs:
            demand = Ranks((), levels, values=False) if levels else Ranks(rtol, values=False)
            operator = self.rounded(demand) or operator
            found = certified_spectrum(operator, demand, self.n, budget, seed, progress=False)
            return found.with_jacobian_error(operator.jacobian_error)
        way = "auto" if self.spec["way"] == "auto" else "cholesky"
        if self.kernel is not None:
            return self.kernel.spectrum(rtol, k, way, pairs, seed=seed, progress=False, levels=levels)
        return eigenvalues.spectrum(operator, rtol, k, way, pairs, self.n, budget, seed, False, levels)

    def rounded(self, demand: Ranks) -> RoundedOperator | None:
        """Return the kernel of factors rounded to fp32 in three cases of four, where a level allows it."""
        if self.kernel is None or self.spec["seed"] % 4 == 0:
            return None
        left = self.kernel.left
        anew = LayerwiseJacobian(copy.copy(left.store), left.memory_budget, left.only)
        with patch.object(rounded, "RELEASED", 0):
            found = KernelOperator(inr.NTK(anew, None, self.kernel.output)).rounded(demand.level, self.spec["budget"])
        self.of_rounded = found is not None
        return found

    def counts(self, low: float, high: float) -> tuple[int, int]:
        """Return the least and the largest number of eigenvalues that a level between the two may have above it."""
        return int((self.exact > high + self.error).sum()), int((self.exact > low - self.error).sum())


# ---- what is certified, and whether it holds -------------------------------------------------------------------------


def faults(problem: Problem, s: Spectrum) -> Iterator[str]:
    """Yield what is wrong of a spectrum beside its counts: bounds of single eigenvalues, eigenvectors."""
    exact, e, listed = problem.exact, problem.error, len(s.eigenvalues)
    lower, upper = s.bounds()
    for name, low, high in (
        ("bounds()", lower, upper),
        ("errors", s.eigenvalues - s.lower_error, s.eigenvalues + s.upper_error),
    ):
        for i in ((exact[:listed] + e < low) | (exact[:listed] - e > high)).nonzero().flatten().tolist()[:1]:
            yield f"{name}: eigenvalue {i} is {exact[i]:.17g}, not in [{low[i]:.17g}, {high[i]:.17g}]"
    if listed < problem.n and float(exact[listed]) - e > s.beyond:
        yield f"beyond: eigenvalue {listed} is {exact[listed]:.17g}, above {s.beyond:.17g}"
    if s.eigenvectors is not None:
        q, allowed = s.eigenvectors, max(s.lower_error, s.upper_error) + e
        off = float(torch.linalg.vector_norm(problem.dense @ q - q * s.eigenvalues, dim=0).max())
        skew = float((q.t() @ q - torch.eye(q.shape[1], dtype=q.dtype)).abs().max())
        if off > allowed or skew > 1e-9:
            yield f"eigenvectors: residual {off:.3e} of {allowed:.3e} allowed, orthonormal to {skew:.1e}"


def judge(problem: Problem, s: Spectrum, result: dict[str, Any]) -> None:
    """Add to ``result`` what is wrong of a spectrum, the widths of its intervals, and how many are unresolved."""
    result["wrong"] += faults(problem, s)
    result["partial"] = len(s.eigenvalues) < s.size
    result["complements"] = s.method == "cholesky" and bool(s.certified)
    rng, questions = random.Random(problem.spec["seed"] + 1), problem.questions
    others = [question * 10 ** rng.uniform(-1, 1) for question in questions for _ in range(2)]
    for number, asked in enumerate(questions + others):
        low, high = asked * (1 - 4 * UNIT), asked * (1 + 4 * UNIT)
        if problem.levels:
            interval = s.count_above(asked)
        else:
            interval = s.count_above(asked * float(s.eigenvalues[0]), asked)
            low, high = (end * float(problem.exact[0] + off * problem.error) for end, off in ((low, -1), (high, 1)))
        least, most = problem.counts(low, high)
        if interval.lower > most or interval.upper < least:
            result["wrong"].append(f"count above {asked!r}: {interval}, but the rank is in [{least}, {most}]")
        if number >= len(questions):
            continue
        result["known"] += least == most
        wide = interval.upper - interval.lower
        unbounded = interval.upper >= min(s.size, s.rank_bound) and wide > 0.1 * interval.upper
        if unbounded or (not problem.levels and not answered(s, asked)):
            result["unresolved"] += 1
        else:
            result["widths"].append((interval.lower, wide / max(interval.lower, 1)))


@contextmanager
def eagerly() -> Iterator[None]:
    """Take pivots by 32, and try a proof by complements after each block: few of them may succeed.

    At these orders such proofs seldom pay, and are left alone.
    """
    likely = {name: lambda *arguments: True for name in ("pays", "_first_promising")}
    with patch.object(certified, "BLOCK", 32), patch.multiple(RankProof, _promising=possible, **likely):
        yield


def possible(proof: RankProof, number: int, low: float, m: int, estimate: float, begun: bool = False) -> bool:
    """Return whether there are m leading vectors, and others, and a level."""
    return low > 0 and 0 < m < len(proof.factor.eigenvalues())


def answered(s: Spectrum, rtol: float) -> bool:
    """Return whether ``s.rank`` answers."""
    try:
        s.rank(rtol)
    except ResolutionError:
        return False
    return True


def outcome(spec: Spec) -> dict[str, Any] | None:
    """Return what one case gives, any error that is no refusal counting as wrong; None where there is no kernel."""
    eigenvalues.SMALL = 256  # so that "auto" chooses between pivots and factorisations at these orders
    try:
        problem = Problem(spec)
    except (UnsupportedModuleError, RangeError, MemoryBudgetError):  # fp64 does not determine the Jacobian, for one
        return None
    asked, start = len(problem.questions), time.perf_counter()
    result: dict[str, Any] = {
        "order": problem.n,
        "asked": asked,
        "known": 0,
        "partial": False,
        "complements": False,
        "rounded": False,
        "unresolved": 0,
        "wrong": [],
        "widths": [],
    }
    try:
        with eagerly() if spec["eager"] else nullcontext():
            s = problem.spectrum()
        result["rounded"] = problem.of_rounded
        judge(problem, s, result)
    except (ResolutionError, MemoryBudgetError, RangeError):
        result["unresolved"] = asked
    except Exception as error:  # the others are still to be run
        if "positive semidefinite" in str(error) and float(problem.exact[-1]) <= problem.error:
            return result | {
                "unresolved": asked,
                "seconds": time.perf_counter() - start,
            }  # what rounding made of the matrix
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
        result["wrong"].append(told[:400])
    return result | {"seconds": time.perf_counter() - start}


def wrong(spec: Spec) -> list[str]:
    """Return what is wrong of a case."""
    result = outcome(spec)
    return [] if result is None else result["wrong"]


def simpler(spec: Spec) -> Spec:
    """Return a failing case with as many plain values, and as few points, as it fails with."""
    plain: Spec = {"budget": BUDGETS[0], "levels": 1, "next to": 0.0, "way": "cholesky", "distortion": "none"}
    plain |= {"points": "grid", "outputs": 1, "output": "trace", "double": False, "layer": None, "start": "default"}
    plain |= {"vectors": "coordinates", "scale": 1.0, "gap": 0.0, "hidden": 1, "width": 8}
    for name, value in plain.items():
        if name in spec and spec[name] != value and wrong(spec | {name: value}):
            spec = spec | {name: value}
    while spec["order"] > 8 and wrong(spec | {"order": spec["order"] * 2 // 3}):
        spec = spec | {"order": spec["order"] * 2 // 3}
    return spec


def told(spec: Spec, faults: list[str]) -> str:
    """Return a failing case in words, with the command that repeats it."""
    return "\n  ".join(["WRONG", *faults, f"python bench/rank_truth.py --spec '{json.dumps(spec)}'"])


def hunt(seconds: float, seed: int) -> int:
    """Try cases until the time is over; return how many failed."""
    end, number, failed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        spec = drawn(random.Random(f"hunt {seed} {number}"))
        number += 1
        if wrong(spec):
            failed += 1
            spec = simpler(spec)
            print(told(spec, wrong(spec)), flush=True)
    print(f"{failed} of {number} cases failed")
    return failed


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return totals and widths of some cases."""
    widths = [width for result in results for width in result["widths"]]
    found = {
        "cases": len(results),
        "wrong": sum(bool(result["wrong"]) for result in results),
        "intervals asked": sum(result["asked"] for result in results),
        "unresolved": sum(result["unresolved"] for result in results),
        "rank certain by dense eigenvalues": sum(result["known"] for result in results),
        "proven by complements": sum(result["complements"] for result in results),
        "of rounded factors": sum(result["rounded"] for result in results),
        "fewer pivots than rows": sum(result["partial"] for result in results),
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }
    for name, least in (("width over rank", 0), ("the same, ranks from 100 on", 100)):
        own = sorted(width for rank, width in widths if rank >= least)
        if own:
            found[name] = {"intervals": len(own), "median": own[len(own) // 2], "90 %": own[int(0.9 * (len(own) - 1))]}
    return found


def run(cases: int, seed: int) -> tuple[list[Spec], list[dict[str, Any]]]:
    """Run cases of which the kernel is to be had; return them and what they give."""
    specs, results = [], []
    with tqdm(total=cases) as bar:
        for number in itertools.count():
            if len(specs) == cases:
                return specs, results
            spec = drawn(random.Random(f"{seed} {number}"), 4096 if number % 130 == 129 else None)
            result = outcome(spec)
            if result is None:
                continue
            specs.append(spec)
            results.append(result)
            bar.update()
            if result["wrong"]:
                bar.write(told(spec, result["wrong"]))


def main() -> None:
    """Run the cases and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spec", type=json.loads, help="one case, as printed")
    parser.add_argument("--hunt", type=float, metavar="SECONDS", help="look for failing cases")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rank-truth.json"))
    arguments = parser.parse_args()
    if arguments.spec:
        found = outcome(arguments.spec)
        print(json.dumps(found, indent=1))
        sys.exit(found is not None and bool(found["wrong"]))
    if arguments.hunt:
        sys.exit(hunt(arguments.hunt, arguments.seed) > 0)
    start = time.perf_counter()
    specs, results = run(arguments.cases, arguments.seed)
    pairs = list(zip(specs, results, strict=True))
    groups: dict[str, list[dict[str, Any]]] = {"all": results}
    for spec, result in pairs:
        names = (
            "networks" if "start" in spec else "matrices",
            spec.get("distortion"),
            spec.get("spectrum"),
            spec["ask"],
            f"way {spec['way']}",
            "eager" if spec["eager"] else "",
        )
        for name in names:
            if name:
                groups.setdefault(name, []).append(result)
    report = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": arguments.seed,
        "orders": [min(result["order"] for result in results), max(result["order"] for result in results)],
        "seconds with dense eigenvalues": round(time.perf_counter() - start, 1),
        **{name: summary(group) for name, group in groups.items()},
        "failed": [{"spec": spec, "wrong": result["wrong"]} for spec, result in pairs if result["wrong"]],
    }
    Path(arguments.out).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report["all"], indent=1))
    sys.exit(report["all"]["wrong"] > 0)


if __name__ == "__main__":
    main()
