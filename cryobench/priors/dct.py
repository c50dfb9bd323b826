"""`dct`: images are sparse in the orthonormal discrete cosine transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from scipy.fft import dctn, idctn

from cryobench.core import Shape
from cryobench.numerics.linalg import along_axes, one_channel
from cryobench.priors.sparsity import Sparsity


@dataclass(frozen=True)
class DctSparsity(Sparsity):
    """K: the orthonormal DCT-II along every axis.

        R(x) = sum_i |(K x)_i|    with cut = 1

    The zero-frequency coefficient, the mean times sqrt(N), is not penalised.
    """

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        return _fast(x, dctn) if _is_large(x) else along_axes(_bases(x), x)

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        return _fast(u, idctn) if _is_large(u) else along_axes([basis.mT for basis in _bases(u)], u)

    def penalised(self, u: torch.Tensor) -> torch.Tensor:
        u = u.clone()
        u.flatten(1)[:, 0] = 0
        return u

    def entries(self, shape: Shape) -> int:
        return math.prod(shape) - 1


LARGE = 2048
"""Sides above it are transformed by an FFT on the CPU: the matrix of a side of n pixels has n^2 numbers, the product
n^3 operations for each image."""


def _is_large(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and max(x.shape[2:]) > LARGE


def _fast(x: torch.Tensor, transform: Callable[..., Any]) -> torch.Tensor:
    """The orthonormal DCT-II of each image, or its inverse."""
    axes = tuple(range(2, x.ndim))
    return torch.from_numpy(transform(one_channel(x).numpy(), axes=axes, norm="ortho", workers=torch.get_num_threads()))


def _bases(x: torch.Tensor) -> list[torch.Tensor]:
    return [dct_matrix(n, x.dtype, x.device) for n in x.shape[2:]]


@lru_cache(maxsize=16)
def dct_matrix(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The orthonormal DCT-II matrix [n, n]: C[k, j] = sqrt((2 - [k = 0]) / n) cos(pi (2 j + 1) k / (2 n)).

    At image sizes two matrix products are faster than an FFT-based transform.
    """
    k = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    j = torch.arange(n, dtype=torch.float64).unsqueeze(0)
    matrix = (torch.pi * (2 * j + 1) * k).div_(2 * n).cos_().mul_((2 / n) ** 0.5)
    matrix[0] /= 2**0.5
    return matrix.to(device, dtype)
