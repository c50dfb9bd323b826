"""`decimate` or `bin` after an operator that is diagonal in Fourier, in closed form.

With h the transfer function (that of the blur or CTF, times that of the means of t pixels), D the selection of every
R-th pixel of sides that are multiples of R, and F the DFT of the image, A = D F^-1 diag(h) F. Decimation folds the
spectrum: the prod(R) frequencies k that are equal modulo the shape s of the measurements are one frequency q of y, and
A A^T = F_s^-1 diag(p) F_s with

    p(q) = 1 / prod(R) sum over k = q (mod s) of |h(k)|^2

(Zhao, Wei, Basarab, Dobigeon, Kouame and Tourneret 2016, "Fast single image super-resolution using a new analytical
solution for l2-l2 problems", IEEE Trans. Image Process. 25:3683.) With the orthonormal rows G = D F^-1
diag(h / sqrt(p)) F, A = sqrt(p) G: products with 1/p, which would lose digits, are not needed.
"""

from __future__ import annotations

import copy
import functools
import math
from functools import cached_property

import torch

from cryobench.errors import IncompatibleError
from cryobench.numerics.fft import rfftn, whole_spectrum
from cryobench.numerics.linalg import item_axes
from cryobench.operators.factored import FactoredOperator, Response
from cryobench.operators.spectral import SpectralOperator, multiply_spectrum
from cryobench.operators.subsampling import SubsamplingOperator


class AliasedOperator(FactoredOperator):
    """`outer` after `inner`. The sides of the image must be multiples of the steps of `outer` (`outer.even`).

    As for `SpectralOperator`, `compute_norm` is the maximum over all images, `rank` their mean, rounded down.
    """

    def __init__(self, outer: SubsamplingOperator, inner: SpectralOperator):
        self.image_shape, self.measurement_shape = inner.image_shape, outer.measurement_shape
        self.nominal_compression = outer.nominal_compression * inner.nominal_compression
        self.nonnegative = outer.nonnegative and inner.nonnegative
        self.images, self.dtype, self.device = inner.images, inner.dtype, inner.device
        self._positions = outer.positions
        dims = len(self.image_shape)
        self._select = SubsamplingOperator(
            self.image_shape, outer.steps, (1,) * dims, dtype=self.dtype, device=self.device
        )
        self._transfer = inner.transfer * _of_means(outer)
        """h on the half spectrum."""
        p = self._folded(self._transfer.abs().square())
        self._power = p[..., : p.shape[-1] // 2 + 1]
        """p on the half spectrum of the measurements."""
        self._tolerance = inner.null**2 * p.amax(dim=item_axes(p), keepdim=True)
        kept = p > self._tolerance
        unfolded = self._unfolded(torch.where(kept, p, math.inf))
        self._rows = self._transfer / unfolded.sqrt()
        """h / sqrt(p), 0 where p is null."""
        self._rank = int(kept.sum()) // len(p)
        self._norm = float(p.max()) ** 0.5

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._select.A(self._multiply(self._transfer, x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._transfer.conj(), self._select.A_adjoint(y))

    @property
    def eigenvalues(self) -> torch.Tensor:
        """p on the whole spectrum of the measurements, [1 or B, 1, *s], float64."""
        return whole_spectrum(self._power, self.measurement_shape[1:])

    @property
    def eigenvalue_tolerance(self) -> torch.Tensor:
        return self._tolerance

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        filtered = self._multiply(self._power.sqrt() * response(self._power), residual)
        return self._multiply(self._rows.conj(), self._select.A_adjoint(filtered))

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        p = self._power
        w = torch.where(p > self._tolerance, p / (p + shift), 0.0)
        filtered = self._multiply(w, self._select.A(self._multiply(self._rows, x)))
        return self._multiply(self._rows.conj(), self._select.A_adjoint(filtered))

    def compute_norm(self) -> float:
        return self._norm

    @property
    def norms(self) -> torch.Tensor:
        return self._power.amax(dim=item_axes(self._power), keepdim=True).sqrt().to(self.dtype)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def positions(self) -> tuple[torch.Tensor, ...]:
        """Those of the measurements of `outer`: a symmetric blur does not move them."""
        return self._positions

    @cached_property
    def mean_response(self) -> torch.Tensor:
        """h(0) everywhere."""
        zero = (slice(None), slice(None), *[slice(1)] * len(self.image_shape))
        return self._transfer[zero].real.to(self.dtype).expand(-1, *self.measurement_shape).contiguous()

    def select(self, images: slice | torch.Tensor) -> AliasedOperator:
        if self.images is None:
            return self
        part = copy.copy(self)
        for name in ("_transfer", "_power", "_tolerance", "_rows", "mean_response"):
            setattr(part, name, getattr(self, name)[images])
        part.images = len(part._transfer)
        return part

    def _multiply(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if len({1, len(weight), len(values)}) > 2:
            raise IncompatibleError(
                f"the operator is for {len(weight)} different images, got {len(values)}; use `select` first"
            )
        return multiply_spectrum(weight, values)

    def _folded(self, half: torch.Tensor) -> torch.Tensor:
        """The mean over the frequencies that are equal modulo s, [., 1, *s], of an even function on the half spectrum
        of the image."""
        folded = whole_spectrum(half, self.image_shape)
        for axis, (step, m) in enumerate(zip(self._select.steps, self.measurement_shape[1:], strict=True)):
            folded = folded.unflatten(2 + axis, (step, m)).mean(dim=2 + axis)
        return folded

    def _unfolded(self, whole: torch.Tensor) -> torch.Tensor:
        """Values [., 1, *s] at each frequency of the half spectrum of the image."""
        *others, last = self.image_shape
        for axis, count in enumerate([*others, last // 2 + 1]):
            places = torch.arange(count, device=whole.device) % self.measurement_shape[1 + axis]
            whole = whole.index_select(2 + axis, places)
        return whole


def _of_means(outer: SubsamplingOperator) -> torch.Tensor:
    """The transfer function of the means of pixels 0, ..., t - 1 from each, on the half spectrum [1, 1, *], complex;
    real for t = 1."""
    if max(outer.thicknesses) == 1:
        return torch.ones((1, 1, *[1] * len(outer.image_shape)), dtype=torch.float64, device=outer.device)
    factors = []
    dims = len(outer.image_shape)
    for axis, (n, t) in enumerate(zip(outer.image_shape, outer.thicknesses, strict=True)):
        box = torch.zeros(n, dtype=torch.float64, device=outer.device)
        box[:t] = 1 / t
        factor = (rfftn(box, 1) if axis == dims - 1 else torch.fft.fft(box)).conj()
        factors.append(factor.reshape(1, 1, *[-1 if i == axis else 1 for i in range(dims)]))
    return functools.reduce(torch.mul, factors)
