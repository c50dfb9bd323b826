"""The contract of metrics, of single images and of all images together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property

import torch

from cryobench.core import (
    MINMAX,
    Case,
    Imaging,
    JointMetric,
    Measured,
    MeasuredTogether,
    Problem,
    Reconstruction,
    Structure,
    build_operator,
)
from cryobench.operators.project import Project
from cryobench.physics.poses import Poses
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
_PROJECTIONS = 20
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
    def together(self) -> MeasuredTogether:
        """The result of a metric of all images together, whose images come one after the other."""
        return self.gathered([slice(i, i + 1) for i in range(_PROJECTIONS)])

    def gathered(self, parts: Sequence[slice]) -> MeasuredTogether:
        """The result for projections of a volume along known directions, given part by part."""
        if not isinstance(self.component, JointMetric):
            raise DoesNotApply("it is a metric of single images")
        volume, imaging, images = _projections()
        gathering = self.make_another().gather(imaging, Structure(volume))
        for part in parts:
            gathering.add(images[part].clone(), Reconstruction(images[part].clone()))
        found = gathering.measure()
        require(isinstance(found, MeasuredTogether),
                f"measure() returned a {type(found).__name__}, expected a MeasuredTogether")  # fmt: skip
        return found

    def require_single(self) -> None:
        if isinstance(self.component, JointMetric):
            raise DoesNotApply("it is a metric of all images together")

    @cached_property
    def measured(self) -> Measured:
        self.require_single()
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
    joint = isinstance(subject.component, JointMetric)
    got = set(subject.together.values if joint else subject.measured.values)
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
        if name in [column.name for column in subject.component.columns if column.interval == "binomial"]:
            outside = ((values < 0) | (values > 1)).any()
            require(not outside, f"{name} has a binomial interval and is {values.tolist()}, expected 0 to 1")
    for name, curve in subject.measured.curves.items():
        require(
            curve.ndim == 2 and len(curve) == _IMAGES,
            f"the curve {name} is {list(curve.shape)}, expected [{_IMAGES}, L]",
        )


@RULES("the truth is the best answer", "check the direction of the column: higher or lower is better, or none")
def direction(subject: MetricSubject) -> None:
    subject.require_single()
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
    subject.require_single()
    for i in range(_IMAGES):
        case = subject.one(i)
        one = subject.component.measure(case, subject.answer(0.1, case))
        for name, values in subject.measured.values.items():
            expected = values[i : i + 1].double()
            if not expected.isnan().any():
                require_equal(one.values[name].double(), expected, 1e-4, f"{name} of image {i} alone")


@RULES("the same images give the same numbers", "use no random numbers, or a generator with a fixed seed")
def repeatable(subject: MetricSubject) -> None:
    subject.require_single()
    again = subject.make_another().measure(subject.case, subject.answer(0.1))
    for name, values in subject.measured.values.items():
        require(
            torch.equal(values.nan_to_num(), again.values[name].nan_to_num()),
            f"{name} is different the second time",
        )


@RULES("it does not change global state", "do not set global options or use global generators")
def global_state(subject: MetricSubject) -> None:
    if isinstance(subject.component, JointMetric):
        with global_state_unchanged():
            subject.gathered([slice(None)])
        return
    answer = subject.answer(0.1)
    _ = subject.case
    with global_state_unchanged():
        subject.component.measure(subject.case, answer)


@RULES("it does not modify its input", "write `x = x - y`, not `x -= y`")
def inputs(subject: MetricSubject) -> None:
    subject.require_single()
    case, answer = subject.case, subject.answer(0.1)
    with unmodified(case.truth, case.problem.y, answer.x):
        subject.component.measure(case, answer)


@RULES("a metric of all images together returns a number for each column", "NaN only with a reason in `unmeasured`")
def together(subject: MetricSubject) -> None:
    for name, value in subject.together.values.items():
        require(isinstance(value, float), f"{name} is a {type(value).__name__}, expected a float")
        require(not math.isnan(value) or name in subject.together.unmeasured, f"{name} is NaN without a reason")


@RULES("it does not depend on how images are divided", "sum over images; keep nothing that depends on a chunk")
def chunks(subject: MetricSubject) -> None:
    whole = subject.gathered([slice(0, 3), slice(3, _PROJECTIONS)])
    for name, value in subject.together.values.items():
        got, expected = (torch.tensor([number], dtype=torch.float64) for number in (whole.values[name], value))
        if not expected.isnan().any():
            require_equal(got, expected, 1e-6, f"{name} of images in other chunks")


@cache
def _projections() -> tuple[torch.Tensor, Imaging, torch.Tensor]:
    """A volume [D, D, D], its projections [n, 1, D, D], and how they were taken."""
    side = _SHAPES[3][0]
    volume = particles((side,) * 3, 1).float()
    poses = Poses.uniform(_PROJECTIONS, SEED)
    imaging = Imaging((side, side), (2.0,) * _PROJECTIONS, poses.to_table())
    recipe = Project(_PROJECTIONS)
    taken = Imaging((side,) * 3, (2.0,), poses.to_table())
    operator = build_operator(recipe, taken, seed=SEED)
    noise = torch.randn((_PROJECTIONS, side, side), generator=torch.Generator().manual_seed(SEED))
    return volume[0, 0], imaging, (operator.A(volume)[0] + noise)[:, None]
