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
    no_trace,
    particles,
    require,
    require_equal,
    untouched,
)

RULES = Rules()
_SIDE, _IMAGES = 64, 3
_DIRECTIONS = ("higher", "lower", "none")


class MetricSubject(Subject):
    """A metric, a case with an answer that is somewhat off, and what it says of it."""

    @cached_property
    def case(self) -> Case:
        recipe = self.registry.make("operators", "sumpool:2")
        operator = build_operator(recipe, (_SIDE, _SIDE), seed=SEED)
        truth = particles((_SIDE, _SIDE), _IMAGES).float()
        noise = self.registry.make("noises", "gaussian:rel=0.05")
        noisy = noise.apply(operator.A(truth), operator, MINMAX, Rng(SEED, _IDS))
        return Case(Problem(operator, noisy.y, noise, noisy.sigma), truth, _IDS, [2.0] * _IMAGES)

    def answer(self, error: float, case: Case | None = None, *, stated: bool = True) -> Reconstruction:
        """The truth and white noise of that deviation, which it states or not."""
        truth = (case or self.case).truth
        off = torch.stack([torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)) for image in truth])
        return Reconstruction(truth + error * off, deviation=torch.full_like(truth, error) if stated else None)

    def one(self, i: int) -> Case:
        """The case of one image."""
        case, p, only = self.case, self.case.problem, slice(i, i + 1)
        problem = Problem(p.operator, p.y[only], p.noise, p.sigma[only])
        return Case(problem, case.truth[only], case.image_ids[only], case.pixel_size[only])

    @cached_property
    def measured(self) -> Measured:
        measured = self.component.measure(self.case, self.answer(0.1))
        require(isinstance(measured, Measured), f"measure() returned a {type(measured).__name__}, not a Measured")
        return measured


_IDS = tuple(map(str, range(_IMAGES)))


@RULES(
    "it states its columns", "give `columns: ClassVar` as Column(name, direction, unit), and a value for each, no more"
)
def columns(subject: MetricSubject) -> None:
    stated = [column.name for column in subject.component.columns]
    require(stated and len(set(stated)) == len(stated), f"its columns are {stated}; wanted one or more, each once")
    for column in subject.component.columns:
        require(
            column.direction in _DIRECTIONS,
            f"{column.name} goes {column.direction!r}; wanted one of {', '.join(_DIRECTIONS)}",
        )
    got = set(subject.measured.values)
    require(
        got == set(stated), f"it states {', '.join(sorted(stated))} and measures {', '.join(sorted(got)) or 'nothing'}"
    )


@RULES("it gives a number for every image", "return float tensors [B]; NaN only with a reason in Measured.unmeasured")
def numbers(subject: MetricSubject) -> None:
    for name, values in subject.measured.values.items():
        require(tuple(values.shape) == (_IMAGES,) and values.is_floating_point(),
                f"{name} is {values.dtype} {list(values.shape)}, wanted floats [{_IMAGES}]")  # fmt: skip
        missing = values.isnan().any() and name not in subject.measured.unmeasured
        require(not missing, f"{name} is NaN, and no reason is given")
    for name, curve in subject.measured.curves.items():
        require(
            curve.ndim == 2 and len(curve) == _IMAGES, f"the curve {name} is {list(curve.shape)}, wanted [{_IMAGES}, L]"
        )


@RULES("the truth is the best answer", "look at the direction of the column: higher or lower is better, or none")
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
            require(not wrong, f"{column.name} is {a:.4g} for the truth and {b:.4g} for a bad image, and "
                               f"{column.direction} is better")  # fmt: skip


@RULES("an image alone is the image in a batch", "average over pixels, never over images")
def alone(subject: MetricSubject) -> None:
    for i in range(_IMAGES):
        case = subject.one(i)
        one = subject.component.measure(case, subject.answer(0.1, case))
        for name, values in subject.measured.values.items():
            wanted = values[i : i + 1].double()
            if not wanted.isnan().any():
                require_equal(one.values[name].double(), wanted, 1e-4, f"{name} of image {i} alone")


@RULES("the same images give the same numbers", "draw nothing, or from a generator of a fixed seed")
def repeatable(subject: MetricSubject) -> None:
    again = subject.made_again().measure(subject.case, subject.answer(0.1))
    for name, values in subject.measured.values.items():
        require(
            torch.equal(values.nan_to_num(), again.values[name].nan_to_num()),
            f"{name} is another number the second time",
        )


@RULES("it leaves global state as it was", "set nothing that belongs to the whole program")
def global_state(subject: MetricSubject) -> None:
    answer = subject.answer(0.1)
    _ = subject.case
    with no_trace():
        subject.component.measure(subject.case, answer)


@RULES("it leaves what it is given as it was", "write `x = x - y`, not `x -= y`")
def inputs(subject: MetricSubject) -> None:
    case, answer = subject.case, subject.answer(0.1)
    with untouched(case.truth, case.problem.y, answer.x):
        subject.component.measure(case, answer)
