"""The contract of solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from cryobench.core import (
    MINMAX,
    Crop,
    Imaging,
    LinearOperator,
    NoiseModel,
    OperatorRecipe,
    Problem,
    Progress,
    Reconstruction,
    Shape,
    Window,
    build_operator,
)
from cryobench.core.meters import CountingOperator
from cryobench.errors import described
from cryobench.physics.poses import Poses
from cryobench.plan.grid import own_priors
from cryobench.rng import Rng
from cryobench.testing.rules import (
    SEED,
    Broken,
    DoesNotApply,
    Rules,
    Subject,
    global_state_unchanged,
    particles,
    require,
    unmodified,
)
from cryobench.testing.slices import CentralSlices

RULES = Rules()
SAME = 1e-4
"""Maximum difference between an image alone and in a batch, for images in [-1, 1]: larger than rounding errors."""
PROBLEMS: dict[int, tuple[tuple[str | OperatorRecipe, str], ...]] = {
    2: (
        ("sumpool:2", "none"),
        ("fourier:0.5", "none"),
        ("identity", "gaussian:0.1"),
        ("sumpool:2,count=2,mask=random_binary", "gaussian:rel=0.05"),
        ("sumpool:4", "poisson:100"),
        ("fourier:0.5", "gaussian:rel=0.05"),
    ),
    3: (
        (CentralSlices(), "none"),
        ("fourier:0.5", "none"),
        ("identity", "gaussian:0.1"),
        (CentralSlices(), "gaussian:rel=0.05"),
        ("identity", "poisson:100"),
        ("fourier:0.5", "gaussian:rel=0.05"),
        ("project:12", "gaussian:rel=0.05"),
    ),
}
"""Operators and noises by number of axes. A solver is tested on those that it accepts, by most rules on the first."""
DTYPES = (torch.float32, torch.float64)
_IDS = ("first", "second", "third")


@dataclass(frozen=True)
class Trial:
    """A problem on which a solver is tested."""

    name: str
    operator: LinearOperator
    noise: NoiseModel
    imaging: Imaging | None = None

    def problem(self, images: slice = slice(None)) -> Problem:
        exact = self.operator.A(particles(self.operator.image_shape).to(self.operator.device, self.operator.dtype))
        noisy = self.noise.apply(exact, self.operator, MINMAX, Rng(SEED, _IDS))
        y, sigma = noisy.y[images], noisy.sigma[images]
        operator = CountingOperator(self.operator)
        return Problem(operator, y.contiguous(), self.noise, sigma.contiguous(), imaging=self.imaging)


class SolverSubject(Subject):
    """A solver, the problems that it accepts, and its answer to the first of them."""

    @cached_property
    def shape(self) -> Shape:
        """The first shape that its priors, and in 3-D the slices, accept."""
        priors = own_priors(self.component)

        def check(shape: Shape) -> None:
            for prior in priors:
                prior.check(shape)
            if self.dims == 3:
                CentralSlices().check(Imaging(shape))

        return self.smallest_shape(check)

    def trial(
        self, operator: str | OperatorRecipe, noise: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Trial:
        recipe = self.registry.make("operators", operator) if isinstance(operator, str) else operator
        live = build_operator(recipe, self.shape, seed=SEED, dtype=dtype, device=device)
        poses = Poses.uniform(len(_IDS), SEED).to_table() if self.component.joint else None
        imaging = None if poses is None else Imaging(self.shape, (2.0,) * len(_IDS), poses)
        return Trial(f"{operator} with {noise} noise", live, self.registry.make("noises", noise), imaging)

    def refusal(self, problem: Problem) -> str | None:
        reason = self.component.unsupported(problem)
        require(reason is None or (isinstance(reason, str) and reason.strip() and "\n" not in reason),
                f"unsupported() returned {reason!r}; expected None, or the reason in one line")  # fmt: skip
        return reason

    @cached_property
    def first(self) -> tuple[str | OperatorRecipe, str]:
        """The operator and the noise of the first problem that it accepts."""
        reasons = []
        for operator, noise in PROBLEMS[self.dims]:
            reason = self.refusal(self.trial(operator, noise).problem())
            if reason is None:
                return operator, noise
            reasons.append(f"{operator}: {reason}")
        raise Broken(f"it refuses all usual problems ({'; '.join(reasons)})")

    def problem(self, images: slice = slice(None), dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        """The first problem for some of the images; for a joint solver always for all."""
        return self.trial(*self.first, dtype, device).problem(slice(None) if self.component.joint else images)

    def solve(self, problem: Problem, ids: tuple[str, ...] = _IDS, progress: Progress | None = None) -> Reconstruction:
        return self.component.solve(problem, rng=Rng(SEED, ids), progress=progress)

    @cached_property
    def answer(self) -> Reconstruction:
        """Its answer to the first problem."""
        answer = self.solve(self.problem())
        require(
            isinstance(answer, Reconstruction), f"solve() returned a {type(answer).__name__}, expected a Reconstruction"
        )
        require(isinstance(answer.x, torch.Tensor), f"its image is a {type(answer.x).__name__}, expected a tensor")
        return answer


@RULES(
    "it accepts one of the usual problems",
    "see cryobench.testing.solvers.PROBLEMS, and what unsupported returns",
    vital=True,
)
def accepts(subject: SolverSubject) -> None:
    _ = subject.first


@RULES(
    "its answer has the right shape",
    "return Reconstruction(x) with x of shape problem.image_batch_shape, [B, C, *S]",
)
def shape(subject: SolverSubject) -> None:
    got, expected = tuple(subject.answer.x.shape), subject.problem().image_batch_shape
    require(got == expected, f"x has shape {list(got)}, expected {list(expected)}")


@RULES(
    "its answer has the dtype of the problem",
    "make tensors with dtype=problem.y.dtype, and convert data from other sources",
)
def dtype(subject: SolverSubject) -> None:
    for dtype in DTYPES:
        got = subject.answer.x.dtype if dtype is torch.float32 else subject.solve(subject.problem(dtype=dtype)).x.dtype
        require(got == dtype, f"x is {got} where y is {dtype}")


@RULES("its answer is on the device of the problem", "make tensors with device=problem.y.device")
def device(subject: SolverSubject) -> None:
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        got = (subject.answer if device == "cpu" else subject.solve(subject.problem(device=device))).x.device
        require(got.type == device, f"x is on {got} where y is on {device}")


@RULES("its answer is finite", "look for a division by zero, a step size that is too large, or a logarithm of zero")
def finite(subject: SolverSubject) -> None:
    bad = (~subject.answer.x.isfinite()).sum().item()
    require(not bad, f"{bad} pixels are NaN or infinite")


@RULES(
    "the same seed gives the same images",
    "draw all random numbers from rng.stream(PURPOSE), and use no time or global generator",
)
def seeded(subject: SolverSubject) -> None:
    again = subject.make_another().solve(subject.problem(), rng=Rng(SEED, _IDS))
    require(torch.equal(again.x, subject.answer.x), "a second run with the same seed gave different images")


@RULES(
    "it does not change global state",
    "draw from rng.stream(PURPOSE), and do not set global options",
)
def global_state(subject: SolverSubject) -> None:
    problem = subject.problem()
    with global_state_unchanged():
        subject.solve(problem)


@RULES("it does not modify the measurements", "write `y = y - b`, not `y -= b`, or work on a clone")
def inputs(subject: SolverSubject) -> None:
    problem = subject.problem()
    with unmodified(problem.y, problem.sigma):
        subject.solve(problem)


@RULES(
    "results do not depend on the batch",
    "compute norms, step sizes and stopping rules per image, [B, 1, ..., 1], and draw noise from rng",
)
def alone(subject: SolverSubject) -> None:
    if subject.component.joint:
        raise DoesNotApply("it solves for all images together")
    for i, image in enumerate(_IDS):
        x = subject.solve(subject.problem(slice(i, i + 1)), (image,)).x
        off = (x[0] - subject.answer.x[i]).abs().max().item()
        require(off <= SAME, f"image {i} alone and in a batch of {len(_IDS)} differ by {off:.2g}, {SAME:g} allowed")


@RULES(
    "its residual is smaller than that of a blank image",
    "check the sign and the scale of the data term, or take more steps",
)
def residual(subject: SolverSubject) -> None:
    problem = subject.problem()
    left, start = (
        (problem.operator.A(x) - problem.y).flatten(1).norm(dim=1)
        for x in (subject.answer.x, torch.zeros_like(subject.answer.x))
    )
    for i in range(problem.batch):
        require(left[i] < start[i], f"on {subject.first[0]}, ||A x - y|| is {left[i]:.3g} for image {i}, and "
                                    f"{start[i]:.3g} for a blank one")  # fmt: skip


@RULES("it solves every problem that it accepts", "return the reason in one line from unsupported(problem) for others")
def unsupported(subject: SolverSubject) -> None:
    for operator, noise in PROBLEMS[subject.dims]:
        trial = subject.trial(operator, noise)
        problem = trial.problem(slice(1))
        if subject.refusal(problem) is None:
            try:
                x = subject.solve(problem, _IDS[:1]).x
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise Broken(f"it accepts {trial.name}, but fails on it: {described(error)}") from error
            require(x.isfinite().all(), f"it accepts {trial.name}, but its answer has NaN or infinity")


@RULES("its progress rises to the number of steps", "call progress(done, steps) after every step, done = 1 ... steps")
def progress(subject: SolverSubject) -> None:
    reports: list[tuple[int, int]] = []
    subject.solve(subject.problem(slice(1)), _IDS[:1], lambda *steps: reports.append(steps))
    if not reports:
        raise DoesNotApply("it reports no progress")
    done = [step for step, _ in reports]
    rises = done == sorted(done) and done[0] >= 0 and done[-1] <= reports[-1][1]
    require(
        rises and len({steps for _, steps in reports}) == 1, f"progress was called with {reports[:3]} ... {reports[-1]}"
    )


@RULES("Ctrl-C interrupts it", "do not catch BaseException, and do not return from a `finally` block")
def interruptible(subject: SolverSubject) -> None:
    calls = _InterruptedOperator(subject.problem(slice(1)).operator)
    subject.solve(_with_operator(subject.problem(slice(1)), calls), _IDS[:1])
    if not calls.made:
        raise DoesNotApply("it never calls the operator, where it would be interrupted")
    for at in {1, (calls.made + 1) // 2}:
        interrupting = _InterruptedOperator(subject.problem(slice(1)).operator, at)
        try:
            subject.solve(_with_operator(subject.problem(slice(1)), interrupting), _IDS[:1])
        except KeyboardInterrupt:
            continue
        raise Broken(f"it continued after Ctrl-C during call {at} of {calls.made} of the operator")


class _InterruptedOperator:
    """An operator that counts its calls and raises KeyboardInterrupt during one of them."""

    METHODS = ("A", "A_adjoint", "A_adjoint_A", "A_dagger", "A_dagger_A", "prox_l2", "on_range")

    def __init__(self, operator: LinearOperator, interrupted_at: int = 0, of: _InterruptedOperator | None = None):
        self._operator, self._at, self.made, self._counter = operator, interrupted_at, 0, of or self

    def crop(self, window: Window) -> Crop:
        crop = self._operator.crop(window)
        part = _InterruptedOperator(crop.operator, self._at, self._counter)
        return Crop(part, crop.measurements)  # pyright: ignore[reportArgumentType]

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._operator, name)
        if name not in self.METHODS:
            return attribute

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._counter.made += 1
            if self._counter.made == self._at:
                raise KeyboardInterrupt
            return attribute(*args, **kwargs)

        return counted


def _with_operator(problem: Problem, operator: _InterruptedOperator) -> Problem:
    return replace(problem, operator=CountingOperator(operator))  # pyright: ignore[reportArgumentType]
