"""deepinv physics as cryobench operators: `from_physics` for any, and three registered ones for one-channel images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import deepinv as dinv
import torch

from cryobench.core import Imaging, LinearOperator, OperatorRecipe, Shape
from cryobench.errors import IncompatibleError, ParameterError, described
from cryobench.numerics.fft import whole_spectrum
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.spectral import multiply_spectrum
from cryobench.rng import generator
from cryobench_deepinv.decomposed import OperatorDecomposed
from cryobench_deepinv.physics import OperatorPhysics

NULL_TOLERANCE = 1e-5
"""Singular values up to this count as zero in deepinv's `DecomposablePhysics`."""
MAX_SIDE = 1024
MAX_ENTRIES = 2**24
"""The rank of a physics of unknown structure is that of its matrix, up to this smaller side and number of entries."""


class PhysicsOperator(LinearOperator):
    """A `deepinv.physics.LinearPhysics` as a live operator.

    A `DecomposablePhysics` has its own A^+ and proximal step. For others they are computed by cryobench's conjugate
    gradients, per image to a tolerance of 1e-6, not by deepinv's, which stop when the whole batch has converged.
    """

    def __init__(self, physics: dinv.physics.LinearPhysics, image_shape: Shape, *, dtype: torch.dtype,
                 device: torch.device | str = "cpu", rank: int | None = None):  # fmt: skip
        self.measurement_shape = _checked(physics, image_shape, dtype, torch.device(device))
        self.physics = physics.to(device)
        self.image_shape, self.dtype, self.device = image_shape, dtype, torch.device(device)
        self.closed_form = isinstance(physics, dinv.physics.DecomposablePhysics)
        largest = min(math.prod(image_shape), math.prod(self.measurement_shape))
        if rank is not None and not 0 <= rank <= largest:
            raise ParameterError(
                f"from_physics: rank must lie in 0 .. {largest}, the smaller size of x and y; got {rank}"
            )
        self._rank = rank
        self.nominal_compression = math.prod(image_shape) / math.prod(self.measurement_shape)

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
        """The stated rank, else that of its structure or of its matrix.

        Raises `IncompatibleError` for a physics of unknown structure that is too large for its matrix.
        """
        if self._rank is None:
            self._rank = _rank_of(self)
        return self._rank


def _checked(physics: object, image_shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int]:
    """The shape of the measurements. Raises `IncompatibleError` unless the physics is a linear map of images
    [B, 1, H, W] to real measurements [B, M, h, w] with its adjoint.
    """
    name = type(physics).__name__
    if not isinstance(physics, dinv.physics.LinearPhysics):
        raise IncompatibleError(f"expected a deepinv.physics.LinearPhysics, got {name}, which is not linear")
    if len(image_shape) != 2 or min(image_shape) < 1:
        raise IncompatibleError(f"expected the shape (H, W) of the images, got {tuple(image_shape)}")
    draws = torch.Generator().manual_seed(0)
    x, z = torch.randn((2, 1, 1, *image_shape), generator=draws, dtype=torch.float64).to(device, dtype)
    given = f"an image [1, 1, {image_shape[0]}, {image_shape[1]}] of {str(dtype).removeprefix('torch.')}"
    try:
        physics = physics.to(device)
        measured = physics.A(x), physics.A(z), physics.A(2 * x + z)
    except Exception as error:
        raise IncompatibleError(
            f"{name} cannot be applied to {given} ({described(error)}); give the shape and dtype that it was made for"
        ) from error
    y = measured[0]
    if not all(isinstance(each, torch.Tensor) and each.ndim == 4 and len(each) == 1 and not each.is_complex()
               for each in measured):  # fmt: skip
        found = f"{y.dtype} {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise IncompatibleError(f"expected real measurements [1, M, h, w] of {given}; {name} gives {found}")
    if y.dtype != dtype or y.numel() == 0 or not all(each.isfinite().all() for each in measured):
        finite = "" if all(each.isfinite().all() for each in measured) else ", not finite"
        raise IncompatibleError(
            f"expected finite measurements in the dtype of {given}; {name} gives {y.dtype} {list(y.shape)}{finite}"
        )
    scale = sum(float(each.abs().max()) for each in measured)
    if (2 * y + measured[1] - measured[2]).abs().max() > 1e-3 * scale:
        raise IncompatibleError(f"expected a linear physics; {name} maps 2 x + z to something else than 2 A x + A z")
    w = torch.randn(y.shape, generator=draws, dtype=torch.float64).to(device, dtype)
    try:
        back = physics.A_adjoint(w)
    except Exception as error:
        raise IncompatibleError(f"A_adjoint of {name} cannot be applied to measurements {list(w.shape)} "
                                f"({described(error)})") from error  # fmt: skip
    if not isinstance(back, torch.Tensor) or back.shape != x.shape:
        found = list(back.shape) if isinstance(back, torch.Tensor) else type(back).__name__
        raise IncompatibleError(f"expected one channel: A_adjoint of {name} gives {found} for {given}")
    gap = float(((y * w).sum() - (x * back).sum()).abs())
    if gap > 1e-3 * float(y.norm() * w.norm() + x.norm() * back.norm()):
        raise IncompatibleError(f"A_adjoint of {name} is not the transpose of A: <A x, w> and <x, A^T w> differ by "
                                f"{gap:.3g}; give A_adjoint=, as from deepinv.physics.adjoint_function")  # fmt: skip
    return (y.shape[1], y.shape[2], y.shape[3])


