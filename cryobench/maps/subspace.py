"""Maps in a linear subspace, v_i = mu + sum_k z_ik U_k with z_i ~ N(0, I): probabilistic principal components of
particle images with known poses, by expectation-maximisation (Tipping and Bishop 1999, J. R. Stat. Soc. B 61:611;
Tagare et al. 2015, J. Struct. Biol. 191:245).

With y_i, T_i and the slices P_i of `maps.band`, r_i = y_i - T_i P_i mu and a_ik = T_i P_i U_k, the latent of an image
is Gaussian given the image,

    S_i = (I + G_i)^-1,   G_i,kl = Re <a_ik, a_il>,      m_i = S_i b_i,   b_ik = Re <a_ik, r_i>,
    log p(r_i) = -1/2 (|r_i|^2 - b_i . m_i + log det(I + G_i)) + const,

and the next U minimises the expectation of the squared error and its prior: with E_i = m_i m_i^T + S_i,

    sum_l (sum_i E_i,kl P_i^T T_i^2 P_i) U_l + L_k U_k = sum_i m_ik P_i^T T_i r_i.

The operators in brackets are convolutions, whose kernels are sums over images; next to each is a circulant matrix C_kl
(`maps.inversion.density`), so the d x d systems of each frequency precondition conjugate gradients. L_k = D^3 / tau_k^2
in Fourier space is the prior |F U_k|^2 ~ tau_k^2 of each shell. It is estimated with U: the mean over the shell of
|F U_k|^2 and of its posterior variance, D^3 times the diagonal of (C + L)^-1. Components and shells that are noise
vanish. With a fixed prior, no step lowers the likelihood times the prior.

Where images determine their latents well, the scale of U converges slowly. The step is therefore expanded by the
covariance of the latents (Liu, Rubin and Wu 1998, Biometrika 85:755): with the mean M = R R^T of E_i, U R has latents
of covariance I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cryobench.maps.band import Band
from cryobench.maps.inversion import density
from cryobench.metrics.rings import ring_counts, ring_sums
from cryobench.numerics.fft import cropped_irfftn, irfftn, padded_rfftn, rfftn
from cryobench.numerics.linalg import conjugate_gradients
from cryobench.numerics.shells import shells

_LEAST_POWER = 1e-6
"""Smallest tau^2 of a shell, relative to the largest of the first component."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Gaussian latents of N images. mean: float64 [N, d]. covariance: float64 [N, d, d]."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @property
    def moments(self) -> torch.Tensor:
        """E[z z^T], [N, d, d]."""
        return self.mean[:, :, None] * self.mean[:, None] + self.covariance


@dataclass(frozen=True, eq=False)
class Subspace:
    """U: components, float64 [d, b, b, b]. power: tau^2 of each component and shell, [d, b // 2], from shell 1 on."""

    components: torch.Tensor
    power: torch.Tensor

    @property
    def dimensions(self) -> int:
        return len(self.components)


