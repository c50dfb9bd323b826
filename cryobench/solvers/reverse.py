"""Common parts of solvers with a diffusion prior: the prior, the reverse process, random draws, several samples.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps            a_t: `DenoisingModel.alpha`, 1 without noise

A sampler goes through a decreasing list of noise levels. At each, the network estimates x_0, the measurements correct
the estimate, and noise brings it to the next level; samplers differ in the correction.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, final

import torch

from cryobench.core import MINMAX, Problem, Progress, Reconstruction, Solver, recording
from cryobench.errors import ParameterError
from cryobench.priors.denoising import DenoisingModel, DenoisingPrior, Prediction
from cryobench.priors.diffusion import Embedded, NoisyImages
from cryobench.rng import Rng, Stream
from cryobench.solvers.denoising import image_noise
from cryobench.solvers.draws import averaged
from cryobench.solvers.prior_scale import PriorScale, by_extremes, by_moments, stated_scale
from cryobench.spec import ByName, Component, Range

DEFAULT_INTENSITY = -0.2, 0.2
"""Mean and standard deviation of particle images in [-1, 1], for a prior whose card does not state them."""


@dataclass(frozen=True)
class WithDiffusion(Solver):
    """A solver with a diffusion prior. Its images are in [-1, 1]; those of a problem may have any scale."""

    prior: Annotated[
        DenoisingPrior,
        Component("priors", folder="diffusion"),
        ByName(),
        "a diffusion prior: embedded, diffusion:..., or a folder",
    ] = Embedded()

    @final
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        """`solve_in_range`, on measurements mapped to the scale of the prior unless the range is [-1, 1].

        A prior in the units of the file is given those, through the scale of the problem.
        """
        if self.prior.in_units_of_file:
            scale = stated_scale(problem)
        elif problem.scale.range == MINMAX.range:
            return self.solve_in_range(problem, rng=rng, progress=progress)
        else:
            scale = self.prior_scale(problem, rng)
        with recording.mapped(scale.undo):
            found = self.solve_in_range(scale.problem(problem), rng=rng, progress=progress)
        deviation = None if found.deviation is None else (found.deviation / scale.factor).to(found.deviation.dtype)
        info = found.info | {"prior_scale": scale.factor.flatten()}
        draws = found.draws
        if draws is not None:
            draws = torch.stack([scale.undo(one) for one in draws.unbind(dim=1)], dim=1)
        return Reconstruction(scale.undo(found.x), info, found.curves, deviation, samples=found.samples, draws=draws)

    @abstractmethod
    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        """`solve` for images in [-1, 1], the range of the training images of the prior."""

    def prior_scale(self, problem: Problem, rng: Rng) -> PriorScale:
        """The map from the scale of this problem to that of the prior, estimated from y (module `prior_scale`)."""
        self.prior.check(problem.operator.image_shape)
        if self.prior.intensity is None:
            warnings.warn(f"the card of the prior does not state the mean and the deviation of its "
                          f"training images; using {DEFAULT_INTENSITY[0]:g} and {DEFAULT_INTENSITY[1]:g}",
                          stacklevel=2)  # fmt: skip
        scale = by_moments(problem, *(self.prior.intensity or DEFAULT_INTENSITY), rng)
        if not self.prior.trained_on_clean:
            return scale
        model = self.prior.load(problem.operator.device)
        return by_extremes(scale.problem(problem), model, rng).after(scale)

    def model(self, problem: Problem, rng: Rng) -> DenoisingModel:
        """The live prior for the images of a problem, on its device.

        A prior of clean images does not model the noise of real images. Its standard deviation is estimated from y with
        a few network evaluations, unless the prior states it. Raises `IncompatibleError` for images of another size.
        """
        self.prior.check(problem.operator.image_shape)
        model = self.prior.load(problem.operator.device)
        if self.prior.noise == "auto":
            return NoisyImages(model, image_noise(problem, model, rng)) if self.prior.trained_on_clean else model
        if self.prior.noise == 0:
            return model
        return NoisyImages(model, problem.sigma.new_full(problem.sigma.shape, self.prior.noise))


def differentiable(
    model: DenoisingModel, x: torch.Tensor, t: int
) -> tuple[Prediction, Callable[[torch.Tensor], torch.Tensor]]:
    """The prediction of the network, x0 clamped to [-1, 1], and a function v -> J^T v with J = dx0/dx_t.

    The function can be called once; v is [B, 1, H, W].

    The x0 of an image depends only on its own x_t, so J^T v is per image.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps, x0 = model.predict(x, t)
        x0 = x0.clamp(-1, 1)
    return Prediction(eps.detach(), x0.detach()), lambda v: torch.autograd.grad(x0, x, v)[0]


