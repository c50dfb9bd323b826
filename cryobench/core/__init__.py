"""The contract: operators, problems, solvers, priors, noises, metrics and sources, and what runs them measures.

Lives here: the base classes that every component derives from, and the meters and recordings around a solver.
May be imported by all but `numerics`, `spec`, `rng` and `errors`.
"""

from cryobench.core.components import (
    Case,
    Column,
    FourierMask,
    Measured,
    Metric,
    NoiseModel,
    Noisy,
    PixelMask,
    Prior,
    Problem,
    Progress,
    Reconstruction,
    Solver,
)
from cryobench.core.operator import (
    DrawnRecipe,
    Imaging,
    LinearOperator,
    OperatorRecipe,
    Shape,
    adjoint_gap,
    mean_intensity,
    power_norms,
)
from cryobench.core.source import Source, Stack

__all__ = [
    "Case",
    "Column",
    "DrawnRecipe",
    "FourierMask",
    "Imaging",
    "LinearOperator",
    "Measured",
    "Metric",
    "NoiseModel",
    "Noisy",
    "OperatorRecipe",
    "PixelMask",
    "Prior",
    "Problem",
    "Progress",
    "Reconstruction",
    "Shape",
    "Solver",
    "Source",
    "Stack",
    "adjoint_gap",
    "mean_intensity",
    "power_norms",
]
