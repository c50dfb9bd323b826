"""The engine of the classical solvers: for a sparsity prior R, batched, each image on its own,

    penalty       min over x of   1/2 ||A x - y||^2 + lam R(x)
    constraint    min over x of   R(x)   subject to   x a least-squares solution of A x = y

Two methods minimise them. `PrimalDual` (Chambolle & Pock 2011; Douglas-Rachford where K is orthonormal) takes the data
term by its proximal step, which is closed form on a structured operator, and R by a projection of the dual; it needs no
inner iteration, and solves both forms. `Fista` takes a gradient step on the data term and the prox of R, for operators
without a closed form. Both report the same fixed-point residual and stop by it.

With x* the least-squares solution A^+ y, A enters through A_dagger_A (x* - z) and A^T A (x - x*) alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cryobench.core import LinearOperator, Progress, Reconstruction
from cryobench.linalg import concatenate_curves, dot, norm
from cryobench.priors.sparsity import Sparsity

MISFIT_TOLERANCE = 0.01
_WEIGHT_CHANGES = 30
_STEP_RANGE = 1e5
"""How far tau may move from where it starts: it would run away where the constraints contradict each other."""
_INNER_STEPS = 20
"""Of a prox without closed form, inside FISTA: its dual starts where it was left, so that the two converge together."""


@dataclass
class Task:
    """What is minimised, for each image; every tensor but the images is [B, 1, 1, 1].

    least: A^+ y, a least-squares solution, where the iteration starts, [B, 1, H, W]. spread: the norm of its
    structure, which residuals are relative to. beyond: 1/2 ||A A^+ y - y||^2, what no x changes. exact: the constraint
    form. lam: the weight; 1 in the constraint form. misfit: where finite, lam is changed until ||A x - A A^+ y|| is
    this (the discrepancy principle).
    """

    operator: LinearOperator
    prior: Sparsity
    least: torch.Tensor
    spread: torch.Tensor
    beyond: torch.Tensor
    exact: torch.Tensor
    lam: torch.Tensor
    misfit: torch.Tensor
    box: bool = False

    def take(self, images: torch.Tensor) -> Task:
        tensors = {name: value[images] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Task(self.operator, self.prior, **tensors, box=self.box)

    def misfit_of(self, x: torch.Tensor) -> torch.Tensor:
        """||A x - A A^+ y||, [B, 1, 1, 1]."""
        return norm(self.operator.A(x - self.least))

    def objective(self, x: torch.Tensor) -> torch.Tensor:
        """What is minimised, [B, 1, 1, 1]."""
        return self.objective_at(x, self.misfit_of(x))

    def objective_at(self, x: torch.Tensor, misfit: torch.Tensor) -> torch.Tensor:
        """`objective`, where the misfit of x is known."""
        data = torch.where(self.exact, 0.0, misfit.square() / 2 + self.beyond)
        return data + self.lam * self.prior.value(x)


class _Rows:
    """Attributes that are tensors have one row per image that is still active."""

    def take(self, images: torch.Tensor) -> None:
        """Go on with some of the images alone."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[images])
            elif isinstance(value, Task):
                setattr(self, name, value.take(images))
            elif isinstance(value, _Point):
                setattr(self, name, value.map(lambda tensor: tensor[images]))


