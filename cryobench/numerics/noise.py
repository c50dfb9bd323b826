"""The standard deviation of white noise in an image, from the image alone."""

from __future__ import annotations

import numpy as np

_NORMAL_MEDIAN = 0.6744897501960817
"""The median of |n| for n ~ N(0, 1)."""


def difference_deviation(image: np.ndarray) -> float:
    """The standard deviation of white Gaussian noise in an image [H, W], from differences in blocks of 2 x 2 pixels.

    d = (p00 - p01 - p10 + p11) / 2 has the deviation of the noise, and nearly nothing of a smooth image: it is the
    finest diagonal Haar coefficient. sigma = median |d| / 0.6745 (Donoho & Johnstone 1994, Biometrika 81:425). Noise
    that is correlated from pixel to pixel is underestimated. 0 for an image with a side of one pixel.
    """
    height, width = (n // 2 * 2 for n in image.shape)
    if not height or not width:
        return 0.0
    even, odd = image[0:height:2, :width], image[1:height:2, :width]
    d = (even[:, 0::2] - even[:, 1::2] - odd[:, 0::2] + odd[:, 1::2]) / 2
    return float(np.median(np.abs(d))) / _NORMAL_MEDIAN
