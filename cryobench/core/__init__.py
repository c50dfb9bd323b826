"""The contract of components: operators, problems, solvers, priors, noise models, metrics and sources.

Lives here: the base classes that every component derives from, and the meters and recordings around a solver.
May be imported by all but `numerics`, `spec`, `rng` and `errors`.
"""

from cryobench.contract import CONTRACT
from cryobench.core.components import (
    AnyMetric,
    Case,
    Column,
    FourierMask,
    Gathering,
    HeterogeneitySolver,
    JointMetric,
    Measured,
    MeasuredTogether,
    Metric,
    NoiseModel,
    Noisy,
    PixelMask,
    Prior,
    Problem,
    Progress,
    Reconstruction,
    Solver,
    Structure,
)
from cryobench.core.dimensions import check_dims, unsupported_dims
from cryobench.core.encoder import Encoder
from cryobench.core.gaps import Filled, Gap, GapSolver, Intensities
from cryobench.core.heterogeneity import TRUE_CLASS, TRUE_LATENT, TRUTH, Heterogeneity, VolumeModel, saved_arrays
from cryobench.core.objective import Examples, Objective, Samples
from cryobench.core.operator import (
    Crop,
    Imaging,
    LinearOperator,
    OperatorRecipe,
    Shape,
    Window,
    adjoint_gap,
    build_operator,
    check_operator,
    checked_window,
    mean_intensity,
    power_norms,
    random_images,
)
from cryobench.core.pairs import Pairs
from cryobench.core.scale import MINMAX, Scale
from cryobench.core.source import Source, Stack

__all__ = [
    "CONTRACT",
    "MINMAX",
    "TRUE_CLASS",
    "TRUE_LATENT",
    "TRUTH",
    "AnyMetric",
    "Case",
    "Column",
    "Crop",
    "Encoder",
    "Examples",
    "Filled",
    "FourierMask",
    "Gap",
    "GapSolver",
    "Gathering",
    "Heterogeneity",
    "HeterogeneitySolver",
    "Imaging",
    "Intensities",
    "JointMetric",
    "LinearOperator",
    "Measured",
    "MeasuredTogether",
    "Metric",
    "NoiseModel",
    "Noisy",
    "Objective",
    "OperatorRecipe",
    "Pairs",
    "PixelMask",
    "Prior",
    "Problem",
    "Progress",
    "Reconstruction",
    "Samples",
    "Scale",
    "Shape",
    "Solver",
    "Source",
    "Stack",
    "Structure",
    "VolumeModel",
    "Window",
    "adjoint_gap",
    "build_operator",
    "check_dims",
    "check_operator",
    "checked_window",
    "mean_intensity",
    "power_norms",
    "random_images",
    "saved_arrays",
    "unsupported_dims",
]
