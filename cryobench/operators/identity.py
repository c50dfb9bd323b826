"""`identity`: y = x. With noise this is denoising."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cryobench.core import Crop, Imaging, OperatorRecipe, Shape, Window, checked_window
from cryobench.operators.factored import FactoredOperator, Response


@dataclass(frozen=True)
class Identity(OperatorRecipe):
    """The image itself.

        y = x

    With noise it gives the problem of denoising.
    """

    dims = (2, 3)

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        return (1, *imaging.shape)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> IdentityOperator:
        return IdentityOperator(imaging.shape, dtype=dtype, device=device)


class IdentityOperator(FactoredOperator):
    """A = I. Measurements are [B, 1, *S]."""

    nominal_compression = 1.0
    identity = True
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
    def positions(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.arange(n, dtype=torch.float64) for n in self.image_shape)

    @property
    def transfer(self) -> torch.Tensor:
        *others, W = self.image_shape
        return torch.ones((1, 1, *others, W // 2 + 1), dtype=torch.float64, device=self.device)

    @property
    def eigenvalues(self) -> torch.Tensor:
        return torch.ones((), dtype=torch.float64, device=self.device).expand(self.measurement_shape)

    @property
    def eigenvalue_tolerance(self) -> float:
        return 0.0

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return response(torch.ones((), dtype=torch.float64, device=self.device)).to(residual.dtype) * residual

    @property
    def rank(self) -> int:
        return math.prod(self.image_shape)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x / (1 + shift)

    def crop(self, window: Window) -> Crop:
        shape = tuple(part.stop - part.start for part in checked_window(self, window))
        return Crop(IdentityOperator(shape, dtype=self.dtype, device=self.device), (slice(None), *window))
