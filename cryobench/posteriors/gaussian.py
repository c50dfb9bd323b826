"""Posteriors of Gaussian priors x ~ N(m, C) and of mixtures of them, y = A x + n, n ~ N(0, P).

In the coordinates b = V^T x + e of the module `reduced`, with G = V^T C V + cov(e) and K = C V G^-1,

    x | b ~ N(m + K (b - V^T m), C - K V^T C),    b ~ N(V^T m, G)

and of a mixture the weights are proportional to w_k N(b; V^T m_k, G_k), computed by their logarithms. Draws are made by
perturbation: x' + K (b - V^T x' - e') with x' a draw of N(m, C) and e' one of e. If C and A are diagonal in Fourier, so
is all of it, and each coefficient is a scalar problem. In large images with other operators, (A C A^T + P I)^-1 is
applied by conjugate gradients.
"""

from __future__ import annotations

import math

import torch

from cryobench.core import Problem
from cryobench.distributions.field import GaussianFieldDistribution
from cryobench.distributions.mixture import MixtureDistribution
from cryobench.numerics.fft import whole_spectrum
from cryobench.numerics.linalg import conjugate_gradients
from cryobench.operators.noise import noise_power
from cryobench.posteriors.posterior import Posterior
from cryobench.posteriors.reduced import reduced
from cryobench.rng import Rng

_CG_STEPS = 2000