def _rank_of(operator: PhysicsOperator) -> int:
    """The rank of a physics: from its structure if that is known, else the numerical rank of its matrix."""
    physics, shape = operator.physics, operator.image_shape
    if isinstance(physics, OperatorPhysics):
        return physics.operator.rank
    if isinstance(physics, OperatorDecomposed):
        return int((physics.mask > 0).sum())
    if isinstance(physics, dinv.physics.BlurFFT):
        return int(whole_spectrum((physics.mask[..., 0] > NULL_TOLERANCE).double(), shape).sum())
    if isinstance(physics, dinv.physics.Inpainting | dinv.physics.Denoising):
        return int((physics.mask.abs() > NULL_TOLERANCE).expand(1, 1, *shape).sum())
    N, M = math.prod(shape), math.prod(operator.measurement_shape)
    if min(M, N) > MAX_SIDE or M * N > MAX_ENTRIES:
        raise IncompatibleError(
            f"the rank of {type(physics).__name__}, with {M} measurements of {N} pixels, is unknown; it is computed up "
            f"to {MAX_SIDE} of either and {MAX_ENTRIES} entries of the matrix: give rank= to from_physics"
        )
    to, (count, of) = (operator.A, (N, shape)) if N <= M else (operator.A_adjoint, (M, operator.measurement_shape))
    axes = (1, *of) if N <= M else of
    unit = torch.eye(count, dtype=operator.dtype, device=operator.device).reshape(count, *axes)
    singular = torch.linalg.svdvals(torch.cat([to(part) for part in unit.split(64)]).flatten(1).double())
    eps = torch.finfo(operator.dtype).eps
    tolerance = NULL_TOLERANCE if operator.closed_form else max(M, N) * eps * float(singular[0])
    return int((singular > tolerance).sum())


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

    rank: the rank of A. By default it is determined when it is needed: from the mask of a `BlurFFT`, an `Inpainting` or
    a `Denoising`, from the operator of an `as_physics`, else from the singular values of the matrix of A, if x or y has
    at most 1024 entries. Raises `IncompatibleError` for a physics that is not linear, whose measurements are not real
    [B, M, h, w], or whose `A_adjoint` is not the transpose of `A`.
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
        operator = from_physics(physics, imaging.shape, dtype=dtype, device=device)
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
        operator = from_physics(physics, imaging.shape, dtype=dtype, device=device)
        operator.nominal_compression = 1 / self.keep
        operator.nonnegative = operator.noise_in_range = True
        return operator


def _gaussian(sigma: float, dtype: torch.dtype) -> torch.Tensor:
    """deepinv's Gaussian kernel, [1, 1, k, k]."""
    return dinv.physics.functional.gaussian_blur(sigma=(sigma, sigma)).to(dtype)
