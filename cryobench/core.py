"""The vocabulary of the package: operators, problems, solvers, reconstructions, metrics, records.

Images are [B, 1, H, W] in [-1, 1], measurements [B, M, h, w], one dtype and device per problem. Every registered
component is a frozen dataclass, a recipe that costs nothing to make and hash; what is heavy is made by its `build`,
`open` or `solve`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from cryobench.linalg import conjugate_gradients, power_norm
from cryobench.rng import Rng

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Shape = tuple[int, int]
Progress = Callable[[int, int], None]
"""Called by a solver as progress(steps done, steps in all)."""


class LinearOperator(ABC):
    """A live linear measurement operator A: [B, 1, H, W] -> [B, M, h, w], real, batched.

    A subclass gives `A` and `A_adjoint`; the other methods then work by iteration, to a relative tolerance of
    `cg_tol`. Operators with structure override them with closed forms. The vocabulary is that of deepinv, except
    that `compute_norm` is ||A||, not its square.
    """

    image_shape: Shape
    measurement_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    nominal_compression: float
    nonnegative: bool = False
    """Whether every weight of A is non-negative, so that measurements can be counts."""
    noise_in_range: bool = False
    """Whether y is written in a larger space than is measured, so that noise lives on the range of A alone."""
    closed_form: bool = False
    """Whether `A_dagger`, `A_dagger_A` and `prox_l2` need no iteration."""
    cg_tol: float = 1e-6
    cg_max_steps: int = 1000

    @abstractmethod
    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Measure: [B, 1, H, W] -> [B, M, h, w]."""

    @abstractmethod
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The transpose of A: [B, M, h, w] -> [B, 1, H, W]."""

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        """A^T A x, [B, 1, H, W]."""
        return self.A_adjoint(self.A(x))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        """The least-norm least-squares solution of A x = y, [B, 1, H, W]."""
        return self._solve(self.A_adjoint(y), 0.0)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        """(A^T A + I / gamma)^-1 A^T A x, [B, 1, H, W]; gamma > 0 for all images, or for each, [B, 1, 1, 1].

        At gamma = inf it is A^+ A x, the part of x that is measured. With x* any least-squares solution,
        z + A_dagger_A(x* - z, gamma) is prox_l2(z, y, gamma), and the projection on all such solutions at gamma = inf.
        """
        return self._solve(self.A_adjoint_A(x), 1 / gamma)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """argmin_x 1/2 ||A x - y||^2 + 1/(2 gamma) ||x - z||^2, [B, 1, H, W]."""
        return z + self._solve(self.A_adjoint(y - self.A(z)), 1 / gamma)

    def _solve(self, b: torch.Tensor, shift: torch.Tensor | float) -> torch.Tensor:
        """(A^T A + shift)^-1 b, of least norm."""
        return conjugate_gradients(
            lambda x: self.A_adjoint_A(x) + shift * x, b, tol=self.cg_tol, max_steps=self.cg_max_steps
        )

    def compute_norm(self) -> float:
        """The spectral norm ||A|| (not its square)."""
        return power_norm(self)

    @property
    def rank(self) -> int:
        """Rank of A; where it is not known, the largest it can be."""
        return min(math.prod(self.image_shape), math.prod(self.measurement_shape))

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """A 1, the measurement of a constant image of intensity one, [1, M, h, w]."""
        return self.A(torch.ones((1, 1, *self.image_shape), dtype=self.dtype, device=self.device))

    def prepare(self) -> None:
        """Do now what is done once (factorisations), so that it is timed as set-up and not as solving."""
        _ = self.mean_response, self.rank

    @property
    def effective_compression(self) -> float:
        """Pixels over independent measurements, N / rank(A); infinite for an operator that measures nothing."""
        return math.prod(self.image_shape) / self.rank if self.rank else math.inf


class OperatorRecipe(ABC):
    """A registered operator: a frozen dataclass of its parameters."""

    @abstractmethod
    def check(self, image_shape: Shape) -> None:
        """Raise `IncompatibleError` when this operator cannot measure images of this shape. Costs nothing."""

    @abstractmethod
    def build(self, image_shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device) -> LinearOperator:
        """Make the live operator. Random parts depend on (seed, this recipe, image_shape) alone."""


@dataclass(frozen=True)
class Noisy:
    """Noisy measurements y [B, M, h, w] and the standard deviation of an entry's noise, per image [B, 1, 1, 1]."""

    y: torch.Tensor
    sigma: torch.Tensor


