"""Fourier shell correlation between half maps, and its correction for the mask by random phases.

Maps are cubes [D, D, D]. Entry i of a curve is shell i + 1 of `cryobench/metrics/rings.py`, of i + 1 cycles per box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cryobench.core.source import size_text
from cryobench.errors import ParameterError
from cryobench.metrics.rings import crossing, ring_frequencies
from cryobench.metrics.spectral import correlation
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells
from cryobench.rng import digest, generator

Curve = Literal["unmasked", "masked", "randomised", "corrected"]
HALF_MAPS, REFERENCE = 0.143, 0.5
"""Thresholds of the correlation between half maps (Rosenthal and Henderson 2003, J. Mol. Biol. 333:721), and of that
with a reference without error: the same quality of the map of all particles, 0.5 = sqrt(2 0.143 / (1 + 0.143))."""
RANDOMISED_BELOW = 0.8
"""Phases are random from the shell on at which the unmasked correlation first falls below this value."""
_LEAKS = 2
"""Shells from there that are not corrected: a mask mixes neighbours, so random phases still correlate there."""


def shell_correlation(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """FSC(r) = Re sum A B* / sqrt(sum |A|^2 sum |B|^2) over each shell of two maps [D, D, D], float64 [D // 2].

    (Harauz and van Heel 1986, Optik 73:146.) The mean under the mask is subtracted from each map, and both are
    multiplied by the mask. A shell that is empty in one of them (`cryobench/metrics/spectral.py`) is 0. Raises
    `ParameterError` for shapes that are not equal cubes.
    """
    _check(a, b, mask)
    weight = None if mask is None else mask.double()[None, None]
    return correlation(a[None, None], b[None, None], weight)[0]


def randomised(volume: torch.Tensor, first_shell: int, seed: int) -> torch.Tensor:
    """A map [D, D, D] whose phases are random from a shell on, including the corners beyond the last shell.

    (Chen et al. 2013, Ultramicroscopy 135:24.) Amplitudes, and the coefficients of lower frequency, are kept. The
    phases are those of white noise, so that the map remains real. first_shell: cycles per box. Raises `ParameterError`
    for a shape that is no cube.
    """
    _check(volume)
    white = torch.randn(volume.shape, generator=generator(seed, "random phases"), dtype=torch.float64)
    noise = rfftn(white.to(volume.device), 3)
    spectrum = rfftn(volume.double(), 3)
    random = shells(volume.shape, volume.device) >= first_shell
    turned = spectrum.abs() * noise.sgn()
    return irfftn(torch.where(random, turned, spectrum), volume.shape).to(volume.dtype)


@dataclass(frozen=True, eq=False)
class HalfMapFsc:
    """Correlations between two half maps, float64 [D // 2] each.

    unmasked: of the maps. masked: of the maps under the mask. randomised: under the mask, of the maps with random
    phases from shell `first_random` on: what the mask alone makes. corrected: without it, that is
    (masked - randomised) / (1 - randomised) from shell `first_random` + 2 on. Without a mask there is nothing to
    correct: masked and corrected are the unmasked curve, and randomised is NaN. side: D. pixel_size: Å, None if
    unknown.
    """

    unmasked: torch.Tensor
    masked: torch.Tensor
    randomised: torch.Tensor
    corrected: torch.Tensor
    first_random: int
    side: int
    pixel_size: float | None

    @property
    def frequency(self) -> torch.Tensor:
        """Of each shell, 1/Å, or cycles per pixel without a pixel size; float64 [D // 2]."""
        return ring_frequencies((self.side,) * 3) / (self.pixel_size or 1.0)

    def resolution(self, threshold: float = HALF_MAPS, curve: Curve = "corrected") -> float:
        """The resolution in Å, or in pixels without a pixel size, at which a curve falls below a threshold."""
        return resolution_of(getattr(self, curve), threshold, self.side, self.pixel_size)


def resolution_of(curve: torch.Tensor, threshold: float, side: int, pixel_size: float | None) -> float:
    """The resolution at which a curve over the shells of a cube falls below a threshold, by the rules of
    `rings.crossing`: from 2 pixels, where it never does, to the side of the box, where it starts below; Å, or pixels
    without a pixel size."""
    return (pixel_size or 1.0) / float(crossing(curve[None], threshold, (side,) * 3))


def half_map_fsc(
    half1: torch.Tensor, half2: torch.Tensor, *, mask: torch.Tensor | None, pixel_size: float | None, seed: int = 0
) -> HalfMapFsc:
    """The correlations of two independent half maps [D, D, D], with and without a mask [D, D, D] of values in [0, 1].

    (Rosenthal and Henderson 2003, J. Mol. Biol. 333:721; Chen et al. 2013, Ultramicroscopy 135:24; shells as in RELION:
    random phases from the shell on at which the unmasked curve first falls below 0.8, correction 2 shells later, and 0
    where the randomised curve is higher.) If the unmasked curve does not fall below 0.8 nothing is corrected. seed: of
    the random phases. Raises `ParameterError` for shapes that are not equal cubes.
    """
    _check(half1, half2, mask)
    side = half1.shape[0]
    unmasked = shell_correlation(half1, half2)
    low = (unmasked < RANDOMISED_BELOW).nonzero()
    first = int(low[0]) + 1 if len(low) else len(unmasked) + 1
    if mask is None:
        return HalfMapFsc(unmasked, unmasked, torch.full_like(unmasked, torch.nan), unmasked, first, side, pixel_size)
    masked = shell_correlation(half1, half2, mask)
    a, b = (randomised(half, first, digest(seed, number)) for number, half in enumerate((half1, half2)))
    noise = shell_correlation(a, b, mask)
    signal = torch.where(masked > noise, (masked - noise) / (1 - noise), 0.0)
    shell = torch.arange(1, len(masked) + 1, device=masked.device)
    corrected = torch.where(shell < first + _LEAKS, masked, signal)
    return HalfMapFsc(unmasked, masked, noise, corrected, first, side, pixel_size)


def _check(volume: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Raise `ParameterError` unless all are cubes of the same side."""
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] < 2:
        raise ParameterError(f"expected maps that are cubes, got {size_text(volume.shape)} voxels; crop or pad them")
    for other in others:
        if other is not None and other.shape != volume.shape:
            raise ParameterError(
                f"expected maps and masks of the same size, got {size_text(volume.shape)} and "
                f"{size_text(other.shape)} voxels; resample one of them"
            )
