"""Common parts of solvers with a diffusion prior: the prior, the reverse process, random draws, several samples.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps            a_t: `DiffusionModel.alpha`, 1 where there is no noise

A sampler goes through a decreasing list of noise levels. At each, the network estimates x_0, the measurements correct
the estimate, and noise brings it to the next level; samplers differ in the correction.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import dot, norm
from cryobench.priors.diffusion import Diffusion, DiffusionModel, Embedded, NoisyImages, Prediction
from cryobench.rng import Rng, Stream
from cryobench.solvers.pinv import least_norm
from cryobench.solvers.wiener import noise_power
from cryobench.spec import Component, Range

NOISE_STEPS, NOISE_START, NOISE_PROBE = 3, 0.3, 0.1
"""Estimate of the noise in the images: number of steps, with two network evaluations each; initial deviation; length of
the probe relative to t, large enough for bfloat16."""
NOISE_OF_Y = "noise of y"
"""The purpose of random draws of the noise in y."""
LEAST_NOISE = 0.01
"""Lower bound of the estimated deviation of the noise in the images, for images in [-1, 1]."""


@dataclass(frozen=True)
class WithDiffusion(Solver):
    """A solver with a diffusion prior."""

    prior: Annotated[
        Diffusion, Component("priors", folder="diffusion"), "a diffusion prior: embedded, diffusion:..., or a folder"
    ] = Embedded()

    def model(self, problem: Problem, rng: Rng) -> DiffusionModel:
        """The live prior for the images of a problem, on its device.

        Real images have noise, which a prior of clean images does not model: its deviation is estimated from y with a
        few network evaluations, unless the prior states it. Raises `IncompatibleError` for images of another size.
        """
        self.prior.check(problem.operator.image_shape)
        model = self.prior.load(problem.operator.device)
        if self.prior.noise == "auto":
            return NoisyImages(model, image_noise(problem, model, rng)) if self.prior.of_clean_images else model
        if self.prior.noise == 0:
            return model
        return NoisyImages(model, problem.sigma.new_full(problem.sigma.shape, self.prior.noise))


@torch.no_grad()
def image_noise(problem: Problem, model: DiffusionModel, rng: Rng) -> torch.Tensor:
    """The deviation s of the white noise in the images themselves, estimated from y, [B, 1, 1, 1].

    The network D removes noise of variance t^2 = s^2 + w^2 from x, w^2 being that of the noise of y in the minimum-norm
    solution. On the range of A x is that solution; elsewhere it is the last estimate of D plus noise n of the same
    strength, because D was trained on noise in all components. The residual of D on the measured part underestimates
    the noise; its divergence there gives the correction (Stein 1981; by one random probe b, Ramani, Blu & Unser 2008):

        t^2 = ||A^+ A (x - D(x))||^2 / rank A / (1 - div),    div = <A^+ A b, D(x + e b) - D(x)> / (e rank A)

    Iterated from t = `NOISE_START`.
    """
    operator, least = problem.operator, least_norm(problem)
    rank = max(operator.rank, 1)
    probe = rng.stream("probe").normal(least.shape[1:], dtype=least.dtype, device=least.device).sign()
    measured_probe = operator.A_dagger_A(probe.expand_as(least))
    fill = rng.stream("fill")
    of_y = noise_in_image(problem, rng.stream(NOISE_OF_Y)).double().square()
    measured, t = least, torch.full_like(problem.sigma, NOISE_START)
    for _ in range(NOISE_STEPS):
        n = t * fill.normal(least.shape[1:], dtype=least.dtype, device=least.device)
        x = measured + n - operator.A_dagger_A(n)
        c = model.denoise(x, t)
        e = NOISE_PROBE * t
        left = dot(measured_probe, model.denoise(x + e * probe, t) - c) / (e * rank)
        taken = operator.A_dagger_A(least - c)
        variance = dot(taken, taken).double() / rank / (1 - left.double().clamp_max(0.95))
        t = variance.clamp(LEAST_NOISE**2, 1.0).sqrt().to(t.dtype)
        measured = c + taken
    return (t.double().square() - of_y).clamp_min(LEAST_NOISE**2).sqrt().to(t.dtype)


def noise_in_image(problem: Problem, stream: Stream) -> torch.Tensor:
    """The deviation of the noise in A^+ y on the range of A, per image [B, 1, 1, 1]; 0 where y is exact.

    Estimated by one application of A^+ to noise from `stream`.
    """
    if not (problem.sigma > 0).any():
        return problem.sigma
    return norm(errors_in_image(problem, stream)) / max(problem.operator.rank, 1) ** 0.5


def errors_in_image(problem: Problem, stream: Stream) -> torch.Tensor:
    """A draw of A^+ (sigma n), n ~ N(0, I): the noise of y in the minimum-norm solution, [B, 1, H, W]."""
    n = stream.normal(problem.y.shape[1:], dtype=problem.y.dtype, device=problem.y.device)
    return problem.operator.A_dagger(noise_power(problem).sqrt().to(n.dtype) * n)


def data_step(problem: Problem, least: torch.Tensor, z: torch.Tensor, variance: float) -> torch.Tensor:
    """The mean of p(x | z, y) for x ~ N(z, variance), y ~ N(A x, sigma^2), [B, 1, H, W].

    Where y is exact it is the projection of z on {x : A x = y}. least: a least-squares solution of A x = y. If noise is
    confined to the range of A, sigma^2 is the variance of a coefficient in it.
    """
    sigma2 = noise_power(problem).to(z.dtype)
    gamma = torch.where(sigma2 > 0, variance / sigma2.clamp_min(torch.finfo(sigma2.dtype).tiny), math.inf)
    return z + problem.operator.A_dagger_A(least - z, gamma)


def differentiable(
    model: DiffusionModel, x: torch.Tensor, t: int
) -> tuple[Prediction, Callable[[torch.Tensor], torch.Tensor]]:
    """What the network makes of x_t, x0 clamped to [-1, 1], and v -> J^T v for J = dx0/dx_t, once; v is [B, 1, H, W].

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
        """The next N(0, I)."""
        return self._noise.normal(self._shape, **self._like)

    def stream(self, purpose: str) -> Stream:
        """The draws of this sample for a purpose."""
        return self._rng.stream(f"{purpose} {self._sample}" if self._sample else purpose)


