"""`decimate`, `bin` and `slices`: the mean of t pixels out of every R along some axes, in closed form.

Along one axis of n pixels, measurement k is the mean of the pixels R k, ..., R k + t - 1 (those that the axis has), for
k = 0 ... ceil(n / R) - 1. The rows of the matrix have disjoint support, so A A^T is diagonal with the entries 1 / t_k,
t_k the number of pixels of measurement k; along several axes it is their outer product. Hence

    A^T f(A A^T) y = A^T (f(s) y),    s_k = 1 / t_k,    V_r w(s) V_r^T x = A^T (w(s) / s) A x

For t = 1 it is a selection, A^+ = A^T. Nothing is cropped if n is not a multiple of R: the last measurement then has as
many pixels as are left, at most t, and pixels after it are not measured.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from cryobench.core import Crop, Imaging, OperatorRecipe, Shape, Window, checked_window
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError, ParameterError, Unsupported
from cryobench.operators.factored import FactoredOperator, Response


class _Subsampling(OperatorRecipe):
    """What the recipes share: a step and a thickness for each axis."""

    @abstractmethod
    def steps(self, dims: int) -> tuple[int, ...]:
        """R along each of `dims` axes, 1 where every pixel is kept."""

    @abstractmethod
    def thicknesses(self, dims: int) -> tuple[int, ...]:
        """t along each of `dims` axes."""

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        steps = self.steps(len(imaging.shape))
        for n, step in zip(imaging.shape, steps, strict=True):
            if 1 < step >= n:
                name = type(self).__name__.lower()
                raise IncompatibleError(
                    f"{name}:{step} measures only one of {n} positions of images of {size_text(imaging.shape)}; "
                    f"expected a step of at most {n - 1}: give a smaller one, or larger images"
                )
        return (1, *_measured(imaging.shape, steps))

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> SubsamplingOperator:
        dims = len(imaging.shape)
        return SubsamplingOperator(imaging.shape, self.steps(dims), self.thicknesses(dims), dtype=dtype, device=device)


@dataclass(frozen=True)
class Decimate(_Subsampling):
    """Every `step`-th row, from the first, along one axis or along all.

        y_q = x_{R q}

    `decimate:4,axis=0` of an image is the problem of interpolating three rows between neighbours, as in a reslice of a
    volume along z. `decimate:2@blur:1.2` is super-resolution with a Gaussian point-spread function.
    """

    dims = (2, 3)
    floor = "interpolate:linear"

    step: Annotated[int, "R: every R-th position is measured, from the first"]
    axis: Annotated[int | None, "axis of the image, 0 for rows (sections of a volume); none: all axes"] = None

    def __post_init__(self) -> None:
        _check_step("decimate", self.step)
        if self.axis is not None and not 0 <= self.axis <= 2:
            raise ParameterError(f"decimate: axis must be 0, 1 or 2, or none for all axes, got {self.axis}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        if self.axis is not None and self.axis >= len(imaging.shape):
            raise IncompatibleError(
                f"decimate: axis={self.axis}, but images of {size_text(imaging.shape)} have the axes 0 to "
                f"{len(imaging.shape) - 1}; give one of these"
            )
        return super().check(imaging)

    def steps(self, dims: int) -> tuple[int, ...]:
        return tuple(self.step if self.axis in (None, axis) else 1 for axis in range(dims))

    def thicknesses(self, dims: int) -> tuple[int, ...]:
        return (1,) * dims


@dataclass(frozen=True)
class Bin(_Subsampling):
    """Pixel binning, as of a detector: means of blocks of `step` pixels a side.

        y_q = 1/n_q sum_p x_p    over the n_q pixels p of block q

    Blocks at the far edges may be smaller.
    """

    dims = (2, 3)

    step: Annotated[int, "side of a block in pixels"]

    def __post_init__(self) -> None:
        _check_step("bin", self.step)

    def steps(self, dims: int) -> tuple[int, ...]:
        return (self.step,) * dims

    def thicknesses(self, dims: int) -> tuple[int, ...]:
        return (self.step,) * dims


@dataclass(frozen=True)
class Slices(_Subsampling):
    """Every `step`-th section of a volume along z, from the first, each the mean of `thickness` sections.

        y_q = 1/t sum_j x_{R q + j}    for j = 0 to t - 1

    The volume keeps its depth where that is not a multiple of the step: the last measured section has as many sections
    as are left, and sections after it are not measured.
    """

    dims = (3,)
    floor = "interpolate:linear"

    step: Annotated[int, "R: every R-th section is measured, from the first"]
    thickness: Annotated[int, "sections of which a measured one is the mean, at most the step"] = 1

    def __post_init__(self) -> None:
        _check_step("slices", self.step)
        if not 1 <= self.thickness <= self.step:
            raise ParameterError(
                f"slices: thickness must be between 1 and the step {self.step}, got {self.thickness}; thicker sections "
                "would overlap"
            )

    def steps(self, dims: int) -> tuple[int, ...]:
        return (self.step, *[1] * (dims - 1))

    def thicknesses(self, dims: int) -> tuple[int, ...]:
        return (self.thickness, *[1] * (dims - 1))


def _check_step(name: str, step: int) -> None:
    if step < 2:
        raise ParameterError(f"{name}: step must be at least 2, got {step}; the operator that keeps all is identity")


def _measured(shape: Shape, steps: Sequence[int]) -> Shape:
    """The shape s of the measurements."""
    return tuple(-(-n // step) for n, step in zip(shape, steps, strict=True))


class SubsamplingOperator(FactoredOperator):
    """Means of `thickness` pixels out of every `step` along each axis. Measurements are [B, 1, *s]."""

    nonnegative = True

    def __init__(
        self,
        image_shape: Shape,
        steps: tuple[int, ...],
        thicknesses: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.image_shape = image_shape
        self.steps, self.thicknesses = steps, thicknesses
        self.measurement_shape = (1, *_measured(image_shape, steps))
        self.nominal_compression = math.prod(steps)
        self.dtype, self.device = dtype, torch.device(device)
        self._axes = [axis for axis, step in enumerate(steps) if step > 1]

    def A(self, x: torch.Tensor) -> torch.Tensor:
        for axis in self._axes:
            x = self._divided(self._sums(x, axis), axis)
        return x.clone(memory_format=torch.contiguous_format)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        for axis in reversed(self._axes):
            y = self._spread(self._divided(y, axis), axis)
        return y

    @property
    def even(self) -> bool:
        """Whether the sides of the image are multiples of the steps, so that all measurements are alike."""
        return not any(n % step for n, step in zip(self.image_shape, self.steps, strict=True))

    @property
    def positions(self) -> tuple[torch.Tensor, ...]:
        """The centre of each measurement along each axis, pixels."""
        return tuple(
            step * torch.arange(m, dtype=torch.float64) + (counts.cpu() - 1) / 2
            for step, m, counts in zip(self.steps, self.measurement_shape[1:], self._counts, strict=True)
        )

    @property
    def eigenvalues(self) -> torch.Tensor:
        """1 / t_k of each measurement, float64 [1, *s]."""
        return functools.reduce(torch.mul, [self._along(1 / n, axis) for axis, n in enumerate(self._counts)])[0]

    @property
    def eigenvalue_tolerance(self) -> float:
        return 0.0

    def apply_filter(self, response: Response, residual: torch.Tensor) -> torch.Tensor:
        return self.A_adjoint(response(self.eigenvalues).to(residual.dtype) * residual)

    def filter_range(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.A_adjoint(self.A(x) / (self.eigenvalues.to(x.dtype) + shift))

    @property
    def rank(self) -> int:
        return math.prod(self.measurement_shape)

    @cached_property
    def mean_response(self) -> torch.Tensor:
        return torch.ones((1, *self.measurement_shape), dtype=self.dtype, device=self.device)

    @property
    def crop_step(self) -> int:
        return math.lcm(*self.steps)

    def crop(self, window: Window) -> Crop:
        edge = self.crop_step
        if any(n % edge for n in self.image_shape):
            raise Unsupported(f"windows need sides that are multiples of {edge}, got {size_text(self.image_shape)}")
        shape = tuple(part.stop - part.start for part in checked_window(self, window))
        measured = [slice(part.start // step, part.stop // step) for part, step in zip(window, self.steps, strict=True)]
        part = SubsamplingOperator(shape, self.steps, self.thicknesses, dtype=self.dtype, device=self.device)
        return Crop(part, (slice(None), *measured))

    # ------------------------------------------------------------------------------------------ along one axis

    @cached_property
    def _counts(self) -> list[torch.Tensor]:
        """t_k along each axis, float64."""
        axes = zip(self.image_shape, self.steps, self.thicknesses, strict=True)
        options = {"dtype": torch.float64, "device": self.device}
        return [(n - torch.arange(0, n, step, **options)).clamp_max(t) for n, step, t in axes]

    def _along(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """Values of an axis of s, shaped to broadcast over [B, 1, *s]."""
        return values.reshape(-1, *[1] * (len(self.image_shape) - 1 - axis))[(None,) * (2 + axis)]

    def _divided(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """y / t_k along an axis."""
        return y if self.thicknesses[axis] == 1 else y / self._along(self._counts[axis], axis).to(y.dtype)

    def _parts(self, axis: int) -> list[tuple[slice, ...]]:
        """For j = 0 ... t - 1 the index of pixel j of each measurement along an axis, in [B, 1, *S]."""
        before = (slice(None),) * (2 + axis)
        return [(*before, slice(j, None, self.steps[axis])) for j in range(self.thicknesses[axis])]

    def _sums(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """The sum of the pixels of each measurement, added in order, so that it does not depend on the batch."""
        first, *others = self._parts(axis)
        y = x[first]
        for part in others:
            further = x[part]
            had, rest = y.split([further.shape[2 + axis], y.shape[2 + axis] - further.shape[2 + axis]], dim=2 + axis)
            y = torch.cat([had + further, rest], dim=2 + axis)
        return y

    def _spread(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """The transpose of `_sums`: each value at all pixels of its measurement, 0 elsewhere."""
        shape = list(y.shape)
        shape[2 + axis] = self.image_shape[axis]
        x = y.new_zeros(shape)
        for part in self._parts(axis):
            x[part] = y.narrow(2 + axis, 0, x[part].shape[2 + axis])
        return x
