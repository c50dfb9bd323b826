"""A detector that is binned along one axis, as a cryobench operator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Imaging, LinearOperator, OperatorRecipe, Shape
from cryobench.errors import IncompatibleError


class ExampleOperator(LinearOperator):
    """y = sums of `bin` neighbouring columns, [B, 1, H, W] -> [B, 1, H, W / bin].

    `A` and its transpose are sufficient: norm, pseudo-inverse and proximal step are then computed iteratively. If you
    know closed forms, override them and set `closed_form`.
    """

    nonnegative = True

    def __init__(self, bin: int, image_shape: Shape, dtype: torch.dtype, device: torch.device):
        self.bin, self.image_shape, self.dtype, self.device = bin, image_shape, dtype, device
        self.measurement_shape = (1, image_shape[0], image_shape[1] // bin)
        self.nominal_compression = float(bin)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(3, (-1, self.bin)).sum(dim=-1)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.bin, dim=3)


@dataclass(frozen=True)
class Example(OperatorRecipe):
    """Sums of neighbouring columns."""

    bin: Annotated[int, "columns in a sum"] = 4

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        H, W = imaging.shape
        if W % self.bin:
            raise IncompatibleError(f"bins of {self.bin} columns do not tile images {W} wide")
        return (1, H, W // self.bin)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> LinearOperator:
        return ExampleOperator(self.bin, imaging.shape, dtype, device)