class Method(_Rows, ABC):
    """An iteration."""

    task: Task

    @property
    @abstractmethod
    def x(self) -> torch.Tensor:
        """The answer so far, [B, 1, H, W]."""

    @abstractmethod
    def propose(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the next `x`. Returns its fixed-point residual, in units of the image, and whether to restart."""

    @abstractmethod
    def advance(self, restart: torch.Tensor) -> None:
        """Move on from `x`: by momentum, or afresh where `restart` says so."""

    @abstractmethod
    def reweigh(self, ratio: torch.Tensor) -> None:
        """The weight lam has been multiplied by `ratio`: dual points follow it."""


@dataclass
class _Point:
    """A primal and a dual point with their images under K^T and K, kept so that each step transforms but once."""

    x: torch.Tensor
    u: torch.Tensor
    Kx: torch.Tensor
    KTu: torch.Tensor

    def map(self, change: Callable[..., torch.Tensor], *others: _Point) -> _Point:
        """A linear change of all four."""
        mine, theirs = vars(self), [vars(other) for other in others]
        return _Point(**{name: change(mine[name], *(other[name] for other in theirs)) for name in mine})


class PrimalDual(Method):
    """Primal-dual hybrid gradient, T below, under reflected Halpern iteration with restarts (Lu & Yang 2024):

        T:   x' = argmin of data term + 1/(2 tau) ||x' - (x - tau K^T u)||^2
             u' = projection of u + sigma K (2 x' - x) on the dual ball of radius lam,   tau sigma ||K||^2 = 1

        z_{k+1} = (k + 1)/(k + 2) (2 T z_k - z_k) + 1/(k + 2) z_0,   z = (x, u)

    An image restarts from T z when its residual ||T z - z||_P, P = [1/tau, -K^T; -K, 1/sigma], has fallen to a fifth,
    or to 0.8 and rises, or after long (Applegate et al. 2023, section 4); tau then moves halfway, in the logarithm,
    towards ||x - x_0|| / (||u - u_0|| ||K||). A box constraint is one more block of the dual, K = [K; I].
    """

    def __init__(self, task: Task):
        self.task = task
        self.norm_squared = task.prior.norm_squared + task.box
        Kx = self._K(task.least)
        self.at = self.anchor = self.new = _Point(task.least, torch.zeros_like(Kx), Kx, torch.zeros_like(task.least))
        size = task.lam * math.sqrt(Kx[0].numel() * self.norm_squared)  # of u, were it on the ball's surface
        self.tau = torch.where((size > 0) & (task.spread > 0), task.spread / size.clamp_min(_tiny(size)), 1.0)
        self.least_tau, self.most_tau = self.tau / _STEP_RANGE, self.tau * _STEP_RANGE
        self.k, self.age = torch.zeros_like(size), torch.zeros_like(size)
        self.first = self.previous = self.residual = torch.full_like(size, math.inf)

    @property
    def x(self) -> torch.Tensor:
        return self.new.x

    def _K(self, x: torch.Tensor) -> torch.Tensor:
        Kx = self.task.prior.analysis(x)
        return torch.cat([Kx, x], dim=1) if self.task.box else Kx

    def _KT(self, u: torch.Tensor) -> torch.Tensor:
        return self.task.prior.adjoint(u[:, :-1]) + u[:, -1:] if self.task.box else self.task.prior.adjoint(u)

    def _dual_step(self, u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if not self.task.box:
            return self.task.prior.dual_step(u, self.task.lam, sigma)
        inside = u[:, -1:] - sigma * (u[:, -1:] / sigma).clamp(-1, 1)
        return torch.cat([self.task.prior.dual_step(u[:, :-1], self.task.lam, sigma), inside], dim=1)

    def propose(self) -> tuple[torch.Tensor, torch.Tensor]:
        task, at, tau, sigma = self.task, self.at, self.tau, 1 / (self.tau * self.norm_squared)
        z = at.x - tau * at.KTu
        x = z + task.operator.A_dagger_A(task.least - z, torch.where(task.exact, math.inf, tau))
        Kx = self._K(x)
        u = self._dual_step(at.u + sigma * (2 * Kx - at.Kx), sigma)
        self.new = _Point(x, u, Kx, self._KT(u))

        d = self.new.map(torch.sub, at)
        squared = dot(d.x, d.x) / tau - 2 * dot(d.Kx, d.u) + dot(d.u, d.u) / sigma
        self.residual = squared.clamp_min(0).sqrt()
        fresh = self.k == 0
        self.first = torch.where(fresh, self.residual, self.first)
        falls = self.residual <= 0.2 * self.first
        stalls = (self.residual <= 0.8 * self.first) & (self.residual > self.previous)
        lasts = self.k >= 0.36 * (self.age + 1)
        return self.residual * tau.sqrt(), ~fresh & (falls | stalls | lasts)

    def advance(self, restart: torch.Tensor) -> None:
        if restart.any():
            moved, turned = norm(self.new.x - self.anchor.x), norm(self.new.u - self.anchor.u)
            wanted = moved / (turned * math.sqrt(self.norm_squared)).clamp_min(_tiny(moved))
            wanted = (self.tau * wanted).sqrt().clamp(self.least_tau, self.most_tau)
            self.tau = torch.where(restart & (moved > 0) & (turned > 0), wanted, self.tau)
            self.anchor = self.anchor.map(lambda anchor, new: torch.where(restart, new, anchor), self.new)
        # where it restarts, the anchor is T z, and the next point too
        a = torch.where(restart, 0.0, (self.k + 1) / (self.k + 2))
        self.at = self.anchor.map(lambda anchor, new, at: a * (2 * new - at) + (1 - a) * anchor, self.new, self.at)
        self.k, self.age = torch.where(restart, 0.0, self.k + 1), self.age + 1
        self.previous = torch.where(restart, math.inf, self.residual)

    def reweigh(self, ratio: torch.Tensor) -> None:
        self.new = _Point(self.new.x, self.new.u * ratio, self.new.Kx, self.new.KTu * ratio)
        self.tau, self.least_tau, self.most_tau = self.tau / ratio, self.least_tau / ratio, self.most_tau / ratio


class Fista(Method):
    """FISTA (Beck & Teboulle 2009) with gradient-based adaptive restart (O'Donoghue & Candes 2015, eq. 12)."""

    def __init__(self, task: Task):
        self.task = task
        self.step = 1 / (task.operator.compute_norm() ** 2 or 1.0)
        self.new = self.before = self.at = task.least
        self.u = torch.zeros_like(task.prior.analysis(task.least))
        self.t = torch.ones_like(task.lam)

    @property
    def x(self) -> torch.Tensor:
        return self.new

    def propose(self) -> tuple[torch.Tensor, torch.Tensor]:
        task, step = self.task, self.step
        z = self.at - step * task.operator.A_adjoint_A(self.at - task.least)
        self.before = self.new
        self.new, self.u = task.prior.dual_prox(z, step * task.lam, self.u, steps=_INNER_STEPS)
        # momentum that points uphill is dropped: the image's sequence starts again from here
        return norm(self.new - self.at), dot(self.at - self.new, self.new - self.before) > 0

    def advance(self, restart: torch.Tensor) -> None:
        t = torch.where(restart, 1.0, self.t)
        self.t = (1 + (1 + 4 * t**2).sqrt()) / 2
        self.at = self.new + torch.where(restart, 0.0, (t - 1) / self.t) * (self.new - self.before)

    def reweigh(self, ratio: torch.Tensor) -> None:
        self.u = self.u * ratio


def _tiny(like: torch.Tensor) -> float:
    return torch.finfo(like.dtype).tiny


class _WeightSearch(_Rows):
    """The weight of each image whose misfit is the wanted one: the secant method on log misfit against log lam."""

    def __init__(self, task: Task):
        self.start = task.lam
        self.changes = torch.zeros_like(task.lam)
        self.slope = torch.full_like(task.lam, 0.8)
        self.lam = self.misfit = torch.full_like(task.lam, math.nan)

    def ratio(self, look: torch.Tensor, misfit: torch.Tensor, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        """Where, among the images to `look` at, the misfit is not yet the wanted one, and by what to multiply lam.

        After many changes, or where lam has gone six orders of magnitude without reaching it, the weight stays.
        """
        misfit = misfit.clamp_min(1e-3 * task.misfit)
        near = ((task.lam / self.start).log10().abs() < 6) & (self.changes < _WEIGHT_CHANGES)
        off = look & ((misfit / task.misfit - 1).abs() > MISFIT_TOLERANCE) & near
        slope = (misfit / self.misfit).log() / (task.lam / self.lam).log()
        # where the iteration is far from its end the misfit says little: a slope is believed within bounds
        self.slope = torch.where(off & slope.isfinite(), slope.clamp(0.4, 2.5), self.slope)
        self.lam, self.misfit = torch.where(off, task.lam, self.lam), torch.where(off, misfit, self.misfit)
        self.changes = self.changes + off.to(self.changes.dtype)
        return off, torch.where(off, (task.misfit / misfit).pow(1 / self.slope).clamp(0.1, 10), 1.0)


def minimise(
    method: Method, *, steps: int, tol: float, trace: bool = False, progress: Progress | None = None
) -> Reconstruction:
    """Iterate until every image's fixed-point residual is at most `tol` times its spread, or for `steps` steps.

    info: `iterations`, whether `converged` (else the cap ended it), the last `residual`, the `objective`, the weight
    `lam` and the `misfit` ||A x - A A^+ y||. curves, with `trace`: `objective`, `change` (of x, relative to its spread)
    and `residual` at every step, NaN after an image has stopped; the objective costs one more A a step.
    """
    task = method.task
    B, device = len(task.lam), task.lam.device
    active = torch.arange(B, device=device)
    result, lam = task.least.clone(), task.lam.clone()
    iterations = torch.full((B,), steps, device=device)
    converged = torch.zeros(B, dtype=torch.bool, device=device)
    residuals = task.lam.new_zeros(B)
    curves = {name: task.lam.new_full((B, steps), math.nan) for name in ("objective", "change", "residual") if trace}
    search = _WeightSearch(task)
    for i in range(steps):
        before, own = method.x, method.task
        distance, restart = method.propose()
        residual = distance / own.spread.clamp_min(_tiny(distance))
        stop = residual <= tol
        look = (restart | stop) & own.misfit.isfinite()
        if look.any():
            off, ratio = search.ratio(look, own.misfit_of(method.x), own)
            own.lam = own.lam * ratio
            method.reweigh(ratio)
            stop, restart = stop & ~off, restart | off
        if trace:
            change = norm(method.x - before) / own.spread.clamp_min(_tiny(distance))
            for name, values in (("objective", own.objective(method.x)), ("change", change), ("residual", residual)):
                curves[name][active, i] = values.flatten()
        if progress is not None:
            progress(i + 1, steps)
        done = stop.flatten() if i < steps - 1 else torch.ones_like(stop).flatten()
        if done.any():
            result[active[done]], lam[active[done]] = method.x[done], own.lam[done]
            residuals[active[done]] = residual[done].flatten()
            iterations[active[done]] = i + 1
            converged[active[done]] = stop.flatten()[done]
            if done.all():
                break
            keep = ~done
            active, restart = active[keep], restart[keep]
            method.take(keep)
            search.take(keep)
        method.advance(restart)
    task.lam = lam
    result = result.clamp(-1, 1) if task.box else result
    length = int(iterations.max())
    curves = {name: values[:, :length] for name, values in curves.items()}
    return _report(task, result, iterations, converged, residuals, curves)


def finished(task: Task) -> Reconstruction:
    """The answer A^+ y where no iteration is needed."""
    B, device = len(task.lam), task.lam.device
    none = torch.zeros(B, dtype=torch.int64, device=device)
    return _report(task, task.least, none, none == 0, torch.zeros_like(task.lam).flatten(), {})


def joined(parts: list[tuple[torch.Tensor, Reconstruction]]) -> Reconstruction:
    """One answer of answers for disjoint images, each with its images' indices. Shorter curves end in NaN."""
    order = torch.cat([images for images, _ in parts]).argsort()
    answers = [answer for _, answer in parts]
    curves = {}
    for name in {name for answer in answers for name in answer.curves}:
        none = torch.empty((1, 0), dtype=answers[0].x.dtype, device=order.device)
        rows = [answer.curves.get(name, none.expand(len(answer.x), 0)) for answer in answers]
        curves[name] = concatenate_curves(rows)[order]
    info = {name: torch.cat([answer.info[name] for answer in answers])[order] for name in answers[0].info}
    return Reconstruction(torch.cat([answer.x for answer in answers])[order], info, curves)


def _report(
    task: Task,
    x: torch.Tensor,
    iterations: torch.Tensor,
    converged: torch.Tensor,
    residual: torch.Tensor,
    curves: dict[str, torch.Tensor],
) -> Reconstruction:
    info = {"iterations": iterations, "converged": converged, "residual": residual}
    misfit = task.misfit_of(x)
    numbers = {"objective": task.objective_at(x, misfit), "lam": task.lam, "misfit": misfit}
    return Reconstruction(x, info | {name: values.flatten() for name, values in numbers.items()}, curves)
