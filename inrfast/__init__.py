"""inrfast: see where an implicit neural representation loses rank, cure it, and fit it fast.

Everything is imported at the first use of a name: ``import inrfast`` alone takes no time, so that the command line has
its say (and Ctrl-C its ear) before the libraries are there.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrfast import distributed, init
    from inrfast.analysis.diagnosis import diagnose
    from inrfast.analysis.rank import numerical_rank
    from inrfast.analysis.report import DiagnosisReport
    from inrfast.encodings import Polynomial, PositionalEncoding, RandomFourier
    from inrfast.grids import grid
    from inrfast.jacobians import LayerwiseJacobian, jacobian
    from inrfast.linalg.spectrum import RankInterval, Spectrum
    from inrfast.nn import INR, SphereNorm, calibrate_batchnorm_
    from inrfast.ops.grid_init import rank_expanding
    from inrfast.tangent_kernel import NTK, ntk
    from inrfast.training.loop import fit
    from inrfast.training.many import fit_many
    from inrfast.training.session import FitResult

__version__ = "0.1.0"

__all__ = [
    "INR",
    "NTK",
    "DiagnosisReport",
    "FitResult",
    "LayerwiseJacobian",
    "Polynomial",
    "PositionalEncoding",
    "RandomFourier",
    "RankInterval",
    "Spectrum",
    "SphereNorm",
    "calibrate_batchnorm_",
    "diagnose",
    "distributed",
    "fit",
    "fit_many",
    "grid",
    "init",
    "jacobian",
    "ntk",
    "numerical_rank",
    "rank_expanding",
]

_HOMES = {
    "distributed": "",
    "init": "",
    "analysis.diagnosis": "diagnose",
    "analysis.rank": "numerical_rank",
    "analysis.report": "DiagnosisReport",
    "encodings": "Polynomial PositionalEncoding RandomFourier",
    "grids": "grid",
    "jacobians": "LayerwiseJacobian jacobian",
    "linalg.spectrum": "RankInterval Spectrum",
    "nn": "INR SphereNorm calibrate_batchnorm_",
    "ops.grid_init": "rank_expanding",
    "tangent_kernel": "NTK ntk",
    "training.loop": "fit",
    "training.many": "fit_many",
    "training.session": "FitResult",
}
"""The modules of the public names: what is imported above for type checkers, here for everybody."""


def __getattr__(name: str) -> Any:
    """Import what is not there yet: a module alone, as modules do that import each other, and else everything."""
    if not name.startswith("__"):
        found = importlib.util.find_spec(f"inrfast.{name}")
        if found is not None and found.submodule_search_locations is None:
            return importlib.import_module(f"inrfast.{name}")
        for home, names in _HOMES.items():
            module = importlib.import_module(f"inrfast.{home}")
            globals().update({own: getattr(module, own) for own in names.split()})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'inrfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
