"""Operators that are diagonal in the Fourier basis: A = F^-1 diag(w) F on real images, for real w with w(-k) = w(k).

A is self-adjoint with the orthonormal DFT as eigenbasis, and is defined by w, or by one w per image. w is stored on the
half spectrum of `rfftn`, which contains both k and -k at k = 0 and k = W/2 of its last axis; there w must be symmetric.
"""

from __future__ import annotations

import copy
from functools import cached_property

import torch

from cryobench.core import Crop, Shape, Window, checked_window
from cryobench.errors import IncompatibleError, Unsupported
from cryobench.numerics.fft import irfftn, rfftn, whole_spectrum
from cryobench.numerics.linalg import item_axes
from cryobench.operators.factored import FactoredOperator, Response


class SpectralOperator(FactoredOperator):
    """A = F^-1 diag(w) F. transfer: w, [1 or B, 1, *S[:-1], S[-1] // 2 + 1]; measurements are [B, 1, *S].

    images: None if one w is shared by all images, else their number B. `compute_norm` is the maximum |w| over all
    images; `rank` the number of non-zero w, averaged over images and rounded down, so that it is N only if all are
    non-zero for every image. `select` keeps both.
    """

    null = 1e-6
    """|w| at or below this fraction of the maximum counts as zero. Of N values of an oscillating w the smallest is
    about 1/N of the largest, so at common sizes only intended zeros are below it (blocked coefficients, a decayed
    envelope). At this level 1/w amplifies the rounding of float32, 6e-8, to 6% of a coefficient."""

    def __init__(
        self,
        transfer: torch.Tensor,
        image_shape: Shape,
        *,
        images: int | None = None,
        nominal_compression: float = 1.0,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.image_shape = image_shape
        self.measurement_shape = (1, *image_shape)
        self.nominal_compression = nominal_compression
        self.images = images
        self.dtype, self.device = dtype, torch.device(device)
        self._transfer = transfer.to(self.device, torch.float64)
        self._tolerance = self.null**2 * self._transfer.square().amax(dim=item_axes(transfer), keepdim=True)
        kept = (self.eigenvalues > self._tolerance).sum(dim=item_axes(transfer))
        self._rank = int(kept.sum()) // len(kept)
        self._norm = float(self._transfer.abs().max())

    @property
    def transfer(self) -> torch.Tensor:
        return self._transfer

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._transfer, x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._transfer, y)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._transfer**2, x)

    @property
    def eigenvalues(self) -> torch.Tensor:
        """w(k)^2 on the whole spectrum, [1 or B, 1, *S], float64."""
        return whole_spectrum(self._transfer**2, self.image_shape)

    @property
    def eigenvalue_tolerance(self) -> torch.Tensor:
        return self._tolerance

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._transfer * response(self._transfer**2), residual)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        s = self._transfer**2
        return self._multiply(torch.where(s > self._tolerance, s / (s + shift), 0.0), x)

    def compute_norm(self) -> float:
        return self._norm

    @property
    def norms(self) -> torch.Tensor:
        return self._transfer.abs().amax(dim=item_axes(self._transfer), keepdim=True).to(self.dtype)

    @property
    def rank(self) -> int:
        return self._rank

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """w(0) times a constant image: exactly 0 where w(0) is."""
        zero = (slice(None), slice(None), *[slice(1)] * len(self.image_shape))
        response = self._transfer[zero].to(self.dtype)
        return response.expand(-1, 1, *self.image_shape).contiguous()

    def select(self, images: slice | torch.Tensor) -> SpectralOperator:
        if self.images is None:
            return self
        part = copy.copy(self)
        part._transfer, part._tolerance = self._transfer[images], self._tolerance[images]
        part.mean_response, part.images = self.mean_response[images], len(part._transfer)
        return part

    def crop(self, window: Window) -> Crop:
        checked_window(self, window)
        raise Unsupported("an operator that is diagonal in Fourier mixes all pixels: a window has no operator")

    def _multiply(self, weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        if len({1, len(weight), len(image)}) > 2:
            raise IncompatibleError(
                f"the operator is for {len(weight)} different images, got {len(image)}; use `select` first"
            )
        return multiply_spectrum(weight, image)


def product(outer: SpectralOperator, inner: SpectralOperator) -> SpectralOperator:
    """`outer` after `inner`, with the product of their w; `noise_in_range` is that of `outer`."""
    operator = SpectralOperator(
        outer.transfer * inner.transfer,
        inner.image_shape,
        images=inner.images if outer.images is None else outer.images,
        nominal_compression=outer.nominal_compression * inner.nominal_compression,
        dtype=inner.dtype,
        device=inner.device,
    )
    operator.noise_in_range = outer.noise_in_range
    operator.nonnegative = outer.nonnegative and inner.nonnegative
    return operator


def multiply_spectrum(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """F^-1 diag(weight) F image: [1 or B, 1, *S[:-1], S[-1] // 2 + 1], and image and result [B, 1, *S].

    weight: real, or complex with weight(-k) the conjugate of weight(k).
    """
    shape = image.shape[2:]
    dtype = image.dtype.to_complex() if weight.is_complex() else image.dtype
    return irfftn(weight.to(dtype) * rfftn(image, len(shape)), shape)
