"""The map from images on any scale to the scale of a prior, which was trained on images in [-1, 1].

For training, the minimum and maximum of each image were mapped to -1 and 1. If the scale of a problem has no range,
this map is estimated from y for each image: first from the mean and standard deviation of the image, then, for priors
of clean images, from the expected extremes of a first reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.core import Problem, mean_intensity
from cryobench.core.scale import MINMAX
from cryobench.numerics.linalg import dot, item_axes, per_item, tiny
from cryobench.priors.denoising import DenoisingModel
from cryobench.priors.diffusion import NoisyImages
from cryobench.rng import Rng
from cryobench.solvers.denoising import data_gain, geometric, image_noise, splitting
from cryobench.solvers.pinv import minimum_norm

VARIANCE_STEPS = 8
"""Iterations of `image_variance`."""
LEVELS = geometric(0.3, 0.1, 5)
"""Noise levels of the first reconstruction, after one so high that the input of the network carries no information."""


@dataclass(frozen=True, eq=False)
class PriorScale:
    """x' = factor x + offset, on the scale of the prior; float64 [B, 1, ..., 1]. mean_known: whether y determines the
    mean intensity of x, bool [B, 1, ..., 1]."""

    factor: torch.Tensor
    offset: torch.Tensor
    mean_known: torch.Tensor

    def problem(self, problem: Problem) -> Problem:
        """The same measurements as measurements of x': y' = factor y + offset A 1, with the same operator."""
        y, sigma = problem.y.double(), problem.sigma.double()
        y = per_item(self.factor, y) * y + per_item(self.offset, y) * problem.operator.mean_response
        sigma = per_item(self.factor, sigma) * sigma
        return Problem(problem.operator, y.to(problem.y.dtype), problem.noise, sigma.to(problem.sigma.dtype), MINMAX)

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """Images x' on the scale of the problem. A mean that y does not determine is 0, as in `minimum_norm`."""
        x, dtype = x.double(), x.dtype
        level = torch.where(self.mean_known, self.offset, x.mean(dim=item_axes(x), keepdim=True))
        return ((x - level) / self.factor).to(dtype)

    def after(self, first: PriorScale) -> PriorScale:
        """The composition: `first`, then this map."""
        return PriorScale(self.factor * first.factor, self.factor * first.offset + self.offset, first.mean_known)


def stated_scale(problem: Problem) -> PriorScale:
    """The map to the units of the file, that of the problem itself."""
    B, axes = problem.batch, [1] * len(problem.operator.domain_shape)
    factor, offset = (
        each.to(problem.y.device).expand(B).reshape(B, *axes) for each in (problem.scale.factor, problem.scale.offset)
    )
    return PriorScale(factor, offset, torch.ones_like(factor, dtype=torch.bool))


def by_moments(problem: Problem, mean: float, deviation: float, rng: Rng) -> PriorScale:
    """The map to the mean and standard deviation (over pixels) of a prior's training images."""
    response, least_squares = problem.operator.mean_response, minimum_norm(problem)
    c = per_item(mean_intensity(problem.operator, problem.y), least_squares)
    factor = deviation / image_variance(problem, least_squares - c, rng).sqrt()
    known = per_item(dot(response, response) > 0, factor).expand_as(factor)
    return PriorScale(factor, mean - factor * c.double(), known)


def image_variance(problem: Problem, structure: torch.Tensor, rng: Rng) -> torch.Tensor:
    """The variance v of an image's pixels about their mean, float64 [B, 1, ..., 1]; structure: A^+ (y - c A 1).

    It maximises the evidence of y for white x ~ N(c, v I) (MacKay 1992, "Bayesian interpolation"):

        v = ||G (x* - c)||^2 / tr G,    G = (A^T A + (sigma^2 / v) I)^-1 A^T A

    iterated from the minimum-norm solution x*, with the trace estimated with one random probe. Where y is exact it is
    ||x* - c||^2 / rank A.
    """
    probe = rng.stream("scale: probe").normal(structure.shape[1:], dtype=structure.dtype, device=structure.device)
    probe = probe.sign()
    smallest = tiny(structure)
    v = dot(structure, structure).double().clamp_min(smallest) / max(problem.operator.rank, 1)
    for _ in range(VARIANCE_STEPS if (problem.sigma > 0).any() else 1):
        fitted = data_gain(problem, structure, v)
        trace = dot(probe, data_gain(problem, probe, v)).double().clamp_min(1.0)
        v = (dot(fitted, fitted).double() / trace).clamp_min(smallest)
    return v


@torch.no_grad()
def by_extremes(problem: Problem, model: DenoisingModel, rng: Rng) -> PriorScale:
    """The map from the expected extremes of an image to -1 and 1. The problem must be near the scale of the prior.

    Half-quadratic splitting gives the image without noise c, and `image_noise` the standard deviation s of its noise.
    Given y, the noise has the mean G (A^+ y - c), with G as in `image_variance` for v = s^2, and the variance
    s^2 (1 - tr G / N) per pixel. model: of images without noise.
    """
    s = image_noise(problem, model, rng)
    noisy = NoisyImages(model, s)
    first = 1.0 if model.prediction == "epsilon" else 100.0
    least_squares = minimum_norm(problem)
    *_, (x, _) = splitting(problem, noisy, least_squares, [first, *LEVELS])
    c = model.denoise(x, (s.square() + LEVELS[-1] ** 2).sqrt())
    v = s.double().square()
    probe = rng.stream("scale: probe").normal(c.shape[1:], dtype=c.dtype, device=c.device).sign()
    measured = dot(probe, data_gain(problem, probe, v)).double() / c[0].numel()
    mean = c + data_gain(problem, least_squares - c, v)
    deviation = (v * (1 - measured).clamp_min(0)).sqrt()
    low, high = -median_maximum(-mean, deviation), median_maximum(mean, deviation)
    factor = 2 / (high - low)
    return PriorScale(factor, -1 - factor * low, torch.ones_like(factor, dtype=torch.bool))


def median_maximum(mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """The median of the maximum of independent pixels N(mean, deviation^2), float64 [B, 1, ..., 1].

    mean: [B, C, *S]. deviation: of each image. By bisection on the product of their distribution functions.
    """
    mean = mean.double()
    top = mean.amax(dim=item_axes(mean), keepdim=True)
    deviation = per_item(deviation.double(), mean).clamp_min(1e-6)
    low, high = top - deviation, top + 10 * deviation
    for _ in range(40):
        middle = (low + high) / 2
        logs = torch.special.log_ndtr((middle - mean) / deviation).sum(dim=item_axes(mean), keepdim=True)
        low, high = torch.where(logs < -math.log(2), middle, low), torch.where(logs < -math.log(2), high, middle)
    return (low + high) / 2
