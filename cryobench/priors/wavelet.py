"""`wavelet`: images are sparse in an orthonormal wavelet basis.

PyWavelets supplies the transform, as the matrices of its single levels (mode `periodization`, which is orthonormal on a
finite image); torch applies them, batched, on any device and in any dtype. See docs/adr/0005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType
from typing import Annotated

import numpy as np
import pywt
import torch

from cryobench.core import Shape
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import along_axes
from cryobench.priors.sparsity import Sparsity


@dataclass(frozen=True)
class WaveletSparsity(Sparsity):
    """K: a separable discrete wavelet transform of `level` levels; its approximation band is not penalised.

        R(x) = sum_i |(K x)_i|    with cut = 1

    Coefficients are laid out as in `pywt.coeffs_to_array`: the approximation band in the corner at 0 of every axis.
    """

    family: Annotated[str, "an orthogonal wavelet of PyWavelets: haar, db4, sym8, coif2, ..."] = "sym8"
    level: Annotated[int | None, "number of levels; none: the number of times that all sides can be halved"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            pywt.Wavelet(self.family)  # pyright: ignore[reportAttributeAccessIssue]
        except ValueError:
            raise ParameterError(
                f"wavelet: PyWavelets has no discrete wavelet {self.family!r}; it has haar, db4, sym8, coif2 and others"
            ) from None
        L = level_matrix(self.family, 64, torch.float64, torch.device("cpu"))
        if not torch.allclose(L @ L.mT, torch.eye(64, dtype=L.dtype), atol=1e-9):
            raise ParameterError(f"wavelet: {self.family} is not orthogonal; use one of haar, db*, sym* or coif*")
        if self.level is not None and self.level < 1:
            raise ParameterError(f"wavelet: level must be at least 1, got {self.level}")

    def unsupported(self, shape: Shape) -> str | None:
        maximum, size = _halvings(shape), " x ".join(map(str, shape))
        if maximum == 0:
            return f"a wavelet transform needs even sides, got {size}"
        if self.level is not None and self.level > maximum:
            return f"{size} pixels can be halved {maximum} times, not level={self.level}"
        return None

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        c = x.clone()
        for band in self._bands(x):
            c[_corner(band)] = along_axes([self._matrix(n, x) for n in band], c[_corner(band)])
        return c

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        x = u.clone()
        for band in reversed(self._bands(u)):
            x[_corner(band)] = along_axes([self._matrix(n, u).mT for n in band], x[_corner(band)])
        return x

    def penalised(self, u: torch.Tensor) -> torch.Tensor:
        u = u.clone()
        u[_corner(tuple(n // 2 for n in self._bands(u)[-1]))] = 0
        return u

    def entries(self, shape: Shape) -> int:
        level = self._levels(shape)
        return math.prod(shape) - math.prod(n >> level for n in shape)

    def _levels(self, shape: Shape) -> int:
        return self.level or _halvings(shape)

    def _bands(self, x: torch.Tensor) -> list[Shape]:
        """The part of the array that each level transforms, largest first."""
        shape = tuple(x.shape[2:])
        return [tuple(n >> i for n in shape) for i in range(self._levels(shape))]

    def _matrix(self, n: int, like: torch.Tensor) -> torch.Tensor:
        return level_matrix(self.family, n, like.dtype, like.device)


def _corner(shape: Shape) -> tuple[slice | EllipsisType, ...]:
    """The index of the corner of this shape at 0 of the last axes."""
    return (..., *(slice(n) for n in shape))


def _halvings(shape: Shape) -> int:
    """The number of times that all sides can be halved."""
    common = math.gcd(*shape)
    return (common & -common).bit_length() - 1


@lru_cache(maxsize=64)
def level_matrix(family: str, n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One level of the periodised wavelet transform of n samples, [n, n]: approximation rows first, then details."""
    bands = pywt.dwt(np.eye(n), family, mode="periodization", axis=0)
    return torch.from_numpy(np.concatenate(bands)).to(device, dtype)
