"""Steps shared by the solvers with a denoiser: data term, noise of the images, half-quadratic splitting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from cryobench.core import Problem
from cryobench.numerics.linalg import dot, norm, per_item, tiny
from cryobench.numerics.symmetry import inverse_transformed, transformed
from cryobench.priors.denoising import DenoisingModel
from cryobench.priors.diffusion import NoisyImages
from cryobench.rng import Rng, Stream
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.wiener import noise_power

NOISE_STEPS, NOISE_START, NOISE_PROBE = 3, 0.3, 0.1
"""Parameters of `image_noise`: number of iterations, of two network evaluations each; initial t; length of the probe
relative to t, large enough for bfloat16."""
NOISE_OF_Y = "noise of y"
"""The purpose (`Rng.stream`) of draws of the noise in y."""
MINIMUM_NOISE = 0.01
"""Lower bound of the estimated standard deviation of the images' own noise, for images in [-1, 1]."""
MEAN_ONLY = 10.0
"""Above this noise level the output of a network is close to the mean of its training images, whatever its input."""


@torch.no_grad()
def image_noise(problem: Problem, model: DenoisingModel, rng: Rng) -> torch.Tensor:
    """The standard deviation s of the white noise in the images themselves, estimated from y, [B, 1, 1, 1].

    The network D removes noise of variance t^2 = s^2 + w^2 from x, with w^2 the variance that the noise of y has in the
    minimum-norm solution. The measured component of x is that of the minimum-norm solution. The unmeasured component is
    the last output of D plus noise n of deviation t, because D was trained on noise in all components. D removes less
    than all the noise from the measured component; the fraction that remains is the divergence of D there (Stein 1981;
    estimated with one random probe b, Ramani, Blu & Unser 2008):

        t^2 = ||A^+ A (x - D(x))||^2 / rank A / (1 - div),    div = <A^+ A b, D(x + e b) - D(x)> / (e rank A)

    Iterated `NOISE_STEPS` times from t = `NOISE_START`.
    """
    operator, least_squares = problem.operator, minimum_norm(problem)
    rank = max(operator.rank, 1)
    probe = (
        rng.stream("probe")
        .normal(least_squares.shape[1:], dtype=least_squares.dtype, device=least_squares.device)
        .sign()
    )
    measured_probe = operator.A_dagger_A(probe.expand_as(least_squares))
    fill = rng.stream("fill")
    of_y = noise_in_image(problem, rng.stream(NOISE_OF_Y)).double().square()
    measured, t = least_squares, torch.full_like(problem.sigma, NOISE_START)
    for _ in range(NOISE_STEPS):
        n = t * fill.normal(least_squares.shape[1:], dtype=least_squares.dtype, device=least_squares.device)
        x = measured + n - operator.A_dagger_A(n)
        c = model.denoise(x, t)
        e = NOISE_PROBE * t
        left = dot(measured_probe, model.denoise(x + e * probe, t) - c) / (e * rank)
        taken = operator.A_dagger_A(least_squares - c)
        variance = dot(taken, taken).double() / rank / (1 - left.double().clamp_max(0.95))
        t = variance.clamp(MINIMUM_NOISE**2, 1.0).sqrt().to(t.dtype)
        measured = c + taken
    return (t.double().square() - of_y).clamp_min(MINIMUM_NOISE**2).sqrt().to(t.dtype)


def noise_in_image(problem: Problem, stream: Stream) -> torch.Tensor:
    """The standard deviation of the noise in A^+ y per measured component, per image [B, 1, 1, 1]; 0 where y is exact.

    Estimated by one application of A^+ to noise from `stream`.
    """
    if not (problem.sigma > 0).any():
        return problem.sigma
    return norm(errors_in_image(problem, stream)) / max(problem.operator.rank, 1) ** 0.5


