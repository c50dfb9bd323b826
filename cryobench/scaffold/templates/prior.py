"""Sparse pixels, as a cryobench prior."""

from dataclasses import dataclass

import torch

from cryobench.priors.sparsity import Sparsity


@dataclass(frozen=True)
class Example(Sparsity):
    """R(x) = sum of |x_i| over all pixels, for images with few non-zero pixels.

    `analysis` is the K of R(x) = ||K x||_1 and `adjoint` its transpose; `norm_squared` bounds ||K||^2, by default 1.
    If K K^T = 1, the proximal step is soft thresholding, else it is computed iteratively.
    """

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        return u
