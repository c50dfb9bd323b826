"""deepinv's physics as cryobench operators: the same measurements, with an exact adjoint and exact closed forms."""

import math

import deepinv as dinv
import numpy as np
import pytest
import torch
from cryobench_deepinv import as_decomposable, as_physics, from_physics
from deepinv_small import dense, normal, operator

import cryobench as cb
from cryobench.core import adjoint_gap
from cryobench.errors import CryobenchError, IncompatibleError, ParameterError

SPECS = ["deepinv_blur:0.8", "deepinv_blur:2", "deepinv_downsampling:2", "deepinv_downsampling:4,filter=bilinear",
         "deepinv_downsampling:2,filter=bicubic", "deepinv_inpainting:0.4"]  # fmt: skip
every_operator = pytest.mark.parametrize("spec", SPECS)


@every_operator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_adjoint_passes_the_tests_of_both_libraries(spec, dtype):
    A = operator(spec, dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-11
    assert adjoint_gap(A) < tolerance
    assert as_physics(A).adjointness_test(img_size=(1, 16, 16), dtype=A.dtype, num_samples=4) < 20 * tolerance


@every_operator
def test_the_other_methods_agree_with_the_dense_matrix(spec):
    A, x = operator(spec), normal(2, 1, 16, 16)
    matrix = dense(A)
    singular = torch.linalg.svdvals(matrix)
    assert A.compute_norm() == pytest.approx(float(singular[0]), rel=1e-5)
    assert A.rank == int((singular > 1e-5).sum())
    gram, y = matrix.mT @ matrix, A.A(x)
    for gamma in (0.5, 20.0):
        expected = torch.linalg.solve(gram + torch.eye(256) / gamma, gram @ x.flatten(1).mT)
        torch.testing.assert_close(A.A_dagger_A(x, gamma).flatten(1).mT, expected, rtol=1e-5, atol=1e-5)
        z = normal(2, 1, 16, 16, seed=1)
        x_star = A.prox_l2(z, y, gamma)
        assert (gamma * A.A_adjoint(A.A(x_star) - y) + x_star - z).norm() < 1e-5 * z.norm()
    each = torch.tensor([0.5, math.inf]).reshape(2, 1, 1, 1)
    separate = torch.cat([A.A_dagger_A(x[:1], 0.5), A.A_dagger_A(x[1:])])
    torch.testing.assert_close(A.A_dagger_A(x, each), separate, rtol=1e-4, atol=1e-4)
    if spec != "deepinv_blur:2":  # its smallest factors are at the tolerance of 1e-5
        expected = torch.linalg.pinv(matrix, rtol=1e-5) @ y.flatten(1).mT
        torch.testing.assert_close(A.A_dagger(y).flatten(1).mT, expected, rtol=1e-4, atol=1e-4)


def test_measurements_are_those_of_deepinv():
    x = normal(2, 1, 16, 16, dtype=torch.float32)
    kernel = dinv.physics.functional.gaussian_blur(sigma=(1.5, 1.5))
    blur = dinv.physics.BlurFFT(img_size=(1, 16, 16), filter=kernel)
    torch.testing.assert_close(operator("deepinv_blur:1.5", "float32").A(x), blur.A(x))
    fewer = dinv.physics.Downsampling(img_size=(1, 16, 16), filter="gaussian", factor=2, padding="circular")
    torch.testing.assert_close(operator("deepinv_downsampling:2", "float32").A(x), fewer.A(x))


def test_inpainting_keeps_the_stated_fraction_of_pixels_drawn_by_the_seed():
    masks = [cb.operator("deepinv_inpainting:0.3", shape=(128, 128), seed=seed).A(torch.ones(1, 1, 128, 128))
             for seed in (0, 0, 1)]  # fmt: skip
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    assert abs(masks[0].mean() - 0.3) < 0.02


def test_converting_an_operator_to_a_physics_and_back_preserves_it():
    A, x = operator("sumpool:4"), normal(2, 1, 16, 16)
    converted = from_physics(as_physics(A), (16, 16), dtype=torch.float64)
    assert converted.measurement_shape == A.measurement_shape
    torch.testing.assert_close(converted.A(x), A.A(x))
    torch.testing.assert_close(converted.A_adjoint(A.A(x)), A.A_adjoint_A(x))
    torch.testing.assert_close(converted.A_dagger(A.A(x)), A.A_dagger(A.A(x)), rtol=1e-5, atol=1e-5)


def mask(*shape: int) -> torch.Tensor:
    """38 of 63 pixels of 7 x 9 images."""
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0))
    return (order < 38).double().reshape(1, *shape)


def blur(shape: tuple[int, int], sigma: float, dtype: torch.dtype = torch.float64) -> dinv.physics.BlurFFT:
    kernel = dinv.physics.functional.gaussian_blur(sigma=(sigma, sigma)).to(dtype)
    return dinv.physics.BlurFFT(img_size=(1, *shape), filter=kernel)


def matrix(rows: int, columns: int, rank: int) -> torch.Tensor:
    return normal(rows, rank) @ normal(rank, columns, seed=1)


def from_matrix(B: torch.Tensor, shape: tuple[int, int]) -> dinv.physics.LinearPhysics:
    return dinv.physics.LinearPhysics(A=lambda x: (x.flatten(1) @ B.mT)[:, None, None],
                                      A_adjoint=lambda y: (y.flatten(1) @ B).reshape(-1, 1, *shape))  # fmt: skip


