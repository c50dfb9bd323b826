"""`tiled`: the windows, their weights, and results that depend on neither batch nor order."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import pipeline

import cryobench as cb
from cryobench.core import Imaging, Problem, Reconstruction, Solver, build_operator
from cryobench.core.windows import Windows
from cryobench.errors import ParameterError, Unsupported
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.priors.diffusion import Diffusion
from cryobench.rng import Rng
from cryobench.solvers import tiled
from cryobench.solvers.classical import Dct, Tv
from cryobench.solvers.hqs import Hqs
from cryobench.solvers.pinv import Pinv, Tikhonov
from cryobench.solvers.tiled import Tiled, WindowsOperator
from cryobench.testing.slices import CentralSlices


@dataclass(frozen=True)
class Inverse(Solver):
    """A^+ y, and numbers that tell the windows apart."""

    dims = (2, 3)

    deviates: bool = True

    def solve(self, problem, *, rng, progress=None):
        x = problem.operator.A_dagger(problem.y)
        mean = x.flatten(1).mean(dim=1)
        for step in range(1, 5):
            if progress is not None:
                progress(step, 4)
        return Reconstruction(
            x,
            {"mean": mean, "positive": mean > 0},
            {"steps": mean[:, None] * torch.arange(3)},
            x.abs() if self.deviates else None,
        )


@dataclass(frozen=True)
class Draws(Solver):
    """Noise, or one random number for each window."""

    dims = (2, 3)

    constant: bool = False

    def solve(self, problem, *, rng, progress=None):
        x = torch.zeros(problem.image_batch_shape, dtype=problem.y.dtype)
        noise = rng.stream("x").normal((1,) * (x.ndim - 1) if self.constant else x.shape[1:], dtype=x.dtype)
        return Reconstruction(x + noise)


def problem_of(recipe, shape, images=2, noise=None, dtype=torch.float64) -> Problem:
    operator = build_operator(recipe, shape, seed=1, dtype=dtype)
    x = torch.randn((images, 1, *shape), generator=torch.Generator().manual_seed(2), dtype=dtype)
    y = operator.A(x)
    sigma = torch.full((images, *[1] * (y.ndim - 1)), 0.0 if noise is None else noise, dtype=dtype)
    return Problem(operator, y, NoNoise() if noise is None else Gaussian(noise), sigma)


def solve(solver, problem, ids=("a", "b"), progress=None) -> Reconstruction:
    return solver.solve(problem, rng=Rng(3, ids[: problem.batch]), progress=progress)


@pytest.mark.parametrize(("n", "tile", "overlap", "step"), [
    (100, 32, 8, 1), (33, 32, 8, 1), (57, 32, 31, 1), (96, 32, 0, 1), (1024, 512, 64, 1), (7676, 512, 64, 4),
    (60, 33, 10, 4), (7420, 512, 64, 4), (40, 8, 4, 4),
])  # fmt: skip
def test_windows_cover_the_axis_and_their_weights_sum_to_one(n, tile, overlap, step):
    tiles = Windows((n,), tile, overlap, step)
    total, covered = torch.zeros(n, dtype=torch.float64), torch.zeros(n)
    starts = []
    for (window,) in tiles.windows:
        weights = tiles.weights((window,))
        assert window.start % step == window.stop % step == 0
        assert window.stop - window.start == len(weights) == tiles.shape[0] <= tile
        assert (weights > 0).all()
        total[window] += weights
        covered[window] += 1
        starts.append(window.start)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert covered.min() >= 1
    assert (starts[0], starts[-1] + tiles.shape[0]) == (0, n)
    assert all(first + tiles.shape[0] - second >= overlap for first, second in itertools.pairwise(starts))


@pytest.mark.parametrize(("recipe", "shape", "tile", "overlap"), [
    (Identity(), (50, 71), 24, 7), (SumPool(4), (48, 72), 21, 5), (SumPool(2, 4), (30, 26), 10, 3),
    (Identity(), (20, 9, 31), 12, 5),
])  # fmt: skip
def test_windows_of_a_separable_solution_give_the_whole_solution(recipe, shape, tile, overlap):
    """Also at the border, where windows are not blended."""
    problem = problem_of(recipe, shape)
    answer = solve(Tiled(Inverse(), tile, overlap), problem)
    expected = solve(Inverse(), problem)
    torch.testing.assert_close(answer.x, expected.x)
    assert answer.deviation is not None
    torch.testing.assert_close(answer.deviation, expected.deviation)


@pytest.mark.parametrize("solver", [Pinv(), Tikhonov(), Dct(steps=20), Draws()])
def test_an_image_no_larger_than_a_tile_gives_what_the_solver_gives(solver):
    problem = problem_of(SumPool(4), (32, 24), noise=0.1)
    answer, expected = solve(Tiled(solver, 32, 8), problem), solve(solver, problem)
    assert torch.equal(answer.x, expected.x)
    assert answer.info.keys() == expected.info.keys()


@pytest.mark.parametrize("solver", [Draws(), Tv(steps=30), Dct(steps=30)])
@pytest.mark.parametrize("recipe", [Identity(), SumPool(4, 6)])
def test_the_result_depends_on_neither_the_batch_nor_the_other_images(solver, recipe, monkeypatch):
    problem = problem_of(recipe, (40, 56), noise=0.1)
    found = []
    for at_once in (1, 3 * 24 * 24, 10**9):
        monkeypatch.setattr(tiled, "_PIXELS_AT_ONCE", at_once)
        found.append(solve(Tiled(solver, 24, 8), problem).x)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-9)
    alone = Problem(problem.operator, problem.y[1:], problem.noise, problem.sigma[1:])
    torch.testing.assert_close(solve(Tiled(solver, 24, 8), alone, ("b",)).x, found[0][1:], rtol=0, atol=1e-9)


def test_every_window_has_random_numbers_of_its_own():
    x = solve(Tiled(Draws(constant=True), 24, 0), problem_of(Identity(), (48, 48))).x
    values = {x[i, 0, row, column].item() for i in range(2) for row in (0, 47) for column in (0, 47)}
    assert len(values) == 8


def test_a_window_is_blended_smoothly_into_the_next():
    """Windows that differ by a constant: from pixel to pixel the image changes by no more than the steepest slope of a
    raised cosine, pi / (2 overlap) of the constant."""
    for shape, tile, overlap in (((40, 72), 40, 8), ((40, 68), 40, 12)):
        x = solve(Tiled(Draws(constant=True), tile, overlap), problem_of(Identity(), shape)).x
        across = x.diff(dim=-1)
        height = (x[..., :1, -1:] - x[..., :1, :1]).abs()
        assert (across.abs() <= 1.001 * math.pi / 2 / overlap * height).all()
        assert (x.diff(dim=-2).abs() < 1e-12).all()


def test_numbers_of_the_windows_are_combined_for_each_image():
    problem = problem_of(Identity(), (24, 40))
    answer = solve(Tiled(Inverse(), 24, 8), problem)
    means = torch.stack([problem.y[..., window].flatten(1).mean(dim=1) for window in (slice(0, 24), slice(16, 40))])
    torch.testing.assert_close(answer.info["mean"], means.mean(dim=0))
    assert torch.equal(answer.info["positive"], (means > 0).all(dim=0))
    torch.testing.assert_close(answer.curves["steps"], means.mean(dim=0)[:, None] * torch.arange(3))
    assert solve(Tiled(Inverse(deviates=False), 24, 8), problem).deviation is None


def test_progress_counts_all_windows(monkeypatch):
    monkeypatch.setattr(tiled, "_PIXELS_AT_ONCE", 3 * 24 * 24)
    reports: list[tuple[int, int]] = []
    problem = problem_of(Identity(), (40, 56))
    solve(Tiled(Inverse(), 24, 8), problem, progress=lambda done, steps: reports.append((done, steps)))
    assert reports == sorted(reports)
    assert len({steps for _, steps in reports}) == 1
    assert reports[-1][0] == reports[-1][1]
    assert len({done for done, _ in reports}) > 10


def test_the_operator_of_windows_is_that_of_each():
    problem = problem_of(SumPool(4, 6), (24, 40), noise=0.1)
    operator = tiled._windowed(problem, Windows((24, 40), 24, 8, 4), [((slice(0, 24), slice(s, s + 24)), i)
                               for s in (0, 16) for i in (0, 1)]).operator  # fmt: skip
    assert isinstance(operator, WindowsOperator)
    x = torch.randn((4, 1, 24, 24), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, gamma = operator.A(x), torch.tensor([0.5, 1.0, 2.0, math.inf], dtype=torch.float64)
    for i, part in enumerate(operator._parts):
        one = operator.select(slice(i, i + 1))
        for name, given in (("A", x), ("A_adjoint", y), ("A_adjoint_A", x), ("A_dagger", y), ("on_range", y)):
            expected = getattr(part, name)(given[i : i + 1])
            assert torch.equal(getattr(operator, name)(given)[i : i + 1], expected)
            assert torch.equal(getattr(one, name)(given[i : i + 1]), expected)
        expected = part.A_dagger_A(x[i : i + 1], gamma[i])
        assert torch.equal(operator.A_dagger_A(x, gamma.reshape(-1, 1, 1, 1))[i : i + 1], expected)
        assert torch.equal(operator.prox_l2(x, y, 0.7)[i : i + 1], part.prox_l2(x[i : i + 1], y[i : i + 1], 0.7))
        assert one.rank == operator.rank == problem.operator.rank * 24 * 24 // (24 * 40)
        assert one.compute_norm() == operator.compute_norm() >= part.compute_norm() * (1 - 1e-12)
        assert torch.equal(operator.norms[i : i + 1], part.norms)
        rows = slice(1, 3)
        torch.testing.assert_close(operator.rows(rows).A(x)[i], part.A(x[i : i + 1])[0, rows])


@pytest.mark.parametrize(("tile", "overlap", "message"), [
    (64, 64, "tiled: tile must be larger than overlap=64, got tile=64"),
    (32, 64, "tiled: tile must be larger than overlap=64, got tile=32"),
    (32, -1, "tiled: overlap must be zero or more pixels, got -1"),
])  # fmt: skip
def test_a_tile_no_larger_than_the_overlap_is_refused(tile, overlap, message):
    with pytest.raises(ParameterError) as refusal:
        Tiled(Pinv(), tile, overlap)
    assert str(refusal.value) == message


@pytest.mark.parametrize(("recipe", "shape", "reason"), [
    (Fourier(0.5), (32, 32), "tiled needs the operator of a window: an operator that is diagonal in Fourier mixes"),
    (Ctf(9000.0, pixel_size=2.0), (32, 32), "tiled needs the operator of a window: an operator that is diagonal"),
    (CentralSlices(), (20, 20, 20), "tiled needs the operator of a window: the operator has no operators of windows"),
    (SumPool(8), (32, 32), "multiples of 8 pixels, so tile=12 with overlap=4 is too small; use tile=16"),
])  # fmt: skip
def test_operators_without_windows_are_refused_with_the_reason(recipe, shape, reason):
    problem = problem_of(recipe, shape)
    refusal = Tiled(Pinv(), 12, 4).unsupported(problem)
    assert refusal is not None
    assert reason in refusal
    assert "\n" not in refusal
    assert Tiled(Pinv(), 64, 4).unsupported(problem) is None  # the image fits into one window


def test_the_reason_of_the_solver_is_that_for_its_windows():
    assert "even sides" in str(Tiled(cb.solver("wavelet"), 15, 4).unsupported(problem_of(Identity(), (32, 32))))
    assert Tiled(cb.solver("wavelet"), 16, 4).unsupported(problem_of(Identity(), (33, 33))) is None


def test_a_cell_of_tiled_has_its_label_and_a_refusal_its_reason(cli):
    np.save("images.npy", np.random.default_rng(0).random((2, 48, 48), np.float32))
    solver = "tiled:tikhonov,tile=32,overlap=8"
    code, _, err = cli("run", "--solver", solver, "--operator", "sumpool:4", "--operator", "fourier:0.5",
                       "--data", "images.npy", "--metric", "psnr", "--noise", "gaussian:0.1", "--no-floor")  # fmt: skip
    assert code == 0, err
    records = [json.loads(path.read_text()) for path in Path("runs").glob("*/record.json")]
    assert {record["solver"] for record in records} == {"tiled:solver=tikhonov,tile=32,overlap=8"}
    by_status = {record["status"]: record for record in records}
    assert by_status.keys() == {"ok", "skipped"}
    assert "mixes all pixels" in by_status["skipped"]["reason"]
    code, _, err = cli("run", "--solver", "tiled:tv,tile=32", "--operator", "identity", "--data", "images.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert "tile must be larger than overlap=64" in err


def test_priors_see_the_shape_of_a_window():
    assert Tiled(Pinv(), 128, 32).solved_shape((7420, 100)) == (128, 100)
    assert Tiled(Tiled(Pinv(), 64, 8), 128, 32).solved_shape((7420, 100)) == (64, 64)


def test_windows_have_the_size_of_the_training_images_of_a_prior(tmp_path):
    solver = Hqs(Diffusion(str(pipeline(tmp_path)), noise=0.0), steps=2)
    operator = build_operator(Identity(), Imaging((40, 24)), seed=0)
    windows = Tiled(solver).windows(operator)
    assert {tuple(part.stop - part.start for part in window) for window in windows} == {(16, 16)}
    assert windows == Tiled(solver, 16, 8).windows(operator)
    assert Tiled(solver).solved_shape((40, 24)) == Tiled(Tiled(solver), 32, 8).solved_shape((40, 24)) == (16, 16)
    assert Tiled(solver, 32, 8).solved_shape((40, 24)) == (32, 24)
    assert Tiled(Tv()).solved_shape((7420, 300)) == (512, 300)
    problem = problem_of(SumPool(4), (40, 24))
    torch.testing.assert_close(solve(Tiled(solver), problem).x, solve(Tiled(solver, 16, 8), problem).x)


def test_an_image_with_its_own_operator_keeps_it():
    """Operators that differ between images are selected for the image of each window."""

    class Weighted(type(build_operator(Identity(), (24, 40), seed=0))):
        images = 2

        def __init__(self, weights, shape):
            super().__init__(shape, dtype=torch.float64, device=torch.device("cpu"))
            self.weights, self.images = weights, len(weights)

        def A_dagger(self, y):
            return y * self.weights

        def select(self, images):
            return Weighted(self.weights[images], self.image_shape)

        def crop(self, window):
            crop = super().crop(window)
            return type(crop)(Weighted(self.weights, crop.operator.image_shape), crop.measurements)

    problem = problem_of(Identity(), (24, 40))
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    problem = Problem(Weighted(weights, (24, 40)), problem.y, problem.noise, problem.sigma)
    torch.testing.assert_close(solve(Tiled(Inverse(), 24, 8), problem).x, weights * problem.y)


def test_windows_of_blocks_are_not_offered_within_blocks():
    operator = build_operator(SumPool(4), Imaging((16, 16)), seed=0)
    with pytest.raises(Unsupported, match="multiples of 4 pixels, got 2"):
        operator.crop((slice(0, 8), slice(2, 10)))
