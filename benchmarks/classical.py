"""Time of `dct`, `wavelet` and `tv` to a target value of 1/2 ||A x - y||^2 + lam R(x), compared with other methods.

    uv run python benchmarks/classical.py
    uv run --with deepinv python benchmarks/classical.py

Smooth random particles in [-1, 1], noise gaussian:rel=0.05, float32. lam is the same for every image and method: the
median of the values found by `lam=auto`. The optimum F* is from a long run in float64, and every objective is evaluated
in float64. The gap is (F(x) - F*) / F*. A method is first run with an evaluation after every step, to find the number
of steps after which every image is at the target; then that many steps are timed without evaluations. Our times include
the initial A^+ y, but not the one-time factorisation of the operator (part `cost`).

speed    The published recipe: 200 steps of Adam, rate 0.1, on ||A x - y||^2 by autograd through masks, average pooling
         and sum, each followed by a proximal step by SciPy (orthonormal dctn), PyWavelets (wavedec2, db4) or
         scikit-image (denoise_tv_chambolle) with threshold 0.01; from noise, one image at a time. It does not minimise
         a known objective, so the target is its final objective. It is run once, over all images.

         deepinv: its FISTA and PGD, step 1 / ||A||^2, batched, on our operator as its LinearPhysics, with its L2, from
         the same A^+ y as ours, and without evaluating the objective at every step. Its WaveletPrior pads the image:
         it is not orthonormal and has another R, so `dct` and `wavelet` use our prox. `tv` uses its TVPrior, which has
         the same R, with the default of up to 1000 inner iterations and with 20. The target is a gap of 1e-4.

methods  primal_dual compared with fista, to a gap of 1e-4.

cost     Seconds of one primal-dual step (`dct`) by number of images, their size and the number of masks.

Times are medians over repeats within one process, alternating between the methods; compare ratios, not seconds. On
shared cores set OMP_WAIT_POLICY=passive, so that idle threads do not occupy them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pywt
import scipy.fft
import torch
from skimage.restoration import denoise_tv_chambolle

from cryobench.core import MINMAX, OperatorRecipe, Problem, build_operator
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.classical import Dct, Regularised, Tv, Wavelet
from cryobench.solvers.methods import Fista, PrimalDual
from cryobench.solvers.proximal import Method, Objective, minimise

GAP = 1e-4
SOLVERS = (Dct(), Wavelet(family="db4"), Tv())
POOLS = (SumPool(block=2, count=2), SumPool(block=16, count=64))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """Settings of the tables. reference: steps of the run that gives F*. max_steps, max_seconds: limits of the run that
    counts steps, after which a method has not reached the target. cost_*: the axes of `cost`."""

    images: int
    size: int
    repeats: int
    reference: int = 4000
    max_steps: int = 2000
    max_seconds: float = 20.0
    cost_images: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cost_sizes: tuple[int, ...] = (64, 128, 256)
    cost_masks: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    cost_steps: int = 50
    blocks: tuple[int, ...] = (2, 16)


# ------------------------------------------------------------------------------------------------------- the problems


def particles(count: int, size: int) -> torch.Tensor:
    """Sums of 60 Gaussians along a random walk, min-max scaled to [-1, 1], [count, 1, size, size]."""
    draw = torch.Generator().manual_seed(0)
    walk = torch.randn((count, 2, 60), generator=draw).cumsum(-1)
    walk = walk - walk.mean(dim=-1, keepdim=True)
    walk = size * (0.5 + 0.3 * walk / walk.abs().amax(dim=(1, 2), keepdim=True))
    near = torch.exp(-((torch.arange(size) - walk.unsqueeze(-1)) / (0.02 * size)).square() / 2)
    images = torch.einsum("bnh,bnw->bhw", near[:, 0], near[:, 1]).unsqueeze(1)
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return 2 * (images - low) / (high - low) - 1


def rng_of(count: int) -> Rng:
    return Rng(0, [str(i) for i in range(count)])


@cache
def measured(recipe: OperatorRecipe, count: int, size: int, dtype: torch.dtype = torch.float32) -> Problem:
    """Noisy measurements of the particles; those in float64 are the float32 ones, converted."""
    operator = build_operator(recipe, (size, size), seed=0, dtype=dtype, device=CPU)
    operator.prepare()
    if dtype != torch.float32:
        single = measured(recipe, count, size)
        return Problem(operator, single.y.to(dtype), single.noise, single.sigma.to(dtype))
    noise = Gaussian(rel=0.05)
    noisy = noise.apply(operator.A(particles(count, size)), operator, MINMAX, rng_of(count))
    return Problem(operator, noisy.y, noise, noisy.sigma)


@dataclass(frozen=True)
class Case:
    """One objective. exact: the objective in float64. optimum: its minimum, [B, 1, 1, 1]."""

    recipe: OperatorRecipe
    solver: Regularised
    problem: Problem
    exact: Objective
    optimum: torch.Tensor

    @property
    def name(self) -> str:
        operator = self.recipe
        label = (
            f"fourier:{operator.rho:g}" if isinstance(operator, Fourier) else f"K={operator.block} M={operator.count}"
        )
        return f"{label:12s} | {type(self.solver).__name__.lower():7s}"

    @property
    def lam(self) -> float:
        return float(self.solver.lam)

    def solver_objective(self) -> Objective:
        return self.solver.objective(self.problem)

    def objective(self, x: torch.Tensor) -> torch.Tensor:
        return self.exact.value(x.double())

    def gap(self, x: torch.Tensor) -> torch.Tensor:
        return self.objective(x) / self.optimum - 1


@cache
def make_case(recipe: OperatorRecipe, solver: Regularised, cut: float, settings: Settings) -> Case:
    """The objective of the solver with this cut and one lam for all images, and its optimum."""
    problem = measured(recipe, settings.images, settings.size)
    lams = replace(solver, cut=cut, steps=settings.reference).solve(problem, rng=rng_of(settings.images)).info["lam"]
    solver = replace(solver, cut=cut, lam=float(lams.median()))
    exact = solver.objective(measured(recipe, settings.images, settings.size, torch.float64))
    optimum = minimise(PrimalDual(exact), steps=settings.reference, tol=1e-7).info["objective"]
    return Case(recipe, solver, problem, exact, optimum.reshape(-1, 1, 1, 1))


# -------------------------------------------------------------------------------------------------------- the methods


class Contender(NamedTuple):
    """iterates: the results after 1, 2, ... steps. run: the result after a given number of steps, in one call."""

    name: str
    iterates: Callable[[], Iterator[torch.Tensor]]
    run: Callable[[int], torch.Tensor]


def ours(case: Case, kind: type[Method], name: str) -> Contender:
    def iterates() -> Iterator[torch.Tensor]:
        method = kind(case.solver_objective())
        while True:
            restart = method.step()
            yield method.x
            method.advance(restart)

    return Contender(name, iterates, lambda steps: minimise(kind(case.solver_objective()), steps=steps, tol=0.0).x)


def both(case: Case) -> list[Contender]:
    return [ours(case, PrimalDual, "primal_dual"), ours(case, Fista, "fista")]


def deepinv_priors(case: Case) -> dict[str, Callable]:
    """Constructors of deepinv priors with the R of the case, by name. Each run needs a new one, because a TVPrior is
    warm-started from the previous call. Without `explicit_prior` the objective is not evaluated at every step."""
    from deepinv.optim import Prior
    from deepinv.optim.prior import TVPrior

    class OurProx(Prior):
        def prox(self, x, *_, gamma, **__):
            return case.exact.prior.prox(x, torch.full((1, 1, 1, 1), gamma))

    def tv(**options) -> Prior:
        prior = TVPrior(**options)
        prior.explicit_prior = False
        return prior

    if isinstance(case.solver, Tv):
        return {"TVPrior()": tv, "TVPrior(n_it_max=20)": partial(tv, n_it_max=20)}
    return {"our prox": OurProx}


def deepinv_contenders(case: Case) -> list[Contender]:
    try:
        from deepinv.optim import FISTA, PGD
    except ImportError:
        return []
    priors = deepinv_priors(case).items()
    return [
        theirs(case, kind, prior, f"deepinv {kind.__name__}, {name}") for name, prior in priors for kind in (FISTA, PGD)
    ]


def theirs(case: Case, kind: type, prior: Callable, name: str) -> Contender:
    from deepinv.optim.data_fidelity import L2
    from deepinv.physics import LinearPhysics

    operator, y, start = case.problem.operator, case.problem.y, case.solver_objective().least_squares
    physics = LinearPhysics(A=operator.A, A_adjoint=operator.A_adjoint)
    stepsize = 1 / operator.compute_norm() ** 2

    def model(steps: int):
        return kind(data_fidelity=L2(), prior=prior(), lambda_reg=case.lam, stepsize=stepsize, max_iter=steps)

    def iterates() -> Iterator[torch.Tensor]:
        one_step = model(1)
        state = one_step.init_iterate_fn(y, physics, init=(start, start))
        for i in itertools.count():
            with torch.no_grad():
                state = one_step.fixed_point.single_iteration(state, i, y, physics)
            yield one_step.get_output(state)

    return Contender(name, iterates, lambda steps: model(steps)(y, physics, init=(start, start)))


def soft(coefficients: np.ndarray) -> np.ndarray:
    return np.sign(coefficients) * np.maximum(np.abs(coefficients) - 0.01, 0)


def shrink_dct(image: np.ndarray) -> np.ndarray:
    return scipy.fft.idctn(soft(scipy.fft.dctn(image, norm="ortho")), norm="ortho")


def shrink_wavelet(image: np.ndarray) -> np.ndarray:
    coefficients, slices = pywt.coeffs_to_array(pywt.wavedec2(image, "db4"))
    return pywt.waverec2(pywt.array_to_coeffs(soft(coefficients), slices, output_format="wavedec2"), "db4")


def shrink_tv(image: np.ndarray) -> np.ndarray:
    return denoise_tv_chambolle(image, weight=0.01)


SHRINK = {Dct: shrink_dct, Wavelet: shrink_wavelet, Tv: shrink_tv}


def published(case: Case, steps: int = 200) -> torch.Tensor:
    """The results of the published recipe, one image at a time."""
    problem, recipe, shrink = case.problem, case.recipe, SHRINK[type(case.solver)]
    masks = recipe.mask.draw(recipe.count, problem.operator.image_shape, 0)
    starts = rng_of(problem.batch).stream("start").normal(problem.image_batch_shape[1:])
    results = []
    for y, start in zip(problem.y, starts, strict=True):
        x = start.clone().requires_grad_()
        adam = torch.optim.Adam([x], lr=0.1)
        for _ in range(steps):
            adam.zero_grad()
            pooled = torch.nn.functional.avg_pool2d(masks * x, recipe.block) * recipe.block**2
            (pooled - y).square().sum().backward()
            adam.step()
            with torch.no_grad():
                x.copy_(torch.from_numpy(shrink(x[0].detach().numpy())))
        results.append(x.detach())
    return torch.stack(results)


# ------------------------------------------------------------------------------------------------------------- timing


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def medians(runs: Sequence[Callable[[], torch.Tensor]], repeats: int) -> list[float]:
    """Median seconds of each run, alternating between them."""
    rounds = [[timed(run)[0] for run in runs] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


class StepCount(NamedTuple):
    """reached: whether every image reached the target. steps: number of steps made. gap: that of the worst image."""

    reached: bool
    steps: int
    gap: float

    def __str__(self) -> str:
        return str(self.steps) if self.reached else f"> {self.steps}"


def steps_to(contender: Contender, target: torch.Tensor, case: Case, settings: Settings) -> StepCount:
    """The first step after which the objective of every image is at most the target."""
    end = time.perf_counter() + settings.max_seconds
    for i, x in enumerate(contender.iterates(), start=1):
        reached = bool((case.objective(x) <= target).all())
        if reached or i == settings.max_steps or time.perf_counter() > end:
            return StepCount(reached, i, float(case.gap(x).max()))
    raise AssertionError("iterates() is infinite")


def race(
    contenders: list[Contender], target: torch.Tensor, case: Case, settings: Settings
) -> list[tuple[StepCount, float]]:
    """Steps to the target and the time of that many steps, timed once if the target was not reached."""
    counts = [steps_to(contender, target, case, settings) for contender in contenders]
    runs = [partial(contender.run, count.steps) for contender, count in zip(contenders, counts, strict=True)]
    times = iter(medians([run for run, count in zip(runs, counts, strict=True) if count.reached], settings.repeats))
    return [(count, next(times) if count.reached else timed(run)[0]) for run, count in zip(runs, counts, strict=True)]


# --------------------------------------------------------------------------------------------------------- the tables


def header(title: str, columns: str) -> None:
    print(f"\n{title}\n\n{columns}")
    print("|".join("---" if cell else "" for cell in columns.split("|")))


def time_ratio(count: StepCount, s: float, base: StepCount, base_s: float) -> str:
    """The ratio of times to a target; empty if the base did not reach it."""
    return f"{'' if count.reached else '> '}{s / base_s:.1f}" if base.reached else ""


def against_published(cases: list[Case], settings: Settings) -> None:
    header(
        "To the final objective of the published recipe (median gap; ratio: its seconds over ours)",
        "| operator | prior | lam | its gap | its s | primal_dual: steps | s | ratio | fista: steps | s | ratio |",
    )
    for case in cases:
        published(case, steps=1)  # warm-up: the first use of Adam imports modules
        seconds, result = timed(partial(published, case))
        results = race(both(case), case.objective(result), case, settings)
        cells = [f"{count} | {s:.3f} | {f'{seconds / s:.0f}' if count.reached else ''}" for count, s in results]
        gap = float(case.gap(result).median())
        print(f"| {case.name} | {case.lam:.3g} | {gap:.2g} | {seconds:.1f} | {' | '.join(cells)} |", flush=True)


def against_deepinv(cases: list[Case], settings: Settings) -> None:
    header(
        f"To a gap of {GAP:g} (gap: that of the worst image; ratio: seconds over those of primal_dual)",
        "| operator | prior | method | steps | gap | s | ratio |",
    )
    for case in cases:
        contenders = both(case) + deepinv_contenders(case)
        results = race(contenders, (1 + GAP) * case.optimum, case, settings)
        for contender, (count, s) in zip(contenders, results, strict=True):
            ratio = time_ratio(count, s, *results[0])
            print(f"| {case.name} | {contender.name} | {count} | {count.gap:.1e} | {s:.3f} | {ratio} |", flush=True)


def speed(settings: Settings) -> None:
    try:
        import deepinv

        print(f"\ndeepinv {deepinv.__version__}")
    except ImportError as missing:
        print(f"\ndeepinv is skipped: {missing}")
    pools = [recipe for recipe in POOLS if recipe.block in settings.blocks]
    cases = [make_case(recipe, solver, 1.0, settings) for recipe in pools for solver in SOLVERS]
    against_published(cases, settings)
    against_deepinv(cases, settings)


def methods(settings: Settings) -> None:
    header(
        f"primal_dual and fista to a gap of {GAP:g}",
        "| operator | prior | cut | lam | primal_dual: steps | s | fista: steps | s | fista / primal_dual |",
    )
    for recipe, solver in itertools.product((*POOLS, Fourier(0.5)), SOLVERS):
        for cut in (1.0, solver.sparsity.cut):
            case = make_case(recipe, solver, cut, settings)
            results = race(both(case), (1 + GAP) * case.optimum, case, settings)
            cells = " | ".join(f"{count} | {s:.3f}" for count, s in results)
            ratio = time_ratio(*results[1], *results[0])
            print(f"| {case.name} | {cut:g} | {case.lam:.3g} | {cells} | {ratio} |", flush=True)


def step_seconds(recipe: SumPool, count: int, size: int, settings: Settings) -> tuple[float, float]:
    """Seconds of the set-up of the operator, and of one primal-dual step."""
    operator = build_operator(recipe, (size, size), seed=0, dtype=torch.float32, device=CPU)
    start = time.perf_counter()
    operator.prepare()
    setup = time.perf_counter() - start
    y = operator.A(particles(count, size))
    objective = Dct(lam=1.0).objective(Problem(operator, y, NoNoise(), torch.zeros((count, 1, 1, 1))))

    def run() -> torch.Tensor:
        return minimise(PrimalDual(objective), steps=settings.cost_steps, tol=0.0).x

    run()
    return setup, medians([run], settings.repeats)[0] / settings.cost_steps


def cost(settings: Settings) -> None:
    size, pool = settings.size, POOLS[1]
    header(f"One step, K=16 M=64, {size} x {size}", "| images | s | s per image |")
    for count in settings.cost_images:
        _, s = step_seconds(pool, count, size, settings)
        print(f"| {count} | {s:.5f} | {s / count:.5f} |", flush=True)
    header("One step, K=16 M=64, 4 images", "| size | s | s per megapixel |")
    for side in settings.cost_sizes:
        _, s = step_seconds(pool, 4, side, settings)
        print(f"| {side} | {s:.5f} | {s / (4 * side**2 / 1e6):.3f} |", flush=True)
    header(f"One step, K=16, 4 images of {size} x {size}", "| M | s | s per image | set-up, s |")
    for masks in settings.cost_masks:
        setup, s = step_seconds(replace(pool, count=masks), 4, size, settings)
        print(f"| {masks} | {s:.5f} | {s / 4:.5f} | {setup:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("speed", "methods", "cost", "all"), default="all")
    parser.add_argument("--reference", type=int, default=4000, help="maximum steps of the run that gives the optimum")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 16], help="speed: block sizes K, 2 and/or 16")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that it runs")
    arguments = parser.parse_args()
    blocks = tuple(arguments.blocks)
    settings = Settings(arguments.images, arguments.size, arguments.repeats, arguments.reference, blocks=blocks)
    if arguments.quick:
        settings = Settings(2, 32, 1, 100, 30, 2.0, (1, 2), (32, 64), (16, 64, 256), 10)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", end=", ")
    print(f"{settings.images} images of {settings.size} x {settings.size}")
    parts = {"speed": speed, "methods": methods, "cost": cost}
    for name, part in parts.items():
        if arguments.part in (name, "all"):
            part(settings)


if __name__ == "__main__":
    main()
