"""The contract of metrics."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from cryobench.core import MINMAX, Case, Measured, Problem, Reconstruction, build_operator
from cryobench.rng import Rng
from cryobench.testing.rules import (
    SEED,
    DoesNotApply,
    Rules,
    Subject,
    global_state_unchanged,
    particles,
    require,
    require_equal,
    unmodified,
)
from cryobench.testing.slices import CentralSlices

RULES = Rules()
_IMAGES = 3
_IDS = tuple(map(str, range(_IMAGES)))
_SHAPES = {2: (64, 64), 3: (16, 16, 16)}
_DIRECTIONS = ("higher", "lower", "none")


class MetricSubject(Subject):
    """A metric, a case, and reconstructions of known error."""

    @cached_property
    def case(self) -> Case:
        shape = _SHAPES[self.dims]
        recipe = CentralSlices() if self.dims == 3 else self.registry.make("operators", "sumpool:2")
        operator = build_operator(recipe, shape, seed=SEED)
        truth = particles(shape, _IMAGES).float()
        noise = self.registry.make("noises", "gaussian:rel=0.05")
        noisy = noise.apply(operator.A(truth), operator, MINMAX, Rng(SEED, _IDS))
        return Case(Problem(operator, noisy.y, noise, noisy.sigma), truth, _IDS, [2.0] * _IMAGES)

    def answer(self, error: float, case: Case | None = None, *, stated: bool = True) -> Reconstruction:
        """The truth plus white noise of standard deviation `error`, with that deviation stated or not."""
        truth = (case or self.case).truth
        off = torch.stack([torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)) for image in truth])
        return Reconstruction(truth + error * off, deviation=torch.full_like(truth, error) if stated else None)

    def one(self, i: int) -> Case:
        """The case of image i alone."""
        case, p, only = self.case, self.case.problem, slice(i, i + 1)
        problem = Problem(p.operator, p.y[only], p.noise, p.sigma[only])
        return Case(problem, case.truth[only], case.image_ids[only], case.pixel_size[only])

    @cached_property
    def measured(self) -> Measured:
        measured = self.component.measure(self.case, self.answer(0.1))
        require(isinstance(measured, Measured), f"measure() returned a {type(measured).__name__}, expected a Measured")
        return measured


@RULES("it states its columns", "set `columns` to Column(name, direction, unit), and return exactly these values")
def columns(subject: MetricSubject) -> None:
    stated = [column.name for column in subject.component.columns]
    require(
        stated and len(set(stated)) == len(stated),
        f"its columns are {stated}; expected at least one, and no duplicates",
    )
    for column in subject.component.columns:
        require(
            column.direction in _DIRECTIONS,
            f"the direction of {column.name} is {column.direction!r}; expected one of {', '.join(_DIRECTIONS)}",
        )
    got = set(subject.measured.values)
    require(
        got == set(stated), f"it states {', '.join(sorted(stated))} but returns {', '.join(sorted(got)) or 'nothing'}"
    )


@RULES("it returns a number for every image", "return float tensors [B]; NaN only with a reason in Measured.unmeasured")
def numbers(subject: MetricSubject) -> None:
    for name, values in subject.measured.values.items():
        require(tuple(values.shape) == (_IMAGES,) and values.is_floating_point(),
                f"{name} is {values.dtype} {list(values.shape)}, expected floats [{_IMAGES}]")  # fmt: skip
        missing = values.isnan().any() and name not in subject.measured.unmeasured
        require(not missing, f"{name} is NaN without a reason in unmeasured")
    for name, curve in subject.measured.curves.items():
        require(
            curve.ndim == 2 and len(curve) == _IMAGES,
            f"the curve {name} is {list(curve.shape)}, expected [{_IMAGES}, L]",
        )


@RULES("the truth is the best answer", "check the direction of the column: higher or lower is better, or none")
def direction(subject: MetricSubject) -> None:
    if not subject.component.against_truth:
        raise DoesNotApply("it does not compare with the truth")
    best = subject.component.measure(subject.case, subject.answer(0.0, stated=False)).values
    worse = subject.component.measure(subject.case, subject.answer(0.5, stated=False)).values
    for column in subject.component.columns:
        for a, b in zip(best[column.name].tolist(), worse[column.name].tolist(), strict=True):
            if column.direction == "none" or math.isnan(a) or math.isnan(b):
                continue
            wrong = a < b if column.direction == "higher" else a > b
            require(not wrong, f"{column.name} is {a:.4g} for the truth and {b:.4g} for a poor image, but "
                               f"{column.direction} is better")  # fmt: skip


@RULES("results do not depend on the batch", "average over pixels, never over images")
def alone(subject: MetricSubject) -> None:
    for i in range(_IMAGES):
        case = subject.one(i)
        one = subject.component.measure(case, subject.answer(0.1, case))
        for name, values in subject.measured.values.items():
            expected = values[i : i + 1].double()
            if not expected.isnan().any():
                require_equal(one.values[name].double(), expected, 1e-4, f"{name} of image {i} alone")


@RULES("the same images give the same numbers", "use no random numbers, or a generator with a fixed seed")
def repeatable(subject: MetricSubject) -> None:
    again = subject.make_another().measure(subject.case, subject.answer(0.1))
    for name, values in subject.measured.values.items():
        require(
            torch.equal(values.nan_to_num(), again.values[name].nan_to_num()),
            f"{name} is different the second time",
        )


@RULES("it does not change global state", "do not set global options or use global generators")
def global_state(subject: MetricSubject) -> None:
    answer = subject.answer(0.1)
    _ = subject.case
    with global_state_unchanged():
        subject.component.measure(subject.case, answer)


@RULES("it does not modify its input", "write `x = x - y`, not `x -= y`")
def inputs(subject: MetricSubject) -> None:
    case, answer = subject.case, subject.answer(0.1)
    with unmodified(case.truth, case.problem.y, answer.x):
        subject.component.measure(case, answer)
