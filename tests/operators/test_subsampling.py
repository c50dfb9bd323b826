"""`decimate`, `bin`, `slices` and `blur`, alone and composed, against dense matrices, numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optics import ctf_table
from scipy.ndimage import gaussian_filter

from cryobench.core import Imaging, adjoint_gap, build_operator
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, ParameterError, Unsupported
from cryobench.operators.aliased import AliasedOperator
from cryobench.operators.blur import Blur
from cryobench.operators.composed import Composed, ComposedOperator
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.subsampling import Bin, Decimate, Slices

ALONE = [
    (Decimate(4, 0), (16, 6)), (Decimate(4, 0), (13, 5)), (Decimate(3, 1), (5, 11)), (Decimate(2), (8, 7)),
    (Decimate(2), (4, 3, 5)), (Bin(3), (9, 6)), (Bin(3), (8, 7)), (Bin(2), (4, 3, 6)),
    (Slices(3), (7, 4, 3)), (Slices(4, 3), (9, 3, 4)), (Slices(4, 4), (10, 3, 4)), (Slices(2, 2), (8, 2, 3)),
]  # fmt: skip
COMPOSED = [
    (Composed(Decimate(2), Blur(0.9)), (8, 12)),
    (Composed(Decimate(3, 0), Blur(0.7)), (9, 5)),
    (Composed(Decimate(2, 1), Blur(0.7, axis=0)), (7, 6)),
    (Composed(Bin(2), Blur(0.6)), (8, 6)),
    (Composed(Bin(3), Blur(0.6)), (9, 15)),
    (Composed(Decimate(2), Fourier(0.4)), (8, 6)),
    (Composed(Slices(2), Blur(0.8)), (4, 3, 5)),
    (Composed(Slices(4, 3), Blur(0.5, axis=0)), (8, 3, 4)),
    (Composed(Decimate(2), Composed(Blur(0.5), Ctf(9000.0, 800.0, 30.0, pixel_size=3.0))), (8, 10)),
]
CASES = [*ALONE, *COMPOSED, (Blur(0.8), (7, 6)), (Blur(1.5, axis=0), (5, 4, 3))]
cases = pytest.mark.parametrize(("recipe", "shape"), CASES, ids=repr)


def build(recipe, shape, dtype=torch.float64):
    return build_operator(recipe, shape, seed=3, dtype=dtype)


def draw(count, shape, dtype=torch.float64, seed=0):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(A) -> np.ndarray:
    """The matrix of A, column by column."""
    N = math.prod(A.image_shape)
    return A.A(torch.eye(N, dtype=A.dtype).reshape(N, 1, *A.image_shape)).reshape(N, -1).T.numpy()


def expected_matrix(recipe, shape) -> np.ndarray:
    """The matrix of `decimate`, `bin` or `slices`, row by row from its definition."""
    dims = len(shape)
    axes = []
    for n, R, t in zip(shape, recipe.steps(dims), recipe.thicknesses(dims), strict=True):
        rows = [np.isin(np.arange(n), range(start, start + t)) for start in range(0, n, R)]
        axes.append(np.array([row / row.sum() for row in rows]))
    matrix = np.ones((1, 1))
    for axis in axes:
        matrix = np.kron(matrix, axis)
    return matrix


@pytest.mark.parametrize(("recipe", "shape"), ALONE, ids=repr)
def test_the_matrix_is_that_of_the_definition(recipe, shape):
    A = build(recipe, shape)
    np.testing.assert_allclose(dense(A), expected_matrix(recipe, shape), atol=1e-15)
    assert A.closed_form
    assert A.nonnegative


@pytest.mark.parametrize(("width", "axis"), [(0.4, None), (1.7, None), (1.2, 1), (9.0, 0)])
@pytest.mark.parametrize("shape", [(12, 15), (10, 9, 16)])
def test_the_blur_is_that_of_scipy(width, axis, shape):
    A, x = build(Blur(width, axis), shape), draw(1, (1, *shape))
    widths = [width if axis in (None, i) else 0.0 for i in range(len(shape))]
    wanted = gaussian_filter(x[0, 0].numpy(), widths, mode="wrap", truncate=20)
    np.testing.assert_allclose(A.A(x)[0, 0].numpy(), wanted, atol=1e-12)
    assert A.nonnegative
    assert A.A(torch.eye(x[0].numel()).double().reshape(-1, 1, *shape)[:1]).min() > -1e-15


@cases
def test_adjoint_pseudo_inverse_and_proximal_step_against_the_dense_matrix(recipe, shape):
    A = build(recipe, shape)
    D = dense(A)
    x, z, y = draw(2, (1, *shape)), draw(2, (1, *shape), seed=1), draw(2, A.measurement_shape, seed=2)
    flat = [v.flatten(1).numpy().T for v in (x, z, y)]
    U, s, V = np.linalg.svd(D, full_matrices=False)
    kept = s > 1e-6 * s[0]
    U, s, V = U[:, kept], s[kept], V[kept]
    gamma = 0.7
    solve = np.linalg.inv(D.T @ D + np.eye(D.shape[1]) / gamma)
    for got, wanted in (
        (A.A(x), D @ flat[0]),
        (A.A_adjoint(y), D.T @ flat[2]),
        (A.A_adjoint_A(x), D.T @ (D @ flat[0])),
        (A.A_dagger(y), V.T @ ((U.T @ flat[2]) / s[:, None])),
        (A.A_dagger_A(x), V.T @ (V @ flat[0])),
        (A.A_dagger_A(x, gamma), solve @ (D.T @ (D @ flat[0]))),
        (A.prox_l2(z, y, gamma), solve @ (D.T @ flat[2] + flat[1] / gamma)),
        (A.mean_response, D.sum(axis=1, keepdims=True)),
    ):
        np.testing.assert_allclose(got.flatten(1).numpy().T, wanted, atol=1e-9 * max(1, np.abs(wanted).max()))
    assert A.compute_norm() == pytest.approx(s[0], rel=1e-10)
    assert A.rank == len(s)
    assert adjoint_gap(build(recipe, shape, torch.float32)) < 1e-5


@pytest.mark.parametrize(("recipe", "shape"), COMPOSED, ids=repr)
def test_decimation_after_a_blur_is_closed_form(recipe, shape):
    A = build(recipe, shape)
    assert isinstance(A, AliasedOperator)
    x = draw(3, (1, *shape), torch.float32)
    single = build(recipe, shape, torch.float32)
    gamma = torch.tensor([0.01, 5.0, torch.inf])
    torch.testing.assert_close(single.A_dagger_A(x, gamma).double(), A.A_dagger_A(x.double(), gamma), atol=2e-5, rtol=0)
    # the same image alone and in a batch rounds the same
    assert torch.equal(single.A(x)[1:2], single.A(x[1:2]))
    assert torch.equal(single.A_dagger_A(x)[1:2], single.A_dagger_A(x[1:2]))


def test_sides_that_the_step_does_not_divide_are_solved_by_iteration():
    A = build(Composed(Decimate(2), Blur(0.9)), (7, 9))
    assert isinstance(A, ComposedOperator)
    D, y = dense(A), draw(1, A.measurement_shape)
    wanted = np.linalg.pinv(D) @ y.flatten().numpy()
    np.testing.assert_allclose(A.A_dagger(y).flatten().numpy(), wanted, atol=1e-6 * np.abs(wanted).max())


def test_decimation_after_the_ctf_of_each_image():
    A = build_operator(Composed(Decimate(2), Ctf()), Imaging((8, 10), (2.0,) * 3, ctf_table(3)), seed=0,
                       dtype=torch.float64)  # fmt: skip
    assert isinstance(A, AliasedOperator)
    y = draw(3, A.measurement_shape)
    whole = A.A_dagger(y)
    for i in range(3):
        one = A.select(slice(i, i + 1))
        wanted = np.linalg.pinv(dense(one), rcond=1e-6) @ y[i].flatten().numpy()
        np.testing.assert_allclose(one.A_dagger(y[i : i + 1]).flatten().numpy(), wanted, atol=1e-8)
        torch.testing.assert_close(whole[i : i + 1], one.A_dagger(y[i : i + 1]), rtol=1e-12, atol=1e-12)
    with pytest.raises(IncompatibleError, match="use `select` first"):
        A.A(draw(2, A.domain_shape))


@pytest.mark.parametrize(("recipe", "shape"), [*ALONE, COMPOSED[1]], ids=repr)
def test_measurements_of_a_ramp_are_the_positions(recipe, shape):
    A = CountingOperator(build(recipe, shape))
    assert A.positions is not None
    for axis, (n, places) in enumerate(zip(shape, A.positions, strict=True)):
        if isinstance(recipe, Composed):  # its borders are periodic
            continue
        ramp = torch.arange(n, dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1 - axis)).expand(shape)
        wanted = places.reshape(-1, *[1] * (len(shape) - 1 - axis)).expand(A.measurement_shape)
        torch.testing.assert_close(A.A(ramp[None, None])[0], wanted)


def test_windows_are_at_multiples_of_the_step():
    A, y = build(Slices(4, 2), (16, 8, 12)), draw(1, (1, 4, 8, 12))
    window = (slice(4, 12), slice(0, 8), slice(8, 12))
    crop = A.crop(window)
    torch.testing.assert_close(crop.operator.A_dagger(crop.of(y)), A.A_dagger(y)[(..., *window)])
    with pytest.raises(Unsupported, match="sides that are multiples of 4, got 15 x 8 x 8"):
        build(Slices(4), (15, 8, 8)).crop((slice(0, 4), slice(0, 8), slice(0, 8)))


@pytest.mark.parametrize(("recipe", "shape", "message"), [
    (lambda: Slices(1), None, "slices: step must be at least 2, got 1; the operator that keeps all is identity"),
    (lambda: Decimate(0), None, "decimate: step must be at least 2, got 0"),
    (lambda: Slices(3, 4), None, "slices: thickness must be between 1 and the step 3, got 4"),
    (lambda: Decimate(2, 3), None, "decimate: axis must be 0, 1 or 2"),
    (lambda: Decimate(2, 2), (8, 8), "decimate: axis=2, but images of 8 x 8 have the axes 0 to 1"),
    (lambda: Slices(6), (5, 8, 8), "slices:6 measures only one of 5 positions of images of 5 x 8 x 8"),
    (lambda: Slices(5), (5, 8, 8), "expected a step of at most 4"),
    (lambda: Slices(2), (8, 8), r"slices supports volumes \(3-D\), got images \(2-D\) of 8 x 8"),
    (lambda: Blur(0.0), None, "blur: width must be a positive number of pixels, got 0"),
    (lambda: Blur(math.nan), None, "blur: width must be a positive number of pixels, got nan"),
    (lambda: Blur(9.0), (8, 20), "blur: width 9 is more than a side of 8 pixels"),
    (lambda: Blur(1.0, 2), (8, 8), "blur: axis=2, but images of 8 x 8 have the axes 0 to 1"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_one_line(recipe, shape, message):
    with pytest.raises((IncompatibleError, ParameterError), match=message) as error:
        build(recipe(), shape)
    assert "\n" not in str(error.value)
