"""Registration of two images of one place: a shift, and an optical flow between what it leaves.

The first image is noisy, the second is not, or less so. Displacements d are those with second(p + d) = first(p), in
pixels along (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Rectangle = tuple[slice, slice]
Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""flow(first, second) is the displacement at every pixel, [2, H, W]."""

UPSAMPLING = 20
"""Shifts are found to this fraction of a pixel."""
BACKGROUND = 4
"""The mean over squares of the side divided by this, taken twice, is removed before a shift is found."""
SMOOTHING = 2.0
"""Standard deviation, pixels, of the Gaussian that images are smoothed with before a flow is computed."""
ATTACHMENT = 10.0
"""Of TV-L1: flows for noise of the deviation of the image, smoothed as above, follow the noise with more."""
RADIUS = 15
"""Of ILK: half the side of its window, pixels."""
BAND = (1.0, 4.0)
"""Images are compared by their structure between Gaussians of these standard deviations, pixels."""
_CLIPPED = 0.5
"""Percentage of the darkest and of the brightest pixels whose intensity does not count for a flow."""
_REFINEMENTS = 2
_SMALLEST = 16
"""Pixels a side of an overlap that a shift is refined on."""


def found_shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The displacement, float64 [2], constant over the image, of two images [H, W] that may differ in size.

    The maximum of their cross-correlation, which for white noise in one of them is the most likely shift: neither is
    whitened or smoothed. Both are reduced to their deviation from a local mean and tapered by a Hann window. After a
    first shift of whole pixels only the overlap of both is compared, so that the window does not favour small shifts.
    (Guizar-Sicairos, Thurman and Fienup 2008, Opt. Lett. 33:156, by scikit-image.)
    """
    from skimage.registration import phase_cross_correlation

    def step(one: np.ndarray, two: np.ndarray, upsampling: int) -> np.ndarray:
        pair = (_tapered(one), _tapered(two))
        if not all(image.any() for image in pair):
            return np.zeros(2)
        options: dict[str, Any] = {"normalization": None}  # declared as text
        found = phase_cross_correlation(*pair, upsample_factor=upsampling, **options)[0]
        return -np.asarray(found, np.float64)

    h, w = (min(sides) for sides in zip(first.shape, second.shape, strict=True))
    shift = step(first[:h, :w], second[:h, :w], 1)
    for _ in range(_REFINEMENTS):
        whole = np.rint(shift)
        here = common(first.shape, second.shape, whole)
        if here is None or min(each.stop - each.start for each in here) < _SMALLEST:
            break
        there = tuple(slice(each.start + int(d), each.stop + int(d)) for each, d in zip(here, whole, strict=True))
        shift = whole + step(first[here], second[there], UPSAMPLING)
    return shift + 0.0  # no negative zeros


def common(first: tuple[int, ...], second: tuple[int, ...], shift: np.ndarray, reach: int = 0) -> Rectangle | None:
    """The pixels of an image of shape `first` that are in the second one after a shift, and `reach` more pixels around
    them; None if there are none."""
    sides = []
    for n, m, d in zip(first, second, shift, strict=True):
        start, stop = max(0, math.ceil(reach - d)), min(n, math.floor(m - 1 - reach - d) + 1)
        if stop <= start:
            return None
        sides.append(slice(start, stop))
    return sides[0], sides[1]


def warped(second: np.ndarray, where: Rectangle, displacement: np.ndarray) -> np.ndarray:
    """The second image at the pixels `where` of the first, displaced by [2] or [2, h, w], by cubic splines; float64."""
    from scipy.ndimage import map_coordinates

    places = np.mgrid[where] + (displacement if displacement.ndim == 3 else displacement[:, None, None])
    return map_coordinates(second.astype(np.float64), places, order=3, mode="nearest")


def flow_between(first: np.ndarray, second: np.ndarray, flow: Flow, reach: int) -> np.ndarray:
    """The flow between images of one shape, [2, H, W], limited to `reach` pixels along each axis.

    `flow` is given both images smoothed by `SMOOTHING`, and mapped to [0, 1] each.
    """
    return np.clip(flow(_unit(first), _unit(second)), -reach, reach)


def tvl1(first: np.ndarray, second: np.ndarray, attachment: float = ATTACHMENT) -> np.ndarray:
    """The flow of least total variation (Zach, Pock and Bischof 2007, by scikit-image)."""
    from skimage.registration import optical_flow_tvl1

    options: dict[str, Any] = {"attachment": attachment}  # any positive number, though declared as int
    return optical_flow_tvl1(first, second, **options)


def ilk(first: np.ndarray, second: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """The flow of iterative Lucas-Kanade (Le Besnerais and Champagnat 2005, by scikit-image), which is faster."""
    from skimage.registration import optical_flow_ilk

    return optical_flow_ilk(first, second, radius=radius)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the pixels of two images of one shape; 0 if one is constant."""
    a, b = (image.ravel() - image.mean(dtype=np.float64) for image in (first, second))
    power = float(a @ a) * float(b @ b)
    return float(a @ b) / math.sqrt(power) if power > 0 else 0.0


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of two images of one shape between the Gaussians of `BAND`.

    Most of the noise is at higher frequencies. At lower ones images of different places correlate by chance, and the
    brightness varies otherwise.
    """
    from scipy.ndimage import gaussian_filter

    def structure(image: np.ndarray) -> np.ndarray:
        values = image.astype(np.float64)
        fine, coarse = (gaussian_filter(values, width, mode="nearest") for width in BAND)
        return fine - coarse

    return correlation(structure(first), structure(second))


def details(image: np.ndarray) -> np.ndarray:
    """What the smoothing for the flow removes from an image: white noise in it is independent of that which remains."""
    from scipy.ndimage import gaussian_filter

    values = image.astype(np.float64)
    return values - gaussian_filter(values, SMOOTHING, mode="nearest")


def brightness(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(offset, factor) with the least squared error of offset + factor x second to the first image."""
    a, b = (image.ravel().astype(np.float64) for image in (first, second))
    variance = b.var()
    factor = float(np.mean((a - a.mean()) * (b - b.mean())) / variance) if variance > 0 else 0.0
    return float(a.mean() - factor * b.mean()), factor


def _tapered(image: np.ndarray) -> np.ndarray:
    """The deviation of an image from its background, tapered to the borders, float64."""
    from scipy.ndimage import uniform_filter

    values = image.astype(np.float64)
    side = max(2, min(values.shape) // BACKGROUND)
    values -= uniform_filter(uniform_filter(values, side, mode="reflect"), side, mode="reflect")
    windows = [np.hanning(n + 2)[1:-1] for n in values.shape]
    return (values - values.mean()) * np.outer(*windows)


def _unit(image: np.ndarray) -> np.ndarray:
    """An image smoothed, and mapped to [0, 1] from its darkest to its brightest pixels."""
    from scipy.ndimage import gaussian_filter

    values = gaussian_filter(image.astype(np.float64), SMOOTHING, mode="nearest")
    low, high = np.percentile(values, (_CLIPPED, 100 - _CLIPPED))
    return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
