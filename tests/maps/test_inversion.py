"""Fourier inversion: its weights against dense matrices, its maps against the exact Wiener filter with true spectra."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from cryobench.core import build_operator
from cryobench.core.operator import Imaging
from cryobench.maps.fsc import resolution_of, shell_correlation
from cryobench.maps.half_maps import HalfMaps, halves_of
from cryobench.maps.inversion import STEPS, default_mask, density, prior_weights, regularised, wiener
from cryobench.maps.masks import soft_ball
from cryobench.operators.project import Project, ProjectionOperator
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.poses import Poses
from cryobench.physics.potential import potential
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

D, COUNT, AXES = 32, 500, (0, 1, 2)


@functools.cache
def particles() -> tuple[HalfMaps, torch.Tensor, float]:
    """The sums of simulated particles, their volume, such that images are its projections, and the noise's variance."""
    stack = Simulate("3mht", snr=0.1, count=COUNT, size=D).open()
    images, clean = (torch.from_numpy(block) for block in (stack.read_block(range(COUNT)),
                                                            stack.clean_block(range(COUNT))))  # fmt: skip
    pixel = stack.pixel_size(0)
    maps = HalfMaps(D, pixel)
    table = stack.table
    maps.add(images, Poses.from_table(table), CtfParameters.from_table(table), halves_of(table, COUNT))
    truth = torch.from_numpy(potential(read_structure("3mht"), D, pixel, 50.0)).double() * pixel
    return maps, truth, float((images - clean).double().var())


def shell() -> np.ndarray:
    k = np.fft.fftfreq(D, 1 / D)
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)