class Draws:
    """The random numbers of one sample: x_T and the noise of the steps, [B, 1, H, W] each, by image."""

    def __init__(self, problem: Problem, rng: Rng, sample: int = 0):
        self._rng, self._sample = rng, sample
        self._shape = problem.image_batch_shape[1:]
        self._like = {"dtype": problem.y.dtype, "device": problem.y.device}
        self._noise = self.stream("noise")

    def x_T(self) -> torch.Tensor:
        """The initial point of the reverse process, N(0, I)."""
        return self.stream("x_T").normal(self._shape, **self._like)

    def noise(self) -> torch.Tensor:
        """The next draw of N(0, I)."""
        return self._noise.normal(self._shape, **self._like)

    def stream(self, purpose: str) -> Stream:
        """The random numbers of this sample for a purpose."""
        return self._rng.stream(f"{purpose} {self._sample}" if self._sample else purpose)


@dataclass(frozen=True)
class Sampler(WithDiffusion):
    """A solver that draws images from (nearly) the posterior p(x | y).

    With `samples` > 1 the result is their mean, an estimate of the posterior mean, whose expected squared error is half
    that of a sample; their standard deviation is returned too.
    """

    samples: Annotated[int, ByName(), "reconstructions to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(10, 200, log=True), "network evaluations"] = 100

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("steps", self.steps)):
            if value < 1:
                raise ParameterError(f"{type(self).__name__.lower()}: {name} must be at least 1, got {value}")

    @abstractmethod
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        """One sample of each image, [B, 1, H, W]."""

    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)

        def draw(number: int, report: Progress) -> torch.Tensor:
            return self.sample(problem, model, Draws(problem, rng, number), report)

        mean, deviation, draws = averaged(draw, self.samples, progress)
        x = mean.to(problem.y.dtype)
        if deviation is None:
            return Reconstruction(x, draws=draws)
        return Reconstruction(x, deviation=deviation.to(x.dtype), samples=self.samples, draws=draws)


def levels(model: DenoisingModel, steps: int) -> list[tuple[int, int, int]]:
    """(number, t, next t) of a reverse process of `steps` steps; after the last level the next t is -1.

    Levels are spaced evenly from (steps - 1) floor(T / steps) to 0: the `leading` spacing of diffusers and CryoSENSE.
    Raises `ParameterError` if the model has fewer levels.
    """
    if not 1 <= steps <= model.T:
        raise ParameterError(f"steps must lie between 1 and the {model.T} levels of the prior, got {steps}")
    stride = model.T // steps
    return [(number, (steps - 1 - number) * stride, (steps - 2 - number) * stride) for number in range(steps)]


def ancestral(
    model: DenoisingModel, x: torch.Tensor, x0: torch.Tensor, t: int, then: int, noise: torch.Tensor | None
) -> torch.Tensor:
    """A draw of x_then given x_t and x_0 (Ho, Jain & Abbeel 2020, eqs. 6-7, from t to any level before it).

    noise: N(0, I); None for the mean, used in the last step.
    """
    a, b = model.alpha(t), model.alpha(then)
    step = a / b
    mean = (math.sqrt(b) * (1 - step) * x0 + math.sqrt(step) * (1 - b) * x) / (1 - a)
    if noise is None:
        return mean
    return mean + math.sqrt((1 - b) / (1 - a) * (1 - step)) * noise


def renoised(x0: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor | None, a: float, fresh: float) -> torch.Tensor:
    """x at level a: sqrt(a) x_0 + sqrt(1 - a) (sqrt(1 - fresh) eps + sqrt(fresh) noise). `fresh` 0 is DDIM."""
    kept = eps if noise is None or fresh == 0 else math.sqrt(1 - fresh) * eps + math.sqrt(fresh) * noise
    return math.sqrt(a) * x0 + math.sqrt(1 - a) * kept


def noise_in(model: DenoisingModel, x: torch.Tensor, x0: torch.Tensor, t: int) -> torch.Tensor:
    """eps such that x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps."""
    a = model.alpha(t)
    return (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
