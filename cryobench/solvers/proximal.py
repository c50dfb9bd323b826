"""The engine of the classical solvers: for a sparsity prior R, batched, independently for each image,

    penalty       min over x of   1/2 ||A x - y||^2 + lam R(x)
    constraint    min over x of   R(x)   subject to   x a least-squares solution of A x = y

Two methods (`methods.py`) minimise them. `PrimalDual` (Chambolle & Pock 2011; Douglas-Rachford if K is orthonormal)
uses the proximal step of the data term, closed form for structured operators, and a projection of the dual variable for
R; it needs no inner iteration and solves both forms. `Fista` uses a gradient step on the data term and the prox of R,
for operators without a closed form. Both provide a primal point x and a dual point u with |u| <= lam, and stop by the
same duality gap (`Method.gap`).

With z* the least-squares solution A^+ y, A is used only through A_dagger_A (z* - z) and A^T A (x - z*).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from cryobench.core import LinearOperator, Progress, Reconstruction
from cryobench.numerics.linalg import concatenate_curves, dot, norm, per_item, tiny
from cryobench.priors.sparsity import Sparsity

MISFIT_TOLERANCE = 0.01
_WEIGHT_CHANGES = 30
_LOOK = 10
"""Steps between two evaluations of the gap, which need further applications of A and K."""
_REACH = 0.3
"""Lower bound of the distance to the minimiser that the gap assumes, relative to the distance from the start."""


@dataclass
class Objective:
    """The objective of each image; every tensor but the images is [B, 1, ..., 1], with as many axes as they.

    least: A^+ y, a least-squares solution and the initial point, [B, C, *S]. spread: the norm of A^+ y minus the mean
    intensity, the unit of changes. beyond: 1/2 ||A A^+ y - y||^2, the constant part of the data term. exact: whether
    the constraint form is solved. lam: the weight; 1 in the constraint form. misfit: if finite, lam is adjusted until
    ||A x - A A^+ y|| has this value (the discrepancy principle). bounds: the range of every pixel, or None.
    """

    operator: LinearOperator
    prior: Sparsity
    least: torch.Tensor
    spread: torch.Tensor
    beyond: torch.Tensor
    exact: torch.Tensor
    lam: torch.Tensor
    misfit: torch.Tensor
    bounds: tuple[float, float] | None = None

    def take(self, images: torch.Tensor) -> Objective:
        tensors = {name: value[images] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Objective(self.operator.select(images), self.prior, **tensors, bounds=self.bounds)

    def misfit_of(self, x: torch.Tensor) -> torch.Tensor:
        """||A x - A A^+ y||, [B, 1, ..., 1]."""
        return per_item(norm(self.operator.A(x - self.least)), x)

    def data_term(self, misfit: torch.Tensor) -> torch.Tensor:
        """1/2 ||A x - y||^2 for an x with that misfit, 0 in the constraint form, [B, 1, ..., 1]."""
        return torch.where(self.exact, 0.0, misfit.square() / 2 + self.beyond)

    def penalty(self, x: torch.Tensor) -> torch.Tensor:
        """lam R(x), [B, 1, ..., 1]."""
        return self.lam * self.prior.value(x)

    def objective(self, x: torch.Tensor) -> torch.Tensor:
        """Data term plus penalty, [B, 1, ..., 1]."""
        return self.data_term(self.misfit_of(x)) + self.penalty(x)


class _Rows:
    """Base class of states whose attributes are tensors, or tuples of them, with one row per active image."""

    def take(self, images: torch.Tensor) -> None:
        """Keep only the rows of some of the images."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[images])
            elif isinstance(value, Objective):
                setattr(self, name, value.take(images))
            elif isinstance(value, tuple):
                setattr(self, name, tuple(tensor[images] for tensor in value))


