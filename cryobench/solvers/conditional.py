"""`emdiffuse` and `regression`: networks that were trained to remove noise from images, or to predict the sections
between two of a volume.

Images, and volumes as a whole, are on the scale on which they have mean 0 and deviation 1 / `SPREAD`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from cryobench.core import Filled, Gap, GapSolver, Problem, Progress, Reconstruction, meters
from cryobench.errors import ParameterError
from cryobench.networks.refinement import SAMPLING, respaced, sample
from cryobench.networks.restoring import Restorer
from cryobench.numerics.linalg import standardised
from cryobench.priors.conditional import IMAGE, SPREAD, VELOCITY, Conditional
from cryobench.rng import Rng
from cryobench.solvers.draws import averaged
from cryobench.solvers.gaps import fill_gaps, no_gaps
from cryobench.solvers.interpolate import Interpolate
from cryobench.solvers.pinv import minimum_norm
from cryobench.spec import ByName, Component, Range


@dataclass(frozen=True)
class _WithNetwork(GapSolver):
    """The network, in windows of the size of its training patches."""

    any_size = True
    draws: ClassVar[int | None] = None
    """The number of samples whose mean and standard deviation are the result."""

    model: Annotated[Conditional, Component("priors", folder="conditional"), "the network, such as model=./FOLDER"]
    tile: Annotated[
        int | None, ByName(), "side of the windows of larger images; none: that of the training patches"
    ] = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ParameterError(f"tile must be a positive number of pixels, got {self.tile}; give 64 or more")

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the network."""
        return self.model.dims

    def unsupported(self, problem: Problem) -> str | None:
        wrong = self._other_solver()
        if wrong is not None:
            return wrong
        operator, trained = problem.operator, self.model.config.compression
        if self.model.config.gap is not None:
            return no_gaps(self, problem)
        if trained is None:
            return (
                None if operator.identity else "its network removes noise from images; it needs the operator identity"
            )
        if operator.identity:
            return "its network inverts an operator; it needs the operator that it was trained for"
        if not 0.9 < operator.nominal_compression / trained < 1.1:
            return (f"its network was trained for an operator with C = {trained:.3g}, this one has C = "
                    f"{operator.nominal_compression:.3g}; train another with operator=")  # fmt: skip
        return None

    def unfillable(self, times: Sequence[float]) -> str | None:
        wrong = self._other_solver()
        if wrong is not None:
            return wrong
        gap = self.model.config.gap
        if gap is None:
            return "its network restores images, and does not fill gaps between sections"
        if len(times) != gap - 1 or not np.allclose(times, np.arange(1, gap) / gap):
            return f"its network fills gaps between sections that are {gap} apart; it needs slices:{gap}"
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        if self.model.config.gap is not None:
            return fill_gaps(self, problem, rng=rng, progress=progress)
        y, mean, deviation = standardised(initial_image(problem))
        x, spread = self._restored(y / SPREAD, None, rng, "", progress)
        x = x.mul_(SPREAD).mul_(deviation).add_(mean)
        if spread is None:
            return Reconstruction(x)
        return Reconstruction(x, deviation=spread.mul_(SPREAD).mul_(deviation), samples=self.draws)

    def fill(self, gap: Gap, *, rng: Rng, progress: Progress | None = None) -> Filled:
        config, condition = self.model.config, (gap.standardised / SPREAD)[None]
        place = None
        if config.places > 1:
            place = torch.arange(config.places, device=condition.device)
            condition = condition.expand(config.places, -1, -1, -1)
        x, spread = self._restored(condition, place, rng, f" gap {gap.number}", progress)
        sections = gap.restored(x.mul_(SPREAD).flatten(0, 1))
        if spread is None:
            return Filled(sections)
        return Filled(sections, spread.mul_(SPREAD * gap.volume.deviation).flatten(0, 1), self.draws)

    @abstractmethod
    def _restored(
        self, condition: torch.Tensor, place: torch.Tensor | None, rng: Rng, purpose: str, progress: Progress | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the network makes of the conditions [B, C, H, W], or of one gap at all places [B], and its standard
        deviation, [B, images, H, W]. purpose: of random numbers that are for this gap alone."""

    def _other_solver(self) -> str | None:
        """The reason if the network is one of another solver."""
        wanted = "regression" if self.model.predicts == IMAGE else "emdiffuse"
        own = type(self).__name__.lower()
        return None if own == wanted else f"its network predicts the {self.model.predicts}; use the solver {wanted}"

    def _restorer(self, model: Conditional, device: torch.device) -> Restorer:
        """A network on a device."""
        velocity = model.predicts == VELOCITY
        return Restorer(model.load(device), self.tile or model.patch, velocity=velocity)

    def _mean(self, model: Conditional, condition: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        """What a regression network predicts."""
        with meters.calling(meters.NETWORK, condition):
            return self._restorer(model, condition.device).image(condition, place)


@dataclass(frozen=True)
class Regression(_WithNetwork):
    """A network of the architecture of `emdiffuse` that was trained with the squared error: the control of `emdiffuse`.

        x = m + s f((y - m) / s)    with m and s the mean and deviation of the image y

    f is trained by `cryobench train --objective regression`: for `identity`; with operator= for that operator, where y
    is what `initial_image` makes of the measurements; or with gap=R for `slices:R` of volumes, where y are the measured
    sections, which are kept. Larger images than the training patches are evaluated in overlapping windows, blended with
    raised-cosine weights.
    """

    @torch.no_grad()
    def _restored(
        self, condition: torch.Tensor, place: torch.Tensor | None, rng: Rng, purpose: str, progress: Progress | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = self._mean(self.model, condition, place)
        if progress is not None:
            progress(1, 1)
        return x, None


@dataclass(frozen=True)
class Emdiffuse(_WithNetwork):
    """Samples of the image without noise by conditional diffusion (Lu et al. 2024, EMDiffuse), or of the sections
    between the measured ones of a volume.

    Sampling follows the 1000 published noise levels, or fewer from noise to the image, from which betas are computed
    again; the estimate of every step is clamped. Few steps make the samples too alike: see docs/emdiffuse.md. With
    `samples` > 1 the result is their mean, and their standard deviation is returned too. The network is trained by
    `cryobench train --objective conditional`: for `identity`, with operator= for that operator, or with gap=R for
    `slices:R` of volumes, whose measured sections are kept. One that was trained with mean= samples what its regression
    leaves.
    Larger images than the training patches are evaluated in overlapping windows, blended at every step.
    """

    samples: Annotated[int, ByName(), "images to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(5, 1000, log=True), "network evaluations for each sample, at most 1000"] = 20
    spacing: Annotated[
        Literal["log", "linear"], "of the noise levels of less than 1000 steps: log, or every n-th published level"
    ] = "log"
    shared: Annotated[
        bool, ByName(), "of volumes: the sections of all gaps from the same noise, or each from its own"
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ParameterError(f"emdiffuse: samples must be at least 1, got {self.samples}")
        respaced(SAMPLING.gammas(), self.steps)  # raises for an impossible number

    @property
    def draws(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples."""
        return self.samples

    @torch.no_grad()
    def _restored(
        self, condition: torch.Tensor, place: torch.Tensor | None, rng: Rng, purpose: str, progress: Progress | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        restorer, images = self._restorer(self.model, condition.device), self.model.config.images
        levels = respaced(SAMPLING.gammas(), self.steps, self.spacing)
        regression = self.model.mean
        offset = None if regression is None else self._mean(regression, condition, place)
        scale = 1.0 if regression is None else self.model.load(condition.device).scale
        own, places = "" if self.shared else purpose, 1 if place is None else len(place)
        shape = (1 if self.shared else places, images, *condition.shape[2:])

        def predict(x: torch.Tensor, gamma: float) -> torch.Tensor:
            with meters.calling(meters.NETWORK, x):
                return restorer.noise(condition, x, gamma, place)

        def draw(number: int, report: Progress) -> torch.Tensor:
            stream = rng.stream(f"conditional {number}{own}")

            def normal() -> torch.Tensor:
                drawn = stream.normal(shape, dtype=condition.dtype, device=condition.device)
                return drawn.expand(-1, places, *shape[1:]).flatten(0, 1)

            x = sample(predict, normal, levels, report)
            return x if offset is None else x.mul_(scale).add_(offset)

        average, spread, _ = averaged(draw, self.samples, progress)
        return average.to(condition.dtype), None if spread is None else spread.to(condition.dtype)


def initial_image(problem: Problem) -> torch.Tensor:
    """What networks restore, [B, C, *S]: linear interpolation of measurements on a grid of pixels, else the least-norm
    solution."""
    if problem.operator.identity:
        return problem.y
    if problem.operator.positions is None:
        return minimum_norm(problem)
    return Interpolate().solve(problem, rng=Rng(0, [""] * problem.batch)).x
