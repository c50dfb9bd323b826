"""deepinv physics as cryobench operators: `from_physics` for any, and three registered ones for one-channel images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import deepinv as dinv
import torch

from cryobench.core import Imaging, LinearOperator, OperatorRecipe, Shape
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.numerics.fft import whole_spectrum
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.spectral import multiply_spectrum
from cryobench.rng import generator

NULL_TOLERANCE = 1e-5
"""Singular values up to this count as zero in deepinv's `DecomposablePhysics`."""


class PhysicsOperator(LinearOperator):
    """A `deepinv.physics.LinearPhysics` as a live operator.

    A `DecomposablePhysics` has its own A^+ and proximal step. For others they are computed by cryobench's conjugate
    gradients, per image to a tolerance of 1e-6, not by deepinv's, which stop when the whole batch has converged.
    """

    def __init__(self, physics: dinv.physics.LinearPhysics, image_shape: Shape, *, dtype: torch.dtype,
                 device: torch.device | str = "cpu", rank: int | None = None):  # fmt: skip
        self.physics = physics.to(device)
        self.image_shape, self.dtype, self.device = image_shape, dtype, torch.device(device)
        measured = physics.A(torch.zeros((1, 1, *image_shape), dtype=dtype, device=device))
        if not isinstance(measured, torch.Tensor) or measured.ndim != 4 or measured.is_complex():
            raise IncompatibleError(
                f"expected real measurements [M, h, w] of an image of one channel; {type(physics).__name__} has others"
            )
        self.measurement_shape = (measured.shape[1], measured.shape[2], measured.shape[3])
        self.closed_form = isinstance(physics, dinv.physics.DecomposablePhysics)
        self._rank = super().rank if rank is None else rank
        self.nominal_compression = math.prod(image_shape) / measured.numel()

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.physics.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.physics.A_adjoint(y)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return self.physics.A_dagger(y) if self.closed_form else super().A_dagger(y)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        if not self.closed_form:
            return super().A_dagger_A(x, gamma)
        each = torch.as_tensor(gamma, dtype=x.dtype).expand(len(x), 1, 1, 1).flatten().tolist()
        # for y = 0 the proximal step from x is x - A_dagger_A(x, gamma)
        parts = [
            self.A_dagger(self.A(one)) if math.isinf(g) else one - self.prox_l2(one, torch.zeros_like(self.A(one)), g)
            for one, g in zip(x.split(1), each, strict=True)
        ]
        return torch.cat(parts)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        if math.isinf(gamma):
            return z + self.A_dagger(y - self.A(z))
        return self.physics.prox_l2(z, y, gamma) if self.closed_form else super().prox_l2(z, y, gamma)

    @property
    def rank(self) -> int:
        return self._rank


class DownsamplingOperator(FactoredOperator):
    """A filtered and downsampled image. On the coarse grid A A^T is a circular convolution: diagonal in Fourier."""

    def __init__(self, base: PhysicsOperator):
        self.base = base
        self.image_shape, self.measurement_shape = base.image_shape, base.measurement_shape
        self.dtype, self.device, self.nominal_compression = base.dtype, base.device, base.nominal_compression
        impulse = torch.zeros((1, *base.measurement_shape), dtype=base.dtype, device=base.device)
        impulse[..., 0, 0] = 1
        self._spectrum = torch.fft.rfft2(base.A(base.A_adjoint(impulse)).double()).real.clamp_min(0)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.base.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.base.A_adjoint(y)

    @property
    def eigenvalues(self) -> torch.Tensor:
        """Eigenvalues of A A^T, [1, 1, h, w] float64."""
        return whole_spectrum(self._spectrum, self.measurement_shape[1:])

    @property
    def eigenvalue_tolerance(self) -> float:
        """Singular values up to 1e-5 of the largest count as zero, as in deepinv's A^+ of a blur."""
        return NULL_TOLERANCE**2 * float(self._spectrum.max())

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return self.A_adjoint(multiply_spectrum(response(self._spectrum), residual))

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        s = self._spectrum
        inverse = torch.where(s > self.eigenvalue_tolerance, 1 / (s + shift.double()).clamp_min(1e-300), 0.0)
        return self.A_adjoint(multiply_spectrum(inverse, self.A(x)))


