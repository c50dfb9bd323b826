"""Non-uniform Fourier transforms of cubes, by finufft on the CPU.

In float64, unless errors of 1e-4 are allowed: in float32 the rounding of the points alone leaves errors of 4e-6 for
cubes of 64 voxels, and more for larger ones.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from cryobench.extras import of_extra

SINGLE = 1e-4
"""Relative error from which on transforms are in float32."""
_MANY = 2**17
"""Points from which on several threads save time."""


class Points:
    """The transform of cubes of `n` voxels a side at points p, with a relative error of `eps`.

        F(p) = sum_r x(r) exp(-i p . r),    r = voxel - n // 2

    points: radians per voxel in [-pi, pi), float64 [m, 3] as (z, y, x). `to` and `back` are adjoint to each other to
    the rounding of their precision, for any `eps`. Their rounding does not depend on the number of threads.
    """

    def __init__(self, points: np.ndarray, n: int, eps: float, *, small: bool = False):
        """small: use a grid of 1.25 times the sides instead of twice, which takes a quarter of the memory."""
        self._n, self._upsampling = n, 1.25 if small else 2.0
        self._eps = eps
        real, self._dtype = (np.float32, "complex64") if eps >= SINGLE else (np.float64, "complex128")
        self._axes = [np.ascontiguousarray(axis, real) for axis in points.T]

    def to(self, x: np.ndarray) -> np.ndarray:
        """F at the points, complex [m], of a real cube [n, n, n]."""
        return self._to_points.execute(np.ascontiguousarray(x, self._dtype))

    def back(self, values: np.ndarray) -> np.ndarray:
        """sum_p values(p) exp(i p . r), complex [n, n, n], for values [m]."""
        return self._from_points.execute(np.ascontiguousarray(values, self._dtype))

    @functools.cached_property
    def _to_points(self):
        return self._plan(2, -1, torch.get_num_threads() if len(self._axes[0]) >= _MANY else 1)

    @functools.cached_property
    def _from_points(self):
        # one thread: with several, the order of summation would vary
        return self._plan(1, 1, 1)

    def _plan(self, kind: int, sign: int, threads: int):
        with of_extra("structure"):
            import finufft

        shape = (self._n,) * 3
        # without its warnings on stderr, such as of more threads than OpenMP has
        options = {"upsampfac": self._upsampling, "nthreads": threads, "showwarn": 0}
        plan = finufft.Plan(kind, shape, eps=self._eps, isign=sign, dtype=self._dtype, **options)
        plan.setpts(*self._axes)
        return plan
