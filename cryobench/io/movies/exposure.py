"""Exposure weighting: frames of damaged specimen count less at high spatial frequencies.

Source: Grant & Grigorieff 2015, eLife 4:e06980. Critical exposure N_e(k) = 0.245 k^-1.665 + 2.81 e/Å² at 300 kV, k in
1/Å, times 0.8 at 200 kV; the weight of a frame after exposure N is q(k, N) = exp(-N / (2 N_e(k))).
"""

from __future__ import annotations

import numpy as np

_A, _B, _C = 0.245, -1.665, 2.81
VOLTAGE = {300: 1.0, 200: 0.8}
"""The factor of the critical exposure at each voltage, kV."""


def critical_exposure(k: np.ndarray, voltage: int) -> np.ndarray:
    """The exposure after which the signal at spatial frequency k (1/Å) falls to 1/e, e/Å²; infinite at k = 0."""
    with np.errstate(divide="ignore"):
        return VOLTAGE[voltage] * (_A * np.power(k, _B) + _C)


def weights(exposures: np.ndarray, k: np.ndarray, voltage: int) -> np.ndarray:
    """Weights of frames after these exposures (e/Å²) at spatial frequencies k [...], float32 [n, ...].

    They are divided by the root of their mean square over the frames, so that the sum of weighted frames of white noise
    has the power of the sum of frames.
    """
    with np.errstate(under="ignore"):
        q = np.exp(-np.multiply.outer(exposures, 0.5 / critical_exposure(k, voltage)))
        return (q / np.sqrt(np.square(q).mean(axis=0))).astype(np.float32)
