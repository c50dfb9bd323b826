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
from cryobench.numerics.memory import return_freed
from cryobench.priors.sparsity import Sparsity

MISFIT_TOLERANCE = 0.01
"""Largest relative deviation of the misfit from its target."""
_WEIGHT_CHANGES = 30
"""Maximum number of changes of the weight of an image."""
_GAP_INTERVAL = 10
"""The gap is evaluated at every tenth step, since it needs further applications of A and K."""
_DISTANCE_FRACTION = 0.3
"""Lower bound of the distance to the minimiser that the gap assumes, relative to the distance from the start."""


@dataclass
class Objective:
    """The objective of each image. Tensors other than `least_squares` are [B, 1, ..., 1], with as many axes as images.

    least_squares: A^+ y, a least-squares solution and the initial point, [B, C, *S]. structure_norm: ||A^+ y - c|| for
    the mean intensity c, the unit of changes of x. constant: 1/2 ||A A^+ y - y||^2, the part of the data term that does
    not depend on x. constrained: whether the constraint form is solved. lam: the weight; 1 in the constraint form.
    misfit: if finite, lam is adjusted until ||A x - A A^+ y|| has this value (the discrepancy principle). bounds: the
    range of every pixel, or None.
    """

    operator: LinearOperator
    prior: Sparsity
    least_squares: torch.Tensor
    structure_norm: torch.Tensor
    constant: torch.Tensor
    constrained: torch.Tensor
    lam: torch.Tensor
    misfit: torch.Tensor
    bounds: tuple[float, float] | None = None

    def take(self, images: torch.Tensor) -> Objective:
        tensors = {name: value[images] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Objective(self.operator.select(images), self.prior, **tensors, bounds=self.bounds)

    def misfit_of(self, x: torch.Tensor) -> torch.Tensor:
        """||A x - A A^+ y||, [B, 1, ..., 1]."""
        return per_item(norm(self.operator.A(x - self.least_squares)), x)

    def data_term(self, misfit: torch.Tensor) -> torch.Tensor:
        """1/2 ||A x - y||^2 for an x with that misfit, 0 in the constraint form, [B, 1, ..., 1]."""
        return torch.where(self.constrained, 0.0, misfit.square() / 2 + self.constant)

    def penalty(self, x: torch.Tensor) -> torch.Tensor:
        """lam R(x), [B, 1, ..., 1]."""
        return self.lam * self.prior.value(x)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Data term plus penalty, [B, 1, ..., 1]."""
        return self.data_term(self.misfit_of(x)) + self.penalty(x)


class _PerImage:
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


class Method(_PerImage, ABC):
    """An iterative method. `minimise` calls `step`, evaluates the stopping rule, and calls `advance`."""

    objective: Objective

    @property
    @abstractmethod
    def x(self) -> torch.Tensor:
        """The current iterate, [B, C, *S]."""

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Compute the next `x`. Returns which images should restart."""

    def gap(self, penalty: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """The duality gap at `x`, with lam R = `penalty`: an upper bound of F(x) - F(x') for all x' within distance
        `radius` of x.

        With g = `gradient`, F(x) - F(x') <= lam R(x) - <u, K x> + <g, x - x'> - 1/2 ||A (x - x')||^2. Along large
        singular values of A the last term dominates g: with h = (I + gamma A^T A)^-1 g, any gamma > 0, this is

            <= lam R(x) - <u, K x> + radius ||h|| + gamma/2 <h, g - h>,      here gamma = radius / ||g||.

        The simpler bound `radius ||g||` would never radius the tolerance in float32, because the rounding of a large
        gradient dominates it. (A localized duality gap, as in Applegate et al. 2023, with the curvature of the data
        term.)
        """
        # the slackness is negative only by rounding; it comes first, since it needs a temporary image
        objective, slack, g = self.objective, self.slackness(penalty).clamp_min(0), self.gradient()
        if not objective.operator.closed_form:
            return slack + radius * norm(g)
        gamma = radius / norm(g).clamp_min(tiny(g))
        difference = objective.operator.A_dagger_A(g, torch.where(objective.constrained, math.inf, gamma))  # g - h
        h = g.sub_(difference)
        # in the constraint form A (x - x') = 0, and h is the component of g in the null space of A
        curvature = torch.where(objective.constrained, 0.0, gamma / 2 * dot(h, difference).clamp_min(0))
        return slack + radius * norm(h) + curvature

    @abstractmethod
    def slackness(self, penalty: torch.Tensor) -> torch.Tensor:
        """lam R(x) - <u, K x>, with lam R = `penalty`; non-negative for u in the dual ball, 0 at the minimiser."""

    @abstractmethod
    def gradient(self) -> torch.Tensor:
        """The gradient of the Lagrangian in x: that of the data term plus K^T u, [B, C, *S]; 0 at the minimiser.

        A new tensor, which the caller may overwrite.
        """

    @abstractmethod
    def step_length(self) -> torch.Tensor:
        """Length of the last step, in units of the image."""

    @abstractmethod
    def advance(self, restart: torch.Tensor) -> None:
        """Prepare the next step: with momentum, or without for the images in `restart`."""

    @abstractmethod
    def rescale_dual(self, ratio: torch.Tensor) -> None:
        """Rescale the dual variables after lam was multiplied by `ratio`."""


class _DistanceEstimate(_PerImage):
    """An estimate of the distance of each image to the minimiser.

    It is the larger of two distances: that moved since the number of steps was last a power of two, and that moved
    between the last two powers. Single steps would underestimate it where convergence is slow.
    """

    def __init__(self, objective: Objective):
        self.start = self.x = objective.least_squares
        self.before = objective.structure_norm

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(norm(x - self.x), self.before).clamp_min(_DISTANCE_FRACTION * norm(x - self.start))

    def update(self, x: torch.Tensor) -> None:
        self.before, self.x = norm(x - self.x), x


class _WeightSearch(_PerImage):
    """Finds the weight of each image for the target misfit, by the secant method on log misfit against log lam."""

    def __init__(self, objective: Objective):
        self.start = objective.lam
        self.changes = torch.zeros_like(objective.lam)
        self.slope = torch.full_like(objective.lam, 0.8)
        self.lam = self.misfit = torch.full_like(objective.lam, math.nan)

    def ratio(
        self, candidates: torch.Tensor, misfit: torch.Tensor, objective: Objective
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For the images in `candidates`: whether the misfit is off the target, and the factor to multiply lam by.

        The weight is not changed after many changes, or once it has moved by six orders of magnitude.
        """
        misfit = misfit.clamp_min(1e-3 * objective.misfit)
        adjustable = ((objective.lam / self.start).log10().abs() < 6) & (self.changes < _WEIGHT_CHANGES)
        off = candidates & ((misfit / objective.misfit - 1).abs() > MISFIT_TOLERANCE) & adjustable
        slope = (misfit / self.misfit).log() / (objective.lam / self.lam).log()
        # far from convergence the misfit is unreliable, so the slope is clamped to plausible values
        self.slope = torch.where(off & slope.isfinite(), slope.clamp(0.4, 2.5), self.slope)
        self.lam, self.misfit = torch.where(off, objective.lam, self.lam), torch.where(off, misfit, self.misfit)
        self.changes = self.changes + off.to(self.changes.dtype)
        return off, torch.where(off, (objective.misfit / misfit).pow(1 / self.slope).clamp(0.1, 10), 1.0)


def minimise(
    method: Method, *, steps: int, tol: float, trace: bool = False, progress: Progress | None = None
) -> Reconstruction:
    """Iterate until every image's duality gap is at most `tol` times its objective, or for `steps` steps.

    The gap is evaluated at every tenth step. An image whose step is below the rounding error has also converged.

    info: `iterations`, whether the image `converged`, the last `gap`, relative to the `objective`, the weight `lam` and
    the `misfit` ||A x - A A^+ y||. curves, with `trace`: `objective`, `gap` and `change` (of x,
    relative to `structure_norm`) at every step, NaN after an image has stopped; the first two cost one A and one R per
    step.
    """
    objective = method.objective
    B, device = len(objective.lam), objective.lam.device
    return_freed(objective.least_squares[0].nbytes)
    active = torch.arange(B, device=device)
    result, lam = None, objective.lam.clone()
    iterations = torch.full((B,), steps, device=device)
    converged = torch.zeros(B, dtype=torch.bool, device=device)
    gaps = objective.lam.new_zeros(B)
    curves = {name: objective.lam.new_full((B, steps), math.nan) for name in ("objective", "change", "gap") if trace}
    search, distance = _WeightSearch(objective), _DistanceEstimate(objective)
    adjusted = objective.misfit.isfinite()
    for i in range(steps):
        before, current = method.x if trace else None, method.objective
        restart = method.step()
        stop, last, due = torch.zeros_like(restart), i == steps - 1, i % _GAP_INTERVAL == _GAP_INTERVAL - 1
        gap = current.lam  # replaced where it is due; no image stops otherwise
        if trace or due or last:
            penalty = current.penalty(method.x)
            value = current.data_term(current.misfit_of(method.x)) + penalty
            gap = method.gap(penalty, distance.estimate(method.x)) / value.clamp_min(tiny(gap))
            if due or last:
                stop = (gap <= tol) | (method.step_length() <= torch.finfo(gap.dtype).eps * norm(method.x))
            if before is not None:
                change = norm(method.x - before) / current.structure_norm.clamp_min(tiny(gap))
                for name, values in (("objective", value), ("change", change), ("gap", gap)):
                    curves[name][active, i] = values.flatten()
        candidates = (restart | stop) & adjusted
        if candidates.any():
            off, ratio = search.ratio(candidates, current.misfit_of(method.x), current)
            current.lam = current.lam * ratio
            method.rescale_dual(ratio)
            stop, restart = stop & ~off, restart | off
        if progress is not None:
            progress(i + 1, steps)
        done = torch.ones_like(stop).flatten() if last else stop.flatten()
        if (due or last) and done.any():
            if result is None:  # not before: large images need the memory
                result = torch.empty_like(objective.least_squares)  # every image is written once
            result[active[done]], lam[active[done]] = method.x[done], current.lam[done]
            gaps[active[done]] = gap[done].flatten()
            iterations[active[done]] = i + 1
            converged[active[done]] = stop.flatten()[done]
            if done.all():
                break
            keep = ~done
            active, restart, adjusted = active[keep], restart[keep], adjusted[keep]
            method.take(keep)
            search.take(keep)
            distance.take(keep)
        if (i + 1).bit_count() == 1:
            distance.update(method.x)
        method.advance(restart)
    del method, distance  # large images need the memory
    objective.lam = lam
    assert result is not None  # the last step is done for all
    result = result if objective.bounds is None else result.clamp(*objective.bounds)
    length = int(iterations.max())
    curves = {name: values[:, :length] for name, values in curves.items()}
    return _report(objective, result, iterations, converged, gaps, curves)


def least_squares_result(objective: Objective) -> Reconstruction:
    """The result A^+ y for images that need no iteration."""
    B, device = len(objective.lam), objective.lam.device
    none = torch.zeros(B, dtype=torch.int64, device=device)
    return _report(objective, objective.least_squares, none, none == 0, torch.zeros_like(objective.lam).flatten(), {})


def combined(parts: list[tuple[torch.Tensor, Reconstruction]]) -> Reconstruction:
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
    objective: Objective,
    x: torch.Tensor,
    iterations: torch.Tensor,
    converged: torch.Tensor,
    gap: torch.Tensor,
    curves: dict[str, torch.Tensor],
) -> Reconstruction:
    info = {"iterations": iterations, "converged": converged, "gap": gap}
    misfit = objective.misfit_of(x)
    numbers = {"objective": objective.data_term(misfit) + objective.penalty(x), "lam": objective.lam, "misfit": misfit}
    return Reconstruction(x, info | {name: values.flatten() for name, values in numbers.items()}, curves)
