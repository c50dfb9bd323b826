"""A measured problem, computed once for the cells that share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Case, LinearOperator, Problem, Scale, build_operator, meters, random_images
from cryobench.errors import Unsupported
from cryobench.plan.grid import Cell, Plan
from cryobench.rng import Rng
from cryobench.runner.checks import batches, checked_measurements
from cryobench.runner.memory import BatchSizes

AT_ONCE = 64
"""Maximum number of images measured or scored at once: larger batches save no time and cost memory."""


@dataclass
class MeasuredProblem:
    """A measured problem, shared by the cells of one (operator, noise, data)."""

    operator: LinearOperator
    case: Case
    setup_seconds: float
    probe: torch.Tensor
    """The measurement of a fixed image, to detect solvers that change the operator."""

    def is_unchanged(self) -> bool:
        """Whether the operator still gives the measurement that it gave when it was built."""
        try:
            return torch.equal(_probe(self.operator), self.probe)
        except KeyboardInterrupt:
            raise
        except BaseException:  # the changed operator cannot be applied any more
            return False


def measure(cell: Cell, plan: Plan, sizes: BatchSizes) -> MeasuredProblem:
    """Build the operator and measure the images. Factorisations are done here, and timed as set-up.

    Raises `Unsupported` if the noise model does not support the operator.
    """
    data = cell.dataset
    with meters.Stopwatch(plan.device) as watch:
        operator = build_operator(cell.operator, data.imaging, seed=cell.seed, dtype=plan.dtype, device=plan.device)
        operator.prepare()
    reason = cell.noise.unsupported(operator, data.scale)
    if reason is not None:
        raise Unsupported(reason)
    truth = data.images.to(plan.device, plan.dtype)

    def measured(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for part in batches(len(truth), batch):
            own = operator.select(part)
            exact = own.A(truth[part])
            noisy = cell.noise.apply(exact, own, data.scale.select(part), Rng(cell.seed, data.ids[part]))
            parts.append(checked_measurements(noisy, operator, len(exact)))
        return torch.cat([part.y for part in parts]), torch.cat([part.sigma for part in parts])

    task = ("measure", cell.resolved["operator"], data.shape)
    y, sigma = sizes.fit(task, len(truth), measured, lambda batch: None, maximum=AT_ONCE)
    problem = Problem(meters.CountingOperator(operator), y, cell.noise, sigma, data.scale)
    clean = None if data.clean is None else data.clean.to(plan.device, plan.dtype)
    case = Case(problem, truth, data.ids, data.pixel_size, clean, cell.radii, data_range(data.scale, truth))
    return MeasuredProblem(operator, case, watch.seconds, _probe(operator))


def data_range(scale: Scale, truth: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The range of a scale, or the minimum and maximum of each image [B, C, *S] if the scale has no range."""
    if scale.range is not None:
        return scale.range
    pixels = truth.flatten(1)
    return pixels.amin(dim=1), pixels.amax(dim=1)


def _probe(operator: LinearOperator) -> torch.Tensor:
    return operator.A(random_images(operator))
