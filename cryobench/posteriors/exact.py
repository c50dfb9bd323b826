"""The exact posterior of a problem with a known prior, or the reason why there is none."""

from __future__ import annotations

import math

import torch

from cryobench.core import Problem, Progress, random_images
from cryobench.distributions.blocks import BlocksDistribution
from cryobench.distributions.field import GaussianFieldDistribution
from cryobench.distributions.mixture import MixtureDistribution
from cryobench.errors import IncompatibleError
from cryobench.numerics.linalg import dot, norm
from cryobench.operators.noise import Gaussian, NoNoise, noise_power
from cryobench.posteriors.gaussian import IteratedPosterior, SpectralPosterior, dense_field, mixture
from cryobench.posteriors.gibbs import BlocksPosterior, Chains
from cryobench.posteriors.posterior import Posterior
from cryobench.posteriors.reduced import LARGEST
from cryobench.priors.denoising import DenoisingPrior
from cryobench.priors.known import KnownPrior
from cryobench.rng import Rng

_NULL = 1e-5
"""Part of a random image in the null space of A, relative to its norm, that is rounding."""


def not_exact(problem: Problem, prior: KnownPrior) -> str | None:
    """The reason why the posterior of a problem is not known in closed form, or None."""
    if not isinstance(problem.noise, (Gaussian, NoNoise)):
        return f"the exact posterior needs Gaussian noise or none, got {type(problem.noise).__name__.lower()}"
    if isinstance(problem.noise, Gaussian) and problem.noise.rel is not None:
        return (
            "the exact posterior needs a stated deviation of the noise, such as gaussian:0.05: rel depends on the truth"
        )
    if not (problem.scale.offset == 0).all() or not (problem.scale.factor == 1).all():
        return f"the exact posterior needs --scaling none; {problem.scale.name} depends on the truth"
    shape = problem.operator.image_shape
    known = prior.distribution(shape)
    if not isinstance(known, GaussianFieldDistribution) and math.prod(shape) > LARGEST:
        return f"the exact posterior of this prior needs at most {LARGEST} pixels, got {math.prod(shape)}"
    return None


def not_compared(problem: Problem, prior: KnownPrior) -> str | None:
    """The reason why results cannot be compared with the posterior of a problem, or None (`not_exact`, `is_point`)."""
    return not_exact(problem, prior) or is_point(problem)


def is_point(problem: Problem) -> str | None:
    """That the posterior is a point, for exact y and an injective operator: errors and scores are rounding. None for
    another."""
    if (noise_power(problem) > 0).any():
        return None
    x = random_images(problem.operator)
    if (norm(x - problem.operator.A_dagger_A(x)) > _NULL * norm(x)).any():
        return None
    return "the measurements are exact and determine the image: its posterior is a point"


def exact_posterior(
    problem: Problem, prior: KnownPrior, rng: Rng, chains: Chains | None = None, progress: Progress | None = None
) -> Posterior:
    """p(x | y) for this prior. Raises `IncompatibleError` where it is not known (`not_exact`)."""
    reason = not_exact(problem, prior)
    if reason is not None:
        raise IncompatibleError(reason)
    operator, known = problem.operator, prior.distribution(problem.operator.image_shape)
    if isinstance(known, MixtureDistribution):
        return mixture(problem, known)
    if isinstance(known, BlocksDistribution):
        return BlocksPosterior(problem, known, rng, chains or Chains(), progress)
    assert isinstance(known, GaussianFieldDistribution)
    if operator.transfer is not None:
        return SpectralPosterior(problem, known, operator.transfer.double())
    if math.prod(known.shape) <= LARGEST:
        return dense_field(problem, known)
    return IteratedPosterior(problem, known)


def consistent(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    """x [B, 1, *S] projected on {x : A x = y} where y is exact; x itself where it is noisy."""
    projected = x + problem.operator.A_dagger(problem.y - problem.operator.A(x))
    return torch.where(noise_power(problem) > 0, x, projected)


def log_posterior(problem: Problem, prior: KnownPrior, x: torch.Tensor) -> torch.Tensor:
    """log p(x | y) up to a constant, float64 [B]; where y is exact, the density on {x : A x = y}, of the projection."""
    x = consistent(problem, x)
    residual = (problem.operator.A(x) - problem.y).double()
    power = noise_power(problem).double()
    misfit = torch.where(power > 0, dot(residual, residual) / (2 * power.clamp_min(1e-300)), 0.0)
    return prior.distribution(problem.operator.image_shape).log_density(x.double()) - misfit.flatten()


def posterior_score(problem: Problem, prior: DenoisingPrior, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The gradient of log p(x | y), float64 [B, 1, *S]; where y is exact, its part along {x : A x = y}.

    Of a known prior in closed form; of another by Tweedie's formula at noise level `sigma`, so that it is that of
    images with this much noise.
    """
    if isinstance(prior, KnownPrior):
        own = prior.distribution(problem.operator.image_shape).score(x.double())
    else:
        with torch.no_grad():
            own = ((prior.load(x.device).denoise(x, sigma) - x) / sigma**2).double()
    operator, power = problem.operator, noise_power(problem).double()
    along = own - operator.A_dagger_A(own.to(x.dtype)).double()
    pull = operator.A_adjoint(problem.y - operator.A(x)).double()
    return torch.where(power > 0, own + pull / power.clamp_min(1e-300), along)
