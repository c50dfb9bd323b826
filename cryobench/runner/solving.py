"""Runs a solver; shared by `run`, `reconstruct` and `cb.solve`.

Prepares priors, divides images into batches, solves each batch with the global state isolated, checks every result, and
measures the cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from cryobench.core import Prior, Problem, Reconstruction, Solver, meters, unsupported_dims
from cryobench.core.kept_draws import keeping
from cryobench.core.recording import Recording, recording
from cryobench.errors import Unsupported
from cryobench.global_state import restored
from cryobench.numerics.linalg import concatenate_curves, item_axes
from cryobench.plan.grid import with_nested
from cryobench.rng import Rng, generator
from cryobench.runner.checks import DEVIATION, batches, checked_reconstruction


@dataclass(frozen=True)
class Costs:
    """The cost of solving a number of images.

    setup_seconds: time to prepare priors. solver_seconds: time of `solve`, device synchronised; network_seconds and
    operator_seconds are parts of it. calls: applications by name, counted in images. peak_memory_mib: see
    `meters.PeakMemory`.
    """

    images: int = 0
    setup_seconds: float = 0.0
    solver_seconds: float = 0.0
    network_seconds: float = 0.0
    operator_seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    peak_memory_mib: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        """The cost of both, one after the other."""
        return Costs(
            self.images + other.images,
            self.setup_seconds + other.setup_seconds,
            self.solver_seconds + other.solver_seconds,
            self.network_seconds + other.network_seconds,
            self.operator_seconds + other.operator_seconds,
            self.calls + other.calls,
            max(self.peak_memory_mib, other.peak_memory_mib),
        )

    @property
    def counters(self) -> dict[str, float]:
        """Network evaluations and operator applications, per image."""
        n = self.images
        operator_calls = {name: images / n for name, images in self.calls.items() if name != meters.NETWORK}
        nfe = self.calls[meters.NETWORK] / n
        return {"nfe": nfe, "operator_calls": sum(operator_calls.values()), **operator_calls}


@dataclass(frozen=True)
class Solved:
    """The reconstruction of images and its cost. iterates: the recorded iterates of the first image, if requested."""

    reconstruction: Reconstruction
    iterates: Recording | None
    costs: Costs


def averaged(first: Solved, second: Solved) -> Solved:
    """The mean of the reconstructions of two halves of the same images, with the cost of both.

    Numbers and curves of the solver are those of the first half; there is no deviation.
    """
    halves = first.reconstruction.x, second.reconstruction.x
    answer = first.reconstruction
    info = {name: values for name, values in answer.info.items() if name != DEVIATION}
    mean = Reconstruction((halves[0] + halves[1]) / 2, info, answer.curves, halves=halves)
    costs = replace(first.costs + second.costs, images=first.costs.images)
    return Solved(mean, first.iterates, costs)


def solve(
    solver: Solver,
    problem: Problem,
    ids: Sequence[str],
    *,
    seed: int,
    batch: int,
    prepared: bool = False,
    record_iterates: bool = False,
    keep_draws: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Solved:
    """Solve for all images of a problem, `batch` at a time.

    ids: image ids, which key all randomness. prepared: whether the solver is prepared already. record_iterates: record
    the iterates of the first image. keep_draws: return the draws of samplers. progress: called
    with the fraction done. Raises `Unsupported` if the solver does not support the problem, `PluginError` for a result
    that breaks the contract.
    """
    device = problem.operator.device
    with isolated(seed):
        check_supported(solver, problem)
    setup_seconds = 0.0
    if not prepared:
        with isolated(seed):
            setup_seconds = prepare(solver, device)
    watch = meters.Stopwatch(device)
    iterates = Recording() if record_iterates else None
    with meters.PeakMemory(device) as peak, meters.counting() as tally, keeping(keep_draws):
        parts = list(solve_parts(solver, problem, ids, seed=seed, batch=batch, iterates=iterates, watch=watch,
                                 progress=progress))  # fmt: skip
    seconds = tally.seconds
    network_seconds = seconds.pop(meters.NETWORK, 0.0)
    costs = Costs(
        images=len(ids),
        setup_seconds=setup_seconds,
        solver_seconds=watch.seconds,
        network_seconds=network_seconds,
        operator_seconds=sum(seconds.values()),
        calls=tally.images,
        peak_memory_mib=peak.mib,
    )
    return Solved(joined(parts), iterates, costs)


def solve_parts(
    solver: Solver,
    problem: Problem,
    ids: Sequence[str],
    *,
    seed: int,
    batch: int,
    iterates: Recording | None = None,
    watch: AbstractContextManager[object] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Reconstruction]:
    """Yield the checked results batch by batch, with bounded memory. The solver must be prepared and supported.

    iterates: receives the iterates of the first batch. watch: entered around every call of `solve`.
    """
    n = len(ids)

    def report(fraction: float) -> None:
        if progress is not None:
            progress(fraction)

    for part in batches(n, batch):
        own = ids[part]

        def step(done: int, total: int, start: int = part.start, size: int = len(own)) -> None:
            report((start + size * done / max(total, 1)) / n)

        with isolated(seed):
            recorded = nullcontext() if iterates is None or part.start > 0 else recording(into=iterates)
            given = part_of(problem, part)
            with recorded, watch or nullcontext():
                answer = solver.solve(given, rng=Rng(seed, own), progress=step)
            checked = checked_reconstruction(answer, given)
        yield checked
        report(part.stop / n)


def check_supported(solver: Solver, problem: Problem) -> None:
    """Raise `Unsupported`, with the reason, if a solver does not support a problem."""
    reason = unsupported_dims(solver, problem.operator.image_shape) or solver.unsupported(problem)
    if reason is not None:
        raise Unsupported(reason)


def prepare(solver: Solver, device: torch.device) -> float:
    """Load the weights of a solver's priors. Returns the time in seconds."""
    with meters.Stopwatch(device) as watch:
        for part in with_nested(solver):
            if isinstance(part, Prior):
                part.prepare(device)
    return watch.seconds


