"""An operator of images after one that gives N views of a volume: y = (S_1 P_1 x, ..., S_N P_N x).

S may be the same for all images or differ between them, as CTFs do. y is [B, N M, *s], the M measurements of the first
image, then those of the second, and so on. Images are made and measured in batches, so that they are never all in
memory; A^T A x goes through the N images too, except where S is diagonal in Fourier after `project`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from cryobench.core import LinearOperator
from cryobench.core.operator import chosen_rows
from cryobench.errors import IncompatibleError
from cryobench.operators.project import CG_STEPS, CG_TOLERANCE, ProjectionOperator

_PIXELS = 2**23
"""Pixels of the images that are made and measured at once."""


def by_view(outer: LinearOperator, inner: LinearOperator) -> LinearOperator:
    """`outer` on each of the views of `inner`. Raises `IncompatibleError` for views that it does not fit."""
    N, *shape = inner.measurement_shape
    if (1, *shape) != tuple(outer.domain_shape) or outer.images not in (None, N):
        raise IncompatibleError(
            f"the inner operator gives {N} images of {shape}, the outer operator requires "
            f"{outer.images or 'any number'} of {list(outer.image_shape)}; choose operators that fit"
        )
    if outer.identity:
        return inner
    if outer.transfer is not None and isinstance(inner, ProjectionOperator):
        return inner.filtered(outer)
    return ByViewOperator(outer, inner)


class ByViewOperator(LinearOperator):
    """`outer` on each of the N views of `inner`, which must be the same for all unknowns of a batch.

    outer: an operator of one image for all views (`images` None), or of N images. Measurements are [B, N M, *s].
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator):
        self.outer, self.inner = outer, inner
        N, M = inner.measurement_shape[0], outer.measurement_shape[0]
        self.image_shape, self.channels = inner.image_shape, inner.channels
        self.measurement_shape = (N * M, *outer.measurement_shape[1:])
        self.dtype, self.device = inner.dtype, inner.device
        self.nominal_compression = outer.nominal_compression * inner.nominal_compression
        self.nonnegative = outer.nonnegative and inner.nonnegative
        self.noise_in_range = outer.noise_in_range
        self.views = M == 1
        self.cg_tol, self.cg_max_steps = CG_TOLERANCE[self.dtype], CG_STEPS[self.dtype]

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.each(part.outer.A, part.inner.A(x)) for part in self._batches], dim=1)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        parts = zip(self._batches, self._split(y), strict=True)
        return _sum(part.inner.A_adjoint(part.each(part.outer.A_adjoint, own)) for part, own in parts)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return _sum(part.inner.A_adjoint(part.each(part.outer.A_adjoint_A, part.inner.A(x))) for part in self._batches)

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        """That of the outer operator, image by image: detector noise is added to its output."""
        parts = zip(self._batches, self._split(y), strict=True)
        return torch.cat([part.each(part.outer.on_range, own) for part, own in parts], dim=1)

    @property
    def noise_rank(self) -> int:
        return self.inner.measurement_shape[0] * self.outer.noise_rank

    @property
    def rank(self) -> int:
        """An upper bound, the smaller of the ranks of the parts."""
        return min(self.inner.rank, self.inner.measurement_shape[0] * self.outer.rank)

    def rows(self, part: slice | torch.Tensor) -> LinearOperator:
        """Of whole images the operator of these, else one that goes through the images."""
        rows, M = chosen_rows(self, part), self.outer.measurement_shape[0]
        images = rows[::M] // M
        whole = images[:, None] * M + torch.arange(M, device=rows.device)
        if not torch.equal(whole.flatten(), rows):
            return super().rows(part)
        if torch.equal(images, torch.arange(self.inner.measurement_shape[0], device=rows.device)):
            return self
        return ByViewOperator(self.outer.select(images), self.inner.rows(images))

    @cached_property
    def _batches(self) -> list[_Batch]:
        """The operators of some of the images, for all of them in turn."""
        N, *shape = self.inner.measurement_shape
        length = max(1, _PIXELS // math.prod(shape))
        parts = [slice(start, min(start + length, N)) for start in range(0, N, length)]
        return [_Batch(self.outer.select(part), self.inner.rows(part)) for part in parts]

    def _split(self, y: torch.Tensor) -> list[torch.Tensor]:
        """y of the batches."""
        M = self.outer.measurement_shape[0]
        return list(y.split([M * part.inner.measurement_shape[0] for part in self._batches], dim=1))


@dataclass(frozen=True)
class _Batch:
    """The operators of n of the images."""

    outer: LinearOperator
    inner: LinearOperator

    def each(self, apply: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        """A method of the outer operator on each image or its measurements: [B, n m, *s] -> [B, n m', *s']."""
        n, B = self.inner.measurement_shape[0], len(values)
        of_images = values.reshape(B, n, -1, *values.shape[2:])
        if self.outer.images is None:
            found = apply(of_images.flatten(0, 1))
        else:
            found = torch.cat([apply(own) for own in of_images])
        return found.reshape(B, -1, *found.shape[2:])


def _sum(terms: Iterator[torch.Tensor]) -> torch.Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
