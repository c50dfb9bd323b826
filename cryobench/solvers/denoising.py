"""Steps that solvers with a denoiser share: the data term, the noise of the images, half-quadratic splitting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from cryobench.core import Problem
from cryobench.numerics.linalg import dot, norm, tiny
from cryobench.numerics.symmetry import inverse_transformed, transformed
from cryobench.priors.diffusion import DiffusionModel, NoisyImages
from cryobench.rng import Rng, Stream
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.wiener import noise_power

NOISE_STEPS, NOISE_START, NOISE_PROBE = 3, 0.3, 0.1
"""The estimate of the images' own noise: its steps, of two network evaluations each; where it starts; the length of its
probe over t, long enough for bfloat16."""
NOISE_OF_Y = "noise of y"
"""What draws of the noise in y are for."""
LEAST_NOISE = 0.01
"""The least deviation that the images' own noise is taken for, on images in [-1, 1]."""
BLIND = 10.0
"""The noise level beyond which a network tells the mean of the images it knows, and little of the one it is shown."""


@torch.no_grad()
def image_noise(problem: Problem, model: DiffusionModel, rng: Rng) -> torch.Tensor:
    """The deviation s of the white noise in the images themselves, estimated from y, [B, 1, 1, 1].

    The network D takes noise of variance t^2 = s^2 + w^2 off x, w^2 being that of the noise of y in the least-norm
    solution. x is that solution where y has measured; elsewhere it is what D last took for the image, with noise n as
    strong, for D has learned to see through noise that is everywhere. What D takes off the measured part is less than
    the noise, by what D leaves of it, which its divergence there tells (Stein 1981; by one random probe b, Ramani, Blu
    & Unser 2008):

        t^2 = ||A^+ A (x - D(x))||^2 / rank A / (1 - div),    div = <A^+ A b, D(x + e b) - D(x)> / (e rank A)

    Iterated from t = `NOISE_START`.
    """
    operator, least = problem.operator, minimum_norm(problem)
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

    Told by one application of A^+ to noise from `stream`.
    """
    if not (problem.sigma > 0).any():
        return problem.sigma
    return norm(errors_in_image(problem, stream)) / max(problem.operator.rank, 1) ** 0.5


def errors_in_image(problem: Problem, stream: Stream) -> torch.Tensor:
    """A draw of A^+ (sigma n), n ~ N(0, I): what the noise of y is in the least-norm solution, [B, 1, H, W]."""
    n = stream.normal(problem.y.shape[1:], dtype=problem.y.dtype, device=problem.y.device)
    return problem.operator.A_dagger(noise_power(problem).sqrt().to(n.dtype) * n)


def data_step(problem: Problem, least: torch.Tensor, z: torch.Tensor, variance: float) -> torch.Tensor:
    """The mean of p(x | z, y) for x ~ N(z, variance), y ~ N(A x, sigma^2), [B, 1, H, W].

    Where y is exact it is the projection of z on {x : A x = y}. least: a least-squares solution of A x = y. Where noise
    lives on the range of A alone, sigma^2 is that of a coefficient that has any.
    """
    return z + data_gain(problem, least - z, variance)


def data_gain(problem: Problem, x: torch.Tensor, variance: float | torch.Tensor) -> torch.Tensor:
    """(A^T A + (sigma^2 / variance) I)^-1 A^T A x, [B, C, *S]; variance: positive, of all images or of each."""
    sigma2 = noise_power(problem).to(x.dtype)
    gamma = torch.where(sigma2 > 0, variance / sigma2.clamp_min(tiny(sigma2)), math.inf)
    return problem.operator.A_dagger_A(x, gamma)


def splitting(
    problem: Problem,
    model: DiffusionModel,
    least: torch.Tensor,
    levels: Sequence[float],
    *,
    lam: float = 1.0,
    kinds: Sequence[int] = (0,),
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Half-quadratic splitting from the least-norm solution: (x, the denoised z) of each noise level, as in `hqs`.

    kinds: turns and flips that the network sees x in, one after the other.
    """
    x = least
    for k, s in enumerate(levels):
        kind = kinds[k % len(kinds)]
        z = inverse_transformed(model.denoise(transformed(x, kind), s), kind)
        if s > BLIND:
            room = room_beside_noise(model, z)
            z = z.clamp(-room, room)
        x = data_step(problem, least, z, s**2 / lam)
        yield x, z


def room_beside_noise(model: DiffusionModel, x: torch.Tensor) -> torch.Tensor:
    """How far from 0 the mean of images x in [-1, 1] can lie, [B, 1, 1, 1]; or one number for all, [].

    In N pixels white noise of deviation n reaches about n sqrt(2 ln N) to either side, which leaves 1 less that: of an
    image that is nearly noise, a mean that was learned on clearer ones is wrong. 1 where the noise is not told apart.
    """
    if not isinstance(model, NoisyImages):
        return x.new_ones(())
    return (1 - math.sqrt(2 * math.log(x[0].numel())) * model.noise.to(x)).clamp_min(0)


def geometric(start: float, end: float, steps: int) -> list[float]:
    """`steps` numbers from start to end, each the same fraction of the one before; `end` alone for one."""
    if steps == 1:
        return [end]
    return [start * (end / start) ** (k / (steps - 1)) for k in range(steps)]