def from_physics(physics: dinv.physics.LinearPhysics, image_shape: Shape, *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", rank: int | None = None) -> PhysicsOperator:  # fmt: skip
    """A deepinv physics of images [B, 1, H, W] as a live cryobench operator. The arrays of the physics must be `dtype`.

    rank: the rank of A, if it is less than the sizes of x and y imply. Raises `IncompatibleError` for a physics whose
    measurements are not real [B, M, h, w].
    """
    return PhysicsOperator(physics, image_shape, dtype=dtype, device=device, rank=rank)


@dataclass(frozen=True)
class GaussianBlur(OperatorRecipe):
    """`deepinv.physics.BlurFFT` with a Gaussian kernel: circular, diagonal in Fourier, as many pixels as the image.

    Factors up to 1e-5 count as zero in deepinv's A^+ and in the rank.
    """

    sigma: Annotated[float, "standard deviation of the kernel, in pixels"] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ParameterError(f"deepinv_blur: sigma must be positive, got {self.sigma:g}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        side = 2 * int(self.sigma / 0.3 + 1) + 1
        H, W = imaging.shape
        if side > min(H, W):
            raise IncompatibleError(
                f"deepinv_blur: the kernel of sigma={self.sigma:g} is {side} pixels wide, more than images of "
                f"{H} x {W}; give a smaller sigma"
            )
        return (1, H, W)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> PhysicsOperator:
        physics = dinv.physics.BlurFFT(img_size=(1, *imaging.shape), filter=_gaussian(self.sigma, dtype), device=device)
        kept = whole_spectrum((physics.mask[..., 0] > NULL_TOLERANCE).double(), imaging.shape)
        operator = from_physics(physics, imaging.shape, dtype=dtype, device=device, rank=int(kept.sum()))
        operator.nonnegative = True
        return operator


@dataclass(frozen=True)
class Downsampling(OperatorRecipe):
    """`deepinv.physics.Downsampling`: a circular anti-aliasing filter, then every `factor`-th pixel along both axes."""

    factor: Annotated[int, "downsampling factor of both sides"] = 2
    filter: Annotated[Literal["gaussian", "bilinear", "bicubic"], "deepinv's name of the filter"] = "gaussian"

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ParameterError(f"deepinv_downsampling: factor must be at least 1, got {self.factor}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        H, W = imaging.shape
        if H % self.factor or W % self.factor:
            raise IncompatibleError(
                f"deepinv_downsampling:{self.factor} does not divide images of {H} x {W}; give a factor of both sides"
            )
        side = max(self._kernel(torch.float32).shape[-2:])
        if side > min(H, W):
            raise IncompatibleError(
                f"deepinv_downsampling: the {self.filter} filter of factor {self.factor} is {side} pixels wide, more "
                f"than images of {H} x {W}; give a smaller factor"
            )
        return (1, H // self.factor, W // self.factor)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> DownsamplingOperator:
        physics = dinv.physics.Downsampling(
            img_size=(1, *imaging.shape), filter=self._kernel(dtype), factor=self.factor, padding="circular",
            device=device,
        )  # fmt: skip
        operator = DownsamplingOperator(from_physics(physics, imaging.shape, dtype=dtype, device=device))
        operator.nonnegative = self.filter != "bicubic"
        return operator

    def _kernel(self, dtype: torch.dtype) -> torch.Tensor:
        if self.filter == "gaussian":
            return _gaussian(float(self.factor), dtype)
        functional = dinv.physics.functional
        make = functional.bilinear_filter if self.filter == "bilinear" else functional.bicubic_filter
        return make(self.factor).to(dtype)


@dataclass(frozen=True)
class Inpainting(OperatorRecipe):
    """`deepinv.physics.Inpainting`: a random fraction of the pixels, drawn by the seed, is measured; the rest is 0."""

    keep: Annotated[float, "fraction of the pixels that is measured, in (0, 1]"] = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ParameterError(f"deepinv_inpainting: keep must lie in (0, 1], got {self.keep:g}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        return (1, *imaging.shape)

    def draw(self, imaging: Imaging, seed: int) -> dict[str, torch.Tensor]:
        draws = torch.rand(imaging.shape, generator=generator(seed, "deepinv_inpainting", imaging.shape))
        return {"mask": (draws < self.keep).float()}

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> PhysicsOperator:
        mask = drawn["mask"].to(dtype)
        physics = dinv.physics.Inpainting(img_size=(1, *imaging.shape), mask=mask[None], device=device)
        operator = from_physics(physics, imaging.shape, dtype=dtype, device=device, rank=int(mask.sum()))
        operator.nominal_compression = 1 / self.keep
        operator.nonnegative = operator.noise_in_range = True
        return operator


def _gaussian(sigma: float, dtype: torch.dtype) -> torch.Tensor:
    """deepinv's Gaussian kernel, [1, 1, k, k]."""
    return dinv.physics.functional.gaussian_blur(sigma=(sigma, sigma)).to(dtype)
