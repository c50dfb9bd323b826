"""The spectra of particle images inside a disc, and the maps that they are slices of.

With k a frequency of half the disc |k| < r in cycles per box, C the CTF, P(k) the noise power of its ring
(`maps.noise`) and t the place of the particle, image i and the slice of a map v are

    y_i(k) = exp(2 pi i k . t) F y_i(k) / sqrt(P D^2),      T_i(k) = C_i(k) / sqrt(P D^2),      s_i(k) = V(A^T (k, 0))

so that y_i = T_i s_i + n_i with noise of variance 1, and minus the log-likelihood is 1/2 sum_k m(k) |y_i - T_i s_i|^2
with m = 2, and 1 at kx = 0, where the half disc has both of two conjugate coefficients. V is an exact non-uniform
transform (`numerics.nufft`). Maps are sought in a box of b = 2 r voxels. That of a given map (`resized`) has the same
spectrum at whole cycles per box, but between them it differs near r, as a map that is cropped in Fourier space does not
end within its box; slices of a given map are those in its own box (`in_box`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from cryobench.errors import ParameterError
from cryobench.maps.noise import measured_noise
from cryobench.maps.particle_images import ParticleImages
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.nufft import SINGLE, Points
from cryobench.physics.projection import shift_phase

LEAST_SIDE = 8
"""Voxels of the smallest box."""
_POINTS = 2**21
"""Points of a transform at once."""


@dataclass(frozen=True, eq=False)
class Band:
    """N images in the band of a box of `side` voxels.

    k: float64 [P, 2] as (x, y) in cycles per box. weights: m, float32 [P]. values: y, complex64 [N, P]. transfer: T,
    float32 [N, P]. rotations: A, float64 [N, 3, 3]. tolerance: relative error of the transforms.
    """

    side: int
    k: torch.Tensor
    weights: torch.Tensor
    values: torch.Tensor
    transfer: torch.Tensor
    rotations: torch.Tensor
    tolerance: float = SINGLE

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def of(images: ParticleImages, side: int, *, noise: torch.Tensor | None = None, tolerance: float = SINGLE) -> Band:
        """The band of `side` / 2 cycles per box. noise: power of each ring; None: measured (`measured_noise`).

        Raises `ParameterError` for a box that is odd, smaller than 8 or larger than the images.
        """
        D = images.side
        if side % 2 or not LEAST_SIDE <= side <= D:
            raise ParameterError(f"a box of {side} voxels does not fit images of {D}; give an even number from "
                                 f"{LEAST_SIDE} to {D}")  # fmt: skip
        noise = measured_noise(images.images) if noise is None else noise
        ky = torch.fft.fftfreq(D, 1 / D, dtype=torch.float64)[:, None].expand(D, D // 2 + 1)
        kx = torch.arange(D // 2 + 1, dtype=torch.float64).expand(D, -1)
        inside = kx**2 + ky**2 < (side / 2) ** 2 * (1 - 1e-6)
        index = inside.flatten().nonzero()[:, 0]
        k = torch.stack([kx[inside], ky[inside]], dim=1)
        ring = torch.hypot(k[:, 0], k[:, 1]).round().long().clamp_min(1)  # 0 is that of the mean, which was subtracted
        deviation = (noise.cpu()[ring].clamp_min(noise.max() * 1e-12).sqrt() * D).float()
        shift = images.particles.poses.shift / images.pixel_size + D // 2
        values, transfers = [], []
        for rows in torch.arange(len(images)).split(512):
            turned = rfftn(images.images[rows.to(images.images.device)].cpu()).flatten(1)[:, index]
            values.append(turned * shift_phase(D, -shift[rows]).flatten(1)[:, index] / deviation)
            factors = images.transfer(rows)
            ones = torch.ones((len(rows), len(index)))
            transfers.append((ones if factors is None else factors.cpu().flatten(1)[:, index]) / deviation)
        weights = 2.0 - (k[:, 0] == 0).float()
        return Band(
            side, k, weights, torch.cat(values), torch.cat(transfers), images.particles.poses.matrices, tolerance
        )

    def select(self, chosen: slice | torch.Tensor) -> Band:
        """Some of the images."""
        values, transfer = self.values[chosen], self.transfer[chosen]
        return replace(self, values=values, transfer=transfer, rotations=self.rotations[chosen])

    def in_box(self, side: int) -> Band:
        """The same frequencies, of maps of `side` voxels."""
        return replace(self, side=side)

    def slices(self, volumes: torch.Tensor) -> torch.Tensor:
        """s of maps [m, b, b, b], complex64 [m, N, P]."""
        found = torch.empty((len(volumes), *self.values.shape), dtype=torch.complex64)
        for rows, part in self.parts:
            for volume, slices in zip(volumes, found, strict=True):
                slices[rows] = torch.from_numpy(part._points.to(volume.numpy())).reshape(-1, len(self.k)).to(found)
        return found

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """The adjoint of `slices` in the inner product with m: of values [m, N, P], float64 [m, b, b, b]."""
        found = torch.zeros((len(values), *(self.side,) * 3), dtype=torch.float64)
        for rows, part in self.parts:
            for sums, some in zip(found, values, strict=True):
                weighted = (some[rows] * self.weights).flatten()
                sums += torch.from_numpy(part._points.back(weighted.resolve_conj().numpy())).real
        return found

    def kernels(self, weights: torch.Tensor) -> torch.Tensor:
        """The kernels K of sum_i w_i P_i^T T_i^2 P_i (`numerics.toeplitz`), float64 [m, 2 b, 2 b, 2 b], of weights
        [m, N] of the images."""
        found = torch.zeros((len(weights), *(2 * self.side,) * 3), dtype=torch.float64)
        for rows, part in self.parts:
            squares = part.transfer.square() * self.weights
            for kernel, each in zip(found, weights, strict=True):
                weighted = (squares * each[rows, None].float()).flatten()
                kernel += torch.from_numpy(part._double_points.back(weighted.to(torch.complex64).numpy())).real
        return torch.fft.ifftshift(found, dim=(1, 2, 3))

    @cached_property
    def parts(self) -> list[tuple[slice, Band]]:
        """The images in parts of one transform each, and their places."""
        length = max(1, _POINTS // len(self.k))
        if len(self) <= length:
            return [(slice(0, len(self)), self)]
        rows = [slice(start, min(start + length, len(self))) for start in range(0, len(self), length)]
        return [(some, self.select(some)) for some in rows]

    @cached_property
    def _points(self) -> Points:
        return Points(self._places, self.side, self.tolerance)

    @cached_property
    def _double_points(self) -> Points:
        return Points(self._places, 2 * self.side, self.tolerance, small=self.tolerance > 1e-9)

    @property
    def _places(self) -> np.ndarray:
        p = self.k @ self.rotations[:, :2] * (2 * torch.pi / self.side)
        return p.flatten(0, 1).flip(1).numpy()


def resized(volumes: torch.Tensor, side: int) -> torch.Tensor:
    """Maps [m, b, b, b] in a box of `side` voxels with the same spectrum F v, cropped or with zeros beyond."""
    b = volumes.shape[-1]
    if b == side:
        return volumes
    small = min(b, side)
    spectrum = torch.fft.fftshift(rfftn(torch.fft.ifftshift(volumes, dim=(1, 2, 3)), 3), dim=(1, 2))
    found = spectrum.new_zeros((len(volumes), side, side, side // 2 + 1))
    kept, taken = (slice(n // 2 - small // 2 + 1, n // 2 + small // 2) for n in (side, b))  # without the edge
    found[:, kept, kept, : small // 2] = spectrum[:, taken, taken, : small // 2]
    return torch.fft.fftshift(irfftn(torch.fft.ifftshift(found, dim=(1, 2)), (side,) * 3), dim=(1, 2, 3))