class NoiseModel(ABC):
    """A registered noise model: a frozen dataclass of its parameters."""

    @abstractmethod
    def apply(self, y: torch.Tensor, operator: LinearOperator, rng: Rng) -> Noisy:
        """Add noise to exact measurements y [B, M, h, w]."""

    def unsupported(self, operator: LinearOperator) -> str | None:
        """Why this noise makes no sense on this operator, or None."""
        return None


class Prior:
    """A registered prior: what a solver knows about images before it has measured. Solvers say what they need."""

    def weights_digest(self) -> str:
        """A digest of trained weights, '' for a prior without: a result counts as another when they change."""
        return ""


@dataclass(frozen=True)
class Problem:
    """What a solver sees: the operator, the measurements and the noise level. Never the truth.

    y: [B, M, h, w]. sigma: standard deviation of the noise in an entry of y, per image [B, 1, 1, 1], 0 where exact.
    """

    operator: LinearOperator
    y: torch.Tensor
    noise: NoiseModel
    sigma: torch.Tensor

    @property
    def batch(self) -> int:
        return self.y.shape[0]

    @property
    def image_batch_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, 1, *self.operator.image_shape)


@dataclass(frozen=True)
class Reconstruction:
    """A solver's answer. x: [B, 1, H, W]. info: named per-image numbers (iterations, converged, ...), each [B].

    curves: the course of such numbers over the steps, each [B, L].
    """

    x: torch.Tensor
    info: dict[str, torch.Tensor] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)


class Solver(ABC):
    """A registered solver: a frozen dataclass of its hyper-parameters."""

    @abstractmethod
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        """Reconstruct [B, 1, H, W] in the problem's dtype and on its device.

        All randomness comes from `rng`; an image's result must not depend on the others in its batch.
        """

    def unsupported(self, problem: Problem) -> str | None:
        """Why this solver cannot take this problem, or None."""
        return None


@dataclass(frozen=True)
class Case:
    """What the runner holds for a batch and a metric is given: the problem and, beside it, the truth.

    truth: [B, 1, H, W]. pixel_size: ångström per pixel of each image, or None where the file has none.
    """

    problem: Problem
    truth: torch.Tensor
    image_ids: Sequence[str]
    pixel_size: Sequence[float | None]


@dataclass(frozen=True)
class Column:
    """A named per-image number. direction: "higher" or "lower" is better, or "none". unit: '' for a pure number."""

    name: str
    direction: Literal["higher", "lower", "none"]
    unit: str = ""


@dataclass(frozen=True)
class Measured:
    """A metric's result: per-image numbers [B] by column name, and per-image curves [B, L] where it has any."""

    values: dict[str, torch.Tensor]
    curves: dict[str, torch.Tensor] = field(default_factory=dict)


class Metric(ABC):
    """A registered metric. It states its columns before it measures, so that tables know direction and unit."""

    columns: ClassVar[tuple[Column, ...]]

    @abstractmethod
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        """Compare a reconstruction with the case; one value per image for every stated column."""


class Stack(ABC):
    """An open stack of images that reads only what is asked for."""

    shape: Shape
    label: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image `index` (0-based) as float32 [H, W], in the file's own units."""

    def pixel_size(self, index: int) -> float | None:
        """Ångström per pixel, or None where it is not known."""
        return None

    @property
    def ctf(self) -> pd.DataFrame | None:
        """CTF parameters, one row per image, or None."""
        return None


class Source(ABC):
    """A registered data source: a frozen dataclass of its parameters."""

    @abstractmethod
    def open(self) -> Stack:
        """Open without reading the images."""
