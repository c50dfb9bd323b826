"""The components of a comparison (masks, noise models, priors, solvers, metrics) and the values they exchange.

Unknowns are [B, C, *S], with S two axes (images) or three (volumes) and C = 1 unless a component says otherwise;
measurements are [B, M, *s]. One dtype and device per problem. Every registered component is a frozen dataclass that is
cheap to create and to hash; expensive work is done in its `build`, `open` or `solve`. Each states in `dims` the numbers
of image axes that it supports, (2,) by default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from cryobench.core.heterogeneity import Heterogeneity, VolumeModel
from cryobench.core.operator import Imaging, LinearOperator, Shape
from cryobench.core.scale import MINMAX, Scale
from cryobench.errors import IncompatibleError
from cryobench.numerics.linalg import per_item
from cryobench.rng import Rng

Progress = Callable[[int, int], None]
"""Called by a solver as progress(steps done, total steps)."""


@dataclass(frozen=True)
class Noisy:
    """Noisy measurements y [B, M, *s] and the noise's standard deviation per entry, for each image [B, 1, ..., 1]."""

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
        """One mask, bool [*shape], that keeps a nominal fraction `rho` of the coefficients."""


class NoiseModel(ABC):
    """A registered noise model: a frozen dataclass of its parameters."""

    dims: ClassVar[tuple[int, ...]] = (2,)
    of_image: ClassVar[bool] = False
    """Whether the noise is that of the images themselves, so that the measured images are no truth."""

    @abstractmethod
    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        """Add noise to exact measurements y [B, M, *s] of images with this scale."""

    def apply_to_halves(
        self, y: torch.Tensor, other: torch.Tensor | None, operator: LinearOperator, scale: Scale, rng: Rng
    ) -> Noisy:
        """`apply`, for noise models that are estimated from a second image of the specimen.

        other: exact measurements of the other halves, [B, M, *s], else of the clean images; None if the source has
        neither. The noise of y must not depend on them beyond its standard deviation.
        """
        return self.apply(y, operator, scale, rng)

    def unsupported(self, operator: LinearOperator, scale: Scale) -> str | None:
        """The reason why this noise does not apply to measurements of this operator and scale, or None."""
        return None


class Prior:
    """A registered prior: a model of images, independent of the measurements. Solvers declare the type they require.

    location_fields: the parameters that give the location of the weights; results depend on the weights only.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
    location_fields: ClassVar[tuple[str, ...]] = ()

    def check(self, shape: Shape) -> None:
        """Raise a `CryobenchError` if the prior does not support images of this shape or cannot be found."""

    @property
    def trained_shape(self) -> Shape | None:
        """The shape of the training images; None if unknown. Images of others, if `check` accepts them, are noted."""
        return None

    def prepare(self, device: torch.device) -> None:
        """Load the weights, so that loading is timed as set-up and not as solving."""

    def weights_digest(self) -> str:
        """A digest of the trained weights, part of the identity of a result; '' for a prior without weights."""
        return ""

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origins (`Stack.origin`) of the training images; empty for a prior without training."""
        return ()

    def details(self) -> Mapping[str, Any]:
        """What a record states about the prior in addition to its spec: which files and settings were used."""
        return {}

    def notes(self) -> Sequence[str]:
        """What was assumed about the files of the prior, each one line for the user."""
        return ()


@dataclass(frozen=True)
class Problem:
    """The input of a solver: operator, measurements, noise level and scale, without the truth.

    y: [B, M, *s]. sigma: standard deviation of the noise per entry of y, for each image [B, 1, ..., 1], 0 where exact.
    scale: the map between the intensities of the source and those of x, and the range of x if it has one. imaging:
    pixel size, poses and CTF of the images, for solvers of all images together (`Solver.joint`), None for others.
    """

    operator: LinearOperator
    y: torch.Tensor
    noise: NoiseModel
    sigma: torch.Tensor
    scale: Scale = MINMAX
    imaging: Imaging | None = None

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
    """The result of a solver. x: [B, C, *S]. info: named per-image numbers (iterations, converged, ...), each [B].

    curves: such numbers at each step, each [B, L]. deviation: standard deviation of each pixel on the scale of x,
    [B, C, *S], if the solver estimates it. samples: the number K of draws, 2 or more, if x is their mean and the
    deviation their standard deviation, with K - 1; None for a deviation of another kind. halves: set by the runner
    where x is the mean of two reconstructions, from the measured image and from its other half. volumes: of a joint
    solver, the maps [D, D, D] that it found, in the units of the file: of all images (full) and of halves that have
    nothing in common (half1, half2). heterogeneity: of a `HeterogeneitySolver`, the map of each particle. draws: of a
    sampler, [B, K, C, *S], only where they are wanted (`core.kept_draws`).
    """

    x: torch.Tensor
    info: dict[str, torch.Tensor] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    deviation: torch.Tensor | None = None
    halves: tuple[torch.Tensor, torch.Tensor] | None = None
    samples: int | None = None
    volumes: dict[str, torch.Tensor] = field(default_factory=dict)
    heterogeneity: Heterogeneity | None = None
    draws: torch.Tensor | None = None


