"""The noise of particle images, from what lies outside of the particles.

Outside of a circle around the centre an image is noise alone, but for what the CTF spreads there. Under a mask m with a
soft edge, |F(m n)|^2 has the mean of the noise's power spectrum, smoothed by that of m, times sum m^2.
"""

from __future__ import annotations

import torch

from cryobench.errors import DataError, ParameterError
from cryobench.metrics.within import centre_distance, raised_cosine
from cryobench.numerics.fft import rfftn
from cryobench.numerics.shells import shell_sums, shells

_EDGE = 0.1
"""Width of the soft edge of the mask, in sides."""
_LEAST_AREA = 0.02
"""Smallest part of an image outside of the circle."""
_LEAST_NOISE = 1e-10
"""Power of noise, relative to the mean square of the images, that is rounding."""


def noise_power(images: torch.Tensor, radius_pixels: float | None = None) -> torch.Tensor:
    """The mean power |F n|^2 / D^2 of a coefficient of the noise in each ring of the half spectrum, float64
    [max ring + 1], corners included: the variance of a pixel, for white noise.

    images: [N, D, D]. radius_pixels: of the particles about pixel D // 2; None: 3/8 of the side. The mean of each image
    outside of the circle is subtracted. Raises `ParameterError` where the circle leaves nothing.
    """
    side = images.shape[-1]
    radius = 0.375 * side if radius_pixels is None else radius_pixels
    beyond = centre_distance((side, side), images.device) - radius
    mask = (1 - raised_cosine(beyond / (_EDGE * side))).to(images)
    area = mask.square().sum()
    if area < _LEAST_AREA * side**2:
        raise ParameterError(
            f"a particle of radius {radius:.3g} pixels leaves no noise in images of {side} x {side}; give larger boxes"
        )
    shell = shells((side, side), images.device)
    total, count = 0.0, shell_sums(torch.ones(1, 1, *shell.shape, dtype=torch.float64), shell.cpu(), (side, side))[0]
    for some in images.split(512):
        mean = (some * mask).sum(dim=(1, 2), keepdim=True) / mask.sum()
        power = rfftn((some - mean) * mask).abs().square().double().sum(dim=0)
        total = total + power
    assert isinstance(total, torch.Tensor)
    sums = shell_sums((total / (area.double() * len(images)))[None, None].cpu(), shell.cpu(), (side, side))[0]
    return sums / count


def measured_noise(images: torch.Tensor) -> torch.Tensor:
    """`noise_power` of images [N, D, D] on the CPU. Raises `DataError` for images without any, by whose likelihoods
    nothing can be weighted: those whose particles are masked."""
    images = images.cpu()
    found = noise_power(images)
    if not found.max() > _LEAST_NOISE * images.double().square().mean():
        raise DataError(
            "the images are constant outside of the particle (3/8 of the side), as masked ones are, and have no noise "
            "to measure; give images that are not masked"
        )
    return found
