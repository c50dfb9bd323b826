"""An electron-counting detector: modulation transfer function, counts, sensitivities of the pixels.

The expected image is filtered by the MTF before electrons are counted, so that the counts are independent: their noise
is white, as that of counting detectors nearly is (McMullan et al. 2014, Ultramicroscopy 147:156).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cryobench.numerics.fft import half_frequencies

_LARGE = 60.0
"""Mean above which counts are found from an approximation, since a search from 0 takes as many steps as the count."""
_CHUNK = 2**15
"""Pixels whose counts are searched at once, so that the arrays stay in the cache of the processor."""


def mtf(shape: Sequence[int], at_nyquist: float) -> torch.Tensor:
    """A Gaussian MTF with this value at half a cycle per pixel, at_nyquist^((2 |k|)^2), float64 [H, W // 2 + 1]."""
    ky, kx = half_frequencies(shape)
    return torch.exp(4 * math.log(at_nyquist) * (ky**2 + kx**2))


def poisson(mean: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Poisson counts with these means, uint16 of their shape, by inversion: the least n with F(n) >= u.

    fractions: u, uniform in (0, 1) and at most 1 - 2^-33. Each count depends on its own mean and fraction alone.
    """
    flat, u = mean.ravel(), fractions.ravel()
    counts = np.zeros(mean.size, np.uint16)
    for start in range(0, mean.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        own = flat[chunk]
        large = own > _LARGE
        if large.any():
            counts[chunk][large] = _quantiles(own[large], u[chunk][large])
            own = np.where(large, 0.0, own)
        _search(own, u[chunk], counts[chunk])
    return counts.reshape(mean.shape)


def _search(mean: np.ndarray, u: np.ndarray, counts: np.ndarray) -> None:
    """Add to `counts` the number of n with F(n) < u, F(n) = sum_{j <= n} exp(-mean) mean^j / j!."""
    probability = np.exp(-mean)
    left = u - probability
    above = left > 0
    above &= mean > 0
    n = 0
    while above.any():
        counts += above
        n += 1
        probability *= mean
        probability /= n
        left -= probability
        np.logical_and(above, left > 0, out=above)


def _quantiles(mean: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The least n with F(n) >= u, from Cornish and Fisher's approximation, corrected in steps of one."""
    from scipy.special import ndtri, pdtr

    z = ndtri(u)
    n = np.maximum(np.floor(mean + np.sqrt(mean) * z + (z**2 - 1) / 6), 0)
    while (many := (n > 0) & (pdtr(n - 1, mean) >= u)).any():
        n -= many
    while (few := pdtr(n, mean) < u).any():
        n += few
    return n


def log_normal(normal: np.ndarray, deviation: float) -> np.ndarray:
    """exp(s z - s^2 / 2) of standard normal numbers z: positive factors with mean one, float32."""
    return np.exp(deviation * normal - deviation**2 / 2).astype(np.float32)
