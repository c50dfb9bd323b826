"""`stein`: Stein's identity for the draws of a sampler and the posterior's score; needs neither truth nor exact draws.

For draws x and z, the score g = grad log p(x | y) and a kernel of one coordinate (Liu, Lee & Jordan 2016, "A kernelized
Stein discrepancy for goodness-of-fit tests", eq. 6, with a kernel that is a diagonal matrix)

    u_n(x, z) = k g_n(x) g_n(z) + p_n g_n(x) dk/dz_n + p_n g_n(z) dk/dx_n + p_n^2 d2k/dx_n dz_n

has mean 0 over independent draws of p, for each coordinate n, and a positive one over those of a distribution that
differs in it. k is the inverse multiquadric kernel (1 + (x_n - z_n)^2 / h_n)^(-1/2) (Gorham & Mackey 2017), with h_n
twice the variance of the other draws, independent of x and z; the coordinates are coefficients of the orthonormal DCT,
and h_n u_n has no unit. One kernel of the whole image has no power in hundreds of dimensions with a few draws. p_n = 1;
where y is exact, draws and scores lie in the null space of A, and p_n = 1 - ||A^+ A e_n||^2 of the basis image e_n. For
the test function x - z

    E g(x).(x - z) = -d,    d the number of dimensions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Case, Column, Measured, Metric, Problem, Reconstruction
from cryobench.errors import ParameterError
from cryobench.metrics.missing import not_measured
from cryobench.operators.noise import Gaussian, NoNoise, noise_power
from cryobench.posteriors.exact import consistent, is_point, not_compared, posterior_score
from cryobench.priors.dct import dct_matrix
from cryobench.priors.denoising import DenoisingPrior
from cryobench.priors.known import GaussianField, KnownPrior
from cryobench.spec import Component

_LEAST_DRAWS = 4
"""The scale of the kernel of two draws is that of the others, of which there must be two."""
_COORDINATES = 1024
"""Largest number of coordinates that `stein` uses, evenly spaced."""


@dataclass(frozen=True)
class Stein(Metric):
    """`stein`: the sum over n of the mean of h_n u_n(x_i, x_j) over pairs of different draws, as a fraction of that of
    h_n u_n(x_i, x_i): 0 for exact draws, on average, and about 1 for draws that are far away. `stein_scale`: the mean
    of -<g(x_i), x_i - x_j> / d, which is 1 for exact draws and f^2 for draws whose deviation is f times the right one,
    if the posterior is Gaussian.

    Where y is exact, the draws are projected on {x : A x = y} and the score is that along it. A known prior has its
    exact score; of a network it is that of its denoiser at noise level `sigma`, so that the draws are compared with
    images that have this much noise. Needs a problem in the units of the prior: `--scaling none` for a known one,
    `minmax` for a network.
    """

    columns = (Column("stein", "lower"), Column("stein_scale", "none"))
    against_truth = False
    uses_draws = True

    prior: Annotated[DenoisingPrior, Component("priors", folder="diffusion"), "the prior of the images"] = (
        GaussianField()
    )
    sigma: Annotated[float, "noise level of the score of a network"] = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ParameterError(f"stein: sigma must be positive, got {self.sigma:g}")

    def weights_digest(self) -> str:
        return self.prior.weights_digest()

    @torch.no_grad()
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        draws, problem = reconstruction.draws, case.problem
        if isinstance(self.prior, KnownPrior):
            reason = not_compared(problem, self.prior)
        elif not isinstance(problem.noise, (Gaussian, NoNoise)) or problem.scale.range != (-1.0, 1.0):
            reason = "the posterior score of a network needs Gaussian noise or none, and --scaling minmax"
        else:
            reason = is_point(problem)
        if reason is None and (draws is None or draws.shape[1] < _LEAST_DRAWS):
            reason = f"it needs draws: give a sampler samples={_LEAST_DRAWS} or more"
        if reason is not None or draws is None:
            return not_measured(self, case, str(reason))
        x = [consistent(problem, one) for one in draws.unbind(dim=1)]
        g = [posterior_score(problem, self.prior, one, self.sigma) for one in x]
        points, scores = (dct(torch.stack(each, dim=1).double()) for each in (x, g))
        chosen = torch.linspace(0, points.shape[2] - 1, min(points.shape[2], _COORDINATES)).long()
        share = free_share(problem, chosen).to(points)
        along = -(scores * (points - points.roll(1, dims=1))).sum(dim=2).mean(dim=1)
        free = torch.where(noise_power(problem).flatten() > 0, points.shape[2], points.shape[2] - problem.operator.rank)
        parts = zip(points[:, :, chosen], scores[:, :, chosen], share, strict=True)
        found = torch.stack([discrepancy(*part) for part in parts])
        return Measured({"stein": found, "stein_scale": along / free.clamp_min(1)})


def dct(x: torch.Tensor) -> torch.Tensor:
    """The orthonormal DCT of images [..., C, H, W], [..., N] in order."""
    bases = [dct_matrix(n, x.dtype, x.device) for n in x.shape[-2:]]
    return (bases[0] @ x @ bases[1].mT).flatten(-3)


def free_share(problem: Problem, chosen: torch.Tensor) -> torch.Tensor:
    """p_n of some coordinates, float64 [B, n]."""
    operator, exact = problem.operator, noise_power(problem).flatten() == 0
    share = torch.ones((problem.batch, len(chosen)), dtype=torch.float64, device=problem.y.device)
    if not exact.any():
        return share
    bases = [dct_matrix(n, operator.dtype, operator.device) for n in operator.image_shape]
    unit = torch.zeros((len(chosen), *operator.domain_shape), dtype=operator.dtype, device=operator.device)
    unit.flatten(1)[torch.arange(len(chosen)), chosen] = 1
    images = bases[0].mT @ unit @ bases[1]
    for i in range(problem.batch if operator.images else 1):
        own = operator.select(slice(i, i + 1)) if operator.images else operator
        rows = slice(i, i + 1) if operator.images else slice(None)
        measured = (images * own.A_dagger_A(images)).flatten(1).sum(dim=1).double()
        share[rows] = torch.where(exact[rows, None], (1 - measured).clamp_min(0), 1.0)
    return share


def discrepancy(x: torch.Tensor, g: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Sum over the coordinates of the mean of h u over pairs of different draws, over that of equal ones; [].

    x, g: draws and scores, [K, n]. p: [n]. 0 where nothing is free.
    """
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    d = x[:, None] - x
    h = 2 * others_variance(x).clamp_min(torch.finfo(x.dtype).tiny)
    s = 1 + d.square() / h
    slope = p * d * s**-1.5 / h
    u = s**-0.5 * g[:, None] * g + (g[:, None] - g) * slope + p.square() * (s**-1.5 - 3 * s**-2.5 * d.square() / h) / h
    u = (h * u).sum(dim=2)
    return u[off].mean() / u.diagonal().mean().clamp_min(torch.finfo(x.dtype).tiny)


def others_variance(x: torch.Tensor) -> torch.Tensor:
    """The variance of the draws [K, n] without the two of each pair, [K, K, n], or the one of a draw and itself."""
    x = x - x.mean(dim=0)
    same = torch.eye(len(x), dtype=x.dtype, device=x.device)[:, :, None]
    left = len(x) - 2 + same
    total = -x[:, None] - x * (1 - same)
    squares = x.square().sum(dim=0) - x[:, None].square() - x.square() * (1 - same)
    return (squares - total.square() / left).clamp_min(0) / (left - 1)
