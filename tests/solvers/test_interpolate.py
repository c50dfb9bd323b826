"""`interpolate` and `flow` against numpy, scipy and sections that move, and the floor of decimated data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline, RegularGridInterpolator
from scipy.ndimage import gaussian_filter

import cryobench as cb
from cryobench.core import Problem, build_operator
from cryobench.errors import ParameterError
from cryobench.operators.blur import Blur
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import NoNoise
from cryobench.operators.subsampling import Bin, Decimate, Slices
from cryobench.rng import Rng
from cryobench.solvers.interpolate import Flow, Interpolate
from cryobench.solvers.tiled import Tiled


def problem(recipe, x):
    A = build_operator(recipe, tuple(x.shape[2:]), seed=0, dtype=x.dtype)
    y = A.A(x)
    return Problem(A, y, NoNoise(), torch.zeros((1,) * y.ndim, dtype=x.dtype))


def solve(solver, given):
    return solver.solve(given, rng=Rng(0, [str(i) for i in range(given.batch)])).x


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("recipe", "shape", "places"), [
    (Decimate(4, 0), (14, 3), [0, 4, 8, 12]),
    (Slices(3), (8, 2, 3), [0, 3, 6]),
    (Slices(4, 3), (11, 2, 2), [1, 5, 9]),
    (Slices(4, 3), (10, 2, 2), [1, 5, 8.5]),
])  # fmt: skip
def test_interpolation_along_one_axis(recipe, shape, places):
    given = problem(recipe, draw(2, 1, *shape))
    rows, at = given.y.flatten(3).numpy(), np.clip(np.arange(shape[0]), places[0], places[-1])
    nearest = np.abs(at[:, None] - np.array(places)).argmin(axis=1)  # of two at the same distance, the first
    wanted = {
        "linear": np.apply_along_axis(lambda v: np.interp(at, places, v), 2, rows),
        "cubic": CubicSpline(places, rows, axis=2)(at),
        "nearest": rows[:, :, nearest],
    }
    for kind, expected in wanted.items():
        got = solve(Interpolate(kind), given)
        np.testing.assert_allclose(got.numpy(), expected.reshape(got.shape), atol=1e-12, err_msg=kind)


@pytest.mark.parametrize("recipe", [Decimate(3), Composed(Decimate(3), Blur(0.8)), Bin(3)])
@pytest.mark.parametrize("shape", [(9, 12), (6, 9, 6)])
def test_interpolation_along_all_axes(recipe, shape):
    given = problem(recipe, draw(1, 1, *shape))
    offset = 1 if isinstance(recipe, Bin) else 0
    places = [np.arange(offset, n, 3) for n in shape]
    at = np.meshgrid(*(np.clip(np.arange(n), p[0], p[-1]) for n, p in zip(shape, places, strict=True)), indexing="ij")
    expected = RegularGridInterpolator(places, given.y[0, 0].numpy())(np.stack(at, axis=-1))
    np.testing.assert_allclose(solve(Interpolate(), given)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("solver", [Interpolate(), Interpolate("cubic"), Flow()])
def test_a_window_with_one_section_repeats_it(solver):
    given = problem(Slices(4), draw(1, 1, 8, 4, 4))
    window = given.operator.crop((slice(4, 8), slice(0, 4), slice(0, 4)))
    part = Problem(window.operator, window.of(given.y), given.noise, given.sigma)
    assert torch.equal(solve(solver, part), window.of(given.y).expand(1, 1, 4, 4, 4))


def test_measured_rows_are_kept_and_windows_give_the_same():
    given = problem(Decimate(4, 0), draw(1, 1, 32, 32))
    whole = solve(Interpolate(), given)
    assert torch.equal(whole[..., ::4, :], given.y)
    tiled = solve(Tiled(Interpolate(), tile=16, overlap=8), given)
    torch.testing.assert_close(tiled[..., :12, :], whole[..., :12, :])


@pytest.mark.parametrize("method", ["ilk", "tvl1"])
def test_the_flow_follows_sections_that_move(method):
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal((48, 60)), 2.0, mode="wrap")
    # 1 pixel a section along y and -0.5 along x
    volume = np.stack([np.roll(smooth, z, axis=0) for z in range(9)])
    volume = np.stack([np.roll(s, -(z // 2), axis=1) if z % 2 == 0 else
                       (np.roll(s, -(z // 2), axis=1) + np.roll(s, -(z // 2) - 1, axis=1)) / 2
                       for z, s in enumerate(volume)])  # fmt: skip
    x = torch.from_numpy(volume)[None, None]
    given = problem(Slices(4), x)
    inner, missing = (slice(8, -8), slice(8, -8)), [1, 2, 3, 5, 6, 7]

    def error(solver):
        got = solve(solver, given)
        assert torch.equal(got[:, :, ::4], given.y)
        return (got - x)[0, 0, missing][:, *inner].square().mean().item()

    assert error(Flow(method)) < 0.1 * error(Interpolate())


def test_sections_after_the_last_measured_one_are_copies_of_it():
    given = problem(Slices(4), draw(1, 1, 11, 16, 16))
    got = solve(Flow("ilk"), given)
    for z in (8, 9, 10):
        assert torch.equal(got[0, 0, z], given.y[0, 0, 2])


@pytest.mark.parametrize(("solver", "recipe", "shape", "reason"), [
    (Interpolate(), Fourier(0.5), (8, 8), "it needs an operator such as decimate"),
    (Interpolate(), Ctf(9000.0, pixel_size=2.0), (8, 8), "it needs an operator such as decimate"),
    (Flow(), Fourier(0.5), (4, 8, 8), "it needs an operator such as decimate"),
    (Flow(), Decimate(2), (4, 8, 8), "whole sections along z"),
    (Flow(), Slices(2), (4, 8, 8), None),
    (Interpolate(), Bin(2), (8, 8), None),
])  # fmt: skip
def test_other_operators_are_refused(solver, recipe, shape, reason):
    found = solver.unsupported(problem(recipe, draw(1, 1, *shape)))
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_parameters_are_checked():
    for make in (lambda: Flow(attachment=0), lambda: Flow("ilk", radius=0)):
        with pytest.raises(ParameterError, match=r"flow: .* must be"):
            make()


def test_the_floor_of_decimated_images_is_linear_interpolation(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 16, 16), np.float32))
    records = cb.run(
        solvers=["pinv", "interpolate:linear"], operators=["decimate:4,axis=0", "decimate:2@blur:1", "sumpool:2"],
        data=f"{tmp_path}/x.npy", metrics=["psnr"], out=None,
    )  # fmt: skip
    found = {(record.operator, record.solver): record.floor for record in records if record.status == "ok"}
    assert found == {
        ("decimate:4,axis=0", "interpolate"): True,
        ("decimate:4,axis=0", "pinv"): False,
        ("decimate:2@blur:1", "interpolate"): True,
        ("decimate:2@blur:1", "pinv"): False,
        ("sumpool:2", "pinv"): True,
    }
