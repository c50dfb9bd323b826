"""Operators that are diagonal in Fourier: A = F^-1 diag(w) F on real images, for a real w with w(-k) = w(k).

A is self-adjoint, the orthonormal DFT is its eigenbasis, and w, or one w per image, is all there is to it. w is held on
the half spectrum of `rfftn`; where its last axis has k = 0 and k = W/2, which hold both k and -k, it must be the same
at both.
"""

from __future__ import annotations

import copy
from functools import cached_property

import torch

from cryobench.core import Shape
from cryobench.errors import IncompatibleError
from cryobench.numerics.fft import irfftn, rfftn, whole_spectrum
from cryobench.numerics.linalg import item_axes
from cryobench.operators.factored import FactoredOperator, Response


class SpectralOperator(FactoredOperator):
    """A = F^-1 diag(w) F. transfer: w, [1 or B, 1, *S[:-1], S[-1] // 2 + 1]; measurements are [B, 1, *S].

    images: None where one w serves all images, else their number B. `compute_norm` is the largest |w| of all images;
    `rank` the number of w that are not null, for images that differ in it their mean rounded down: it is N only where
    every image keeps all. Both stay as they are in what is selected.
    """

    null = 1e-6
    """|w| at or below this share of its largest counts as zero. Of N values of an oscillating w the least is about 1/N
    of the largest, so that at sizes in use what is null was meant to be (a blocked coefficient, an envelope that has
    died away). Down to it the rounding of float32, 6e-8, becomes at most 6% of a coefficient when 1/w is taken."""

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

    def _multiply(self, weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        if len({1, len(weight), len(image)}) > 2:
            raise IncompatibleError(
                f"an operator that differs between {len(weight)} images was given {len(image)}; select theirs first"
            )
        return multiply_spectrum(weight, image)


def product(outer: SpectralOperator, inner: SpectralOperator) -> SpectralOperator:
    """`outer` after `inner`: their w multiply. Where noise lives is the outer operator's matter."""
    operator = SpectralOperator(
        outer.transfer * inner.transfer,
        inner.image_shape,
        images=inner.images if outer.images is None else outer.images,
        nominal_compression=outer.nominal_compression * inner.nominal_compression,
        dtype=inner.dtype,
        device=inner.device,
    )
    operator.noise_in_range = outer.noise_in_range
    return operator


def multiply_spectrum(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """F^-1 diag(weight) F image: [1 or B, 1, *S[:-1], S[-1] // 2 + 1] real, and image and result [B, 1, *S]."""
    shape = image.shape[2:]
    return irfftn(weight.to(image.dtype) * rfftn(image, len(shape)), shape)
