"""Maps along a curve, v(t) = mu + sum_m phi_m(t) U_m with t uniform in [0, 1]: a motion of one coordinate, by
expectation-maximisation (the generative topographic mapping of Bishop, Svensen and Williams 1998, Neural Comput.
10:215, with polynomials as basis, for images with known poses).

phi_m are the Legendre polynomials of degree 1 to M, orthonormal on [0, 1], so that the mean of v is mu. A uniform t is
no assumption on the motion: any distribution of one coordinate is uniform in its quantiles. In contrast to a linear
subspace (`maps.subspace`), whose latents are free in all M directions, an image has one number.

With the inner products G_i and b_i of an image (`maps.subspace.inner_products`), up to a constant,

    log p(r_i | t) = b_i . phi(t) - 1/2 phi(t)^T G_i phi(t),

and the posterior of t is evaluated at the middles of K equal intervals. It gives E_i = E[phi phi^T] and m_i = E[phi],
with which the next U solves the normal equations of the subspace model. The prior of the power of U_m in a shell is
tau^2 decay^(m-1), with tau^2 of each shell estimated from all U_m,

    tau^2 = 1/M sum_m (mean over the shell of |F U_m|^2 and of its posterior variance) / decay^(m-1).

Were each U_m given its own power, weak terms would vanish, and with them the bend of the curve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import legendre

from cryobench.maps.band import Band
from cryobench.maps.subspace import Latents, Normal, Subspace, inner_products, least_power, shell_power

_PLACES = 48
"""Intervals of [0, 1] at whose middles the posterior is evaluated."""
_NARROWEST, _WIDEST = 0.05, 0.15
"""Standard deviation of t given an image, at the start."""
_UNIFORM = 12**-0.5
"""Standard deviation of t."""


def polynomials(t: torch.Tensor, degree: int) -> torch.Tensor:
    """phi_1 to phi_degree at t in [0, 1], float64 [n] -> [n, degree]."""
    values = legendre.legvander(2 * t.numpy() - 1, degree)[:, 1:] * np.sqrt(2 * np.arange(1, degree + 1) + 1)
    return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class Places:
    """The posterior of t, [N, K], at the middles of K intervals."""

    probability: torch.Tensor

    @staticmethod
    def grid() -> torch.Tensor:
        """The K places, float64."""
        return (torch.arange(_PLACES, dtype=torch.float64) + 0.5) / _PLACES

    @staticmethod
    def ordered(latents: Latents) -> Places:
        """From the quantiles of the first coordinate of linear latents."""
        first = latents.mean[:, 0]
        t = (first.argsort().argsort() + 0.5) / len(first)
        spread = float(latents.covariance[:, 0, 0].mean().sqrt() / first.std().clamp_min(1e-30)) * _UNIFORM
        spread = min(max(spread, _NARROWEST), _WIDEST)
        return Places(torch.softmax(-0.5 * ((t[:, None] - Places.grid()) / spread).square(), dim=1))

    @staticmethod
    def of(G: torch.Tensor, b: torch.Tensor) -> tuple[Places, float]:
        """The posterior given inner products G [N, M, M] and b [N, M], and the log-likelihood, up to a constant."""
        phi = polynomials(Places.grid(), b.shape[1])
        log = b @ phi.T - 0.5 * torch.einsum("km,nml,kl->nk", phi, G, phi)
        total = torch.logsumexp(log, dim=1) - np.log(_PLACES)
        return Places(torch.softmax(log, dim=1)), float(total.sum())

    @property
    def mean(self) -> torch.Tensor:
        """E[t], [N]."""
        return self.probability @ Places.grid()

    def weights(self, degree: int) -> Latents:
        """The mean and covariance of phi."""
        phi = polynomials(Places.grid(), degree)
        mean = self.probability @ phi
        second = torch.einsum("nk,km,kl->nml", self.probability, phi, phi)
        return Latents(mean, second - mean[:, :, None] * mean[:, None])


def first_curve(axis: torch.Tensor, degree: int, decay: float) -> Subspace:
    """U = 0 and a prior with the power of the first linear component, of the norm of its latents, [b, b, b]."""
    power = shell_power(axis[None].double())
    power = power + 0.02 * power.max()
    return Subspace(axis.new_zeros((degree, *axis.shape)), power * _ratios(degree, decay))


def fitted_curve(
    band: Band,
    residuals: torch.Tensor,
    start: Subspace,
    places: Places,
    *,
    decay: float,
    iterations: int,
    steps: int = 4,
    watch: Callable[[int, Subspace, Places, float], None] | None = None,
) -> tuple[Subspace, Places, list[float]]:
    """U and the posterior of t after `iterations`, and the log-likelihood after each.

    residuals: r, complex64 [N, P]. steps: of conjugate gradients. watch: called with the number of iterations done and
    their results.
    """
    curve, likelihoods = start, []
    degree = start.dimensions
    for number in range(iterations):
        normal = Normal(band, residuals, places.weights(degree))
        components, variance = normal.solve(curve.power, curve.components, steps)
        curve = Subspace(components, _tied(shell_power(components, variance), decay))
        G, b, _ = inner_products(band, residuals, components)
        places, likelihood = Places.of(G, b)
        likelihoods.append(likelihood)
        if watch is not None:
            watch(number + 1, curve, places, likelihood)
    return curve, places, likelihoods


def _tied(power: torch.Tensor, decay: float) -> torch.Tensor:
    """Power [M, b // 2] in the ratios of the prior."""
    ratios = _ratios(len(power), decay)
    return least_power((power / ratios).mean(dim=0) * ratios)


def _ratios(degree: int, decay: float) -> torch.Tensor:
    return decay ** torch.arange(degree, dtype=torch.float64)[:, None]
