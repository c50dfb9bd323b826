"""`identity`: the image itself is measured. With noise this is denoising."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import OperatorRecipe, Shape
from cryobench.operators.factored import FactoredOperator, Response


@dataclass(frozen=True)
class Identity(OperatorRecipe):
    """y = x. The operator of denoising problems, and of tests."""

    def check(self, image_shape: Shape) -> None:
        return None

    def measurement_shape(self, image_shape: Shape) -> tuple[int, int, int]:
        return (1, *image_shape)

    def build(self, image_shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device) -> IdentityOperator:
        return IdentityOperator(image_shape, dtype=dtype, device=device)


class IdentityOperator(FactoredOperator):
    """A = I. Measurements are [B, 1, H, W]."""

    nominal_compression = 1.0
    nonnegative = True

    def __init__(self, image_shape: Shape, *, dtype: torch.dtype, device: torch.device):
        self.image_shape = image_shape
        self.measurement_shape = (1, *image_shape)
        self.dtype, self.device = dtype, device

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @property
    def transfer(self) -> torch.Tensor:
        H, W = self.image_shape
        return torch.ones((1, 1, H, W // 2 + 1), dtype=torch.float64, device=self.device)

    @property
    def eigenvalues(self) -> torch.Tensor:
        return torch.ones(self.measurement_shape, dtype=torch.float64, device=self.device)

    @property
    def eigenvalue_tolerance(self) -> float:
        return 0.0

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return response(self.eigenvalues).to(residual.dtype) * residual

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x / (1 + shift)
