"""The components of a comparison: masks, noise models, priors, solvers, metrics, and what passes between them.

Unknowns are [B, C, *S], with S two axes (images) or three (volumes) and C = 1 unless a component says otherwise;
measurements are [B, M, *s]. One dtype and device per problem. Every registered component is a frozen dataclass, a
recipe that is cheap to make and to hash; expensive work is left to its `build`, `open` or `solve`. Each states in
`dims` the numbers of axes of the images that it takes, (2,) by default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from cryobench.core.operator import LinearOperator, Shape
from cryobench.core.scale import MINMAX, Scale
from cryobench.errors import IncompatibleError
from cryobench.numerics.linalg import per_item
from cryobench.rng import Rng

Progress = Callable[[int, int], None]
"""Called by a solver as progress(steps done, steps in all)."""


@dataclass(frozen=True)
class Noisy:
    """Noisy measurements y [B, M, *s] and the standard deviation of an entry's noise, per image [B, 1, ..., 1]."""

    y: torch.Tensor
    sigma: torch.Tensor


class PixelMask(ABC):
    """Masks that multiply the image pixel by pixel."""

    dims: ClassVar[tuple[int, ...]] = (2,)
    domain: ClassVar[str] = "pixel"
    nonnegative: ClassVar[bool] = True

    @abstractmethod
    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        """`count` masks, float32 [count, *shape]."""


class FourierMask(ABC):
    """Masks of kept Fourier coefficients, centred: the zero frequency is at index n // 2 of every axis."""

    dims: ClassVar[tuple[int, ...]] = (2,)
    domain: ClassVar[str] = "Fourier"

    @abstractmethod
    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        """One mask, bool [*shape], that keeps nominally the fraction `rho` of the coefficients."""


class NoiseModel(ABC):
    """A registered noise model: a frozen dataclass of its parameters."""

    dims: ClassVar[tuple[int, ...]] = (2,)

    @abstractmethod
    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        """Add noise to exact measurements y [B, M, *s] of images on this scale."""

    def unsupported(self, operator: LinearOperator, scale: Scale) -> str | None:
        """Why this noise cannot be added to measurements of this operator and scale, or None."""
        return None


class Prior:
    """A registered prior: what is known of images before they are measured. Solvers declare which kind they take.

    located_by: the parameters that say where its weights are stored; results depend on the weights alone.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
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
    """What a solver sees: the operator, the measurements, the noise level and the scale. Never the truth.

    y: [B, M, *s]. sigma: standard deviation of the noise in an entry of y, per image [B, 1, ..., 1], 0 where exact.
    scale: how intensities of the source became those of x, and their range where they have one.
    """

    operator: LinearOperator
    y: torch.Tensor
    noise: NoiseModel
    sigma: torch.Tensor
    scale: Scale = MINMAX

    def __post_init__(self) -> None:
        """Raise `IncompatibleError` for shapes that are not the operator's: they could broadcast to a wrong result."""
        measured = tuple(self.operator.measurement_shape)
        for name, tensor, expected in (("y", self.y, measured), ("sigma", self.sigma, (1,) * len(measured))):
            if tuple(tensor.shape[1:]) != expected or len(tensor) not in (1, len(self.y)):
                raise IncompatibleError(
                    f"{name} has shape {list(tensor.shape)}, expected [B, {', '.join(map(str, expected))}]"
                )

    @property
    def batch(self) -> int:
        return self.y.shape[0]

    @property
    def image_batch_shape(self) -> tuple[int, ...]:
        """(B, C, *S)."""
        return (self.batch, *self.operator.domain_shape)


@dataclass(frozen=True)
class Reconstruction:
    """A solver's answer. x: [B, C, *S]. info: named per-image numbers (iterations, converged, ...), each [B].

    curves: the course of such numbers over the steps, each [B, L]. deviation: how uncertain the solver is of a pixel,
    as a standard deviation on the scale of x, [B, C, *S]; None where it does not say.
    """

    x: torch.Tensor
    info: dict[str, torch.Tensor] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    deviation: torch.Tensor | None = None


class Solver(ABC):
    """A registered solver: a frozen dataclass of its hyper-parameters."""

    dims: ClassVar[tuple[int, ...]] = (2,)

    @abstractmethod
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        """Reconstruct [B, C, *S] in the problem's dtype and on its device.

        All randomness comes from `rng`; an image's result must not depend on the others in its batch.
        """

    def unsupported(self, problem: Problem) -> str | None:
        """Why this solver cannot take this problem, or None."""
        return None


@dataclass(frozen=True)
class Case:
    """What a metric is given for a batch: the problem and the truth.

    truth: the images that entered the operator, [B, C, *S]. pixel_size: Å per pixel of each, None where not known.
    clean: the truth without its own noise, on the same scale, where the source has it. within: radius in pixels of
    the circle (the ball) around pixel n // 2 of every axis to measure in, per image; None for the whole image.
    data_range: the least and the greatest intensity on the scale of x, for all images or [B] each: the range of the
    scale; where it has none, the least and the greatest pixel of the image that was measured.
    """

    problem: Problem
    truth: torch.Tensor
    image_ids: Sequence[str]
    pixel_size: Sequence[float | None]
    clean: torch.Tensor | None = None
    within: Sequence[float] | None = None
    data_range: tuple[torch.Tensor | float, torch.Tensor | float] = (-1.0, 1.0)

    def unit_range(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, *S] with the data range mapped to [0, 1], float64."""
        x = x.double()
        low, high = (per_item(torch.as_tensor(end, dtype=x.dtype).to(x.device), x) for end in self.data_range)
        return (x - low) / (high - low)

    def unit_size(self, difference: torch.Tensor) -> torch.Tensor:
        """A difference of images [B, C, *S] as a share of the data range, float64."""
        difference = difference.double()
        low, high = (torch.as_tensor(end, dtype=torch.float64).to(difference.device) for end in self.data_range)
        return difference / per_item(high - low, difference)


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

    dims: ClassVar[tuple[int, ...]] = (2,)
    columns: ClassVar[tuple[Column, ...]]
    against_truth: ClassVar[bool] = True
    """Whether it compares with the truth, so that it can be computed against the clean image too."""

    @abstractmethod
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        """Compare a reconstruction with the case; one value per image for every stated column."""

    def weights_digest(self) -> str:
        """A digest of the trained weights it uses, or a word for their absence; '' for a metric that uses none."""
        return ""