def inner_products(
    band: Band, residuals: torch.Tensor, components: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G, float64 [N, d, d], b [N, d] and |r|^2 [N] of images with the residuals r, complex64 [N, P]."""
    root = band.weights.sqrt()
    products, projections, squares = [], [], []
    for rows, some in band.parts:
        a = (some.slices(components) * (some.transfer * root)).transpose(0, 1)
        a = torch.view_as_real(a.resolve_conj()).flatten(2)
        r = torch.view_as_real(residuals[rows] * root).flatten(1)
        products.append((a @ a.transpose(1, 2)).double())
        projections.append((a @ r[:, :, None])[:, :, 0].double())
        squares.append(r.double().square().sum(dim=1))
    return torch.cat(products), torch.cat(projections), torch.cat(squares)


def expected(band: Band, residuals: torch.Tensor, components: torch.Tensor) -> tuple[Latents, float]:
    """The latents of images with the residuals r, complex64 [N, P], and the log-likelihood, up to a constant."""
    G, b, squares = inner_products(band, residuals, components)
    factor = torch.linalg.cholesky(G + torch.eye(len(components), dtype=torch.float64))
    covariance = torch.cholesky_inverse(factor)
    mean = (covariance @ b[:, :, None])[:, :, 0]
    total = 0.5 * float((b * mean).sum() - squares.sum()) - float(factor.diagonal(dim1=1, dim2=2).log().sum())
    return Latents(mean, covariance), total


class Normal:
    """The normal equations of all components: B and the operator sum_l K_kl * U_l + L_k U_k.

    residuals: r, complex64 [N, P]. Components are [d, b, b, b].
    """

    def __init__(self, band: Band, residuals: torch.Tensor, latents: Latents):
        b, d = band.side, latents.mean.shape[1]
        self.side, self._d = b, d
        first, second = torch.triu_indices(d, d)
        index = torch.zeros((d, d), dtype=torch.long)
        index[first, second] = index[second, first] = torch.arange(len(first))
        self._index = index
        spectra, densities = [], []
        for pair in latents.moments[:, first, second].T.split(4):
            for kernel in band.kernels(pair):
                densities.append(density(kernel, signed=True))
                for axis in range(3):
                    kernel.select(axis, b).zero_()
                spectra.append(rfftn(kernel, 3).real.float())
        self._spectra = torch.stack(spectra)
        self.density = torch.stack(densities)[index].permute(2, 3, 4, 0, 1)  # [b, b, b // 2 + 1, d, d]
        back = [band.back((residuals * band.transfer * m[:, None].float())[None])[0] for m in latents.mean.T]
        self.right = torch.stack(back)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Without the prior."""
        n = self.side
        padded = padded_rfftn(x.float(), (2 * n,) * 3)
        result = torch.zeros_like(padded)
        for k in range(self._d):
            for line in range(self._d):
                result[k] += self._spectra[self._index[k, line]] * padded[line]
        return cropped_irfftn(result, (2 * n,) * 3, (n,) * 3).double()

    def solve(self, prior: torch.Tensor, start: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """U by conjugate gradients from `start`, and the posterior variance of F U, [d, b, b, b // 2 + 1]. prior: tau^2
        [d, b // 2]."""
        n = self.side
        L = _of_shells(n**3 / prior, n)
        inside = shells((n,) * 3) <= n // 2
        system = self.density + torch.diag_embed(L.permute(1, 2, 3, 0))
        inverse = torch.linalg.inv(system)
        variance = n**3 * inverse.diagonal(dim1=-2, dim2=-1).permute(3, 0, 1, 2)

        def operator(x: torch.Tensor) -> torch.Tensor:
            return self(x[0])[None] + irfftn(L * rfftn(x, 3), (n,) * 3)

        def precondition(r: torch.Tensor) -> tuple[torch.Tensor, ...]:
            spectrum = torch.where(inside, rfftn(r, 3), 0.0)[0].permute(1, 2, 3, 0)[..., None]
            return (irfftn((inverse.to(spectrum.dtype) @ spectrum)[..., 0].permute(3, 0, 1, 2), (n,) * 3)[None],)

        right = self.right[None] - operator(start[None])
        change = conjugate_gradients(operator, right, tol=0.0, max_steps=steps, precondition=precondition)
        return start + change[0], variance


def updated_power(components: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """tau^2 of each component and shell, [d, b // 2], from U and its posterior variance."""
    return least_power(shell_power(components, variance))


def shell_power(components: torch.Tensor, variance: torch.Tensor | float = 0.0) -> torch.Tensor:
    """The mean over each shell of |F U|^2 + variance, [d, b // 2]."""
    return _shell_means(rfftn(components, 3).abs().square() + variance)


def least_power(power: torch.Tensor) -> torch.Tensor:
    """tau^2 [d, b // 2], not below a small part of the largest."""
    return power.clamp_min(_LEAST_POWER * float(power.max()))


def signal_power(components: torch.Tensor, variance: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """tau^2 of each component and shell in one step, [d, b // 2], from U with the prior `power` and its variance.

    With s = 1 - V / tau^2 the part of U that the data state, |F U|^2 / s^2 is the power of signal and noise, and V / s
    that of the noise. Where there is no signal, steps of `updated_power` fall to 0 slowly.
    """
    squares, variances = shell_power(components), _shell_means(variance)
    stated = (1 - variances / power).clamp_min(1e-3)
    found = squares / stated.square() - variances / stated
    return torch.minimum(found, power).clamp_min(_LEAST_POWER * float(power.max()))


def fitted(
    band: Band,
    residuals: torch.Tensor,
    start: Subspace,
    *,
    iterations: int,
    steps: int = 4,
    fixed_prior: bool = False,
    watch: Callable[[int, Subspace, float], None] | None = None,
) -> tuple[Subspace, list[float]]:
    """The subspace after `iterations` of expectation-maximisation, and the log-likelihood before each.

    steps: of conjugate gradients. fixed_prior: keep tau^2, and do not expand. watch: called with the number
    of iterations done, the subspace and the log-likelihood before.
    """
    subspace, likelihoods = start, []
    for number in range(iterations):
        latents, likelihood = expected(band, residuals, subspace.components)
        likelihoods.append(likelihood)
        normal = Normal(band, residuals, latents)
        components, variance = normal.solve(subspace.power, subspace.components, steps)
        if fixed_prior:
            power = subspace.power
        else:
            R = torch.linalg.cholesky(latents.moments.mean(dim=0))
            components = torch.tensordot(R.T, components, dims=1)
            variance = torch.tensordot(R.T.square(), variance, dims=1)
            power = updated_power(components, variance)
        subspace = Subspace(components, power)
        if watch is not None:
            watch(number + 1, subspace, likelihood)
    return subspace, likelihoods


def principal(components: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal axes of the subspace [d, b, b, b] in the order of falling variance, and R [d, d] with
    U_l = sum_k R_kl axis_k, so that the coordinates of a latent z are R z."""
    d = len(components)
    flat = components.reshape(d, -1)
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    order = values.argsort(descending=True)
    values, vectors = values[order].clamp_min(1e-300), vectors[:, order]
    axes = (vectors / values.sqrt()).T @ flat
    return axes.reshape(components.shape), values.sqrt()[:, None] * vectors.T


def turned(latents: Latents, R: torch.Tensor) -> Latents:
    """The latents R z."""
    return replace(latents, mean=latents.mean @ R.T, covariance=R @ latents.covariance @ R.T)


def _shell_means(values: torch.Tensor) -> torch.Tensor:
    """[d, b, b, b // 2 + 1] -> [d, b // 2], from shell 1 on."""
    n = values.shape[1]
    sums = torch.cat([ring_sums(one[None, None], (n,) * 3) for one in values])
    return sums / ring_counts((n,) * 3, values.device)


def _of_shells(values: torch.Tensor, n: int) -> torch.Tensor:
    """[d, n // 2] from shell 1 on -> [d, n, n, n // 2 + 1], the first also at 0 and the last in the corners."""
    shell = shells((n,) * 3).clamp_max(values.shape[1])
    return torch.cat([values[:, :1], values], dim=1)[:, shell]
