"""The electrostatic potential of atoms, band-limited on a grid.

    V(k) = 47.878 V Å^2 * exp(-B |k|^2 / 4) * sum_e f_e(|k|) * sum_{j of element e} exp(-2 pi i k . r_j)

f_e is the electron scattering factor of a neutral atom in Å, five Gaussians in s = |k| / 2 (International Tables C,
4.3.2.2; the table that gemmi has), 47.878 V Å^2 = h^2 / (2 pi m e). The sum over atoms is a non-uniform Fourier
transform (finufft) with a relative error of 1e-4, so atoms may be off the grid. The water around the particle
is omitted: real proteins have less contrast at low frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryobench.extras import of_extra

VOLTS_SQUARE_ANGSTROM = 47.878
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms: positions in Å relative to the centre of the bounding box, float64 [n, 3], and atomic numbers [n]."""

    name: str
    positions: np.ndarray
    numbers: np.ndarray

    @property
    def radius(self) -> float:
        """Å from the origin to the farthest atom."""
        return float(np.sqrt((self.positions**2).sum(axis=1).max()))


def potential(atoms: Atoms, n: int, pixel_size: float, b_factor: float) -> np.ndarray:
    """The potential of atoms in a cube of n voxels a side, in volts, float32 [z, y, x]; the origin is voxel n // 2.

    pixel_size: Å per voxel. b_factor: of all atoms, Å^2. Frequencies at and above n/2 cycles per box are zero, so
    that the volume can be rotated. Atoms outside the box wrap around.
    """
    import torch

    with of_extra("simulate"):
        import finufft

    half = n // 2 + 1
    index = np.fft.fftfreq(n, 1 / n).astype(np.int32)
    # |k|^2 in units of 1 / box^2 is an integer, so that functions of it are read from a table
    squares = (index**2)[:, None, None] + (index**2)[None, :, None] + np.arange(half, dtype=np.int32) ** 2
    k2 = np.arange(squares.max() + 1) / (n * pixel_size) ** 2
    inside = k2 < (0.5 / pixel_size) ** 2 * (1 - 1e-6)
    falloff = VOLTS_SQUARE_ANGSTROM / pixel_size**3 * np.exp(-b_factor / 4 * k2) * inside
    angles = (2 * np.pi / (n * pixel_size) * atoms.positions).astype(np.float32)
    angles = np.remainder(angles + np.float32(np.pi), np.float32(2 * np.pi)) - np.float32(np.pi)
    spectrum = np.zeros((n, n, half), np.complex64)
    for number in np.unique(atoms.numbers):
        x, y, z = np.ascontiguousarray(angles[atoms.numbers == number].T)
        ones = np.ones(len(x), np.complex64)
        # modes in FFT order, 0 .. n/2 - 1 and -n/2 .. -1; of the last axis, the half that real volumes need
        # one thread: with several the order of summation, and so the rounding, would vary between calls
        modes = finufft.nufft3d1(
            z, y, x, ones, (n, n, n), eps=_TOLERANCE, isign=-1, modeord=1, upsampfac=1.25, nthreads=1
        )
        spectrum += (falloff * scattering_factor(int(number), k2)).astype(np.float32)[squares] * modes[:, :, :half]
    volume = torch.fft.fftshift(torch.fft.irfftn(torch.from_numpy(spectrum), s=(n, n, n)))
    return volume.numpy()


def scattering_factor(number: int, k2: np.ndarray) -> np.ndarray:
    """f(|k|) in Å for the atomic number, at squared frequencies k2 in 1/Å^2: sum_i a_i exp(-b_i k2 / 4)."""
    a, b = gaussians(number)
    return np.exp(-b / 4 * k2[..., None]) @ a


def gaussians(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The five a_i in Å and b_i in Å^2 of `scattering_factor`."""
    with of_extra("simulate"):
        import gemmi

    table = gemmi.Element(number).c4322
    return np.array(table.a), np.array(table.b)
