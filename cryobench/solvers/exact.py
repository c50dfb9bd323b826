"""`exact`: the exact posterior of a known prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, kept_draws
from cryobench.errors import ParameterError
from cryobench.posteriors.exact import exact_posterior, not_exact
from cryobench.posteriors.gibbs import Chains
from cryobench.priors.known import GaussianField, KnownPrior
from cryobench.rng import Rng
from cryobench.solvers.draws import averaged
from cryobench.spec import ByName, Component


@dataclass(frozen=True)
class Exact(Solver):
    """The mean of p(x | y) under a known prior, and the standard deviation of each pixel: the least expected squared
    error that any solver can have on images of this prior.

        x = E[x | y],    p(x | y) = 1/Z p(x) exp(-||A x - y||^2 / (2 sigma^2))

    For linear operators, Gaussian noise of a stated deviation or none, and `--scaling none`. A Gaussian or a mixture is
    closed form. Sparse blocks have chains of a Gibbs sampler; info then states their convergence (`rhat`, `ess`) and
    the standard error of the mean (`mc_error`, root mean square over the pixels). `samples` is the number of exact
    draws for metrics that compare draws; the result is the exact mean whatever their number. A field of more than 32 x
    32 pixels through an operator that is not diagonal in Fourier is solved by conjugate gradients, and has a deviation
    only with samples=2 or more.
    """

    prior: Annotated[KnownPrior, Component("priors"), ByName(), "gaussian_field, gaussian_mixture or sparse_blocks"] = (
        GaussianField()
    )
    samples: Annotated[int, ByName(), "exact draws for metrics of draws"] = 1
    sweeps: Annotated[int, "sweeps of each Gibbs chain, after a third as many that are discarded"] = 300
    chains: Annotated[int, "Gibbs chains"] = 4

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("sweeps", 8), ("chains", 1)):
            if getattr(self, name) < least:
                raise ParameterError(f"exact: {name} must be at least {least}, got {getattr(self, name)}")

    def unsupported(self, problem: Problem) -> str | None:
        self.prior.check(problem.operator.image_shape)
        return not_exact(problem, self.prior)

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        chains = Chains(self.chains, self.sweeps, max(1, self.sweeps // 3))
        posterior = exact_posterior(problem, self.prior, rng, chains, progress)
        dtype = problem.y.dtype
        mean, deviation, samples, draws = posterior.mean.to(dtype), posterior.deviation, None, None
        if self.samples > 1 and (deviation is None or kept_draws.wanted()):
            drawn = averaged(lambda number, _: posterior.draw(rng, number), self.samples, None)
            draws = drawn.draws
            if deviation is None:
                deviation, mean, samples = drawn.deviation, drawn.mean.to(dtype), self.samples
        if deviation is None:
            return Reconstruction(mean, posterior.info)
        return Reconstruction(mean, posterior.info, deviation=deviation.to(dtype), samples=samples, draws=draws)