@functools.cache
def oracle() -> np.ndarray:
    """(A^T A + sigma^2 / tau^2)^-1 A^T y with the true tau^2 of each shell, to a residual of 1e-6."""
    from scipy.sparse.linalg import LinearOperator, cg

    maps, truth, sigma2 = particles()
    power = np.abs(np.fft.fftn(truth.numpy())) ** 2 / D**3
    number = np.minimum(shell(), D // 2 + 1)
    tau2 = np.array([power[number == r].mean() for r in range(D // 2 + 2)])
    kernel = np.fft.fftn(maps.kernels.sum(0).numpy()).real

    def apply(x: np.ndarray) -> np.ndarray:
        x = x.reshape(D, D, D)
        normal = np.fft.ifftn(kernel * np.fft.fftn(x, (2 * D,) * 3, AXES)).real[:D, :D, :D]
        return (normal + np.fft.ifftn(sigma2 / tau2[number] * np.fft.fftn(x)).real).ravel()

    system = LinearOperator((D**3, D**3), matvec=apply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    found, failed = cg(system, maps.sums.sum(0).numpy().ravel(), rtol=1e-6, maxiter=500)
    assert not failed
    return found.reshape(D, D, D)


def test_the_map_has_the_resolution_of_the_exact_wiener_filter():
    maps, truth, _ = particles()
    best = torch.from_numpy(oracle())
    for steps, near, larger in ((0, 0.05, 1.3), (STEPS, 0.01, 1.2)):
        found = wiener(maps.sums, maps.kernels, steps=steps).full.double()
        curves = [shell_correlation(volume, truth) for volume in (found, best)]
        shells = [D / resolution_of(curve, 0.5, D, None) for curve in curves]
        assert 6 < shells[1] < D / 2 - 2  # between the ends, where the resolution could not differ
        assert abs(shells[0] - shells[1]) < 1
        assert (curves[0] - curves[1]).abs().max() < near
        assert (found - truth).norm() < larger * (best - truth).norm()


def test_half_maps_have_noise_where_the_whole_map_has_none():
    maps, truth, _ = particles()
    found = wiener(maps.sums, maps.kernels)
    assert shell_correlation(found.half1, truth)[:5].min() > 0.8
    powers = [np.abs(np.fft.fftn(volume.numpy())) ** 2 for volume in (found.half1, found.full)]
    high = shell() == D // 2
    assert powers[0][high].mean() > 3 * powers[1][high].mean()
    mask = default_mask(D)
    torch.testing.assert_close(found.fsc, shell_correlation(found.half1, found.half2, mask), rtol=1e-4, atol=1e-4)


def test_halves_are_never_mixed():
    """Of a half, the other has the correlation alone, which its units do not change."""
    maps, _, _ = particles()
    found = wiener(maps.sums, maps.kernels)
    other = wiener(torch.stack([maps.sums[0], 7 * maps.sums[1]]), torch.stack([maps.kernels[0], 3 * maps.kernels[1]]))
    torch.testing.assert_close(found.half1, other.half1, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(other.half2, 7 / 3 * found.half2, rtol=1e-5, atol=1e-4)


def test_half_maps_predict_the_correlation_with_the_truth():
    """sqrt(2 FSC / (1 + FSC)) of the halves is that of the whole map with the truth (Rosenthal and Henderson 2003)."""
    maps, truth, _ = particles()
    found = wiener(maps.sums, maps.kernels)
    real = shell_correlation(found.full, truth, default_mask(D))
    predicted = (2 * found.fsc.clamp(0) / (1 + found.fsc)).sqrt()
    assert (predicted - real).abs()[:12].max() < 0.12
    assert (predicted - real).abs().mean() < 0.05


def test_noise_has_no_resolution():
    """Random numbers at the same poses: no shell correlates, not even those that a mask could fill."""
    maps, _, _ = particles()
    generator = torch.Generator().manual_seed(0)
    noise = HalfMaps(D, maps.pixel_size, kernels=maps._kernels)
    table = Simulate("3mht", snr=0.1, count=COUNT, size=D).open().table
    white = torch.randn((COUNT, D, D), generator=generator)
    noise.add(white, Poses.from_table(table), CtfParameters.from_table(table), halves_of(table, COUNT))
    mask = soft_ball(D, 6.0, 3.0, dtype=torch.float64)
    found = wiener(noise.sums, noise.kernels, mask=mask)
    assert found.fsc[4:].abs().max() < 0.3
    assert found.fsc[4:].mean().abs() < 0.1


def test_with_one_ctf_for_all_steps_find_what_its_zeros_hide():
    poses = Poses.uniform(200, 0)
    pixel, truth = 6.0, torch.from_numpy(potential(read_structure("3mht"), D, 6.0, 50.0))
    ctf = CtfParameters(*(torch.full((200,), value, dtype=torch.float64)
                          for value in (14000.0, 14000.0, 0.0, 300.0, 2.7, 0.1, 0.0, 0.0)))  # fmt: skip
    factors = transfer(ctf.select(slice(1)), (D, D), pixel)
    operator = ProjectionOperator(D, poses.matrices, poses.shift, transfer=factors, dtype=torch.float32, device="cpu")
    maps = HalfMaps(D, pixel)
    maps.add(operator.A(truth[None, None])[0], poses, ctf, halves_of(None, 200))
    least = [shell_correlation(wiener(maps.sums, maps.kernels, steps=steps).full, truth)[:12].min()
             for steps in (0, STEPS)]  # fmt: skip
    assert least[0] < 0.75
    assert least[1] > 0.85


def test_the_density_is_the_best_circulant_approximation():
    """Its eigenvalues are the diagonal of F A^T A F* with a unitary F (T. Chan 1988)."""
    n = 6
    operator = build_operator(Project(7), Imaging((n, n, n)), seed=0, dtype=torch.float64)
    assert isinstance(operator, ProjectionOperator)
    A = operator.A(torch.eye(n**3, dtype=torch.float64).reshape(-1, 1, n, n, n)).flatten(1).T.numpy()
    waves = np.fft.fftn(np.eye(n**3).reshape(-1, n, n, n), axes=(1, 2, 3)).reshape(n**3, n**3) / n**1.5
    diagonal = np.linalg.norm(A @ waves.conj(), axis=0).reshape(n, n, n) ** 2
    found = density(operator.kernel())
    np.testing.assert_allclose(found, diagonal[:, :, : n // 2 + 1], atol=1e-9 * diagonal.max())


def test_steps_solve_the_regularised_equations():
    maps, _, _ = particles()
    b, kernel = maps.sums.sum(0), maps.kernels.sum(0)
    C = density(kernel)
    prior = 0.3 * C.mean() * torch.ones_like(C)
    spectrum = np.fft.fftn(kernel.numpy())

    def residual(x: torch.Tensor) -> float:
        normal = np.fft.ifftn(spectrum * np.fft.fftn(x.numpy(), (2 * D,) * 3, AXES)).real[:D, :D, :D]
        return float(np.linalg.norm(normal + 0.3 * float(C.mean()) * x.numpy() - b.numpy()) / np.linalg.norm(b))

    residuals = [residual(regularised(b, C, prior, kernel, steps)) for steps in (0, 5, 30)]
    assert residuals[1] < residuals[0] / 3
    assert residuals[2] < 1e-5


def test_prior_weights_follow_the_curve_and_never_divide_by_zero():
    C = 1 + torch.rand((16, 16, 9), dtype=torch.float64)
    curve = torch.tensor([0.9, 0.8, 0.5, 0.25, -0.1, 0.6, 0.0, 0.2], dtype=torch.float64)
    L = prior_weights(C, curve)
    line = L[0, 0] / torch.tensor([float(C_mean) for C_mean in shell_mean(C)])
    torch.testing.assert_close(line[1:5], (1 - curve[:4]) / curve[:4])
    assert line[0] == pytest.approx(float(L[0, 0, 1]) / float(shell_mean(C)[0]))
    assert (line[5:] > 500).all()  # from the first shell without signal on, whatever comes later
    for extreme in (torch.zeros(8), torch.ones(8), -torch.ones(8)):
        assert prior_weights(C, extreme.double()).isfinite().all()
    late = torch.tensor([-0.1, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], dtype=torch.float64)
    assert float(prior_weights(C, late)[0, 0, 3]) < 1  # the first two shells are too small to end the signal


def shell_mean(C: torch.Tensor) -> list[torch.Tensor]:
    """The mean of a half spectrum over the shells of the whole one, that of the first for the mean intensity."""
    whole = np.fft.fftn(np.fft.irfftn(C.numpy(), (16,) * 3, AXES)).real
    k = np.fft.fftfreq(16, 1 / 16)
    number = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)
    means = [torch.tensor(whole[number == r].mean()) for r in range(9)]
    return [means[1], *means[1:]]


def test_maps_do_not_depend_on_units_of_the_images():
    """The variance of the noise is not needed."""
    maps, _, _ = particles()
    one, other = wiener(maps.sums, maps.kernels), wiener(100 * maps.sums, maps.kernels)
    torch.testing.assert_close(other.full, 100 * one.full, rtol=1e-5, atol=1e-3)


def test_places_that_no_slice_crosses_are_empty_and_finite():
    """Two halves of three slices each."""
    maps = HalfMaps(D, 1.0)
    poses = Poses.uniform(6, 0)
    maps.add(torch.randn((6, D, D), generator=torch.Generator().manual_seed(0)), poses, None, halves_of(None, 6))
    found = wiener(maps.sums, maps.kernels)
    for volume in (found.full, found.half1, found.half2):
        assert volume.isfinite().all()
    spectrum = np.abs(np.fft.fftn(found.half1.double().numpy()))
    assert spectrum[shell() > D // 2].max() < 1e-4 * spectrum.max()
