"""Problems of missing sections, solved gap by gap."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from cryobench.core import Gap, GapSolver, Intensities, Problem, Progress, Reconstruction
from cryobench.rng import Rng

NO_GRID = "it interpolates between measured pixels; it needs an operator such as decimate, bin or slices"


def no_gaps(solver: GapSolver, problem: Problem) -> str | None:
    """The reason why a solver cannot fill the gaps of a problem, or None."""
    grid, shape = problem.operator.positions, problem.operator.image_shape
    if grid is None:
        return NO_GRID
    if any(len(places) < n for places, n in zip(grid[1:], shape[1:], strict=True)):
        name = type(solver).__name__.lower()
        return f"{name} interpolates between whole sections along z; it needs slices, or decimate with axis=0"
    reasons = (solver.unfillable(times) for _, times in _gaps(grid[0].numpy(), shape[0]))
    return next((reason for reason in reasons if reason is not None), None)


def fill_gaps(solver: GapSolver, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
    """The volumes of a problem with the sections at measured places as measured and those between filled by the solver.

    Sections beyond the outermost measured ones are copies of these.
    """
    y, shape = problem.y[:, 0], problem.image_batch_shape
    places = (problem.operator.positions or (torch.empty(0),))[0].numpy()
    gaps = list(_gaps(places, shape[2]))
    x, deviation = y.new_empty(shape), y.new_zeros(shape)
    has_deviation, samples, done = False, None, 0

    def report(step: int, steps: int) -> None:
        if progress is not None:
            progress(done * steps + step, len(y) * len(gaps) * steps)

    for sections, volume, spread, name in zip(y, x[:, 0], deviation[:, 0], rng.image_ids, strict=True):
        intensities, own = Intensities.of(sections), Rng(rng.seed, [name])
        for z in range(shape[2]):
            volume[z] = sections[np.searchsorted(places, z, side="right").clip(1) - 1]
        for k, (missing, times) in enumerate(gaps):
            if missing:
                found = solver.fill(Gap(sections[k : k + 2], times, k, intensities), rng=own, progress=report)
                volume[missing], samples = found.sections, found.samples
                if found.deviation is not None:
                    spread[missing], has_deviation = found.deviation, True
            done += 1
            report(0, 1)
    return Reconstruction(x, deviation=deviation if has_deviation else None, samples=samples)


def _gaps(places: np.ndarray, n: int) -> Iterator[tuple[list[int], list[float]]]:
    """Of each gap between neighbouring places the sections of 0 ... n - 1 within it, and their times in it."""
    for first, second in pairwise(places):
        missing = [z for z in range(n) if first < z < second]
        yield missing, [float((z - first) / (second - first)) for z in missing]