@dataclass(frozen=True)
class Sampler(WithDiffusion):
    """A solver that draws images from (nearly) the posterior p(x | y).

    With `samples` > 1 the result is their mean, an estimate of the posterior mean, whose expected squared error is half
    that of a sample; their standard deviation is returned too.
    """

    samples: Annotated[int, "reconstructions to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(10, 200, log=True), "network evaluations"] = 100

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("steps", self.steps)):
            if value < 1:
                raise ParameterError(f"{type(self).__name__.lower()}: {name} must be at least 1, got {value}")

    @abstractmethod
    def sample(self, problem: Problem, model: DiffusionModel, draws: Draws, progress: Progress) -> torch.Tensor:
        """One sample of each image, [B, 1, H, W]."""

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(number * total + done, self.samples * total)

        total = square = torch.zeros(problem.image_batch_shape, dtype=torch.float64, device=problem.y.device)
        for number in range(self.samples):
            x = self.sample(problem, model, Draws(problem, rng, number), report).double()
            total, square = total + x, square + x.square()
        mean = total / self.samples
        if self.samples == 1:
            return Reconstruction(mean.to(problem.y.dtype))
        variance = (square - self.samples * mean.square()).clamp_min(0) / (self.samples - 1)
        deviation = variance.sqrt().to(problem.y.dtype)
        return Reconstruction(mean.to(problem.y.dtype), deviation=deviation)


def levels(model: DiffusionModel, steps: int) -> list[tuple[int, int, int]]:
    """(number, t, next t) of a reverse process of `steps` steps; after the last level the next t is -1.

    Levels are spaced evenly from (steps - 1) floor(T / steps) to 0: the `leading` spacing of diffusers and CryoSENSE.
    Raises `ParameterError` if the model has fewer levels.
    """
    if not 1 <= steps <= model.T:
        raise ParameterError(f"steps must lie between 1 and the {model.T} levels of the prior, got {steps}")
    stride = model.T // steps
    return [(number, (steps - 1 - number) * stride, (steps - 2 - number) * stride) for number in range(steps)]


def ancestral(
    model: DiffusionModel, x: torch.Tensor, x0: torch.Tensor, t: int, then: int, noise: torch.Tensor | None
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


def noise_in(model: DiffusionModel, x: torch.Tensor, x0: torch.Tensor, t: int) -> torch.Tensor:
    """eps such that x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps."""
    a = model.alpha(t)
    return (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
