"""Potentials and projections against closed formulas, gemmi, torch-fourier-slice and exact sums over atoms."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryobench.physics.potential import VOLTS_SQUARE_ANGSTROM, potential, scattering_factor
from cryobench.physics.projection import Projector, euler_angles, matrices, shift_phase
from cryobench.sources.structures import Atoms, read_structure


def some_rotations(count: int, seed: int = 0) -> torch.Tensor:
    uniform = torch.rand((count, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrices(*euler_angles(uniform))


def images(spectra: torch.Tensor) -> torch.Tensor:
    n = spectra.shape[1]
    return torch.fft.fftshift(torch.fft.irfft2(spectra, s=(n, n)), dim=(1, 2))


# ---------------------------------------------------------------------------------------------- projections


@pytest.mark.parametrize("n", [48, 49])
def test_a_projection_is_the_line_integral_of_a_gaussian_phantom(n):
    """Gaussians project to Gaussians: of weight w, width s at r, to w sqrt(2 pi) s exp(-|(A r)_xy - .|^2 / (2 s^2))."""
    rng = np.random.default_rng(0)
    grid = np.arange(n) - n // 2
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    A = some_rotations(5)
    volume, wanted = np.zeros((n, n, n)), np.zeros((5, n, n))
    v, u = np.meshgrid(grid, grid, indexing="ij")
    for _ in range(6):
        w, s, r = rng.uniform(0.5, 2), rng.uniform(2, 3), rng.normal(size=3)
        r *= rng.uniform(0, 0.2 * n) / np.linalg.norm(r)  # within the 0.65 of the box that particles fill
        volume += w * np.exp(-((x - r[0]) ** 2 + (y - r[1]) ** 2 + (z - r[2]) ** 2) / (2 * s**2))
        for image, (a, b, _) in zip(wanted, A.numpy() @ r, strict=True):
            image += w * np.sqrt(2 * np.pi) * s * np.exp(-((u - a) ** 2 + (v - b) ** 2) / (2 * s**2))
    found = images(Projector(torch.from_numpy(volume).float()).slices(A.float())).numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-2
    assert np.abs(found - wanted).max() / wanted.max() < 1e-2


def test_the_central_slice_theorem_on_a_random_volume():
    """A slice along an axis is the transform of the sum over voxels, for random values that fade from the middle on."""
    n = 32
    volume = torch.randn((n, n, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fade = (-((torch.arange(n).double() - n // 2) ** 2) / (2 * (n / 10) ** 2)).exp()
    volume = volume * fade[:, None, None] * fade[:, None] * fade
    k = torch.fft.fftfreq(n, 1 / n)
    inside = k[:, None] ** 2 + k[: n // 2 + 1].abs() ** 2 < (n / 2) ** 2
    turns = {"z": torch.eye(3), "x": torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])}
    for axis, turn in turns.items():
        image = volume.sum(dim=0) if axis == "z" else volume.sum(dim=2).flip(0).roll(1, 0).T
        wanted = torch.fft.rfft2(torch.fft.ifftshift(image))[inside]
        found = Projector(volume).slices(turn[None].double())[0][inside]
        assert (found - wanted).norm() / wanted.norm() < 0.02, axis


def test_slices_are_those_of_torch_fourier_slice():
    from torch_fourier_slice import project_3d_to_2d

    atoms, n = read_structure("3mht"), 64
    volume = torch.from_numpy(potential(atoms, n, 2 * atoms.radius / 0.6 / n, 50.0))
    A = some_rotations(6)
    # theirs take R = A^T, as matrices that turn the slice into the volume
    theirs = project_3d_to_2d(volume, A.transpose(1, 2).float(), pad_factor=2.0)
    ours = images(Projector(volume).slices(A.float()))
    assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_projections_are_exact_sums_over_turned_atoms():
    """The whole chain, from atoms to the image, against a direct sum at every frequency of the image."""
    atoms, n = read_structure("3mht"), 48
    pixel = 2 * atoms.radius / 0.65 / n
    A = some_rotations(3, seed=4)
    found = Projector(torch.from_numpy(potential(atoms, n, pixel, 60.0))).slices(A.float()) * pixel
    ky, kx = np.fft.fftfreq(n, pixel)[:, None], np.fft.rfftfreq(n, pixel)[None]
    k2 = kx**2 + ky**2
    inside = k2 < (0.5 / pixel) ** 2 * (1 - 1e-6)
    for spectrum, turn in zip(found.numpy(), A.numpy(), strict=True):
        r = atoms.positions @ turn.T
        along_y = np.exp(-2j * np.pi * ky * r[:, 1])  # [n, atoms]
        along_x = np.exp(-2j * np.pi * kx.T * r[:, 0])
        wanted = sum(
            scattering_factor(int(e), k2) * (along_y[:, atoms.numbers == e] @ along_x[:, atoms.numbers == e].T)
            for e in np.unique(atoms.numbers)
        )
        wanted = wanted * VOLTS_SQUARE_ANGSTROM / pixel**2 * np.exp(-60 / 4 * k2) * inside
        wanted[0, 0] = spectrum[0, 0] = 0  # the mean is a large and easy part
        assert np.linalg.norm(spectrum - wanted) / np.linalg.norm(wanted) < 0.025


def test_the_mean_of_many_projections_is_isotropic():
    """Uniform rotations: the mean image depends on the radius alone."""
    n = 32
    volume = torch.zeros((n, n, n))
    volume[16, 18:22, 14:24] = 1.0
    volume[10:14, 16, 16] = 2.0
    projector = Projector(volume)
    mean = sum(images(projector.slices(some_rotations(2000, seed).float())).sum(dim=0) for seed in range(10)) / 20000
    y, x = torch.meshgrid(torch.arange(n) - 16, torch.arange(n) - 16, indexing="ij")
    for turned in (mean.rot90(1, (0, 1)), mean.flip(0), mean.flip(1), mean.T):
        # an even box has no pixel opposite to the first
        assert (mean - turned.roll((0, 0), (0, 1)))[1:, 1:].shape == (31, 31)
    ring = torch.round(torch.hypot(x.float(), y.float()))
    for radius in range(2, 9):
        values = mean[ring == radius]
        angle = torch.atan2(y[ring == radius].float(), x[ring == radius].float())
        for order in (1, 2):
            harmonic = torch.hypot((values * (order * angle).cos()).mean(), (values * (order * angle).sin()).mean())
            assert harmonic / mean.max() < 0.01, (radius, order)


def test_rotations_are_uniform():
    """Of uniform rotations every matrix entry has mean 0 and mean square 1/3, and the trace has mean square 1."""
    A = some_rotations(20000)
    assert A.mean(dim=0).abs().max() < 0.02
    assert (A.square().mean(dim=0) - 1 / 3).abs().max() < 0.02
    assert float(A.diagonal(dim1=1, dim2=2).sum(dim=1).square().mean()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(A @ A.transpose(1, 2), torch.eye(3, dtype=A.dtype).expand_as(A))


def test_euler_angles_are_relions():
    """RELION's matrix is the transpose of the intrinsic ZYZ rotation (Heymann et al. 2005)."""
    angles = np.random.default_rng(0).uniform(-180, 180, (10, 3))
    wanted = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(matrices(*torch.from_numpy(angles).T).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("n", [16, 17])
def test_shifts_by_whole_pixels_roll_the_image(n):
    image = torch.randn((1, n, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = torch.fft.rfft2(image)
    moved = torch.fft.irfft2(spectrum * shift_phase(n, torch.tensor([[3.0, -2.0]], dtype=torch.float64)), s=(n, n))
    torch.testing.assert_close(moved, image.roll((-2, 3), (1, 2)), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ potentials


def test_a_potential_is_the_sum_of_its_atoms():
    """Against the sum in real space of the Gaussians of the scattering factors."""
    positions = np.array([[0.3, -1.2, 2.0], [5.1, 4.0, -3.3], [-4.4, 0.2, 0.9]])
    atoms, n, pixel, b_factor = Atoms("three", positions, np.array([6, 8, 15], np.uint8)), 40, 0.7, 60.0
    found = potential(atoms, n, pixel, b_factor)
    grid = (np.arange(n) - n // 2) * pixel
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    wanted = np.zeros_like(found, dtype=float)
    for position, number in zip(positions, atoms.numbers, strict=True):
        r2 = (x - position[0]) ** 2 + (y - position[1]) ** 2 + (z - position[2]) ** 2
        table = gemmi.Element(int(number)).c4322
        for a, b in zip(table.a, table.b, strict=True):
            width = b + b_factor  # of exp(-width |k|^2 / 4)
            wanted += VOLTS_SQUARE_ANGSTROM * a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * r2 / width)
    assert np.abs(found - wanted).max() / wanted.max() < 2e-3


def test_scattering_factors_are_gemmis():
    s = np.linspace(0, 1, 11)
    for number in (6, 7, 8, 12, 15, 16, 30):
        table = gemmi.Element(number).c4322
        wanted = [table.calculate_sf(stol2=x**2) for x in s]
        np.testing.assert_allclose(scattering_factor(number, (2 * s) ** 2), wanted, rtol=1e-6)


def test_the_constant_is_that_of_the_potential():
    from scipy.constants import e, h, m_e

    assert pytest.approx(h**2 / (2 * np.pi * m_e * e) * 1e20, rel=1e-5) == VOLTS_SQUARE_ANGSTROM
