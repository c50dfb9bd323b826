"""Volumes gap by gap: the same as of the whole problem, for any solver that fills gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cryobench.core import Filled, Gap, GapSolver, Intensities, Problem, Progress, Reconstruction, build_operator
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import NoNoise
from cryobench.operators.subsampling import Decimate, Slices
from cryobench.rng import Rng
from cryobench.solvers.gaps import fill_gaps, no_gaps
from cryobench.solvers.interpolate import Flow, Interpolate

TIMES = [0.25, 0.5, 0.75]


@dataclass(frozen=True)
class Drawn(GapSolver):
    """Two draws on the scale of mean 0 and deviation 1: noise that all gaps share, plus the time and the number."""

    dims = (3,)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        return fill_gaps(self, problem, rng=rng, progress=progress)

    def unsupported(self, problem: Problem) -> str | None:
        return no_gaps(self, problem)

    def unfillable(self, times: Sequence[float]) -> str | None:
        return None if list(times) == TIMES else f"it fills three sections, got {len(times)}"

    def fill(self, gap: Gap, *, rng: Rng, progress: Progress | None = None) -> Filled:
        noise = rng.stream("shared").normal(gap.pair.shape[1:], dtype=gap.pair.dtype)
        places = torch.tensor(gap.times, dtype=gap.pair.dtype)[:, None, None]
        x = gap.standardised.mean(0) + noise + places + gap.number
        for step in range(2):
            if progress is not None:
                progress(step + 1, 2)
        return Filled(gap.restored(x), (places * gap.volume.deviation).expand(x.shape), samples=2)


def problem(recipe, x: torch.Tensor) -> Problem:
    A = build_operator(recipe, tuple(x.shape[2:]), seed=0, dtype=x.dtype)
    y = A.A(x)
    return Problem(A, y, NoNoise(), torch.zeros((1,) * y.ndim, dtype=x.dtype))


def draw(*shape: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_intensities_of_sections_that_are_read_one_by_one():
    values = draw(5, 6, 7) * torch.arange(1, 6)[:, None, None]
    found = Intensities.of(section for section in values.float())
    assert found.mean == pytest.approx(values.numpy().mean(), rel=1e-6)
    assert found.deviation == pytest.approx(values.numpy().std(), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((float(values.min()), float(values.max())), rel=1e-6)


def test_a_gap_on_the_scale_of_its_volume():
    pair = draw(2, 6, 7)
    gap = Gap(pair, TIMES, 0, Intensities(3.0, 2.0, -5.0, 9.0))
    np.testing.assert_allclose(gap.standardised, (pair - 3) / 2, atol=1e-14)
    np.testing.assert_allclose(gap.restored(gap.standardised), pair, atol=1e-14)


@pytest.mark.parametrize("solver", [Interpolate(), Interpolate("nearest"), Flow("ilk", radius=3)])
def test_a_gap_alone_is_filled_as_in_the_volume(solver):
    given = problem(Slices(4), draw(2, 1, 13, 16, 16))
    whole = solver.solve(given, rng=Rng(0, ["0", "1"])).x
    for sections, volume in zip(given.y[:, 0], whole[:, 0], strict=True):
        for k in range(3):
            gap = Gap(sections[k : k + 2], TIMES, k, Intensities.of(sections))
            found = solver.fill(gap, rng=Rng(0, ["0"]))
            np.testing.assert_allclose(found.sections, volume[4 * k + 1 : 4 * k + 4], atol=1e-12)
            assert found.deviation is None
    assert solver.unfillable(TIMES) is None


def test_a_solver_of_gaps_solves_the_volumes_of_a_problem():
    given, steps = problem(Slices(4), draw(2, 1, 10, 5, 6)), []
    answer = Drawn().solve(given, rng=Rng(7, ["a", "b"]), progress=lambda done, total: steps.append(done / total))
    assert (answer.samples, steps[-1]) == (2, 1)
    assert steps == sorted(steps)
    assert torch.equal(answer.x[:, :, ::4], given.y)
    assert torch.equal(answer.x[:, :, 9], given.y[:, :, 2])
    for i, name in enumerate("ab"):
        y, noise = given.y[i, 0], Rng(7, [name]).stream("shared").normal((5, 6), dtype=torch.float64)[0]
        deviation = y.std(correction=0)
        for k in range(2):
            for j, t in enumerate(TIMES):
                wanted = y[k : k + 2].mean(0) + deviation * (noise + t + k)
                torch.testing.assert_close(answer.x[i, 0, 4 * k + 1 + j], wanted)
                spread = answer.deviation[i, 0, 4 * k + 1 + j]
                torch.testing.assert_close(spread, (t * deviation).expand(5, 6))
        assert not answer.deviation[i, 0, ::4].any()


@pytest.mark.parametrize(("solver", "recipe", "reason"), [
    (Drawn(), Slices(4), None),
    (Drawn(), Slices(3), "it fills three sections, got 2"),
    (Drawn(), Slices(4, 2), "it fills three sections, got 4"),
    (Drawn(), Decimate(4), "drawn interpolates between whole sections along z"),
    (Drawn(), Fourier(0.5), "it interpolates between measured pixels; it needs an operator"),
])  # fmt: skip
def test_problems_without_such_gaps_are_refused(solver, recipe, reason):
    found = solver.unsupported(problem(recipe, draw(1, 1, 16, 16, 16)))
    assert (found is None) == (reason is None)
    assert reason is None or found.startswith(reason)


def test_cubic_interpolation_fills_no_gaps():
    assert Interpolate("cubic").unfillable(TIMES) == "cubic interpolation takes all sections of a volume"
