"""Shells of Fourier space, all coefficients of about one frequency, corners included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from cryobench.numerics.fft import half_frequencies, whole_spectrum


def radial_frequency(shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """|k| of each coefficient of the half spectrum in cycles per pixel, float64 [*S[:-1], S[-1] // 2 + 1]."""
    return reduce(torch.hypot, half_frequencies(shape, device))


def shells(shape: Sequence[int], device: torch.device | str = "cpu", per_cycle: int | None = None) -> torch.Tensor:
    """The shell of each coefficient of the half spectrum, [*S[:-1], S[-1] // 2 + 1]: round(|k| n), k in cycles/pixel.

    per_cycle: n, by default the longest side, for shells one pixel of its spectrum wide.
    """
    return (radial_frequency(shape, device) * (per_cycle or max(shape))).round().long()


def shell_sums(half: torch.Tensor, shell: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Sums over the shells of the whole spectrum, [B, 1, *S[:-1], S[-1] // 2 + 1] -> [B, shells]."""
    values = whole_spectrum(half, shape).flatten(1)
    index = whole_spectrum(shell, shape).flatten()
    return values.new_zeros((len(values), int(shell.max()) + 1)).index_add(1, index, values)
