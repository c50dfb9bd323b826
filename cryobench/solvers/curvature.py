"""Draws about an estimate of the posterior mean, from the curvature of the posterior that a denoiser implies.

With D(z) = E[x | x + s n = z] and its Jacobian J, the log density of x + s n has the gradient (D(z) - z) / s^2
(Tweedie's formula) and the Hessian (J - 1) / s^2, where J = Cov[x | z] / s^2 is Tweedie's second moment (Efron 2011,
"Tweedie's formula and selection bias"; Meng et al. 2021, "Estimating high order gradients of the data distribution by
denoising"). The Gaussian at x (Laplace's approximation) has the precision

    P = A^T A / sigma^2 + (1 - J) / s^2

or, where y is exact, (1 - J) / s^2 on the null space of A. It is exact for a Gaussian prior, but for s^2 in its
covariance. x + P^(-1/2) n is drawn by Lanczos' method from the vector n (Chow & Saad 2014, "Preconditioned Krylov
subspace methods for sampling multivariate Gaussian distributions"): products with P only.
"""

from __future__ import annotations

import torch

from cryobench.core import Problem, meters
from cryobench.numerics.linalg import dot, norm, per_item, tiny
from cryobench.operators.noise import noise_power
from cryobench.priors.denoising import DenoisingModel

_LEAST = 1e-6
"""Least eigenvalue of P, relative to the largest: the Jacobian of a network need not be smaller than 1."""
_NULL = 1e-5
"""A vector has no part in the null space of A if that part is at most this long, relative to it: it is rounding. One
dimension of 4096 x 4096 pixels has 2.4e-4 of white noise."""


class Curvature:
    """P at images x [B, C, *S] for noise level s. Each product with it is an evaluation of the prior.

    least: lower bound of the precision; the inverse of the largest variance that an image can have.
    """

    def __init__(self, problem: Problem, model: DenoisingModel, x: torch.Tensor, s: float, least: float = 0.0):
        self.problem, self.s, self.least = problem, s, least
        self._power = noise_power(problem).to(x.dtype)
        with torch.enable_grad():
            self._z = x.detach().requires_grad_()
            self._estimate = model.denoise(self._z, s)

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """P v, [B, C, *S]. Of v in the null space of A where y is exact."""
        with meters.calling(meters.NETWORK, v):
            (along,) = torch.autograd.grad(self._estimate, self._z, v, retain_graph=True)
        q, operator = (v - along) / self.s**2, self.problem.operator
        noisy = per_item(self._power > 0, v)
        if noisy.all():
            return q + operator.A_adjoint_A(v) / self._power
        exact = q - operator.A_dagger_A(q)
        if not noisy.any():
            return exact
        return torch.where(noisy, q + operator.A_adjoint_A(v) / self._power.clamp_min(tiny(v)), exact)

    @torch.no_grad()
    def draw(self, n: torch.Tensor, products: int) -> torch.Tensor:
        """P^(-1/2) n by `products` steps of Lanczos' method, [B, C, *S]. n: white noise of deviation 1.

        The basis is orthogonalised against all earlier vectors; an image whose Krylov space ends earlier keeps it.
        The draw is 0 where y is exact and A injective: y determines the image.
        """
        exact = per_item(self._power == 0, n)
        if exact.any():
            free = n - self.problem.operator.A_dagger_A(n)
            free = torch.where(norm(free) > _NULL * norm(n), free, 0.0)
            n = torch.where(exact, free, n)
        length = norm(n)
        basis, diagonal, beside = [n / length.clamp_min(tiny(n))], [], []
        for k in range(products):
            w = self(basis[k])
            diagonal.append(dot(w, basis[k]).flatten())
            for v in basis:
                w = w - dot(w, v) * v
            rest = norm(w)
            beside.append(rest.flatten())
            basis.append(w / rest.clamp_min(tiny(n)))
        T = torch.diag_embed(torch.stack(diagonal, dim=1).double())
        if products > 1:  # the lower triangle is enough for eigh
            T = T + torch.diag_embed(torch.stack(beside[:-1], dim=1).double(), offset=-1)
        values, vectors = torch.linalg.eigh(T)
        values = torch.where(length.reshape(-1, 1) > 0, values, 1.0)  # T is 0 where there is nothing to draw
        values = torch.maximum(values, (_LEAST * values[:, -1:]).clamp_min(self.least))
        weights = (vectors * values.rsqrt()[:, None] @ vectors[:, 0, :, None])[..., 0].to(n.dtype)
        found = torch.zeros_like(n)
        for k in range(products):
            found = found + per_item(weights[:, k], n) * basis[k]
        return length * found
