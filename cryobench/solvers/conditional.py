"""`emdiffuse` and `regression`: a network that was trained on noisy images and the same with less noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import ParameterError
from cryobench.networks.refinement import SAMPLING, respaced, sample
from cryobench.networks.restoring import Restorer
from cryobench.numerics.linalg import standardised
from cryobench.priors.conditional import IMAGE, NOISE, SPREAD, Conditional
from cryobench.rng import Rng
from cryobench.solvers.draws import averaged
from cryobench.spec import ByName, Component, Range


@dataclass(frozen=True)
class _WithNetwork(Solver):
    """The network, on images of mean 0 and deviation 1 / `SPREAD`, in windows of the size of its training patches."""

    predicts = NOISE
    any_size = True

    model: Annotated[Conditional, Component("priors", folder="conditional"), "the network, such as model=./FOLDER"]
    tile: Annotated[
        int | None, ByName(), "side of the windows of larger images; none: that of the training patches"
    ] = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ParameterError(f"tile must be a positive number of pixels, got {self.tile}; give 64 or more")

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.operator.identity:
            return "it removes noise from images; it needs the operator identity"
        conditions = self.model.config.conditions
        if conditions != 1:
            return f"its network takes {conditions} images as condition; the operator identity gives one"
        if self.model.predicts != self.predicts:
            other = "regression" if self.predicts == NOISE else "emdiffuse"
            return f"its network predicts the {self.model.predicts}; use the solver {other}"
        return None

    def restorer(self, device: torch.device) -> Restorer:
        """The network on a device."""
        return Restorer(self.model.load(device), self.tile or self.model.patch)


@dataclass(frozen=True)
class Regression(_WithNetwork):
    """x = m + s f((y - m) / s), with m and s the mean and deviation of the image y and f a network of the architecture
    of `emdiffuse` that was trained with the squared error: the control of `emdiffuse`.

    f is trained by `cryobench train --objective regression`. For `identity` only. Larger images than the training
    patches are evaluated in overlapping windows, blended with raised-cosine weights.
    """

    predicts = IMAGE

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        y, mean, deviation = standardised(problem.y)
        restorer = self.restorer(y.device)
        with meters.calling(meters.NETWORK, y):
            x = restorer.image(y / SPREAD)
        if progress is not None:
            progress(1, 1)
        return Reconstruction(x.mul_(SPREAD * deviation).add_(mean))


@dataclass(frozen=True)
class Emdiffuse(_WithNetwork):
    """Samples of the image without noise by conditional diffusion (Lu et al. 2024, EMDiffuse).

    Sampling follows the 1000 published noise levels, or fewer from noise to the image, from which betas are computed
    again; the estimate of every step is clamped. Few steps make the samples too alike: see docs/emdiffuse.md. With
    `samples` > 1 the result is their mean, and their standard deviation is returned too. The network is trained by
    `cryobench train --objective conditional`. For `identity` only.
    Larger images than the training patches are evaluated in overlapping windows, blended at every step.
    """

    samples: Annotated[int, ByName(), "images to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(5, 1000, log=True), "network evaluations for each sample, at most 1000"] = 20
    spacing: Annotated[
        Literal["log", "linear"], "of the noise levels of less than 1000 steps: log, or every n-th published level"
    ] = "log"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ParameterError(f"emdiffuse: samples must be at least 1, got {self.samples}")
        respaced(SAMPLING.gammas(), self.steps)  # raises for an impossible number

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        y, mean, deviation = standardised(problem.y)
        condition, restorer = y / SPREAD, self.restorer(y.device)
        levels = respaced(SAMPLING.gammas(), self.steps, self.spacing)

        def predict(x: torch.Tensor, gamma: float) -> torch.Tensor:
            with meters.calling(meters.NETWORK, x):
                return restorer.noise(condition, x, gamma)

        def draw(number: int, report: Progress) -> torch.Tensor:
            stream = rng.stream(f"conditional {number}")
            return sample(predict, lambda: stream.normal(y.shape[1:], dtype=y.dtype, device=y.device), levels, report)

        average, spread = averaged(draw, self.samples, progress)
        x = (average * SPREAD).to(y.dtype).mul_(deviation).add_(mean)
        if spread is None:
            return Reconstruction(x)
        return Reconstruction(x, deviation=(spread * SPREAD).to(y.dtype).mul_(deviation), samples=self.samples)