def isolated(seed: int) -> restored:
    """A block that calls a plugin: all global state is restored after it, and global random states are fixed in it.

    Solvers must draw from their `rng` argument; this makes those that use the global states reproducible too.
    """
    return restored(seed=generator("global state", seed).initial_seed())


def part_of(problem: Problem, part: slice) -> Problem:
    """The problem for some of the images, with copies of the tensors, which the solver may modify."""
    whole = len(range(problem.batch)[part]) == problem.batch
    return replace(
        problem,
        operator=problem.operator if whole else problem.operator.select(part),
        y=problem.y[part].clone(),
        sigma=problem.sigma[part].clone(),
        scale=problem.scale.select(part),
    )


def without_pixels(answer: Reconstruction) -> Reconstruction:
    """The numbers and curves of a result, on the CPU."""
    info = {name: values.cpu() for name, values in answer.info.items()}
    curves = {name: curve.cpu() for name, curve in answer.curves.items()}
    return Reconstruction(answer.x[:0].cpu().clone(), info, curves)  # a view would keep all pixels in memory


def joined(parts: Sequence[Reconstruction]) -> Reconstruction:
    """Concatenate the results of the batches. Info and curves that are missing in some batches are omitted."""
    names = set.intersection(*(set(part.info) for part in parts))
    info = {name: torch.cat([part.info[name] for part in parts]) for name in parts[0].info if name in names}
    curve_names = set.intersection(*(set(part.curves) for part in parts))
    curves = {name: concatenate_curves([part.curves[name] for part in parts]) for name in curve_names}
    deviations = [part.deviation for part in parts if part.deviation is not None]
    deviation = torch.cat(deviations) if len(deviations) == len(parts) else None
    if deviation is not None:
        info[DEVIATION] = deviation.double().square().mean(dim=item_axes(deviation)).sqrt()
    samples = parts[0].samples if len({part.samples for part in parts}) == 1 else None
    # of joint solvers, which have one part
    volumes, many = (parts[0].volumes, parts[0].heterogeneity) if len(parts) == 1 else ({}, None)
    x = torch.cat([part.x for part in parts])
    kept = [part.draws for part in parts if part.draws is not None]
    draws = torch.cat(kept) if len(kept) == len(parts) else None
    return Reconstruction(x, info, curves, deviation, samples=samples, volumes=volumes, heterogeneity=many, draws=draws)
