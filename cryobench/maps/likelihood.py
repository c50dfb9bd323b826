"""The likelihood of poses: images against slices of a map, inside a band of Fourier space.

An image is Y(k) = C(k) exp(-2 pi i k . t) X(k) + noise, with X the slice of the map's spectrum at the pose, t the shift
and C the CTF. The noise of a coefficient has the variance D^2 s(k), s from `maps.noise`. With the weights
u(k) = sqrt(2 / (D^2 s(k))) over half of the disc, each frequency once,

    log p(Y | pose) - log p(Y | no particle) = <u Y, u C S X> - 1/2 sum_k u^2 C^2 |X|^2,    <a, b> = Re sum_k conj(a) b

Both terms are products of matrices over the frequencies: of images, turned back by each shift, and slices. The mean
intensity, k = 0, is left out: it has the background of the images.

A map of frequencies up to h cycles per box is one of 2 (h + 1) voxels a side (`cropped`), whose spectrum is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.maps.noise import noise_power
from cryobench.maps.particle_images import ParticleImages
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.physics.projection import Projector

LEAST_NOISE = 1e-6
"""Least variance of the noise of a coefficient relative to the mean power of the images: those without noise have
finite likelihoods."""


@dataclass(frozen=True, eq=False)
class Band:
    """The frequencies 0 < |k| <= highest of images of `side` pixels, half of them, and below Nyquist.

    k: (kx, ky) in cycles per box, float32 [F, 2], kx >= 0. n: voxels a side of maps of this band.
    """

    side: int
    highest: float
    k: torch.Tensor

    @staticmethod
    def of(side: int, highest: float, device: torch.device | str = "cpu") -> Band:
        n = cropped_side(side, highest)
        limit = min(highest**2 + 1e-6, (n / 2) ** 2 - 1e-6)
        along = torch.arange(-(n // 2), n // 2 + 1, device=device)
        ky, kx = torch.meshgrid(along, along[n // 2 :], indexing="ij")
        kept = (kx**2 + ky**2 <= limit) & ((kx > 0) | (ky > 0))
        return Band(side, highest, torch.stack([kx[kept], ky[kept]], dim=1).float())

    def __len__(self) -> int:
        return len(self.k)

    @property
    def n(self) -> int:
        return cropped_side(self.side, self.highest)

    @property
    def rings(self) -> torch.Tensor:
        """The ring of each frequency, int64 [F]."""
        return self.k.norm(dim=1).round().long()

    def taken(self, half: torch.Tensor) -> torch.Tensor:
        """The frequencies of half spectra [..., D, D // 2 + 1], [..., F]."""
        kx, ky = self.k.long().unbind(1)
        return half.flatten(-2)[..., (ky % self.side) * (self.side // 2 + 1) + kx]

    def projector(self, volume: torch.Tensor) -> Projector:
        """Of a map [D, D, D], or one of n voxels."""
        return Projector(cropped(volume, self.n))

    def phases(self, shift: torch.Tensor) -> torch.Tensor:
        """exp(-2 pi i k . t / D) of shifts [..., 2] in pixels, complex [..., F]."""
        angle = (-2 * torch.pi / self.side) * (shift.to(self.k) @ self.k.T)
        return torch.polar(torch.ones_like(angle), angle)


def cropped_side(side: int, highest: float) -> int:
    """Voxels a side of the smallest map with all frequencies up to `highest`, at most `side`."""
    return min(2 * (math.floor(highest + 1e-6) + 1), side)


def cropped(volume: torch.Tensor, n: int) -> torch.Tensor:
    """The map [D, D, D] as one of [n, n, n], n even, with the same spectrum where |k_i| < n / 2."""
    return volume if n >= len(volume) else _resized(volume, n)


def enlarged(volume: torch.Tensor, D: int) -> torch.Tensor:
    """The map [n, n, n] as one of [D, D, D] with the same spectrum, and 0 beyond."""
    return volume if len(volume) >= D else _resized(volume, D)


def _resized(volume: torch.Tensor, n: int) -> torch.Tensor:
    """The map in a box of n voxels, with the frequencies that both boxes have."""
    D = len(volume)
    spectrum = rfftn(torch.fft.ifftshift(volume), 3)
    h = (min(n, D) + 1) // 2
    taken, kept = (torch.tensor([*range(h), *range(side - h + 1, side)]) for side in (D, n))
    result = spectrum.new_zeros((n, n, n // 2 + 1))
    result[kept[:, None, None], kept[:, None], torch.arange(h)] = spectrum[taken][:, taken][:, :, :h]
    return torch.fft.fftshift(irfftn(result, (n,) * 3))


@dataclass(frozen=True, eq=False)
class Whitened:
    """The spectra of N images, ready for likelihoods: origins at pixel D // 2.

    spectra: Y, complex64 [N, D, D // 2 + 1]. transfer: C, float32 of the same shape; None without a CTF.
    weight: u of each ring, float32 [rings].
    """

    spectra: torch.Tensor
    transfer: torch.Tensor | None
    weight: torch.Tensor

    def __len__(self) -> int:
        return len(self.spectra)

    @property
    def side(self) -> int:
        return self.spectra.shape[1]

    @staticmethod
    def of(images: ParticleImages, radius_pixels: float | None = None) -> Whitened:
        """radius_pixels: of the particles, for the noise (`maps.noise`)."""
        side = images.side
        power = noise_power(images.images, radius_pixels)
        mean_square = float(images.images.double().square().mean())
        power = power.clamp_min(max(LEAST_NOISE * mean_square, torch.finfo(torch.float32).tiny))
        weight = (2 / (side**2 * power)).sqrt().float().to(images.images.device)
        spectra = rfftn(torch.fft.ifftshift(images.images, dim=(1, 2)))
        transfer = images.transfer()
        return Whitened(spectra, None if transfer is None else transfer.to(spectra.device), weight)

    def select(self, chosen: slice | torch.Tensor) -> Whitened:
        """Some of the images."""
        transfer = None if self.transfer is None else self.transfer[chosen]
        return Whitened(self.spectra[chosen], transfer, self.weight)

    def centred(self, shift: torch.Tensor) -> Whitened:
        """The images moved back by shifts [N, 2] in pixels: the particles, if they are there, come to the centre."""
        side = self.side
        along = torch.fft.fftfreq(side, device=self.spectra.device)
        x, y = (torch.exp(2j * torch.pi * s[:, None].to(along) * along) for s in shift.unbind(1))
        moved = self.spectra * y[:, :, None] * x[:, None, : side // 2 + 1]
        return Whitened(moved.to(self.spectra.dtype), self.transfer, self.weight)

    def within(self, band: Band) -> InBand:
        """What likelihoods need inside a band."""
        u = self.weight[band.rings]
        y = band.taken(self.spectra) * u
        c = u.expand(len(self), -1) if self.transfer is None else band.taken(self.transfer) * u
        return InBand(band, y, c)

    def signal_power(self) -> torch.Tensor:
        """The mean of |X|^2 in each ring below Nyquist, which is that of the map's shell, float64 [D // 2].

        It is the power of the images beyond that of the noise, over the mean of C^2, and at least 0. Ring 0 has that of
        ring 1.
        """
        side = self.side
        band = Band.of(side, side / 2, self.spectra.device)
        rings, noise = band.rings.clamp_max(side // 2 - 1), 2 / self.weight[band.rings].double() ** 2
        y = band.taken(self.spectra)
        excess = (y.real.double() ** 2 + y.imag.double() ** 2).mean(0) - noise
        passed = (
            torch.ones_like(noise) if self.transfer is None else band.taken(self.transfer).double().square().mean(0)
        )
        zero = torch.zeros(side // 2, dtype=torch.float64, device=rings.device)
        total, of_ctf = zero.index_add(0, rings, excess), zero.index_add(0, rings, passed)
        power = (total / of_ctf.clamp_min(1e-12)).clamp_min(0)
        power[0] = power[1]
        return power


@dataclass(frozen=True, eq=False)
class InBand:
    """N images inside a band. y: u Y, complex64 [N, F]. c: u C, float32 [N, F]."""

    band: Band
    y: torch.Tensor
    c: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def select(self, chosen: slice | torch.Tensor) -> InBand:
        """Some of the images."""
        return InBand(self.band, self.y[chosen], self.c[chosen])

    def turned_back(self, shift: torch.Tensor) -> torch.Tensor:
        """conj(S) u^2 C Y of shifts [S, 2] or [N, S, 2] in pixels, complex64 [N, S, F]."""
        return (self.y * self.c)[:, None] * self.band.phases(-shift)

    def gains(self, slices: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """log p(Y | pose) - log p(Y | no particle) of slices [R, F], common to all images, and shifts [S, 2] or
        [N, S, 2]: float32 [N, S, R]."""
        return cross_products(self.turned_back(shift), slices) - 0.5 * self.norms(slices)[:, None]

    def norms(self, slices: torch.Tensor) -> torch.Tensor:
        """sum_k u^2 C^2 |X|^2 of slices [R, F], float32 [N, R]."""
        return self.c.square() @ (slices.real**2 + slices.imag**2).T

    def gains_of_each(self, slices: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """`gains` of slices of each image [N, R, F] and shifts [N, S, 2]: float32 [N, S, R]."""
        turned = _as_real(self.turned_back(shift))
        norms = (slices.real**2 + slices.imag**2) @ self.c.square()[:, :, None]
        return turned @ _as_real(slices).mT - 0.5 * norms.mT


def cross_products(turned: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
    """Re sum_k conj(a) b of [..., F] and [R, F], float32 [..., R]."""
    return _as_real(turned) @ _as_real(slices).T


def _as_real(values: torch.Tensor) -> torch.Tensor:
    """Complex [..., F] as real [..., 2 F], of which products are real parts of products with a conjugate."""
    return torch.view_as_real(values.resolve_conj()).flatten(-2)
