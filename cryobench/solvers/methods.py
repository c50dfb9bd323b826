"""The two iterations of the engine in `proximal`: `PrimalDual` and `Fista`."""

from __future__ import annotations

import math

import torch

from cryobench.numerics.linalg import dot, norm, tiny, total
from cryobench.solvers.proximal import Method, Objective

_STEP_RANGE = 100
"""Largest factor by which tau may differ from its initial value: with inconsistent constraints it would diverge."""
_INNER_TOLERANCE = 0.01
"""Inside FISTA an iterative prox stops when its steps are this fraction of the last FISTA step, so that its error
decreases with them (Schmidt, Le Roux & Bach 2011)."""
_SUFFICIENT, _NECESSARY, _LONG = 0.2, 0.8, 0.36
"""The parameters of the restart criterion of Applegate et al. 2023, section 4: see `PrimalDual.step`."""


class PrimalDual(Method):
    """Reflected Halpern iteration with restarts (Lu & Yang 2024) of the primal-dual hybrid gradient operator T:

        T:   x' = argmin of data term + 1/(2 tau) ||x' - (x - tau K^T u)||^2
             u' = projection of u + sigma K (2 x' - x) on the dual ball of radius lam,   tau sigma ||K||^2 = 1

        z_{k+1} = (k + 1)/(k + 2) (2 T z_k - z_k) + 1/(k + 2) z_0,   z = (x, u)

    An image restarts from T z when its residual ||T z - z||_P, P = [1/tau, -K^T; -K, 1/sigma], has decreased by a
    factor of 5, or of 1.25 and increases again, or after many steps (Applegate et al. 2023, section 4); tau then moves
    halfway, on a log scale, towards ||x - x_0|| / (||u - u_0|| ||K||). A box constraint is one more dual block,
    K = [K; I].

    If K K^T = 1, T and P depend only on s = x - tau K^T u, and s is iterated (Douglas-Rachford splitting; O'Connor &
    Vandenberghe 2020): the other component of z would only accumulate rounding errors. Otherwise K x and K^T u are
    iterated with z, so that each step applies K and K^T only once. In both cases x is stored as its offset from A^+ y,
    the argument of A_dagger_A.
    """

    def __init__(self, objective: Objective):
        self.objective = objective
        self.norm_squared = objective.prior.norm_squared(objective.least_squares.ndim - 2) + (
            objective.bounds is not None
        )
        self.orthonormal = self.norm_squared == 1
        self.K_start = self._K(objective.least_squares)
        zero = objective.lam.new_zeros(())  # expanded, without memory: large images need it
        self.offset = self.anchor_x = self.KTu = zero.expand_as(objective.least_squares)
        self.u = zero.expand_as(self.K_start[:, :0] if self.orthonormal else self.K_start)
        self.Kx = self.K_start
        # tau starts as the expected distance to the minimiser in x over that in u, the norm of a u with all |u_i| = lam
        size = objective.lam * math.sqrt(self.K_start[0].numel() * self.norm_squared)
        self.tau = torch.where(
            (size > 0) & (objective.structure_norm > 0), objective.structure_norm / size.clamp_min(tiny(size)), 1.0
        )
        self.tau_min, self.tau_max = self.tau / _STEP_RANGE, self.tau * _STEP_RANGE
        self.anchor_tau = self.tau
        self.k, self.iterations = torch.zeros_like(size), torch.zeros_like(size)
        self.first_residual = self.previous_residual = self.residual = torch.full_like(size, math.inf)
        self.z = self.anchor = self._mapped()

    @property
    def x(self) -> torch.Tensor:
        return self.objective.least_squares + self.offset

    def _K(self, x: torch.Tensor) -> torch.Tensor:
        Kx = self.objective.prior.analysis(x)
        return Kx if self.objective.bounds is None else torch.cat([Kx, x], dim=1)

    def _KT(self, u: torch.Tensor) -> torch.Tensor:
        if self.objective.bounds is None:
            return self.objective.prior.adjoint(u)
        return self.objective.prior.adjoint(u[:, :-1]) + u[:, -1:]

    def _dual_step(self, u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if self.objective.bounds is None:
            return self.objective.prior.dual_step(u, self.objective.lam, sigma)
        # Moreau decomposition: the prox of the support function of the box, from the projection on the box
        box = u[:, -1:] - sigma * (u[:, -1:] / sigma).clamp(*self.objective.bounds)
        return torch.cat([self.objective.prior.dual_step(u[:, :-1], self.objective.lam, sigma), box], dim=1)

    def _primal_step(self, s: torch.Tensor) -> torch.Tensor:
        return s - self.objective.operator.A_dagger_A(s, torch.where(self.objective.constrained, math.inf, self.tau))

    def _mapped(self) -> tuple[torch.Tensor, ...]:
        """T z: s alone where K K^T = 1, else (x, u, K x, K^T u)."""
        return (self.offset - self.tau * self.KTu,) if self.orthonormal else (self.offset, self.u, self.Kx, self.KTu)

    def _split(self) -> torch.Tensor:
        """Apply T to s. Returns the squared residual."""
        (s,) = self.z
        self.offset = self.KTu = s  # frees the memory of the last ones
        self.offset = self._primal_step(s)
        dual = self._K((2 * self.offset).sub_(s))
        u = self._dual_step(dual.add_(self.K_start).div_(self.tau), 1 / self.tau)
        del dual
        self.KTu = self._KT(u)
        del u
        gradient = self.gradient()
        return self.tau * dot(gradient, gradient)

    def _hybrid(self) -> torch.Tensor:
        """Apply T to z. Returns the squared residual."""
        x, u, Kx, KTu = self.z
        sigma = 1 / (self.tau * self.norm_squared)
        self.offset = self._primal_step(x - self.tau * KTu)
        self.Kx = self.K_start + self._K(self.offset)
        self.u = self._dual_step(u + sigma * (2 * self.Kx - Kx), sigma)
        self.KTu = self._KT(self.u)
        du, KTdu, gradient = self.u - u, self.KTu - KTu, self.gradient()
        # ||T z - z||_P^2 with the square completed in dx; since tau sigma ||K||^2 = 1, the second term is negative only
        # by rounding
        return self.tau * dot(gradient, gradient) + (dot(du, du) / sigma - self.tau * dot(KTdu, KTdu)).clamp_min(0)

    def step(self) -> torch.Tensor:
        self.residual = (self._split() if self.orthonormal else self._hybrid()).sqrt()
        just_restarted = self.k == 0
        self.first_residual = torch.where(just_restarted, self.residual, self.first_residual)
        sufficient = self.residual <= _SUFFICIENT * self.first_residual
        necessary = (self.residual <= _NECESSARY * self.first_residual) & (self.residual > self.previous_residual)
        long = self.k >= _LONG * (self.iterations + 1)
        return ~just_restarted & (sufficient | necessary | long)

    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        x = self.x
        if self.objective.bounds is None:
            return penalty - dot(self.KTu, x)
        # u is the dual block of the box: its support function max(lo u, hi u) replaces lam R. The iterate x may lie
        # outside the box; the part outside is added in absolute value, so that it cannot make the gap smaller
        low, high = self.objective.bounds
        u, inside = self.u[:, -1:], x.clamp(low, high)
        box = total(torch.maximum(low * u, high * u) - u * inside + (u * (x - inside)).abs())
        return penalty - dot(self.KTu - u, x) + box

    def gradient(self) -> torch.Tensor:
        # z is that of before the step until `advance`
        if self.orthonormal:
            return self.KTu - (self.offset - self.z[0]) / self.tau
        x, _, _, KTu = self.z
        return self.KTu - KTu - (self.offset - x) / self.tau

    def step_length(self) -> torch.Tensor:
        return self.residual * self.tau.sqrt()

    def advance(self, restart: torch.Tensor) -> None:
        if restart.any():
            # tau should be the ratio of the distances to the minimiser in x and in u; the distances moved since the
            # last restart only estimate them, so tau moves halfway
            primal, dual = self._moved()
            target = primal / (dual * math.sqrt(self.norm_squared)).clamp_min(tiny(primal))
            target = (self.tau * target).sqrt().clamp(self.tau_min, self.tau_max)
            self.tau = torch.where(restart & (primal > 0) & (dual > 0), target, self.tau)
        mapped, some = self._mapped(), bool(restart.any())
        if some and restart.all():
            self.anchor, self.anchor_x, self.anchor_tau = mapped, self.offset, self.tau
        elif some:
            self.anchor = tuple(torch.where(restart, new, old) for new, old in zip(mapped, self.anchor, strict=True))
            self.anchor_x = torch.where(restart, self.offset, self.anchor_x)
            self.anchor_tau = torch.where(restart, self.tau, self.anchor_tau)
        # after a restart the anchor and the next point are both T z (a = 0)
        a = (self.k + 1) / (self.k + 2)
        a = torch.where(restart, 0.0, a) if some else a
        rest = 1 - a
        self.z = tuple(
            (2 * new).sub_(old).mul_(a).add_(rest * anchor)
            for new, old, anchor in zip(mapped, self.z, self.anchor, strict=True)
        )
        self.k, self.iterations, self.previous_residual = self.k + 1, self.iterations + 1, self.residual
        if some:
            self.k = torch.where(restart, 0.0, self.k)
            self.previous_residual = torch.where(restart, math.inf, self.residual)

    def _moved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """||x - x_0|| and ||u - u_0||, the distances since the last restart."""
        primal = norm(self.offset - self.anchor_x)
        if not self.orthonormal:
            return primal, norm(self.u - self.anchor[1])
        # u is not kept: K K^T = 1, so that ||u - u_0|| = ||K^T (u - u_0)||, and s_0 = x_0 - tau_0 K^T u_0
        KTu_0 = (self.anchor_x - self.anchor[0]).div_(self.anchor_tau)
        return primal, norm(KTu_0.sub_(self.KTu))

    def rescale_dual(self, ratio: torch.Tensor) -> None:
        # u scales with lam, so tau, the ratio of primal to dual distances, scales with 1 / lam
        self.u, self.KTu = self.u if self.orthonormal else self.u * ratio, self.KTu * ratio
        self.tau, self.tau_min, self.tau_max = self.tau / ratio, self.tau_min / ratio, self.tau_max / ratio


class Fista(Method):
    """FISTA (Beck & Teboulle 2009) with gradient-based adaptive restart (O'Donoghue & Candes 2015, eq. 12)."""

    def __init__(self, objective: Objective):
        self.objective = objective
        curvature = objective.operator.norms.to(objective.lam.dtype).square().expand_as(objective.lam)
        self.step_size = 1 / torch.where(curvature > 0, curvature, 1.0)
        self.current = self.previous = self.extrapolated = objective.least_squares
        self.u = torch.zeros_like(objective.prior.analysis(objective.least_squares))
        self.t = torch.ones_like(objective.lam)
        self.length = objective.structure_norm

    @property
    def x(self) -> torch.Tensor:
        return self.current

    def step(self) -> torch.Tensor:
        objective, step_size = self.objective, self.step_size
        z = self.extrapolated - step_size * objective.operator.A_adjoint_A(self.extrapolated - objective.least_squares)
        self.previous = self.current
        self.current, self.u = objective.prior.dual_prox(
            z, step_size * objective.lam, self.u, _INNER_TOLERANCE * self.length
        )
        self.length = norm(self.current - self.extrapolated)
        # gradient criterion: restart if the momentum points in an ascent direction
        return dot(self.extrapolated - self.current, self.current - self.previous) > 0

    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        # the prox has the threshold step_size lam, so its dual solution u is step_size times that of the objective
        return penalty - dot(self.u, self.objective.prior.analysis(self.current)) / self.step_size

    def gradient(self) -> torch.Tensor:
        # the optimality of the prox gives K^T u / step_size = d / step_size - A^T A (extrapolated - A^+ y); to it, the
        # gradient of the data term at `current` is added
        d = self.extrapolated - self.current
        return d / self.step_size - self.objective.operator.A_adjoint_A(d)

    def step_length(self) -> torch.Tensor:
        return self.length

    def advance(self, restart: torch.Tensor) -> None:
        t = torch.where(restart, 1.0, self.t)
        self.t = (1 + (1 + 4 * t**2).sqrt()) / 2
        self.extrapolated = self.current + torch.where(restart, 0.0, (t - 1) / self.t) * (self.current - self.previous)

    def rescale_dual(self, ratio: torch.Tensor) -> None:
        self.u = self.u * ratio