@pytest.mark.parametrize(
    ("physics", "shape", "rank"),
    [
        (lambda: dinv.physics.Inpainting(img_size=(1, 7, 9), mask=mask(7, 9)), (7, 9), 38),
        (lambda: dinv.physics.Denoising(), (7, 9), 63),
        (lambda: dinv.physics.LinearPhysics(img_size=(1, 7, 9)), (7, 9), 63),
        (
            lambda: dinv.physics.LinearPhysics(
                A=lambda x: x.sum(-1, keepdim=True), A_adjoint=lambda y: y.expand(*y.shape[:3], 9)
            ),
            (7, 9),
            7,
        ),
        (lambda: blur((16, 16), 2.0), (16, 16), None),
        (lambda: dinv.physics.Blur(filter=torch.ones(1, 1, 4, 4).double() / 16, padding="circular"), (16, 16), None),
        (lambda: dinv.physics.Downsampling(img_size=(1, 8, 8), filter=None, factor=2, padding="circular"), (8, 8), 16),
        (lambda: from_matrix(matrix(30, 63, 11), (7, 9)), (7, 9), 11),
        (lambda: from_matrix(matrix(90, 63, 11), (7, 9)), (7, 9), 11),
        (lambda: as_physics(operator("sumpool:4,count=4")), (16, 16), None),
        (lambda: as_decomposable(operator("sumpool:4,count=4")), (16, 16), None),
    ],
)
def test_the_rank_is_that_of_the_dense_matrix(physics, shape, rank):
    A = from_physics(physics(), shape, dtype=torch.float64)
    found = np.linalg.matrix_rank(dense(A).numpy(), tol=1e-5 if A.closed_form else None)
    assert A.rank == found
    assert rank in (None, found)


def test_the_rank_of_a_large_physics_is_known_by_its_structure_or_must_be_stated():
    assert from_physics(blur((128, 128), 1.0, torch.float32), (128, 128)).rank == 128**2
    physics = dinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")
    A = from_physics(physics, (64, 64))
    with pytest.raises(IncompatibleError, match="the rank of Blur, with 4096 measurements of 4096 pixels, is unknown"):
        _ = A.rank
    assert from_physics(physics, (64, 64), rank=4000).rank == 4000
    with pytest.raises(ParameterError, match=r"rank must lie in 0 .. 4096"):
        from_physics(physics, (64, 64), rank=5000)


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (lambda: dinv.physics.LinearPhysics(A=torch.fft.fft2, A_adjoint=torch.fft.ifft2), "gives torch.complex64"),
        (lambda: dinv.physics.LinearPhysics().stack(dinv.physics.LinearPhysics()), "gives TensorList"),
        (lambda: dinv.physics.LinearPhysics(A=lambda x: x[:, 0]), r"real measurements \[1, M, h, w\]"),
        (lambda: dinv.physics.Haze(), "got Haze, which is not linear"),
        (lambda: dinv.physics.LinearPhysics(A=lambda x: x + 1), "LinearPhysics maps 2 x . z to something else"),
        (lambda: dinv.physics.LinearPhysics(A=torch.abs), "LinearPhysics maps 2 x . z to something else"),
        (
            lambda: dinv.physics.LinearPhysics(A=lambda x: x.roll(1, -1), A_adjoint=lambda y: y),
            "is not the transpose of A",
        ),
        (lambda: dinv.physics.LinearPhysics(A=lambda x: x[..., ::2], A_adjoint=lambda y: y), "A_adjoint of Linear"),
        (lambda: dinv.physics.LinearPhysics(A=lambda x: x.double()), "in the dtype of an image"),
        (lambda: dinv.physics.LinearPhysics(A=lambda x: x * math.inf), "not finite"),
        (lambda: dinv.physics.Inpainting(img_size=(1, 9, 7), mask=mask(9, 7).float()), "cannot be applied to an image"),
        (lambda: dinv.physics.Inpainting(img_size=(3, 7, 9), mask=mask(7, 9).float().expand(3, 7, 9)), "one channel"),
        (
            lambda: dinv.physics.LinearPhysics(),
            r"cannot be applied to measurements \[1, 1, 7, 9\] \(ValueError: img_size",
        ),
        (lambda: dinv.physics.CompressedSensing(m=20, img_size=(1, 7, 9)), r"gives torch.float32 \[1, 20\]"),
        (lambda: dinv.physics.MRI(img_size=(2, 7, 9)), "MRI"),
        (lambda: dinv.physics.MultiCoilMRI(img_size=(2, 7, 9), coil_maps=torch.ones(1, 3, 7, 9) + 0j), "MultiCoilMRI"),
        (lambda: dinv.physics.Demosaicing(img_size=(3, 7, 9)), "Demosaicing"),
        (lambda: torch.nn.Identity(), "got Identity, which is not linear"),
    ],
)
def test_physics_that_cannot_be_operators_are_refused_in_one_line(physics, message):
    with pytest.raises(IncompatibleError, match=message) as caught:
        from_physics(physics(), (7, 9))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", [(7,), (2, 7, 9), (0, 9)])
def test_a_shape_that_is_not_of_an_image_is_refused(shape):
    with pytest.raises(IncompatibleError, match=r"expected the shape \(H, W\)"):
        from_physics(dinv.physics.LinearPhysics(), shape)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("deepinv_blur:0", "sigma must be positive"), ("deepinv_blur:9", "kernel"), ("deepinv_downsampling:3", "divide"),
     ("deepinv_downsampling:0", "at least 1"), ("deepinv_downsampling:8", "pixels wide"),
     ("deepinv_inpainting:0", "keep must lie")],
)  # fmt: skip
def test_invalid_parameters_are_refused_before_any_work(spec, message):
    with pytest.raises(CryobenchError, match=message):
        operator(spec)


@pytest.mark.parametrize("spec", ["deepinv_blur", "deepinv_downsampling", "deepinv_inpainting"])
def test_it_runs_by_name(spec):
    (record,) = cb.run("pinv", spec, images="0", noises="gaussian:rel=0.05")
    assert record.status == "ok", record.reason
