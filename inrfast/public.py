"""The public names of :mod:`inrfast`, from where they live."""

from inrfast import distributed, init, inverse, scenes
from inrfast.analysis import harmonics
from inrfast.analysis.aliasing import Aliasing, aliasing
from inrfast.analysis.alignment import alignment
from inrfast.analysis.bessel import bessel_series
from inrfast.analysis.diagnosis import diagnose
from inrfast.analysis.dictionary import Dictionary, dictionary
from inrfast.analysis.dot_product import DotProductEncoding, dot_product_encoding
from inrfast.analysis.infinite_width import InfiniteNTK, infinite_ntk
from inrfast.analysis.kernel_regression import KernelRegression, kernel_regression
from inrfast.analysis.optimal_kernel import OptimalKernel, optimal_kernel
from inrfast.analysis.rank import numerical_rank
from inrfast.analysis.report import DiagnosisReport, Representation
from inrfast.analysis.representations import representation
from inrfast.analysis.two_layer import TwoLayerVariance, two_layer_variance
from inrfast.analysis.variance import variance
from inrfast.analysis.variance_result import NTKVariance
from inrfast.calibration import calibrate_batchnorm_
from inrfast.choosing.choice import Candidate, Choice
from inrfast.choosing.choose import choose
from inrfast.encodings import Polynomial, PositionalEncoding, RandomFourier
from inrfast.errors import ResolutionError
from inrfast.grids import grid
from inrfast.importing.network import import_network
from inrfast.inverse.restoring import Restored, inpaint, upscale
from inrfast.linalg.factorization import Factorization
from inrfast.linalg.spectrum import RankInterval, Spectrum
from inrfast.nn import INR
from inrfast.norms.sphere import SphereNorm
from inrfast.ops.grid_init import rank_expanding
from inrfast.tangent.jacobian import LayerwiseJacobian, jacobian
from inrfast.tangent.local import NTK, ntk
from inrfast.training import derivatives
from inrfast.training.fit import fit, fit_many
from inrfast.training.meta.adapt import AdaptResult, adapt
from inrfast.training.meta.learn import MetaResult, meta_learn
from inrfast.training.regularizers.eikonal import Eikonal
from inrfast.training.regularizers.kar import KAR
from inrfast.training.regularizers.peak import PEAK
from inrfast.training.regularizers.smoothness import DirichletEnergy, TotalVariation
from inrfast.training.result import FitResult
from inrfast.training.watch import Watch, WatchRecord, watch

__all__ = [
    "INR",
    "KAR",
    "NTK",
    "PEAK",
    "AdaptResult",
    "Aliasing",
    "Candidate",
    "Choice",
    "DiagnosisReport",
    "Dictionary",
    "DirichletEnergy",
    "DotProductEncoding",
    "Eikonal",
    "Factorization",
    "FitResult",
    "InfiniteNTK",
    "KernelRegression",
    "LayerwiseJacobian",
    "MetaResult",
    "NTKVariance",
    "OptimalKernel",
    "Polynomial",
    "PositionalEncoding",
    "RandomFourier",
    "RankInterval",
    "Representation",
    "ResolutionError",
    "Restored",
    "Spectrum",
    "SphereNorm",
    "TotalVariation",
    "TwoLayerVariance",
    "Watch",
    "WatchRecord",
    "adapt",
    "aliasing",
    "alignment",
    "bessel_series",
    "calibrate_batchnorm_",
    "choose",
    "derivatives",
    "diagnose",
    "dictionary",
    "distributed",
    "dot_product_encoding",
    "fit",
    "fit_many",
    "grid",
    "harmonics",
    "import_network",
    "infinite_ntk",
    "init",
    "inpaint",
    "inverse",
    "jacobian",
    "kernel_regression",
    "meta_learn",
    "ntk",
    "numerical_rank",
    "optimal_kernel",
    "rank_expanding",
    "representation",
    "scenes",
    "two_layer_variance",
    "upscale",
    "variance",
    "watch",
]
