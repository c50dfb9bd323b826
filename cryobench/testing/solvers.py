"""The contract of solvers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from cryobench.core import (
    MINMAX,
    LinearOperator,
    NoiseModel,
    OperatorRecipe,
    Prior,
    Problem,
    Progress,
    Reconstruction,
    Shape,
    build_operator,
)
from cryobench.core.meters import CountingOperator
from cryobench.plan.grid import with_nested
from cryobench.rng import Rng
from cryobench.testing.rules import (
    SEED,
    Broken,
    DoesNotApply,
    Rules,
    Subject,
    no_trace,
    particles,
    require,
    smallest_shape,
    untouched,
)

RULES = Rules()
SAME = 1e-4
"""How far an image alone may be from the image in a batch, images being in [-1, 1]: rounding, not neighbours."""
PROBLEMS = (
    ("sumpool:2", "none"),
    ("fourier:0.5", "none"),
    ("identity", "gaussian:0.1"),
    ("sumpool:2,count=2,mask=random_binary", "gaussian:rel=0.05"),
    ("sumpool:4", "poisson:100"),
    ("fourier:0.5", "gaussian:rel=0.05"),
)
"""Operators and noises that a solver is tried on; the first that it takes is the easy one."""
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Tried:
    """A problem that a solver may be asked to solve."""

    name: str
    operator: LinearOperator
    noise: NoiseModel

    def problem(self, images: slice = slice(None)) -> Problem:
        exact = self.operator.A(particles(self.operator.image_shape).to(self.operator.device, self.operator.dtype))
        noisy = self.noise.apply(exact, self.operator, MINMAX, Rng(SEED, _IDS))
        y, sigma = noisy.y[images], noisy.sigma[images]
        return Problem(CountingOperator(self.operator), y.contiguous(), self.noise, sigma.contiguous())


_IDS = ("first", "second", "third")


class SolverSubject(Subject):
    """A solver, the problems that it says it takes, and its answer to the first of them."""

    @cached_property
    def shape(self) -> Shape:
        """The smallest images that its priors know."""
        priors = [part for part in with_nested(self.component) if isinstance(part, Prior)]

        def check(shape: Shape) -> None:
            for prior in priors:
                prior.check(shape)

        return smallest_shape(check)

    def tried(self, operator: str, noise: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tried:
        recipe: OperatorRecipe = self.registry.make("operators", operator)
        live = build_operator(recipe, self.shape, seed=SEED, dtype=dtype, device=device)
        return Tried(f"{operator} with {noise} noise", live, self.registry.make("noises", noise))

    def refusal(self, problem: Problem) -> str | None:
        reason = self.component.unsupported(problem)
        require(reason is None or (isinstance(reason, str) and reason.strip() and "\n" not in reason),
                f"unsupported() returned {reason!r}; wanted None, or the reason in a line")  # fmt: skip
        return reason

    @cached_property
    def easy(self) -> tuple[str, str]:
        """The operator and the noise of the first problem that it takes."""
        reasons = []
        for operator, noise in PROBLEMS:
            reason = self.refusal(self.tried(operator, noise).problem())
            if reason is None:
                return operator, noise
            reasons.append(f"{operator}: {reason}")
        raise Broken(f"it takes none of the usual problems ({'; '.join(reasons)})")

    def problem(self, images: slice = slice(None), dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        return self.tried(*self.easy, dtype, device).problem(images)

    def solve(self, problem: Problem, ids: tuple[str, ...] = _IDS, progress: Progress | None = None) -> Reconstruction:
        return self.component.solve(problem, rng=Rng(SEED, ids), progress=progress)

    @cached_property
    def answer(self) -> Reconstruction:
        """Of the easy problem."""
        answer = self.solve(self.problem())
        require(isinstance(answer, Reconstruction), f"solve() returned a {type(answer).__name__}, not a Reconstruction")
        require(isinstance(answer.x, torch.Tensor), f"its image is a {type(answer.x).__name__}, not a tensor")
        return answer


@RULES(
    "it takes one of the usual problems",
    "see cryobench.testing.solvers.PROBLEMS, and what unsupported says",
    vital=True,
)
def takes(subject: SolverSubject) -> None:
    _ = subject.easy


@RULES(
    "it answers with images of the right shape",
    "return Reconstruction(x) with x [B, 1, H, W]; see problem.image_batch_shape",
)
def shape(subject: SolverSubject) -> None:
    got, wanted = tuple(subject.answer.x.shape), subject.problem().image_batch_shape
    require(got == wanted, f"x has shape {list(got)}, wanted {list(wanted)}")


@RULES(
    "it answers in the problem's dtype",
    "make tensors with dtype=problem.y.dtype, and convert what is read from elsewhere",
)
def dtype(subject: SolverSubject) -> None:
    for dtype in DTYPES:
        got = subject.answer.x.dtype if dtype is torch.float32 else subject.solve(subject.problem(dtype=dtype)).x.dtype
        require(got == dtype, f"x is {got} where y is {dtype}")


@RULES("it answers on the problem's device", "make tensors with device=problem.y.device")
def device(subject: SolverSubject) -> None:
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        got = (subject.answer if device == "cpu" else subject.solve(subject.problem(device=device))).x.device
        require(got.type == device, f"x is on {got} where y is on {device}")


@RULES("its numbers are finite", "look for a division by zero, a step that is too long, or a logarithm of zero")
def finite(subject: SolverSubject) -> None:
    bad = (~subject.answer.x.isfinite()).sum().item()
    require(not bad, f"{bad} pixels are NaN or infinite")


@RULES(
    "the same seed gives the same images", "take all random numbers from rng.stream(PURPOSE), and none from the clock"
)
def seeded(subject: SolverSubject) -> None:
    again = subject.made_again().solve(subject.problem(), rng=Rng(SEED, _IDS))
    require(torch.equal(again.x, subject.answer.x), "a second run with the same seed gave other images")


@RULES(
    "it leaves global state as it was",
    "draw from rng.stream(PURPOSE), and set nothing that belongs to the whole program",
)
def global_state(subject: SolverSubject) -> None:
    problem = subject.problem()
    with no_trace():
        subject.solve(problem)


@RULES("it leaves the measurements as they were", "write `y = y - b`, not `y -= b`, or work on a clone")
def inputs(subject: SolverSubject) -> None:
    problem = subject.problem()
    with untouched(problem.y, problem.sigma):
        subject.solve(problem)


@RULES(
    "an image alone is the image in a batch",
    "take norms, steps and stopping rules per image, [B, 1, ..., 1], and noise from rng",
)
def alone(subject: SolverSubject) -> None:
    for i, image in enumerate(_IDS):
        x = subject.solve(subject.problem(slice(i, i + 1)), (image,)).x
        off = (x[0] - subject.answer.x[i]).abs().max().item()
        require(
            off <= SAME, f"image {i} alone differs from itself in a batch of {len(_IDS)} by {off:.2g}, {SAME:g} allowed"
        )


@RULES(
    "it explains the measurements better than a blank image",
    "look at the sign and the scale of the data term, or take more steps",
)
def residual(subject: SolverSubject) -> None:
    problem = subject.problem()
    left, start = (
        (problem.operator.A(x) - problem.y).flatten(1).norm(dim=1)
        for x in (subject.answer.x, torch.zeros_like(subject.answer.x))
    )
    for i in range(problem.batch):
        require(left[i] < start[i], f"on {subject.easy[0]}, ||A x - y|| is {left[i]:.3g} for image {i}, and "
                                    f"{start[i]:.3g} for a blank one")  # fmt: skip


@RULES("it solves what it does not refuse", "say in unsupported(problem), in a line, why it cannot take a problem")
def unsupported(subject: SolverSubject) -> None:
    for operator, noise in PROBLEMS:
        tried = subject.tried(operator, noise)
        problem = tried.problem(slice(1))
        if subject.refusal(problem) is None:
            try:
                x = subject.solve(problem, _IDS[:1]).x
            except Exception as error:
                raise Broken(f"it takes {tried.name}, and fails on it: {type(error).__name__}: {error}") from error
            require(x.isfinite().all(), f"it takes {tried.name}, and answers with NaN or infinity")


@RULES("its progress goes up to its end", "call progress(done, steps) after every step, done = 1 ... steps")
def progress(subject: SolverSubject) -> None:
    told: list[tuple[int, int]] = []
    subject.solve(subject.problem(slice(1)), _IDS[:1], lambda *steps: told.append(steps))
    if not told:
        raise DoesNotApply("it reports no progress")
    done = [step for step, _ in told]
    rises = done == sorted(done) and done[0] >= 0 and done[-1] <= told[-1][1]
    require(rises and len({steps for _, steps in told}) == 1, f"progress was told {told[:3]} ... {told[-1]}")


@RULES("Ctrl-C ends it", "catch no BaseException, and put no `finally: return` around the steps")
def interruptible(subject: SolverSubject) -> None:
    calls = _Calls(subject.problem(slice(1)).operator)
    subject.solve(_watched(subject.problem(slice(1)), calls), _IDS[:1])
    if not calls.made:
        raise DoesNotApply("it never calls the operator, during which it would be interrupted")
    for at in {1, (calls.made + 1) // 2}:
        interrupting = _Calls(subject.problem(slice(1)).operator, at)
        try:
            subject.solve(_watched(subject.problem(slice(1)), interrupting), _IDS[:1])
        except KeyboardInterrupt:
            continue
        raise Broken(f"it went on after Ctrl-C during call {at} of {calls.made} of the operator")


class _Calls:
    """An operator that counts its calls, and is interrupted during one of them."""

    METHODS = ("A", "A_adjoint", "A_adjoint_A", "A_dagger", "A_dagger_A", "prox_l2", "on_range")

    def __init__(self, operator: LinearOperator, interrupted_at: int = 0):
        self._operator, self._at, self.made = operator, interrupted_at, 0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._operator, name)
        if name not in self.METHODS:
            return attribute

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            if self.made == self._at:
                raise KeyboardInterrupt
            return attribute(*args, **kwargs)

        return counted


def _watched(problem: Problem, calls: _Calls) -> Problem:
    return Problem(CountingOperator(calls), problem.y, problem.noise, problem.sigma)  # pyright: ignore[reportArgumentType]
