"""Rings of Fourier space (shells for volumes): sums over them, and threshold crossings of curves over them.

Ring r of images with sides S contains the coefficients whose spatial frequency, in units of 1 / n cycles per pixel with
n = min(S), rounds to r: 1 <= r <= n // 2. The mean (r = 0) and the corners beyond the Nyquist frequency are in no ring.
"""

from __future__ import annotations

from functools import lru_cache, reduce

import torch

from cryobench.core import Shape

SMALL_RINGS = 2
"""Number of innermost rings with too few coefficients for a crossing to count."""


def ring_frequencies(shape: Shape) -> torch.Tensor:
    """The spatial frequency of each ring, cycles per pixel, float64 [R]; divided by the pixel size it is in 1/Å."""
    n = min(shape)
    return torch.arange(1, n // 2 + 1, dtype=torch.float64) / n


def ring_sums(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Sums over each ring of the full spectrum, [B, R], of values [B, 1, ...] in the layout of `rfftn`.

    The values must be equal at k and -k: `rfftn` returns only one of the two.
    """
    number, multiplicity = _rings(shape, values.device)
    weighted = (values * multiplicity).flatten(1)
    # index 0 collects the coefficients outside all rings
    sums = weighted.new_zeros((len(values), min(shape) // 2 + 1))
    return sums.scatter_add_(1, number.flatten().expand_as(weighted), weighted)[:, 1:]


def ring_counts(shape: Shape, device: torch.device) -> torch.Tensor:
    """Number of coefficients of the full spectrum in each ring, [1, R]."""
    _, multiplicity = _rings(shape, device)
    return ring_sums(torch.ones_like(multiplicity)[None, None], shape)


def crossing(curve: torch.Tensor, threshold: float, shape: Shape) -> torch.Tensor:
    """The spatial frequency up to which a curve over the rings, [B, R], stays at or above a threshold: cycles per
    pixel, [B].

    Interpolated linearly between rings. The result is 1/2, the Nyquist frequency, for a curve that never falls below
    the threshold, and 1/n, the lowest frequency of an image of n pixels, for one that starts below it. Rings 1 and 2
    have fewer than 16 coefficients. A crossing there counts only if ring 3 is below the threshold too: a correlation
    over m coefficients varies by chance by 1 / sqrt(m), 0.3 there, and where the CTF starts near zero these rings have
    little signal.
    """
    n = min(shape)
    below = curve < threshold
    if curve.shape[1] > SMALL_RINGS:
        small, rest = below[:, :SMALL_RINGS], below[:, SMALL_RINGS:]
        below = torch.cat([small & rest[:, :1], rest], dim=1)
    first = below.int().argmax(dim=1, keepdim=True)
    before = (first - 1).clamp_min(0)
    above, under = curve.gather(1, before)[:, 0], curve.gather(1, first)[:, 0]
    between = torch.where(above > under, (above - threshold) / (above - under), 0.0).clamp(0, 1)
    found = (before[:, 0] + 1 + torch.where(first[:, 0] > 0, between, 0.0)) / n
    return torch.where(below.any(dim=1), found, 0.5)


@lru_cache(maxsize=8)
def _rings(shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The ring of every coefficient of `rfftn` (0: none) and its multiplicity in the full spectrum; both
    [*S[:-1], S[-1] // 2 + 1]."""
    n = min(shape)
    options = {"dtype": torch.float64, "device": device}
    axes = [torch.fft.fftfreq(side, 1 / n, **options) for side in shape[:-1]]
    axes.append(torch.fft.rfftfreq(shape[-1], 1 / n, **options))
    axes = [k.reshape(-1, *[1] * (len(shape) - 1 - axis)) for axis, k in enumerate(axes)]
    number = reduce(torch.hypot, axes).add(0.5).floor().long()
    multiplicity = torch.full(number.shape, 2.0, **options)
    multiplicity[..., 0] = 1
    if shape[-1] % 2 == 0:
        multiplicity[..., -1] = 1
    return torch.where(number <= n // 2, number, 0), multiplicity
