"""`fourier`: measures a part of the spectrum.

The measurement is the real inverse FFT of the masked spectrum, as in the public CryoSENSE code. For a real image this
multiplies the spectrum by w(k) = (M(k) + M(-k)) / 2, indices modulo the size: A is self-adjoint with eigenvalues w and
the orthonormal DFT as eigenbasis. It is a projector only if M(k) = M(-k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Imaging, OperatorRecipe, check_dims
from cryobench.core.operator import drawn_array
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.masks import FourierMask, RandomFourier, mirror
from cryobench.operators.spectral import SpectralOperator
from cryobench.spec import Component


@dataclass(frozen=True)
class Fourier(OperatorRecipe):
    """Keep a fraction `rho` of the Fourier coefficients; y has the size of the image.

        y = Re F^-1 M F x,    M(k) = 1 where k is kept, else 0

    On real images it multiplies the spectrum by (M(k) + M(-k)) / 2.
    """

    dims = (2, 3)

    rho: Annotated[float, "nominal fraction of Fourier coefficients kept, in (0, 1]"]
    mask: Annotated[FourierMask, Component("masks"), "which coefficients are kept"] = RandomFourier()

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ParameterError(f"fourier: rho must lie in (0, 1], got {self.rho:g}")
        if not isinstance(self.mask, FourierMask):
            raise IncompatibleError(f"fourier requires a Fourier mask (such as random_fourier), got {self.mask}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        check_dims("mask", self.mask, imaging.shape)
        return (1, *imaging.shape)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        return {"mask": self.mask.draw(self.rho, imaging.shape, seed)}

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> FourierOperator:
        mask = drawn_array(drawn, "mask", imaging.shape)
        return FourierOperator(mask, nominal_compression=1 / self.rho, dtype=dtype, device=device)


class FourierOperator(SpectralOperator):
    """A = F^-1 diag(w) F on real images. mask: [*S], centred, any real values. Measurements are [B, 1, *S]."""

    noise_in_range = True
    null = 0.0  # w is a mean of two mask values, exact in float64: only true zeros are null

    def __init__(
        self, mask: torch.Tensor, *, nominal_compression: float, dtype: torch.dtype, device: torch.device | str
    ):
        weight = torch.fft.ifftshift((mask.double() + mirror(mask).double()) / 2)
        half = weight[None, None, ..., : mask.shape[-1] // 2 + 1]
        super().__init__(half, tuple(mask.shape), nominal_compression=nominal_compression, dtype=dtype, device=device)
