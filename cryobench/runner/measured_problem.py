"""A measured problem: the operator and the measurements that the cells of one (operator, noise, data) share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from cryobench.core import Case, LinearOperator, Problem, Scale, build_operator, meters, random_images
from cryobench.errors import Unsupported
from cryobench.plan.dataset import KEPT_BYTES
from cryobench.plan.grid import Cell, Plan
from cryobench.rng import Rng
from cryobench.runner.checks import batches, checked_measurements
from cryobench.runner.memory import BatchSizes
from cryobench.runner.solving import isolated, part_of

AT_ONCE = 64
"""Maximum number of images measured or scored at once: larger batches save no time and cost memory."""


class MeasuredProblem:
    """The measurements of a data set, part by part.

    If the images are in memory and the measurements take up to `4 KEPT_BYTES`, all are measured once; others are
    measured again for every cell. Factorisations are done here.

    build_seconds: time to build the operator and, unless it is prepared part by part, to factorise it.
    """

    def __init__(self, cell: Cell, plan: Plan, sizes: BatchSizes):
        """Build the operator. Raises `Unsupported` if the noise model does not support it."""
        self._cell, self._plan, self._sizes = cell, plan, sizes
        self._data = data = cell.dataset
        self._setup, self._reading, self._measuring = (meters.Stopwatch(plan.device) for _ in range(3))
        with isolated(cell.seed):
            with self._setup:
                self.operator = build_operator(
                    cell.operator, data.imaging, seed=cell.seed, dtype=plan.dtype, device=plan.device
                )
                self._by_parts = not data.kept and self.operator.images is not None
                """Whether the operator is prepared for the images of each part, and not for all at once."""
                if not self._by_parts:
                    self.operator.prepare()
            self.build_seconds = self._setup.seconds
            reason = cell.noise.unsupported(self.operator, data.scale_without_images)
            if reason is not None:
                raise Unsupported(reason)
            self._probed = None if self._by_parts else (self.operator, _probe(self.operator))
            self._changed = False
        measured_bytes = math.prod(self.operator.measurement_shape) * len(data) * plan.dtype.itemsize
        self._kept = self._measured(slice(0, len(data))) if data.kept and measured_bytes <= 4 * KEPT_BYTES else None

    @property
    def seconds(self) -> dict[str, float]:
        """Time so far to build and factorise operators (setup), and to read and to measure images."""
        return {"setup": self._setup.seconds, "reading": self._reading.seconds, "measuring": self._measuring.seconds}

    def case(self, part: slice) -> Case:
        """The problem, the truth and what metrics need besides, for some of the images."""
        return self._measured(part) if self._kept is None else case_part(self._kept, part)

    def is_unchanged(self) -> bool:
        """Whether the operator still gives the measurement that it gave when it was built, for all parts so far."""
        if self._probed is not None:
            operator, before = self._probed
            with isolated(self._cell.seed):
                try:
                    self._changed |= not torch.equal(_probe(operator), before)
                except KeyboardInterrupt:
                    raise
                except BaseException:  # the changed operator cannot be applied any more
                    self._changed = True
        return not self._changed

    def _measured(self, part: slice) -> Case:
        cell, plan, data = self._cell, self._plan, self._data
        with self._reading:
            images = data.read(part)
            cell.check_unseen(part)
        ids = data.ids[part]
        with isolated(cell.seed):
            operator = self.operator
            if self._by_parts:
                self.is_unchanged()  # notes a change of the part before
                with self._setup:
                    operator = operator.select(part)
                    operator.prepare()
                self._probed = operator, _probe(operator)
            with self._measuring:
                truth = images.pixels.to(plan.device, plan.dtype)
                other = None if images.other is None else images.other.to(plan.device, plan.dtype)
                clean = None if images.clean is None else images.clean.to(plan.device, plan.dtype)
                second = clean if other is None else other
                y, sigma = self._measure(operator, truth, second, images.scale, ids)
            problem = Problem(meters.CountingOperator(operator), y, cell.noise, sigma, images.scale)
        radii = None if cell.radii is None else cell.radii[part]
        limits = data_range(images.scale, truth)
        return Case(problem, truth, ids, data.pixel_size[part], clean, radii, limits, other)

    def problem_of_other(self, case: Case) -> Problem:
        """The problem of the other halves of a case, measured with noise of their own."""
        assert case.other is not None
        scale, ids = case.problem.scale, [f"{image} other half" for image in case.image_ids]
        with isolated(self._cell.seed), self._measuring:
            y, sigma = self._measure(case.problem.operator, case.other, case.truth, scale, ids)
        return dataclasses.replace(case.problem, y=y, sigma=sigma)

    def _measure(
        self,
        operator: LinearOperator,
        truth: torch.Tensor,
        other: torch.Tensor | None,
        scale: Scale,
        ids: Sequence[str],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, sigma) of images [n, 1, *S]. other: their other halves, else the clean images, if known."""
        cell = self._cell

        def measured(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
            parts = []
            for part in batches(len(truth), batch):
                own = operator.select(part)
                exact = own.A(truth[part])
                second = None if other is None else own.A(other[part])
                noisy = cell.noise.apply_to_halves(exact, second, own, scale.select(part), Rng(cell.seed, ids[part]))
                parts.append(checked_measurements(noisy, operator, len(exact)))
            return torch.cat([part.y for part in parts]), torch.cat([part.sigma for part in parts])

        task = ("measure", cell.resolved["operator"], self._data.shape)
        return self._sizes.fit(task, len(truth), measured, lambda batch: None, maximum=AT_ONCE)


def case_part(case: Case, part: slice) -> Case:
    """The case of some of the images."""
    return dataclasses.replace(
        case,
        problem=part_of(case.problem, part),
        truth=case.truth[part],
        image_ids=case.image_ids[part],
        pixel_size=case.pixel_size[part],
        clean=None if case.clean is None else case.clean[part],
        other=None if case.other is None else case.other[part],
        within=None if case.within is None else case.within[part],
        data_range=tuple(end[part] if isinstance(end, torch.Tensor) else end for end in case.data_range),
    )


def data_range(scale: Scale, truth: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The range of a scale, or the minimum and maximum of each image [B, C, *S] if the scale has no range."""
    if scale.range is not None:
        return scale.range
    pixels = truth.flatten(1)
    return pixels.amin(dim=1), pixels.amax(dim=1)


def _probe(operator: LinearOperator) -> torch.Tensor:
    return operator.A(random_images(operator))
