"""The two iterations of the engine in `proximal`: `PrimalDual` and `Fista`."""

from __future__ import annotations

import math

import torch

from cryobench.numerics.linalg import dot, norm, tiny, total
from cryobench.solvers.proximal import Method, Objective

_STEP_RANGE = 100
"""Largest factor by which tau may change: with inconsistent constraints it would diverge."""
_INNER_SHARE = 0.01
"""Inside FISTA an iterative prox stops when its steps are this fraction of the last FISTA step, so that its error
decreases with them (Schmidt, Le Roux & Bach 2011)."""


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
    iterated with z, so that each step applies K and K^T only once. In both cases x is stored as its difference from
    A^+ y, the argument of A_dagger_A.
    """

    def __init__(self, task: Objective):
        self.task = task
        self.norm_squared = task.prior.norm_squared(task.least.ndim - 2) + (task.bounds is not None)
        self.splits = self.norm_squared == 1
        self.K_least = self._K(task.least)
        self.moved = self.anchor_x = self.KTu = self.g = torch.zeros_like(task.least)
        self.u = self.anchor_u = torch.zeros_like(self.K_least)
        self.Kx = self.K_least
        # initial tau balances the primal and dual distances: `spread` over the norm of a u on the surface of the ball
        size = task.lam * math.sqrt(self.u[0].numel() * self.norm_squared)
        self.tau = torch.where((size > 0) & (task.spread > 0), task.spread / size.clamp_min(tiny(size)), 1.0)
        self.least_tau, self.most_tau = self.tau / _STEP_RANGE, self.tau * _STEP_RANGE
        self.k, self.age = torch.zeros_like(size), torch.zeros_like(size)
        self.first = self.previous = self.residual = torch.full_like(size, math.inf)
        self.at = self.anchor = self._image()

    @property
    def x(self) -> torch.Tensor:
        return self.task.least + self.moved

    def _K(self, x: torch.Tensor) -> torch.Tensor:
        Kx = self.task.prior.analysis(x)
        return Kx if self.task.bounds is None else torch.cat([Kx, x], dim=1)

    def _KT(self, u: torch.Tensor) -> torch.Tensor:
        if self.task.bounds is None:
            return self.task.prior.adjoint(u)
        return self.task.prior.adjoint(u[:, :-1]) + u[:, -1:]

    def _dual_step(self, u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if self.task.bounds is None:
            return self.task.prior.dual_step(u, self.task.lam, sigma)
        inside = u[:, -1:] - sigma * (u[:, -1:] / sigma).clamp(*self.task.bounds)
        return torch.cat([self.task.prior.dual_step(u[:, :-1], self.task.lam, sigma), inside], dim=1)

    def _primal_step(self, s: torch.Tensor) -> torch.Tensor:
        return s - self.task.operator.A_dagger_A(s, torch.where(self.task.exact, math.inf, self.tau))

    def _image(self) -> tuple[torch.Tensor, ...]:
        """The iterated variables, at T z."""
        return (self.moved - self.tau * self.KTu,) if self.splits else (self.moved, self.u, self.Kx, self.KTu)

    def _split(self) -> torch.Tensor:
        """Apply T to s. Returns the squared residual."""
        (s,) = self.at
        self.moved = self._primal_step(s)
        self.u = self._dual_step((self.K_least + self._K(2 * self.moved - s)) / self.tau, 1 / self.tau)
        self.KTu = self._KT(self.u)
        self.g = self.KTu - (self.moved - s) / self.tau
        return self.tau * dot(self.g, self.g)

    def _hybrid(self) -> torch.Tensor:
        """Apply T to z. Returns the squared residual."""
        x, u, Kx, KTu = self.at
        sigma = 1 / (self.tau * self.norm_squared)
        self.moved = self._primal_step(x - self.tau * KTu)
        self.Kx = self.K_least + self._K(self.moved)
        self.u = self._dual_step(u + sigma * (2 * self.Kx - Kx), sigma)
        self.KTu = self._KT(self.u)
        du, KTdu = self.u - u, self.KTu - KTu
        self.g = KTdu - (self.moved - x) / self.tau
        # ||T z - z||_P^2 with the square completed in dx; the rest is >= 0 but for rounding, as tau sigma ||K||^2 = 1
        return self.tau * dot(self.g, self.g) + (dot(du, du) / sigma - self.tau * dot(KTdu, KTdu)).clamp_min(0)

    def propose(self) -> torch.Tensor:
        self.residual = (self._split() if self.splits else self._hybrid()).sqrt()
        fresh = self.k == 0
        self.first = torch.where(fresh, self.residual, self.first)
        falls = self.residual <= 0.2 * self.first
        stalls = (self.residual <= 0.8 * self.first) & (self.residual > self.previous)
        lasts = self.k >= 0.36 * (self.age + 1)
        return ~fresh & (falls | stalls | lasts)

    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        x = self.x
        if self.task.bounds is None:
            return penalty - dot(self.KTu, x)
        # u is the dual block of the box: its support function max(lo u, hi u) replaces lam R
        low, high = self.task.bounds
        u, inside = self.u[:, -1:], x.clamp(low, high)
        held = total(torch.maximum(low * u, high * u) - u * inside + (u * (x - inside)).abs())
        return penalty - dot(self.KTu - u, x) + held

    def imbalance(self) -> torch.Tensor:
        return self.g

    def movement(self) -> torch.Tensor:
        return self.residual * self.tau.sqrt()

    def advance(self, restart: torch.Tensor) -> None:
        if restart.any():
            moved, turned = norm(self.moved - self.anchor_x), norm(self.u - self.anchor_u)
            target = moved / (turned * math.sqrt(self.norm_squared)).clamp_min(tiny(moved))
            target = (self.tau * target).sqrt().clamp(self.least_tau, self.most_tau)
            self.tau = torch.where(restart & (moved > 0) & (turned > 0), target, self.tau)
            self.anchor_x = torch.where(restart, self.moved, self.anchor_x)
            self.anchor_u = torch.where(restart, self.u, self.anchor_u)
        image = self._image()
        self.anchor = tuple(torch.where(restart, new, old) for new, old in zip(image, self.anchor, strict=True))
        # after a restart the anchor and the next point are both T z
        a = torch.where(restart, 0.0, (self.k + 1) / (self.k + 2))
        self.at = tuple(
            a * (2 * new - at) + (1 - a) * anchor for new, at, anchor in zip(image, self.at, self.anchor, strict=True)
        )
        self.k, self.age = torch.where(restart, 0.0, self.k + 1), self.age + 1
        self.previous = torch.where(restart, math.inf, self.residual)

    def reweigh(self, ratio: torch.Tensor) -> None:
        self.u, self.KTu = self.u * ratio, self.KTu * ratio
        self.tau, self.least_tau, self.most_tau = self.tau / ratio, self.least_tau / ratio, self.most_tau / ratio


class Fista(Method):
    """FISTA (Beck & Teboulle 2009) with gradient-based adaptive restart (O'Donoghue & Candes 2015, eq. 12)."""

    def __init__(self, task: Objective):
        self.task = task
        curvature = task.operator.norms.to(task.lam.dtype).square().expand_as(task.lam)
        self.step = 1 / torch.where(curvature > 0, curvature, 1.0)
        self.new = self.before = self.at = task.least
        self.u = torch.zeros_like(task.prior.analysis(task.least))
        self.t = torch.ones_like(task.lam)
        self.moved = task.spread

    @property
    def x(self) -> torch.Tensor:
        return self.new

    def propose(self) -> torch.Tensor:
        task, step = self.task, self.step
        z = self.at - step * task.operator.A_adjoint_A(self.at - task.least)
        self.before = self.new
        self.new, self.u = task.prior.dual_prox(z, step * task.lam, self.u, _INNER_SHARE * self.moved)
        self.moved = norm(self.new - self.at)
        # gradient criterion: restart if the momentum points uphill
        return dot(self.at - self.new, self.new - self.before) > 0

    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        return penalty - dot(self.u, self.task.prior.analysis(self.new)) / self.step

    def imbalance(self) -> torch.Tensor:
        d = self.at - self.new
        return d / self.step - self.task.operator.A_adjoint_A(d)

    def movement(self) -> torch.Tensor:
        return self.moved

    def advance(self, restart: torch.Tensor) -> None:
        t = torch.where(restart, 1.0, self.t)
        self.t = (1 + (1 + 4 * t**2).sqrt()) / 2
        self.at = self.new + torch.where(restart, 0.0, (t - 1) / self.t) * (self.new - self.before)

    def reweigh(self, ratio: torch.Tensor) -> None:
        self.u = self.u * ratio
