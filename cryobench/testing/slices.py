"""An operator from volumes to images, on which solvers, noises and metrics are tested in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Imaging, LinearOperator, OperatorRecipe
from cryobench.errors import IncompatibleError


@dataclass(frozen=True)
class CentralSlices(OperatorRecipe):
    """The central slices of a cube perpendicular to its axes z, y and x, or the first `count` of them."""

    dims = (3,)

    count: Annotated[int, "number of slices, 1 to 3"] = 3

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        D, H, W = imaging.shape
        if not D == H == W:
            raise IncompatibleError(f"central slices are of a cube, got a volume of {D} x {H} x {W}")
        return (self.count, H, W)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> LinearOperator:
        return CentralSlicesOperator(imaging.shape[0], self.count, dtype=dtype, device=device)


class CentralSlicesOperator(LinearOperator):
    """[B, 1, n, n, n] -> [B, count, n, n]: A and its adjoint, without closed forms."""

    nonnegative = True

    def __init__(self, n: int, count: int, *, dtype: torch.dtype, device: torch.device):
        self.image_shape, self.measurement_shape = (n, n, n), (count, n, n)
        self.nominal_compression = n / count
        self.dtype, self.device = dtype, device

    def A(self, x: torch.Tensor) -> torch.Tensor:
        count, n, _ = self.measurement_shape
        return torch.stack([x[:, 0].select(1 + axis, n // 2) for axis in range(count)], dim=1)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        count, n, _ = self.measurement_shape
        x = y.new_zeros((len(y), *self.domain_shape))
        for axis in range(count):
            x[:, 0].select(1 + axis, n // 2).add_(y[:, axis])
        return x
