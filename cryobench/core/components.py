"""The vocabulary of the package: operators, problems, solvers, reconstructions, metrics, records.

Images are [B, 1, H, W] in [-1, 1], measurements [B, M, h, w], one dtype and device per problem. Every registered
component is a frozen dataclass, a recipe that costs nothing to make and hash; what is heavy is made by its `build`,
`open` or `solve`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from cryobench.core.operator import LinearOperator, Shape
from cryobench.rng import Rng

Progress = Callable[[int, int], None]
"""Called by a solver as progress(steps done, steps in all)."""


@dataclass(frozen=True)
class Noisy:
    """Noisy measurements y [B, M, h, w] and the standard deviation of an entry's noise, per image [B, 1, 1, 1]."""

    y: torch.Tensor
    sigma: torch.Tensor


class PixelMask(ABC):
    """Masks that multiply the image pixel by pixel."""

    domain: ClassVar[str] = "pixel"
    nonnegative: ClassVar[bool] = True

    @abstractmethod
    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        """`count` masks, float32 [count, H, W]."""


class FourierMask(ABC):
    """Masks of kept Fourier coefficients, centred: the zero frequency is at (H // 2, W // 2)."""

    domain: ClassVar[str] = "Fourier"

    @abstractmethod
    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        """One mask, bool [H, W], that keeps nominally the fraction `rho` of the coefficients."""


class NoiseModel(ABC):
    """A registered noise model: a frozen dataclass of its parameters."""

    @abstractmethod
    def apply(self, y: torch.Tensor, operator: LinearOperator, rng: Rng) -> Noisy:
        """Add noise to exact measurements y [B, M, h, w]."""

    def unsupported(self, operator: LinearOperator) -> str | None:
        """Why this noise makes no sense on this operator, or None."""
        return None


class Prior:
    """A registered prior: what a solver knows about images before it has measured. Solvers say what they need.

    located_by: the parameters that say where its weights lie. What is computed with it depends on the weights alone.
    """

    located_by: ClassVar[tuple[str, ...]] = ()

    def check(self, shape: Shape) -> None:
        """Raise a `CryobenchError` when it cannot be used on images of this shape, or cannot be had at all."""

    def prepare(self, device: torch.device) -> None:
        """Read now what is heavy (weights), so that it is timed as set-up and not as solving."""

    def weights_digest(self) -> str:
        """A digest of trained weights, '' for a prior without: a result counts as another when they change."""
        return ""

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origins (`Stack.origin`) of the images it was trained on; none for a prior that was not."""
        return ()


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

    curves: the course of such numbers over the steps, each [B, L]. deviation: how uncertain the solver is of a pixel,
    as a standard deviation on the scale of x, [B, 1, H, W]; None where it does not say.
    """

    x: torch.Tensor
    info: dict[str, torch.Tensor] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    deviation: torch.Tensor | None = None


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

    truth: the images that entered the operator, [B, 1, H, W]. pixel_size: Å per pixel of each, None where not known.
    clean: the truth without its own noise, on the same scale, where the source knows it. within: radius in pixels of
    the circle around pixel (H // 2, W // 2) to measure in, per image; None for the whole image.
    """

    problem: Problem
    truth: torch.Tensor
    image_ids: Sequence[str]
    pixel_size: Sequence[float | None]
    clean: torch.Tensor | None = None
    within: Sequence[float] | None = None


@dataclass(frozen=True)
class Column:
    """A named per-image number. direction: "higher" or "lower" is better, or "none". unit: '' for a pure number."""

    name: str
    direction: Literal["higher", "lower", "none"]
    unit: str = ""


@dataclass(frozen=True)
class Measured:
    """A metric's result: numbers [B] and curves [B, L] by name, and, by column, why numbers are missing (NaN)."""

    values: dict[str, torch.Tensor]
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


class Metric(ABC):
    """A registered metric. It states its columns before it measures, so that tables know direction and unit."""

    columns: ClassVar[tuple[Column, ...]]
    against_truth: ClassVar[bool] = True
    """Whether it compares with the truth, so that it can be told against the clean image too."""

    @abstractmethod
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        """Compare a reconstruction with the case; one value per image for every stated column."""

    def weights_digest(self) -> str:
        """A digest of the trained weights it uses, or a word for their absence; '' for a metric that uses none."""
        return ""
