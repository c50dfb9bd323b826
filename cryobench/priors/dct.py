"""`dct`: images are sparse in the orthonormal discrete cosine transform."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from cryobench.core import Prior


@dataclass(frozen=True)
class DctSparsity(Prior):
    """R(x) = sum of |DCT-II coefficients| of x without the zero-frequency one: the mean is never shrunk."""

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """Orthonormal 2-D DCT-II, [B, 1, H, W] -> [B, 1, H, W]; coefficient (0, 0) is the mean times sqrt(H W)."""
        rows, columns = _bases(x)
        return _each_image(rows, x, columns.mT)

    def synthesis(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The inverse (and transpose) of `analysis`."""
        rows, columns = _bases(coefficients)
        return _each_image(rows.mT, coefficients, columns)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """R(x) of each image, [B, 1, 1, 1]."""
        return _without_mean(self.analysis(x)).abs().sum(dim=(1, 2, 3), keepdim=True)

    def prox(self, z: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """argmin_x 1/2 ||x - z||^2 + threshold R(x): soft thresholding, exact since the DCT is orthonormal.

        threshold: [B, 1, 1, 1] or a scalar tensor.
        """
        c = self.analysis(z)
        # max(c - t, 0) + min(c + t, 0), with the mean passed through
        shrunk = (c - threshold).clamp_min(0) + (c + threshold).clamp_max(0)
        shrunk[..., 0, 0] = c[..., 0, 0]
        return self.synthesis(shrunk)

    def largest_threshold(self, gradient: torch.Tensor) -> torch.Tensor:
        """The dual norm of R: max |DCT coefficient| of each image without the mean, [B, 1, 1, 1]."""
        return _without_mean(self.analysis(gradient)).abs().amax(dim=(1, 2, 3), keepdim=True)


def _without_mean(coefficients: torch.Tensor) -> torch.Tensor:
    coefficients = coefficients.clone()
    coefficients[..., 0, 0] = 0
    return coefficients


def _each_image(left: torch.Tensor, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ x @ right, image by image: folding the batch into one product would let its size change the rounding."""
    B = x.shape[0]
    return torch.bmm(torch.bmm(left.expand(B, -1, -1), x[:, 0]), right.expand(B, -1, -1)).unsqueeze(1)


def _bases(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    H, W = x.shape[-2:]
    return dct_matrix(H, x.dtype, x.device), dct_matrix(W, x.dtype, x.device)


@lru_cache(maxsize=16)
def dct_matrix(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The orthonormal DCT-II matrix [n, n]: C[k, j] = sqrt((2 - [k = 0]) / n) cos(pi (2 j + 1) k / (2 n)).

    For image sizes two matrix products beat an FFT-based transform, and are exact.
    """
    k = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    j = torch.arange(n, dtype=torch.float64).unsqueeze(0)
    matrix = (2 / n) ** 0.5 * torch.cos(torch.pi * (2 * j + 1) * k / (2 * n))
    matrix[0] /= 2**0.5
    return matrix.to(device, dtype)
