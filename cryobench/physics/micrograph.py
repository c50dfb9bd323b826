"""The expected image of many particles in ice: projected potential in water, interaction constant, rough ice.

    contrast = -2 sigma_e CTF * (V_particles + V_ice)

in the weak-phase approximation for one thin layer: all particles at the same height and no inelastic scattering.
(Kirkland 2010, Advanced Computing in Electron Microscopy, ch. 3; Vulovic et al. 2013, J. Struct. Biol. 183:19.)
Positive where the image is brighter than the background; the CTF is RELION's (`ctf`), so protein is dark.

Each atom displaces water: a Gaussian of the atom's volume v (Fraser, MacRae & Suzuki 1978, J. Appl. Cryst. 11:693)
with the mean inner potential of vitreous ice,

    V_atom(k) = exp(-B |k|^2 / 4) (47.878 V Å^2 f(|k|) - 4.53 V v exp(-pi v^(2/3) |k|^2))

Hydrogens, which files of structures often lack, are omitted: at low frequencies their potential, 25.3 V Å^3, and that
of the water that they displace, 23.3 V Å^3, nearly cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cryobench.extras import of_extra
from cryobench.numerics.fft import half_frequencies
from cryobench.physics.ctf import wavelength
from cryobench.physics.potential import VOLTS_SQUARE_ANGSTROM, Atoms, gaussians

ICE_VOLTS = 4.53
"""Mean inner potential of vitreous ice, V: 47.878 V Å^2 (2 f_H + f_O) at k = 0, times 0.0311 molecules/Å^3, which is
0.93 g/cm^3."""
DISPLACED = {1: 5.15, 6: 16.44, 7: 2.49, 8: 9.13, 15: 5.73, 16: 19.86}
"""Volume of water in Å^3 that an atom displaces, by atomic number (Svergun, Barberato & Koch 1995, J. Appl. Cryst.
28:768; that of phosphorus is an assumption)."""
_OTHER_DISPLACED = 10.0
"""Å^3, for the other elements, which are few (an assumption)."""
_TOLERANCE = 1e-4


def interaction_constant(voltage: float) -> float:
    """sigma_e = 2 pi m e lambda / h^2 in rad/(V Å), with the relativistic mass; voltage: kV. 6.526e-4 at 300 kV."""
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    relativistic = m * (1 + e * voltage * 1e3 / (m * c**2))
    metres = float(wavelength(torch.tensor(voltage))) * 1e-10
    return 2 * math.pi * relativistic * e * metres / h**2 * 1e-10


def atom_in_water(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The potential of an atom less that of the water that it displaces: a_i in V Å^3 and b_i in Å^2, [6] each, of

    V_atom(k) = sum_i a_i exp(-b_i |k|^2 / 4)
    """
    a, b = gaussians(number)
    volume = DISPLACED.get(number, _OTHER_DISPLACED)
    water = -ICE_VOLTS * volume, 4 * math.pi * volume ** (2 / 3)
    return np.append(VOLTS_SQUARE_ANGSTROM * a, water[0]), np.append(b, water[1])


def projected_potential(
    atoms: Atoms,
    rotations: torch.Tensor,
    positions: torch.Tensor,
    shape: Sequence[int],
    pixel_size: float,
    b_factor: float,
) -> torch.Tensor:
    """The projected potential, in water, of copies of a structure: `rfft2` of an image in V Å, complex64 [H, W//2+1].

    rotations: the matrices A of `projection.matrices`, [N, 3, 3]. positions: (x, y) of the centres of the copies, Å
    from the first pixel, [N, 2]; the image is periodic. pixel_size: Å. b_factor: of all atoms, Å^2.

    Exact sums over atoms for each frequency below half a cycle per pixel, by a non-uniform Fourier transform (finufft)
    with a relative error of 1e-4: no box and no interpolation. The others are zero.
    """
    with of_extra("simulate"):
        import finufft

    H, W = shape
    sides = pixel_size * np.array([W, H])
    ky, kx = (k.numpy() / pixel_size for k in half_frequencies(shape))
    rows, centres = rotations[:, :2].double().numpy(), positions.double().numpy()
    spectrum = np.zeros((H, W // 2 + 1), np.complex64)
    for number in np.unique(atoms.numbers) if len(rows) else ():
        own = atoms.positions[atoms.numbers == number]
        angles = np.empty((2, len(rows), len(own)), np.float32)
        for i in range(len(rows)):
            turns = (rows[i] @ own.T + centres[i, :, None]) / sides[:, None]
            angles[:, i] = 2 * np.pi * (turns - np.round(turns))
        x, y = angles.reshape(2, -1)
        # one thread: with several the order of summation, and so the rounding, would vary between calls
        modes = finufft.nufft2d1(y, x, np.ones(len(x), np.complex64), (H, W), eps=_TOLERANCE, isign=-1, modeord=1,
                                 upsampfac=1.25, nthreads=1)  # fmt: skip
        a, b = atom_in_water(int(number))
        # a Gaussian of |k| is a product of one of ky and one of kx
        along_y, along_x = (np.exp(-(b + b_factor) / 4 * k.reshape(-1, 1) ** 2) for k in (ky, kx))
        # an image is the sum over its frequencies of V(k) / (H W pixel^2), and `irfft2` divides by H W
        factor = (a / pixel_size**2 * along_y) @ along_x.T
        spectrum += factor.astype(np.float32) * modes[:, : W // 2 + 1]
    spectrum[ky**2 + kx**2 >= (0.5 / pixel_size) ** 2 * (1 - 1e-6)] = 0
    return torch.from_numpy(spectrum)


def ice_amplitude(shape: Sequence[int], pixel_size: float, roughness: float, frequency: float) -> torch.Tensor:
    """The filter that turns white noise of variance one into the projected potential of rough ice, V Å, float32
    [H, W // 2 + 1].

    Thickness that varies about its mean with standard deviation `roughness` in Å and power spectrum
    exp(-(|k| / frequency)^2) / (pi frequency^2), k in 1/Å, times the mean inner potential. The mean is left out.
    """
    ky, kx = (k / pixel_size for k in half_frequencies(shape))
    k2 = ky**2 + kx**2
    power = (ICE_VOLTS * roughness) ** 2 * torch.exp(-k2 / frequency**2) / (math.pi * frequency**2)
    # white noise of variance one has power 1 at each of the frequencies, which are 1 / (H W pixel^2) apart in area
    amplitude = power.sqrt() / pixel_size
    amplitude[0, 0] = 0
    return amplitude.float()
