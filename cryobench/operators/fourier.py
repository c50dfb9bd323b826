"""`fourier`: a part of the spectrum is measured.

The measurement is the real inverse FFT of the masked spectrum, as in the public CryoSENSE code. On a real image that
multiplies the spectrum by w(k) = (M(k) + M(-k)) / 2, indices modulo the size: A is diagonal in w and self-adjoint,
with the orthonormal DFT as its eigenbasis. It is a projector only where M(k) = M(-k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import OperatorRecipe, Shape
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.masks import FourierMask, RandomFourier, mirror
from cryobench.spec import Component


@dataclass(frozen=True)
class Fourier(OperatorRecipe):
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

    def build(self, image_shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device) -> FourierOperator:
        mask = self.mask.draw(self.rho, image_shape, seed)
        return FourierOperator(mask, nominal_compression=1 / self.rho, dtype=dtype, device=device)


class FourierOperator(FactoredOperator):
    """A = F^-1 diag(w) F on real images. mask: [H, W], centred, any real values. Measurements are [B, 1, H, W]."""

    noise_in_range = True

    def __init__(
        self, mask: torch.Tensor, *, nominal_compression: float, dtype: torch.dtype, device: torch.device | str
    ):
        self.image_shape = (mask.shape[0], mask.shape[1])
        self.measurement_shape = (1, *self.image_shape)
        self.nominal_compression = nominal_compression
        self.dtype, self.device = dtype, torch.device(device)
        symmetric = (mask.double() + mirror(mask).double()) / 2
        self._weight = torch.fft.ifftshift(symmetric).to(self.device)
        self._half = self._weight[:, : self.image_shape[1] // 2 + 1]

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply_spectrum(self._half, x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._multiply_spectrum(self._half, y)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply_spectrum(self._half**2, x)

    @property
    def eigenvalues(self) -> torch.Tensor:
        return self._weight**2

    @property
    def eigenvalue_tolerance(self) -> float:
        # w is a mean of two mask values, exact in float64: only true zeros are null
        return 0.0

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return self._multiply_spectrum(self._half * response(self._half**2), residual)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        s = self._half**2
        return self._multiply_spectrum(torch.where(s > 0, s / (s + shift), 0.0), x)

    def _multiply_spectrum(self, weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        spectrum = weight.to(image.dtype) * torch.fft.rfft2(image)
        if len(image) == 1 and image.device.type == "cpu":
            # the CPU's inverse FFT rounds a single image otherwise than the same image in a batch; iterations with
            # decisions in them would blow that up, and a result must not depend on its batch
            return torch.fft.irfft2(torch.cat([spectrum, spectrum]), s=self.image_shape)[:1]
        return torch.fft.irfft2(spectrum, s=self.image_shape)
