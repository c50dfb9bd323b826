"""Expectation-maximisation of maps over a grid of poses.

Images are compared with the slices of the maps at all rotations of a grid and at some shifts of each image
(`maps.likelihood`). With the probabilities w of poses, given the images and the maps,

    n_r(k) = sum_i,s w conj(S_s) u^2 C_i Y_i,      d_r(k) = sum_i,s w u^2 C_i^2

are all that a map needs of the images: it minimises sum_r sum_k d |V(R_r k)|^2 - 2 Re conj(n) V(R_r k), plus the prior
|V|^2 / tau^2, in which tau^2 is the power of the shell. This is Fourier inversion (`maps.inversion`) of one image for
each rotation: F V = F b / (C + n^3 / tau^2).

The power tau^2 needs no map: the mean power of the images in a ring, beyond that of the noise and over the mean squared
CTF, is that of the shell (`Whitened.signal_power`).

Probabilities are those of the likelihood to the power 1 / T. A temperature T above 1 allows for the error of slices at
the rotations of a coarse grid and of maps that are not yet right; else each image is bound to its first pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from cryobench.maps.inversion import density
from cryobench.maps.likelihood import Band, InBand, cross_products
from cryobench.maps.masks import soft_ball
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.nufft import Points
from cryobench.numerics.shells import shells
from cryobench.physics.projection import Projector

_NUMBERS = 2**23
"""Probabilities of a batch of images."""
_LEAST_POWER = 1e-6
"""Least tau^2 relative to its largest."""
_TOLERANCE = 1e-3
"""Relative error of transforms, far below that of maps."""


@dataclass(frozen=True, eq=False)
class Expected:
    """What a step found. numerator, denominator: n and d of each map, [K, R, F]. log_likelihood: of each image, of all
    poses and maps together, float64 [N], less that of no particle. shift: the mean shift of each image, [N, 2] pixels.
    classes: probability of each map, [N, K]."""

    numerator: torch.Tensor
    denominator: torch.Tensor
    log_likelihood: torch.Tensor
    shift: torch.Tensor
    classes: torch.Tensor


def expected(
    images: InBand,
    volumes: torch.Tensor,
    rotations: torch.Tensor,
    shifts: torch.Tensor,
    temperature: float = 1.0,
) -> Expected:
    """The expectation step. volumes: [K, n, n, n] of the band. rotations: [R, 3, 3]. shifts: [N, S, 2]."""
    band = images.band
    device = images.y.device
    rotations, shifts = rotations.to(device, torch.float32), shifts.to(device, torch.float32)
    slices = torch.stack([Projector(volume.to(device)).values(band.k, rotations) for volume in volumes])  # [K, R, F]
    K, R, F = slices.shape
    S = shifts.shape[1]
    flat = slices.flatten(0, 1)
    numerator = torch.zeros((K * R, 2 * F), device=device)
    denominator = torch.zeros((K * R, F), device=device)
    found: list[tuple[torch.Tensor, ...]] = []
    for rows in torch.arange(len(images), device=device).split(max(1, _NUMBERS // (K * R * S))):
        some, t = images.select(rows), shifts[rows]
        turned = some.turned_back(t)
        gains = cross_products(turned, flat) - 0.5 * some.norms(flat)[:, None]  # [b, S, K R]
        largest = gains.amax(dim=(1, 2), keepdim=True)
        w = gains.sub_(largest).exp_()
        exact = w.sum(dim=(1, 2), dtype=torch.float64).log() + largest[:, 0, 0].double()
        w = w if temperature == 1 else w.pow_(1 / temperature)
        w /= w.sum(dim=(1, 2), keepdim=True)
        numerator += w.flatten(0, 1).T @ torch.view_as_real(turned).flatten(2).flatten(0, 1)
        of_rotation = w.sum(dim=1)
        denominator += of_rotation.T @ some.c.square()
        mean_shift = (w.sum(dim=2)[..., None] * t).sum(dim=1)
        classes_of = of_rotation.unflatten(1, (K, R)).sum(dim=2)
        found.append((exact - math.log(K * R * S), mean_shift, classes_of))
    likelihood, shift, classes = (torch.cat(each) for each in zip(*found, strict=True))
    return Expected(
        torch.view_as_complex(numerator.unflatten(1, (F, 2)).contiguous()).unflatten(0, (K, R)),
        denominator.unflatten(0, (K, R)), likelihood, shift, classes,
    )  # fmt: skip


def maximised(
    numerator: torch.Tensor, denominator: torch.Tensor, rotations: torch.Tensor, band: Band, power: torch.Tensor
) -> torch.Tensor:
    """The map [n, n, n] of one class, float32 on the device of the sums.

    numerator, denominator: n and d, [R, F]. power: tau^2 of each shell, [shells of the band or more].
    """
    n = band.n
    device = numerator.device
    used = denominator.sum(dim=1) > 1e-6 * denominator.sum()
    k = torch.cat([band.k, torch.zeros_like(band.k[:, :1])], dim=1).double()
    points = (k @ rotations.to(k)[used]).flatten(0, 1).cpu()  # A^T (kx, ky, 0), as rows
    points = (points * (2 * math.pi / n)).flip(1).numpy()  # as (z, y, x)
    sums = Points(points, n, _TOLERANCE).back(numerator[used].flatten().cpu().numpy())
    kernel = Points(points, 2 * n, _TOLERANCE).back(denominator[used].flatten().to(torch.complex64).cpu().numpy())
    b = torch.from_numpy(np.real(sums)).double()
    # the transform has the origin at voxel n, the kernel at 0
    C = density(torch.fft.ifftshift(torch.from_numpy(np.real(kernel)).double()))
    power = power.double().cpu()
    prior = n**3 / power.clamp_min(_LEAST_POWER * float(power.max()))
    shell = shells((n,) * 3)
    L = prior[shell.clamp_max(len(prior) - 1)]
    inside = shell <= min(band.highest, n / 2)
    found = irfftn(torch.where(inside, rfftn(b, 3) / (C + L), 0.0), (n,) * 3)
    return found.float().to(device)


def ball(n: int, radius: float) -> torch.Tensor:
    """The soft mask of maps of n voxels. radius: in sides of the box; the edge has 1/10 of it more."""
    return soft_ball(n, radius * n, 0.1 * n)


def random_map(power: torch.Tensor, band: Band, radius: float, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian random map [n, n, n] with the power tau^2 of each shell inside the band, within a soft ball."""
    n = band.n
    noise = torch.randn((n,) * 3, generator=generator, dtype=torch.float64)
    mask = ball(n, radius).double()
    spectrum = rfftn(noise * mask, 3) / mask.square().sum().sqrt()  # of power 1
    shell = shells((n,) * 3)
    amplitude = power.double().cpu().sqrt()[shell.clamp_max(len(power) - 1)]
    inside = (shell <= min(band.highest, n / 2)) & (shell > 0)
    return irfftn(torch.where(inside, spectrum * amplitude, 0.0), (n,) * 3).float()
