"""One map from two half maps: sharpened, weighted by the signal in each shell, and cut at its resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.maps.fsc import HalfMapFsc
from cryobench.metrics.rings import ring_counts, ring_sums
from cryobench.metrics.within import raised_cosine
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import radial_frequency, shells

LOWEST = 10.0
"""Å; amplitudes at lower resolution are of the shape of the particle and not of its atoms."""
_LEAST_SHELLS = 3
"""Number of shells that a slope is fitted to."""
_EDGE = 2.0
"""Width in shells of the raised cosine around the resolution, as in RELION."""


@dataclass(frozen=True, eq=False)
class Postprocessed:
    """map: [D, D, D]. b_factor: Å^2, by which it is sharpened where negative; 0 if it is not. reason: why it is not,
    though it was to be."""

    map: torch.Tensor
    b_factor: float
    reason: str | None = None


def postprocess(
    half1: torch.Tensor,
    half2: torch.Tensor,
    fsc: HalfMapFsc,
    *,
    mask: torch.Tensor | None = None,
    b_factor: float | None = None,
) -> Postprocessed:
    """The mean of two half maps [D, D, D] times exp(-B |k|^2 / 4), times sqrt(2 FSC / (1 + FSC)), up to its resolution.

    (Rosenthal and Henderson 2003, J. Mol. Biol. 333:721, eq. 5 and fig. 3.) FSC is the corrected curve; the resolution
    is where it falls below 0.143, around which the map is cut by a raised cosine of two shells: 1 one shell before, 1/2
    at the resolution, 0 one shell later. b_factor: B in Å^2, negative to sharpen, 0 not to; None: that which makes the
    amplitudes under the mask flat from 10 Å to the resolution (`guinier`), or 0 where there are too few shells.
    """
    mean = (half1.double() + half2.double()) / 2
    applied, reason = (b_factor, None) if b_factor is not None else guinier(mean, fsc, mask)
    weight = _weights(fsc)
    shell = shells(mean.shape, mean.device)
    table = torch.zeros(int(shell.max()) + 1, dtype=torch.float64, device=mean.device)
    table[0], table[1 : len(weight) + 1] = 1.0, weight
    frequency = radial_frequency(mean.shape, mean.device)
    last = fsc.side * (fsc.pixel_size or 1.0) / fsc.resolution()  # in cycles per box
    cut = raised_cosine((frequency * fsc.side - last) / _EDGE + 0.5)
    sharpening = torch.exp(-applied / 4 * (frequency / (fsc.pixel_size or 1.0)) ** 2)
    spectrum = rfftn(mean, 3) * table[shell] * cut * torch.where(cut > 0, sharpening, 0.0)
    return Postprocessed(irfftn(spectrum, mean.shape).to(half1.dtype), applied, reason)


def guinier(volume: torch.Tensor, fsc: HalfMapFsc, mask: torch.Tensor | None = None) -> tuple[float, str | None]:
    """The B-factor in Å^2 that makes a map flat, and why it is 0 if it could not be fitted.

    It is 4 times the slope of ln(amplitude) on |k|^2, over the shells from 10 Å to the resolution (Guinier plot:
    Rosenthal and Henderson 2003); the amplitude is the mean over a shell of the map under the mask, times
    sqrt(2 FSC / (1 + FSC)). Negative where amplitudes fall.
    """
    if fsc.pixel_size is None:
        return 0.0, "not sharpened: the pixel size is not known"
    k = fsc.frequency.to(volume.device)
    fitted = (k >= 1 / LOWEST) & (k <= 1 / fsc.resolution())
    if int(fitted.sum()) < _LEAST_SHELLS:
        return 0.0, (
            f"not sharpened: at a resolution of {fsc.resolution():.3g} Å there are fewer than {_LEAST_SHELLS} shells "
            f"beyond {LOWEST:g} Å to fit a B-factor to"
        )
    inside = volume.double() if mask is None else volume.double() * mask
    shape = tuple(volume.shape)
    amplitude = ring_sums(rfftn(inside, 3).abs()[None, None], shape) / ring_counts(shape, volume.device)
    y = (amplitude[0] * _weights(fsc).to(volume.device))[fitted].log()
    x = k[fitted].square()
    return 4 * float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()), None


def _weights(fsc: HalfMapFsc) -> torch.Tensor:
    """The correlation of the mean of the halves with the truth, shell by shell."""
    signal = fsc.corrected.clamp(0, 1)
    return (2 * signal / (1 + signal)).sqrt()
