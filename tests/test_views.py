"""Operators as linear operators of SciPy and PyLops, checked with functions of these packages."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from optics import CPU, dense, live, taken
from pylops.utils import dottest
from scipy.sparse.linalg import lsqr, svds

from cryobench.core import LinearOperator, build_operator
from cryobench.errors import DependencyError, ParameterError
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.masks import Checkerboard, RandomGaussian
from cryobench.operators.sumpool import SumPool
from cryobench.views import as_pylops, as_scipy

SHAPE = (8, 12)
SAME = {
    "identity": Identity(),
    "pooling": SumPool(4, 5),
    "pooling, gaussian": SumPool(2, 3, RandomGaussian()),
    "pooling, checkerboard": SumPool(4, 2, Checkerboard()),
    "fourier": Fourier(0.4),
    "one ctf": Ctf(9000.0, 800.0, 30.0, pixel_size=3.0),
    "composed": Composed(SumPool(4, 5), Ctf(9000.0, 800.0, 30.0, pixel_size=3.0)),
}
DIFFERENT = {"ctf": Ctf(b_factor=20.0), "pooled ctf": Composed(SumPool(4, 5), Ctf())}
IMAGES = 3


class RandomMatrix(LinearOperator):
    """A dense matrix that defines only A and its transpose, as a minimal plugin does."""

    nominal_compression = 1.0
    device = CPU

    def __init__(self, shape, rows, dtype):
        self.image_shape, self.measurement_shape, self.dtype = shape, (rows, 1, 1), dtype
        drawn = torch.Generator().manual_seed(5)
        self.matrix = torch.randn((rows, math.prod(shape)), generator=drawn, dtype=torch.float64).to(dtype)

    def A(self, x):
        return (x.flatten(1) @ self.matrix.T)[..., None, None]

    def A_adjoint(self, y):
        return (y.flatten(1) @ self.matrix).reshape(-1, 1, *self.image_shape)


def operators(dtype=torch.float64):
    """Each operator with the index of each of its images."""
    same = [build_operator(recipe, SHAPE, seed=3, dtype=dtype, device=CPU) for recipe in SAME.values()]
    same.append(RandomMatrix(SHAPE, rows=20, dtype=dtype))
    different = [live(recipe, taken(IMAGES, SHAPE), dtype) for recipe in DIFFERENT.values()]
    return [(operator, 0) for operator in same] + [(operator, i) for operator in different for i in range(IMAGES)]


NAMES = [*SAME, "dense", *(f"{name} of image {i}" for name in DIFFERENT for i in range(IMAGES))]
every = pytest.mark.parametrize("at", range(len(NAMES)), ids=NAMES)
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def matrix(operator, image) -> np.ndarray:
    """The matrix of the operator for one image, from A applied to unit images, [m, N]."""
    return dense(operator) if operator.images is None else dense(operator)[image]


@every
@precisions
def test_the_views_are_the_matrix_of_unit_images(at, dtype):
    operator, image = operators(dtype)[at]
    expected = matrix(operator, image)
    unit = np.eye(expected.shape[1], dtype=expected.dtype)
    for view in (as_scipy(operator, image), as_pylops(operator, image)):
        assert (view.shape, view.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(view.matmat(unit), expected, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(view.rmatmat(np.eye(len(expected))).T, expected, atol=1e-5 * np.abs(expected).max())
        assert view.matmat(unit).dtype == view.matvec(unit[0]).dtype == expected.dtype
    np.testing.assert_allclose(as_pylops(operator, image).todense(), expected, atol=1e-6 * np.abs(expected).max())


@every
def test_vectors_columns_and_complex_numbers_agree(at):
    operator, image = operators()[at]
    for view in (as_scipy(operator, image), as_pylops(operator, image)):
        for size, one, many in ((view.shape[1], view.matvec, view.matmat), (view.shape[0], view.rmatvec, view.rmatmat)):
            columns = np.random.default_rng(0).standard_normal((size, 4))
            taken_apart = np.stack([one(column) for column in columns.T], axis=1)
            np.testing.assert_allclose(many(columns), taken_apart, atol=1e-12)
            np.testing.assert_array_equal(one(columns[:, :1])[:, 0], taken_apart[:, 0])
            np.testing.assert_allclose(
                one(columns[:, 0] + 2j * columns[:, 1]), taken_apart[:, :2] @ [1, 2j], atol=1e-12
            )
            np.testing.assert_array_equal(many(np.asfortranarray(columns)), many(columns))


def test_columns_are_one_batch():
    operator, _ = operators()[-1]
    sizes = []
    operator.select = lambda images: sizes.append(len(images)) or type(operator).select(operator, images)
    for view in (as_scipy(operator, 2), as_pylops(operator, 2)):
        view.matmat(np.ones((view.shape[1], 7)))
        view.rmatmat(np.ones((view.shape[0], 5)))
    assert sizes == [7, 5, 7, 5]


@every
@precisions
def test_the_adjoint_passes_the_dot_test_of_pylops(at, dtype):
    operator, image = operators(dtype)[at]
    np.random.seed(0)  # dottest uses the global random state
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    view = as_pylops(operator, image)
    for adjoint in (view, view.H):
        dottest(adjoint, rtol=tolerance, atol=tolerance)


@every
def test_lsqr_finds_the_minimum_norm_solution(at):
    operator, image = operators()[at]
    operator.cg_tol = 1e-12  # for iterative operators
    y = np.random.default_rng(1).standard_normal(math.prod(operator.measurement_shape))
    expected = np.linalg.pinv(matrix(operator, image), rcond=1e-6) @ y
    of_all = torch.from_numpy(y).reshape(1, *operator.measurement_shape).repeat(operator.images or 1, 1, 1, 1)
    own = operator.A_dagger(of_all)[image if operator.images else 0]
    found = lsqr(as_scipy(operator, image), y, atol=1e-14, btol=1e-14, conlim=0, iter_lim=3000)[0]
    np.testing.assert_allclose(own.flatten().numpy(), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(found, own.flatten().numpy(), atol=1e-5 * np.abs(expected).max())


@precisions
def test_the_norm_agrees_with_scipy(dtype):
    largest: dict[int, float] = {}
    found = operators(dtype)
    for place, (operator, image) in enumerate(found):
        start = np.random.default_rng(2).standard_normal(min(as_scipy(operator).shape))
        (norm,) = svds(as_scipy(operator, image), k=1, v0=start, return_singular_vectors=False)
        first = place - image
        largest[first] = max(largest.get(first, 0), norm)
    assert len(largest) == len(SAME) + 1 + len(DIFFERENT)
    for first, norm in largest.items():
        assert norm == pytest.approx(found[first][0].compute_norm(), rel=1e-3 if dtype == torch.float32 else 1e-5)


def test_pylops_accepts_images_without_flattening():
    operator, _ = operators()[1]
    image = np.random.default_rng(3).standard_normal(SHAPE)
    view = as_pylops(operator)
    y = view @ image
    assert y.shape == operator.measurement_shape
    np.testing.assert_allclose(y, operator.A(torch.from_numpy(image)[None, None])[0].numpy(), atol=1e-12)
    assert (view.H @ y).shape == SHAPE


def test_the_result_shares_no_memory_with_the_input():
    view = as_scipy(build_operator(Identity(), SHAPE, seed=0, dtype=torch.float64, device=CPU))
    x = np.zeros(math.prod(SHAPE))
    view.matvec(x)[:] = 1
    assert not x.any()


@pytest.mark.parametrize("image", [-1, IMAGES])
@pytest.mark.parametrize("view", [as_scipy, as_pylops])
def test_an_invalid_image_index_is_refused(view, image):
    operator = live(Ctf(), taken(IMAGES, SHAPE))
    with pytest.raises(ParameterError, match=f"images 0 to 2, got image={image}"):
        view(operator, image)


def test_without_pylops_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pylops", None)
    with pytest.raises(DependencyError, match="pip install pylops") as refused:
        as_pylops(operators()[0][0])
    assert "\n" not in str(refused.value)
    assert isinstance(as_scipy(operators()[0][0]).shape, tuple)
