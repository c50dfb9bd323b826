"""`fourier`: a part of the spectrum is measured.

The measurement is the real inverse FFT of the masked spectrum, as in the public CryoSENSE code. On a real image that
multiplies the spectrum by w(k) = (M(k) + M(-k)) / 2, indices modulo the size: A is diagonal in w and self-adjoint,
with the orthonormal DFT as its eigenbasis. It is a projector only where M(k) = M(-k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import DrawnRecipe, Shape
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.masks import FourierMask, RandomFourier, mirror
from cryobench.operators.spectral import SpectralOperator
from cryobench.spec import Component


@dataclass(frozen=True)
class Fourier(DrawnRecipe):
    """Keep a fraction `rho` of the Fourier coefficients: y = Re F^-1 M F x, of the image's own size."""

    rho: Annotated[float, "nominal fraction of Fourier coefficients kept, in (0, 1]"]
    mask: Annotated[FourierMask, Component("masks"), "which coefficients are kept"] = RandomFourier()

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ParameterError(f"fourier: rho must lie in (0, 1], got {self.rho:g}")
        if not isinstance(self.mask, FourierMask):
            raise IncompatibleError(f"fourier wants a Fourier mask (such as random_fourier), got {self.mask}")

    def check(self, image_shape: Shape) -> None:
        return None

    def measurement_shape(self, image_shape: Shape) -> tuple[int, int, int]:
        return (1, *image_shape)

    def drawn(self, image_shape: Shape, seed: int) -> dict[str, torch.Tensor]:
        return {"mask": self.mask.draw(self.rho, image_shape, seed)}

    def of(self, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device) -> FourierOperator:
        return FourierOperator(drawn["mask"], nominal_compression=1 / self.rho, dtype=dtype, device=device)


class FourierOperator(SpectralOperator):
    """A = F^-1 diag(w) F on real images. mask: [H, W], centred, any real values. Measurements are [B, 1, H, W]."""

    noise_in_range = True
    null = 0.0  # w is a mean of two mask values, exact in float64: only true zeros are null

    def __init__(
        self, mask: torch.Tensor, *, nominal_compression: float, dtype: torch.dtype, device: torch.device | str
    ):
        H, W = mask.shape
        weight = torch.fft.ifftshift((mask.double() + mirror(mask).double()) / 2)
        half = weight[None, None, :, : W // 2 + 1]
        super().__init__(half, (H, W), nominal_compression=nominal_compression, dtype=dtype, device=device)
