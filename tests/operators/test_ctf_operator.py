"""`ctf` with each image's own parameters, against its formula on the whole spectrum and against single images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from optics import CPU, ctf_table, dense, live, rows, taken

from cryobench.core import Imaging, adjoint_gap, build_operator, check_operator, mean_intensity
from cryobench.errors import DataError, IncompatibleError, ParameterError
from cryobench.operators.ctf import Ctf
from cryobench.operators.spectral import SpectralOperator

SHAPES = [(16, 16), (8, 24), (15, 9), (16, 9), (9, 16)]


def images(n, shape, dtype=torch.float64, seed=0):
    return torch.rand((n, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def whole_ctf(row, shape, pixel_size):
    """The CTF on the whole grid of `fft2`, by the angle of k: the textbook formula, its mean at 1/2 and -1/2."""
    wave = 12.2642598 / math.sqrt(300e3 * (1 + 300e3 * 0.978475598e-6))
    U, V, axis = row.rlnDefocusU, row.rlnDefocusV, np.radians(row.rlnDefocusAngle)
    found = []
    for signs in itertools.product((-1, 1), repeat=2):
        ky, kx = (
            np.where(k == -0.5, 0.5 * sign, k) / pixel_size
            for k, sign in zip(map(np.fft.fftfreq, shape), signs, strict=True)
        )
        k2, angle = ky[:, None] ** 2 + kx**2, np.arctan2(ky[:, None], kx)
        defocus = (U + V) / 2 + (U - V) / 2 * np.cos(2 * (angle - axis))
        chi = np.pi * wave * defocus * k2 - np.pi / 2 * 2.7e7 * wave**3 * k2**2
        found.append(np.sin(chi + np.arcsin(0.1)))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_each_image_is_multiplied_by_its_own_ctf(shape):
    imaging, x = taken(3, shape), images(3, shape)
    y = live(Ctf(), imaging).A(x)
    for i, row in enumerate(imaging.table.itertuples()):
        wanted = np.fft.ifft2(whole_ctf(row, shape, 2.0) * np.fft.fft2(x[i, 0].numpy()))
        assert np.abs(wanted.imag).max() < 1e-12
        np.testing.assert_allclose(y[i, 0].numpy(), wanted.real, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_it_is_self_adjoint_to_the_last_digits(shape):
    operator = live(Ctf(), taken(3, shape))
    for matrix in dense(operator):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    for seed in range(5):
        assert adjoint_gap(operator, seed=seed) < 1e-14
    x = images(3, shape)
    torch.testing.assert_close(operator.A_adjoint_A(x), operator.A_adjoint(operator.A(x)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_closed_forms_of_different_images_against_numpy(shape):
    operator = live(Ctf(b_factor=20.0), taken(3, shape))
    y, z = images(3, shape, seed=1), images(3, shape, seed=2)
    matrices = dense(operator)
    gamma = torch.tensor([0.5, 20.0, np.inf], dtype=torch.float64).reshape(3, 1, 1, 1)
    filtered = operator.A_dagger_A(z, gamma)
    for i, matrix in enumerate(matrices):
        wanted = np.linalg.pinv(matrix) @ y[i].flatten().numpy()
        np.testing.assert_allclose(operator.A_dagger(y)[i].flatten().numpy(), wanted, atol=1e-9 * np.abs(wanted).max())
        normal, N = matrix.T @ matrix, matrix.shape[1]
        wanted = np.linalg.solve(
            normal + np.eye(N) / 0.7, matrix.T @ y[i].flatten().numpy() + z[i].flatten().numpy() / 0.7
        )
        np.testing.assert_allclose(operator.prox_l2(z, y, 0.7)[i].flatten().numpy(), wanted, atol=1e-10)
        wanted = np.linalg.solve(normal + np.eye(N) / gamma[i].item(), normal @ z[i].flatten().numpy())
        np.testing.assert_allclose(filtered[i].flatten().numpy(), wanted, atol=1e-8)
    largest = max(np.linalg.norm(matrix, 2) for matrix in matrices)
    assert operator.compute_norm() == pytest.approx(largest, rel=1e-12)
    assert operator.rank == min(np.linalg.matrix_rank(matrix) for matrix in matrices)


@pytest.mark.parametrize("shape", [(32, 32), (15, 9)], ids=repr)
def test_results_do_not_depend_on_the_batch(shape):
    imaging, x = taken(9, shape), images(9, shape, torch.float32)
    operator = live(Ctf(), imaging, torch.float32)
    y = operator.A(x)
    ways = {
        "slice": (operator.select(slice(3, 6)), slice(3, 6)),
        "indices": (operator.select(torch.tensor([7, 2])), torch.tensor([7, 2])),
        "mask": (operator.select(torch.arange(9) == 4), torch.arange(9) == 4),
        "again": (operator.select(slice(2, 8)).select(slice(1, 3)), slice(3, 5)),
        "alone": (live(Ctf(), rows(imaging, [5]), torch.float32), slice(5, 6)),
    }
    for own, chosen in ways.values():
        for name, batch in (("A", x), ("A_adjoint", y), ("A_adjoint_A", x), ("A_dagger", y), ("A_dagger_A", x)):
            assert torch.equal(getattr(own, name)(batch[chosen]), getattr(operator, name)(batch)[chosen]), name
        assert torch.equal(own.mean_response, operator.mean_response[chosen])
        assert torch.equal(mean_intensity(own, y[chosen]), mean_intensity(operator, y)[chosen])
        assert own.images == len(x[chosen])


def test_norm_and_rank_are_those_of_all_images_in_every_part():
    imaging = taken(6, (16, 16))
    imaging.table["rlnCtfBfactor"] = [0, 50, 5000, 0, 0, 0]  # an envelope that leaves little of the third
    operator = live(Ctf(), imaging)
    singles = [live(Ctf(), rows(imaging, [i])) for i in range(6)]
    assert operator.compute_norm() == max(single.compute_norm() for single in singles)
    ranks = [single.rank for single in singles]
    assert ranks[2] < 200
    assert operator.rank == sum(ranks) // 6
    chosen = operator.select(slice(2, 3))
    assert (chosen.compute_norm(), chosen.rank) == (operator.compute_norm(), operator.rank)


def test_null_coefficients_are_distinguished_from_small_ones():
    def operator(dtype):
        w = torch.ones(1, 1, 16, 9, dtype=torch.float64)
        w[..., 1, 2], w[..., 3, 4] = 2e-6, 5e-7
        return SpectralOperator(w, (16, 16), dtype=dtype, device=CPU)

    double = operator(torch.float64)
    assert double.rank == 254  # the null coefficient and its mirror
    x = images(1, (16, 16))
    error = torch.fft.rfft2(double.A_dagger(double.A(x)) - x).abs()
    assert error[..., 1, 2] < 1e-9
    assert error[..., 3, 4] == pytest.approx(torch.fft.rfft2(x).abs()[..., 3, 4].item())
    single = operator(torch.float32)
    rest = torch.fft.rfft2(single.A_dagger(single.A(x.float())) - x).abs()
    rest[..., 3, 4] = 0
    assert rest.max() < 0.3 * torch.fft.rfft2(x).abs().square().mean().sqrt()


def test_exact_measurements_in_single_precision_lose_nothing():
    shape = (128, 128)
    x, operator = images(4, shape, torch.float32), live(Ctf(), taken(4, shape, pixel_size=1.3), torch.float32)
    assert operator.rank == 128 * 128
    error = (operator.A_dagger(operator.A(x)) - x).square().mean() / 4
    assert -10 * math.log10(error) > 90


def test_the_magnitude_is_that_of_flipped_phases():
    signed, flipped = live(Ctf(), taken(2, (16, 16))), live(Ctf(phase_flipped=True), taken(2, (16, 16)))
    assert (signed.transfer < 0).any()
    torch.testing.assert_close(flipped.transfer, signed.transfer.abs())


def test_a_stated_ctf_serves_all_images_and_a_pixel_size_each_its_own():
    stated = Ctf(15000.0, 600.0, 40.0, b_factor=30.0)
    shared = build_operator(stated, Imaging((16, 16), (2.0,) * 5), seed=0, dtype=torch.float64, device=CPU)
    assert shared.images is None
    assert shared.select(slice(1, 3)) is shared
    own = build_operator(stated, Imaging((16, 16), (2.0, 1.5)), seed=0, dtype=torch.float64, device=CPU)
    assert own.images == 2
    torch.testing.assert_close(own.transfer[:1], shared.transfer)
    table = ctf_table(1).assign(rlnDefocusU=15300.0, rlnDefocusV=14700.0, rlnDefocusAngle=40.0, rlnCtfBfactor=30.0)
    own = live(Ctf(), Imaging((16, 16), (2.0,), table))
    torch.testing.assert_close(own.transfer, shared.transfer)
    override = live(Ctf(b_factor=30.0, pixel_size=2.0), Imaging((16, 16), (9.0,), table.assign(rlnCtfBfactor=0.0)))
    torch.testing.assert_close(override.transfer, shared.transfer)


def test_without_amplitude_contrast_constant_images_measure_zero():
    operator = build_operator(
        Ctf(15000.0, amplitude_contrast=0.0, pixel_size=2.0), (15, 9), seed=0, dtype=torch.float32, device=CPU
    )
    y = operator.A(images(2, (15, 9), torch.float32))
    assert not operator.mean_response.any()
    assert not mean_intensity(operator, y).any()
    assert operator.rank == 15 * 9 - 1


def test_more_images_than_the_operator_was_built_for_are_refused():
    operator = live(Ctf(), taken(3, (16, 16)))
    with pytest.raises(IncompatibleError, match="is for 3 different images, got 2; use `select` first"):
        operator.A(images(2, (16, 16)))


@pytest.mark.parametrize(
    ("recipe", "imaging", "error", "wanted"),
    [
        (Ctf(), Imaging((16, 16), (2.0,)), IncompatibleError, "have no CTF; give one, as ctf:15000"),
        (Ctf(), Imaging((16, 16), (2.0,), ctf_table(1)[[]].assign(x=1)), IncompatibleError, "have no CTF"),
        (Ctf(), Imaging((16, 16), (None,), ctf_table(1)), IncompatibleError, "give ctf:...,pixel_size"),
        (Ctf(15000.0), Imaging((16, 16)), IncompatibleError, "pixel_size"),
        (Ctf(), Imaging((16, 16), (2.0,), ctf_table(1).drop(columns="rlnVoltage")), DataError, "lacks rlnVoltage"),
    ],
)
def test_missing_metadata_is_named_before_any_work(recipe, imaging, error, wanted):
    with pytest.raises(error, match=wanted) as raised:
        check_operator(recipe, imaging)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"astigmatism": 300.0}, "requires a defocus"),
        ({"voltage": 200.0}, "requires a defocus"),
        ({"defocus": float("nan")}, "finite"),
        ({"defocus": 1e4, "voltage": 0.0}, "voltage must be positive"),
        ({"defocus": 1e4, "amplitude_contrast": 1.5}, r"\[0, 1\]"),
        ({"b_factor": -1.0}, "b_factor"),
        ({"pixel_size": 0.0}, "pixel_size"),
    ],
)
def test_invalid_parameters_are_refused(values, wanted):
    with pytest.raises(ParameterError, match=wanted):
        Ctf(**values)
