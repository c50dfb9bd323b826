"""Convolution of cubes with a kernel of twice their sides: products with a symmetric Toeplitz matrix."""

from __future__ import annotations

import torch

from cryobench.numerics.fft import cropped_irfftn, padded_rfftn, rfftn


class Toeplitz:
    """y(r) = sum_s K(r - s) x(s) over the voxels s of a cube, for a real and even kernel K.

    kernel: [2 n, 2 n, 2 n], K(d) at index d modulo 2 n; differences of n voxels do not occur, and are ignored. Cubes
    are [B, 1, n, n, n] in `dtype`. Padded twofold, the convolution is circular, and costs two transforms.
    """

    def __init__(self, kernel: torch.Tensor, *, dtype: torch.dtype, device: torch.device):
        self._n = n = kernel.shape[0] // 2
        kernel = kernel.clone()
        for axis in range(3):
            kernel.select(axis, n).zero_()
        self._spectrum = rfftn(kernel, 3).real.to(device, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        n = self._n
        return cropped_irfftn(self._spectrum * padded_rfftn(x, (2 * n,) * 3), (2 * n,) * 3, (n,) * 3)
