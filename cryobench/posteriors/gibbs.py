"""The posterior of sparse blocks, by a Gibbs sampler (George & McCulloch 1993, "Variable selection via Gibbs
sampling").

Given which coefficients c are large, s, the prior is Gaussian with variances D(s); given c, the entries of s are
independent. With B = V^T Phi the measured coordinates (module `reduced`) as functions of c, G = B D B^T + cov(e),

    c ~ p(c | s, b) = c' + D B^T G^-1 (b - B c' - e'),    c' ~ N(0, D), e' a draw of e
    s_i ~ p(s_i | c_i)

Both draws are exact, so the chain has the posterior as its stationary distribution. The mean is estimated by the
average of E[c | s, b] = D B^T G^-1 b, which has less variance than that of c (Gelfand & Smith 1990). Chains start from
draws of s from the prior. Stated for each image:

    rhat        the largest over pixels of the split potential scale reduction (Gelman et al. 2013, section 11.4)
    ess         the smallest over pixels of the effective number of draws, from the autocovariance of the chains
                summed up to the first negative pair (Geyer 1992)
    mc_error    the root mean square over pixels of the standard error of the mean
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Problem, Progress
from cryobench.distributions.blocks import BlocksDistribution
from cryobench.posteriors.posterior import Posterior
from cryobench.posteriors.reduced import reduced
from cryobench.rng import Rng

_KEPT = 64
"""Largest number of states of each chain that are kept as draws."""


@dataclass(frozen=True)
class Chains:
    """number: of chains, started apart. sweeps: kept of each. burn: sweeps before them."""

    number: int = 4
    sweeps: int = 300
    burn: int = 100


class BlocksPosterior(Posterior):
    """See the module. The draws are states of the chains, spaced evenly."""

    def __init__(self, problem: Problem, known: BlocksDistribution, rng: Rng, chains: Chains,
                 progress: Progress | None = None):  # fmt: skip
        self._known, self._shape = known, problem.image_batch_shape
        total = chains.burn + chains.sweeps
        B, n, device = problem.batch, chains.number, problem.y.device
        size = known.analysis(known.mean).shape[1:]
        N = known.mean.numel()
        seen = [(part, one, known.analysis(one.rows.reshape(-1, 1, *known.shape)).flatten(1))
                for part, one in reduced(problem)]  # fmt: skip
        variances = known.deviations.to(device).square()
        uniform, normal = rng.stream("gibbs: large"), rng.stream("gibbs: coefficients")
        noise = rng.stream("gibbs: noise")
        large = uniform.uniform((n, *size), dtype=torch.float64, device=device) < known.large
        means = torch.zeros((B, n, chains.sweeps, N), dtype=torch.float64, device=device)
        states = torch.zeros_like(means)
        for sweep in range(total):
            D = torch.where(large, variances[0], variances[1]).reshape(B, n, N)
            white = D.sqrt() * normal.normal((n, N), dtype=torch.float64, device=device)
            errors = noise.normal((n, N), dtype=torch.float64, device=device)
            c, mean = torch.zeros_like(white), torch.zeros_like(white)
            for part, one, rows in seen:
                for i in range(part.start, part.stop):
                    j = i - part.start
                    DB = D[i][:, :, None] * rows.mT
                    L = torch.linalg.cholesky(rows @ DB + torch.diag(one.variance[j]))
                    e = one.variance[j].sqrt() * errors[i][:, : len(rows)]
                    right = torch.stack([one.b[j].expand(n, -1), one.b[j] - white[i] @ rows.mT - e], dim=2)
                    solved = DB @ torch.cholesky_solve(right, L)
                    mean[i], c[i] = solved[..., 0], white[i] + solved[..., 1]
            probability = known.large_given(c.reshape(B, n, *size))
            large = uniform.uniform((n, *size), dtype=torch.float64, device=device) < probability
            if sweep >= chains.burn:
                means[:, :, sweep - chains.burn], states[:, :, sweep - chains.burn] = mean, c
            if progress is not None:
                progress(sweep + 1, total)
        # all of them would be most of the memory of a posterior
        self._states = states[:, :, torch.linspace(0, chains.sweeps - 1, min(chains.sweeps, _KEPT)).long()].clone()
        estimate = means.mean(dim=(1, 2))
        self.mean = self._images(estimate)
        pixels = self._images(states.reshape(-1, N)).reshape(states.shape)
        self.deviation = (pixels.flatten(1, 2) - self.mean.reshape(B, 1, N)).square().mean(dim=1).sqrt().reshape(
            self._shape)  # fmt: skip
        rhat, ess, error = zip(*(diagnostics(self._images(one.reshape(-1, N)).reshape(one.shape)) for one in means),
                               strict=True)  # fmt: skip
        self.info = {
            "rhat": torch.stack([one.max() for one in rhat]),
            "ess": torch.stack([one.min() for one in ess]),
            "mc_error": torch.stack([one.square().mean().sqrt() for one in error]),
        }

    def draw(self, rng: Rng, number: int) -> torch.Tensor:
        _, n, sweeps, _ = self._states.shape
        # steps of the golden ratio: any number of draws is spread over the chain
        place = int((number // n * 0.6180339887498949 % 1) * sweeps)
        return self._images(self._states[:, number % n, place])

    def _images(self, c: torch.Tensor) -> torch.Tensor:
        """Coefficients [n, N] as images [n, 1, *S]."""
        return self._known.synthesis(c.reshape(len(c), *self._known.analysis(self._known.mean).shape[1:]))


def diagnostics(chains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split R-hat, effective number of draws and standard error of the mean of each of N numbers, [N] each.

    chains: [n, sweeps, N].
    """
    half = chains.shape[1] // 2
    split = torch.cat([chains[:, :half], chains[:, half : 2 * half]])
    m, length = split.shape[:2]
    within = split.var(dim=1).mean(dim=0)
    between = length * split.mean(dim=1).var(dim=0)
    total = (length - 1) / length * within + between / length
    least = torch.finfo(chains.dtype).tiny
    rhat = (total / within.clamp_min(least)).sqrt()
    apart = split - split.mean(dim=1, keepdim=True)
    padded = torch.fft.rfft(apart, n=2 * length, dim=1)
    covariance = torch.fft.irfft(padded.abs().square(), n=2 * length, dim=1)[:, :length].mean(dim=0) / length
    correlation = 1 - (within - covariance) / total.clamp_min(least)
    correlation[0] = 1
    pairs = correlation[: length // 2 * 2].reshape(-1, 2, chains.shape[2]).sum(dim=1)
    kept = (pairs > 0).cumprod(dim=0)
    tau = (2 * (pairs * kept).sum(dim=0) - 1).clamp_min(1 / m)
    ess = m * length / tau
    return rhat, ess, (total / ess).sqrt()