def errors_in_image(problem: Problem, stream: Stream) -> torch.Tensor:
    """A draw of A^+ (sigma n), n ~ N(0, I): the noise of y in the minimum-norm solution, [B, 1, H, W]."""
    n = stream.normal(problem.y.shape[1:], dtype=problem.y.dtype, device=problem.y.device)
    return problem.operator.A_dagger(noise_power(problem).sqrt().to(n.dtype) * n)


def data_step(problem: Problem, least_squares: torch.Tensor, z: torch.Tensor, variance: float) -> torch.Tensor:
    """The mean of p(x | z, y) for x ~ N(z, variance), y ~ N(A x, sigma^2), [B, 1, H, W].

    Where y is exact it is the projection of z on {x : A x = y}. least_squares: a least-squares solution of A x =
    y. If the noise is confined to the range of A, sigma^2 is its variance in a measured coefficient.
    """
    return z + data_gain(problem, least_squares - z, variance)


def data_gain(problem: Problem, x: torch.Tensor, variance: float | torch.Tensor) -> torch.Tensor:
    """(A^T A + (sigma^2 / variance) I)^-1 A^T A x, [B, C, *S]. variance: positive, one for all images or per image."""
    sigma2 = noise_power(problem).to(x.dtype)
    gamma = torch.where(sigma2 > 0, variance / sigma2.clamp_min(tiny(sigma2)), math.inf)
    return problem.operator.A_dagger_A(x, gamma)


def splitting(
    problem: Problem,
    model: DenoisingModel,
    least_squares: torch.Tensor,
    levels: Sequence[float],
    *,
    lam: float = 1.0,
    kinds: Sequence[int] = (0,),
    axes: Sequence[int] = (0,),
    momentum: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Half-quadratic splitting from the minimum-norm solution, as in `hqs`: yields (x, denoised z) for each level.

    kinds: symmetries (`transformed`) applied to x before the network, one per step in turn. axes: the axis of x, 0 for
    z, that the network sees as its first, likewise; a prior of volumes that works on planes has planes across it.
    momentum: extrapolate the input of the network from the third level on (FISTA, with restarts per image).
    """
    x = before = start = least_squares
    t = torch.ones_like(per_item(problem.sigma.double(), x).expand(len(x), *[1] * (x.ndim - 1)))
    for k, s in enumerate(levels):
        kind, axis = kinds[k % len(kinds)], 2 + axes[k % len(axes)]
        turned = transformed(start.movedim(axis, 2), kind)
        z = inverse_transformed(model.denoise(turned, s), kind).movedim(2, axis).contiguous()
        if s > MEAN_ONLY:
            bound = mean_bound(model, z)
            z = z.clamp(-bound, bound)
        before, x = x, data_step(problem, least_squares, z, s**2 / lam)
        if momentum and k > 0:
            t = torch.where(dot(start - x, x - before) > 0, 1.0, t)
            following = (1 + (1 + 4 * t.square()).sqrt()) / 2
            start = x + ((t - 1) / following).to(x.dtype) * (x - before)
            t = following
        else:
            start = x
        yield x, z


def mean_bound(model: DenoisingModel, x: torch.Tensor) -> torch.Tensor:
    """The largest plausible distance from 0 of the mean of images x in [-1, 1], [B, 1, 1, 1]; [] if one for all.

    White noise of deviation n in N pixels has extremes of about +-n sqrt(2 ln N), so that the bound is 1 minus that. In
    images that are mostly noise, the mean of less noisy training images would be wrong. The bound is 1 if the model
    does not have the noise separately.
    """
    if not isinstance(model, NoisyImages):
        return x.new_ones(())
    return (1 - math.sqrt(2 * math.log(x[0].numel())) * model.noise.to(x)).clamp_min(0)


def geometric(start: float, end: float, steps: int) -> list[float]:
    """`steps` numbers from start to end in geometric progression; `end` for one step."""
    if steps == 1:
        return [end]
    return [start * (end / start) ** (k / (steps - 1)) for k in range(steps)]