class SpectralPosterior(Posterior):
    """A field through an operator that is diagonal in Fourier with transfer function w, [1 or B, 1, *half spectrum]."""

    def __init__(self, problem: Problem, known: GaussianFieldDistribution, w: torch.Tensor):
        self._known, shape = known, known.shape
        S, P = known.power.to(w.device), noise_power(problem).double()
        total = w.square() * S + P
        gain = torch.where(w != 0, w * S / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        apart = problem.y.double() - known.level * problem.operator.mean_response.double()
        self.mean = known.level + known.filtered(apart, gain)
        power = torch.where(w != 0, S * P / total.clamp_min(torch.finfo(torch.float64).tiny), S)
        self.power = power.expand(problem.batch, *power.shape[1:])
        variance = whole_spectrum(self.power, shape).mean(dim=tuple(range(1, self.mean.ndim)), keepdim=True)
        self.deviation = variance.sqrt().expand(self.mean.shape).contiguous()
        self.info = {}

    def draw(self, rng: Rng, number: int) -> torch.Tensor:
        white = _white(self.mean, rng, f"exact: image {number}")
        return self.mean + self._known.filtered(white, self.power.sqrt())


class IteratedPosterior(Posterior):
    """A field through any operator, by conjugate gradients; the deviation is left to draws."""

    def __init__(self, problem: Problem, known: GaussianFieldDistribution):
        self._problem, self._known = problem, known
        self._power = noise_power(problem).to(problem.y.dtype)
        self.mean = self._corrected(known.mean.to(problem.y).expand(problem.image_batch_shape), problem.y).double()
        self.deviation, self.info = None, {}

    def _corrected(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x + C A^T (A C A^T + P I)^-1 (y - A x)."""
        operator = self._problem.operator

        def data_covariance(u: torch.Tensor) -> torch.Tensor:
            return operator.A(self._known.covariance(operator.A_adjoint(u))) + self._power * u

        tolerance = 1e-10 if y.dtype == torch.float64 else 1e-6
        u = conjugate_gradients(data_covariance, y - operator.A(x), tol=tolerance, max_steps=_CG_STEPS)
        return x + self._known.covariance(operator.A_adjoint(u))

    def draw(self, rng: Rng, number: int) -> torch.Tensor:
        y, operator = self._problem.y, self._problem.operator
        white = _white(self.mean, rng, f"exact: image {number}")
        x = (self._known.level + self._known.filtered(white, self._known.power.to(white.device).sqrt())).to(y.dtype)
        n = self._power.sqrt() * _white(y, rng, f"exact: noise {number}").to(y.dtype)
        return self._corrected(x, y - (operator.on_range(n) if operator.noise_in_range else n)).double()


class MixturePosterior(Posterior):
    """A mixture of K Gaussians, by dense linear algebra; K = 1 for a Gaussian.

    weights: of the components given y, [B, K].
    """

    def __init__(self, problem: Problem, weights: torch.Tensor, means: torch.Tensor, covariances: list[torch.Tensor]):
        device = problem.y.device
        self._shape, B = problem.image_batch_shape, problem.batch
        self._factors = [torch.linalg.cholesky(C.to(device)) for C in covariances]
        K, N = means.shape
        means = means.to(device)
        self._means = means
        self.means = torch.zeros((B, K, N), dtype=torch.float64, device=device)
        variances, logs = torch.zeros_like(self.means), torch.zeros((B, K), dtype=torch.float64, device=device)
        self._parts = []
        for part, seen in reduced(problem):
            gains = []
            for k in range(K):
                CV = covariances[k].to(device) @ seen.rows.mT
                apart = seen.b - seen.rows @ means[k]
                # the noise may differ between the images of a batch
                for i in _groups(seen.variance):
                    G = seen.rows @ CV + torch.diag(seen.variance[i[0]])
                    L = torch.linalg.cholesky(G)
                    gain = torch.cholesky_solve(CV.mT, L).mT
                    rows = [part.start + j for j in i]
                    self.means[rows, k] = means[k] + apart[i] @ gain.mT
                    variances[rows, k] = (covariances[k].to(device).diagonal() - (gain * CV).sum(dim=1)).clamp_min(0)
                    solved = torch.linalg.solve_triangular(L, apart[i].mT, upper=False).square().sum(dim=0)
                    size = 2 * L.diagonal().log().sum() + len(L) * math.log(2 * math.pi)
                    logs[rows, k] = float(weights[k].log()) - (solved + size) / 2
                    gains.append((k, rows, gain))
            self._parts.append((part, seen, gains))
        self.weights = logs.softmax(dim=1)
        mean = torch.einsum("bk,bkn->bn", self.weights, self.means)
        between = (self.means - mean[:, None]).square()
        deviation = torch.einsum("bk,bkn->bn", self.weights, variances + between).sqrt()
        self.mean, self.deviation = mean.reshape(self._shape), deviation.reshape(self._shape)
        self.info = {} if K == 1 else {"entropy": torch.special.entr(self.weights).sum(dim=1)}

    def draw(self, rng: Rng, number: int) -> torch.Tensor:
        B, N = self._shape[0], self._means.shape[1]
        device = self._means.device
        white = _white(self.mean, rng, f"exact: image {number}").flatten(1)
        noise = rng.stream(f"exact: noise {number}").normal((N,), dtype=torch.float64, device=device)
        uniform = rng.stream(f"exact: component {number}").uniform((1,), dtype=torch.float64, device=device)
        chosen = (self.weights.cumsum(dim=1) < uniform).sum(dim=1).clamp_max(self.weights.shape[1] - 1).tolist()
        x = torch.zeros((B, N), dtype=torch.float64, device=device)
        for part, seen, gains in self._parts:
            for k, rows, gain in gains:
                for i in (i for i in rows if chosen[i] == k):
                    own = self._means[k] + self._factors[k] @ white[i]
                    j = i - part.start
                    e = seen.variance[j].sqrt() * noise[i, : len(seen.rows)]
                    x[i] = own + gain @ (seen.b[j] - seen.rows @ own - e)
        return x.reshape(self._shape)


def dense_field(problem: Problem, known: GaussianFieldDistribution) -> MixturePosterior:
    """The posterior of a field, by dense linear algebra."""
    N = math.prod(known.shape)
    unit = torch.eye(N, dtype=torch.float64).reshape(N, 1, *known.shape)
    C = known.covariance(unit).reshape(N, N)
    return MixturePosterior(problem, torch.ones(1, dtype=torch.float64), known.mean.reshape(1, N), [(C + C.mT) / 2])


def mixture(problem: Problem, known: MixtureDistribution) -> MixturePosterior:
    """The posterior of a mixture."""
    covariances = [known.covariance(k) for k in range(len(known.weights))]
    return MixturePosterior(problem, known.weights, known.means, covariances)


def _groups(variance: torch.Tensor) -> list[list[int]]:
    """The images by their noise: lists of those with the same variances [B, r]."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, row in enumerate(variance):
        groups.setdefault(tuple(row[:1].tolist()), []).append(i)
    return list(groups.values())


def _white(like: torch.Tensor, rng: Rng, purpose: str) -> torch.Tensor:
    return rng.stream(purpose).normal(like.shape[1:], dtype=torch.float64, device=like.device)
