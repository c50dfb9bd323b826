"""deepinv's physics as cryobench operators: the same measurements, with an exact adjoint and exact closed forms."""

import math

import deepinv as dinv
import pytest
import torch
from cryobench_deepinv import as_physics, from_physics
from deepinv_small import dense, normal, operator

import cryobench as cb
from cryobench.core import adjoint_gap
from cryobench.errors import CryobenchError, IncompatibleError

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


def test_physics_of_other_measurements_are_refused():
    complex_valued = dinv.physics.LinearPhysics(A=torch.fft.fft2, A_adjoint=torch.fft.ifft2)
    stacked = dinv.physics.LinearPhysics().stack(dinv.physics.LinearPhysics())
    for physics in (complex_valued, stacked):
        with pytest.raises(IncompatibleError, match=r"expected real measurements \[M, h, w\]"):
            from_physics(physics, (16, 16))


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