class Method(_Rows, ABC):
    """An iterative method."""

    task: Objective

    @property
    @abstractmethod
    def x(self) -> torch.Tensor:
        """The current iterate, [B, C, *S]."""

    @abstractmethod
    def propose(self) -> torch.Tensor:
        """Compute the next `x`. Returns which images should restart."""

    def gap(self, penalty: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
        """The duality gap at `x`, with lam R = `penalty`: a bound of F(x) - F(x') for all x' within distance `reach`.

        With g = `imbalance`, F(x) - F(x') <= lam R(x) - <u, K x> + <g, x - x'> - 1/2 ||A (x - x')||^2. Along large
        singular values of A the last term dominates g: with h = (I + gamma A^T A)^-1 g, any gamma > 0, this is

            <= lam R(x) - <u, K x> + reach ||h|| + gamma/2 <h, g - h>,      here gamma = reach / ||g||.

        The simpler bound `reach ||g||` would never reach the tolerance in float32, because the rounding of a large
        gradient dominates it. (A localized duality gap, as in Applegate et al. 2023, with the curvature of the data
        term.)
        """
        task, g, slack = self.task, self.imbalance(), self.slackness(penalty).clamp_min(0)
        if not task.operator.closed_form:
            return slack + reach * norm(g)
        gamma = reach / norm(g).clamp_min(tiny(g))
        h = g - task.operator.A_dagger_A(g, torch.where(task.exact, math.inf, gamma))
        steep = torch.where(task.exact, 0.0, gamma / 2 * dot(h, g - h).clamp_min(0))
        return slack + reach * norm(h) + steep

    @abstractmethod
    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        """lam R(x) - <u, K x>, with lam R = `penalty`."""

    @abstractmethod
    def imbalance(self) -> torch.Tensor:
        """The gradient of the data term at x plus K^T u, [B, C, *S]; 0 at the minimiser."""

    @abstractmethod
    def movement(self) -> torch.Tensor:
        """Length of the step to `x`, in units of the image."""

    @abstractmethod
    def advance(self, restart: torch.Tensor) -> None:
        """Prepare the next step from `x`: with momentum, or without where `restart` is set."""

    @abstractmethod
    def reweigh(self, ratio: torch.Tensor) -> None:
        """Rescale the dual variables after lam was multiplied by `ratio`."""


class _Reach(_Rows):
    """An estimate of the distance to the minimiser: how far each image moved since the number of steps was last a power
    of two, or between the last two powers, whichever is larger."""

    def __init__(self, task: Objective):
        self.start = self.x = task.least
        self.before = task.spread

    def of(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(norm(x - self.x), self.before).clamp_min(_REACH * norm(x - self.start))

    def mark(self, x: torch.Tensor) -> None:
        self.before, self.x = norm(x - self.x), x


class _WeightSearch(_Rows):
    """Finds the weight of each image for the target misfit, by the secant method on log misfit against log lam."""

    def __init__(self, task: Objective):
        self.start = task.lam
        self.changes = torch.zeros_like(task.lam)
        self.slope = torch.full_like(task.lam, 0.8)
        self.lam = self.misfit = torch.full_like(task.lam, math.nan)

    def ratio(self, look: torch.Tensor, misfit: torch.Tensor, task: Objective) -> tuple[torch.Tensor, torch.Tensor]:
        """For the images in `look`: whether the misfit is off the target, and the factor by which to multiply lam.

        The weight is kept after many changes, or once lam has moved by six orders of magnitude without success.
        """
        misfit = misfit.clamp_min(1e-3 * task.misfit)
        near = ((task.lam / self.start).log10().abs() < 6) & (self.changes < _WEIGHT_CHANGES)
        off = look & ((misfit / task.misfit - 1).abs() > MISFIT_TOLERANCE) & near
        slope = (misfit / self.misfit).log() / (task.lam / self.lam).log()
        # far from convergence the misfit is unreliable, so the slope is clamped to plausible values
        self.slope = torch.where(off & slope.isfinite(), slope.clamp(0.4, 2.5), self.slope)
        self.lam, self.misfit = torch.where(off, task.lam, self.lam), torch.where(off, misfit, self.misfit)
        self.changes = self.changes + off.to(self.changes.dtype)
        return off, torch.where(off, (task.misfit / misfit).pow(1 / self.slope).clamp(0.1, 10), 1.0)


def minimise(
    method: Method, *, steps: int, tol: float, trace: bool = False, progress: Progress | None = None
) -> Reconstruction:
    """Iterate until every image's duality gap is at most `tol` times its objective, or for `steps` steps.

    The gap is evaluated every tenth step. An image whose step is below the rounding error has converged too.

    info: `iterations`, whether it `converged` before the last step, the last `gap`, relative to the `objective`, the
    weight `lam` and the `misfit` ||A x - A A^+ y||. curves, with `trace`: `objective`, `gap` and `change` (of x,
    relative to `spread`) at every step, NaN after an image has stopped; the first two cost one A and one R per step.
    """
    task = method.task
    B, device = len(task.lam), task.lam.device
    active = torch.arange(B, device=device)
    result, lam = task.least.clone(), task.lam.clone()
    iterations = torch.full((B,), steps, device=device)
    converged = torch.zeros(B, dtype=torch.bool, device=device)
    gaps = task.lam.new_zeros(B)
    curves = {name: task.lam.new_full((B, steps), math.nan) for name in ("objective", "change", "gap") if trace}
    search, reach = _WeightSearch(task), _Reach(task)
    for i in range(steps):
        before, own = method.x, method.task
        restart = method.propose()
        stop, gap = torch.zeros_like(restart), torch.full_like(own.lam, math.inf)
        last, due = i == steps - 1, i % _LOOK == _LOOK - 1
        if trace or due or last:
            penalty = own.penalty(method.x)
            objective = own.data_term(own.misfit_of(method.x)) + penalty
            gap = method.gap(penalty, reach.of(method.x)) / objective.clamp_min(tiny(gap))
            if due or last:
                stop = (gap <= tol) | (method.movement() <= torch.finfo(gap.dtype).eps * norm(method.x))
            if trace:
                change = norm(method.x - before) / own.spread.clamp_min(tiny(gap))
                for name, values in (("objective", objective), ("change", change), ("gap", gap)):
                    curves[name][active, i] = values.flatten()
        look = (restart | stop) & own.misfit.isfinite()
        if look.any():
            off, ratio = search.ratio(look, own.misfit_of(method.x), own)
            own.lam = own.lam * ratio
            method.reweigh(ratio)
            stop, restart = stop & ~off, restart | off
        if progress is not None:
            progress(i + 1, steps)
        done = torch.ones_like(stop).flatten() if last else stop.flatten()
        if done.any():
            result[active[done]], lam[active[done]] = method.x[done], own.lam[done]
            gaps[active[done]] = gap[done].flatten()
            iterations[active[done]] = i + 1
            converged[active[done]] = stop.flatten()[done]
            if done.all():
                break
            keep = ~done
            active, restart = active[keep], restart[keep]
            method.take(keep)
            search.take(keep)
            reach.take(keep)
        if (i + 1).bit_count() == 1:
            reach.mark(method.x)
        method.advance(restart)
    task.lam = lam
    result = result if task.bounds is None else result.clamp(*task.bounds)
    length = int(iterations.max())
    curves = {name: values[:, :length] for name, values in curves.items()}
    return _report(task, result, iterations, converged, gaps, curves)


def finished(task: Objective) -> Reconstruction:
    """The result A^+ y for images that need no iteration."""
    B, device = len(task.lam), task.lam.device
    none = torch.zeros(B, dtype=torch.int64, device=device)
    return _report(task, task.least, none, none == 0, torch.zeros_like(task.lam).flatten(), {})


def joined(parts: list[tuple[torch.Tensor, Reconstruction]]) -> Reconstruction:
    """Combine results for disjoint sets of images, each given with its indices. Shorter curves are padded with NaN."""
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
    task: Objective,
    x: torch.Tensor,
    iterations: torch.Tensor,
    converged: torch.Tensor,
    gap: torch.Tensor,
    curves: dict[str, torch.Tensor],
) -> Reconstruction:
    info = {"iterations": iterations, "converged": converged, "gap": gap}
    misfit = task.misfit_of(x)
    numbers = {"objective": task.data_term(misfit) + task.penalty(x), "lam": task.lam, "misfit": misfit}
    return Reconstruction(x, info | {name: values.flatten() for name, values in numbers.items()}, curves)