class Solver(ABC):
    """A registered solver: a frozen dataclass of its hyper-parameters.

    any_size: whether it takes images of tens of millions of pixels as they are; others need `tiled`. joint: whether it
    solves for all images of a data set together, because they show one specimen; `Problem.imaging` has their poses.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
    any_size: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    @abstractmethod
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        """Reconstruct [B, C, *S] in the problem's dtype and on its device.

        All randomness comes from `rng`; the result for an image must not depend on the other images of the batch,
        unless the solver is joint.
        """

    def unsupported(self, problem: Problem) -> str | None:
        """The reason why this solver does not support this problem, or None."""
        return None

    def solved_shape(self, shape: Shape) -> Shape:
        """The shape of the images that its priors see for images of this shape: the same, or that of windows."""
        return shape


class HeterogeneitySolver(Solver):
    """A registered solver for stacks that show many structures: it gives each particle a latent, and each latent a map.

    seeks_poses: whether it finds the poses itself; `Problem.imaging` then has none. The images of the answer are the
    projections of the map of each particle, with its pose and CTF.
    """

    joint = True
    seeks_poses: ClassVar[bool] = False

    @abstractmethod
    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        """The model whose `arrays` were saved, so that it need not be solved for again."""


@dataclass(frozen=True)
class Case:
    """The input of a metric for a batch, beside the reconstruction: the problem and the truth.

    truth: the images that were measured, [B, C, *S]. pixel_size: Å per pixel of each, None if unknown.
    clean: the truth without its own noise, on the same scale, if the source has it. within: radius in pixels of the
    evaluated circle (ball) around pixel n // 2 of every axis, per image; None for the whole image.
    data_range: minimum and maximum intensity on the scale of x, for all images or [B] each: the range of the scale,
    or if it has none the minimum and maximum of the measured image. other: a second image of the same specimen with
    independent noise, [B, C, *S] on the same scale, if the source has one (`Stack.other`).
    """

    problem: Problem
    truth: torch.Tensor
    image_ids: Sequence[str]
    pixel_size: Sequence[float | None]
    clean: torch.Tensor | None = None
    within: Sequence[float] | None = None
    data_range: tuple[torch.Tensor | float, torch.Tensor | float] = (-1.0, 1.0)
    other: torch.Tensor | None = None

    def unit_range(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, *S] with the data range mapped to [0, 1], float64."""
        x = x.double()
        low, high = (per_item(torch.as_tensor(end, dtype=x.dtype).to(x.device), x) for end in self.data_range)
        return (x - low) / (high - low)

    def unit_size(self, difference: torch.Tensor) -> torch.Tensor:
        """A difference of images [B, C, *S] as a fraction of the data range, float64."""
        difference = difference.double()
        low, high = (torch.as_tensor(end, dtype=torch.float64).to(difference.device) for end in self.data_range)
        return difference / per_item(high - low, difference)


@dataclass(frozen=True)
class Column:
    """A named per-image number. direction: "higher" or "lower" is better, or "none". unit: '' if dimensionless.

    interval: of the mean over images. "binomial" is for a column that is 1 or 0 for an image, or a probability.
    """

    name: str
    direction: Literal["higher", "lower", "none"]
    unit: str = ""
    interval: Literal["bootstrap", "binomial"] = "bootstrap"


@dataclass(frozen=True)
class Measured:
    """The result of a metric: numbers [B] and curves [B, L] by name, and per column why numbers are missing (NaN)."""

    values: dict[str, torch.Tensor]
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


class AnyMetric(ABC):
    """A registered metric. `columns` states the name, direction and unit of each of its numbers."""

    dims: ClassVar[tuple[int, ...]] = (2,)
    columns: ClassVar[tuple[Column, ...]]
    against_truth: ClassVar[bool] = True
    """Whether it compares with the truth; if so, it is also computed against the clean image."""
    uses_other: ClassVar[bool] = False
    """Whether it compares with the other half (`Case.other`), which says nothing of a network trained on that half."""
    uses_draws: ClassVar[bool] = False
    """Whether it needs the draws of a sampler (`Reconstruction.draws`), which are kept only then."""

    def weights_digest(self) -> str:
        """A digest of the trained weights, or a text that states their absence; '' for a metric without weights."""
        return ""


class Metric(AnyMetric):
    """A metric of single images."""

    @abstractmethod
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        """Evaluate a reconstruction; one value per image for every stated column."""


@dataclass(frozen=True)
class MeasuredTogether:
    """The result of a metric of all images together: numbers and curves [L] by name, per column why a number is missing
    (NaN), and volumes [D, D, D] that were made for it, by name."""

    values: dict[str, float]
    curves: dict[str, torch.Tensor] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Structure:
    """What a source knows of the structure that its images are projections of.

    volume: float32 [D, D, D] (`Stack.volume`), None if it is unknown or not one. radius: Å, None if unknown. of: makes
    the volume that an image is a projection of, by its place among the images of the cell, float32 [D, D, D]; None if
    it is unknown.
    """

    volume: torch.Tensor | None = None
    radius: float | None = None
    of: Callable[[int], torch.Tensor | None] | None = None


class Gathering(ABC):
    """What a `JointMetric` keeps of the images so far."""

    @abstractmethod
    def add(self, images: torch.Tensor, answer: Reconstruction) -> None:
        """Add the next images, [n, C, *S] in the units of the file. answer: of the solver, for what else it found."""

    @abstractmethod
    def measure(self) -> MeasuredTogether:
        """Evaluate all images; one value for every stated column."""


class JointMetric(AnyMetric):
    """A metric of all images of a cell together, such as of the map that they give: one number per cell and column.

    Images are given one chunk after the other, and memory should not grow with their number. Numbers have no interval
    over images, and differences are not tested.
    """

    against_truth: ClassVar[bool] = False

    @abstractmethod
    def gather(self, imaging: Imaging, structure: Structure) -> Gathering:
        """Begin with the images of a data set. imaging: shape, pixel sizes and table of all of them, in their order."""
