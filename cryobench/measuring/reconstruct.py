"""Reconstructs images from measurements alone: y -> solver -> x -> image = offset + factor x."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import (
    LinearOperator,
    NoiseModel,
    OperatorRecipe,
    Problem,
    Reconstruction,
    Shape,
    Solver,
    check_operator,
)
from cryobench.core.kinds import check_kind
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, ParameterError, Unsupported, reason_of
from cryobench.measuring.measurements import Measurements
from cryobench.numerics.linalg import all_finite, per_item
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry, guarded
from cryobench.runner.solving import check_supported, isolated, prepare, solve_parts

BATCH = 16
"""Images that are solved at once by default, more of small images."""
_BATCH_PIXELS = 2**18


def default_batch(shape: Shape) -> int:
    """Images of this shape that are solved at once by default: 16, or as many as have the pixels of 16 of 128 x 128."""
    return max(BATCH, _BATCH_PIXELS // math.prod(shape))


def operator_of(measured: Measurements, registry: Registry, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The operator of the measurements, built from the arrays recorded with them."""
    if not measured.operator:
        block = measured.image_shape[0] // measured.y.shape[2]
        return SumPoolOperator(measured.drawn["masks"], block, dtype=dtype, device=device)
    recipe: OperatorRecipe = registry.make("operators", measured.operator)
    check_kind("operators", measured.operator, recipe)
    shape = check_operator(recipe, measured.imaging)
    if shape is not None:
        _check_shape(measured, shape)
    return recipe.build(measured.imaging, measured.drawn, dtype=dtype, device=device)


@dataclass(frozen=True)
class Reconstructed:
    """Images [n, H, W] float32 in the units of the measured images, and their standard deviation if it is estimated."""

    images: np.ndarray
    deviation: np.ndarray | None


class Reconstructor:
    """Reconstructs images from measurements of one operator, chunk by chunk.

    Raises `ParameterError` for an invalid batch size, `DeviceError` for a device that does not exist.
    """

    def __init__(
        self,
        solver: Solver,
        registry: Registry,
        *,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        batch: int = BATCH,
    ):
        if batch < 1:
            raise ParameterError(f"--batch must be at least 1 image, got {batch}")
        self._solver, self._registry, self._seed, self._batch = solver, registry, seed, batch
        self._dtype, self._device = resolve_dtype(dtype), environment.resolve_device(device)
        self._built: tuple[object, LinearOperator] | None = None

    def solve(self, measured: Measurements, progress: Callable[[float], None] | None = None) -> Iterator[Reconstructed]:
        """The reconstructions of measurements, batch by batch. progress: called with the fraction done.

        Raises `IncompatibleError` if the measurements do not fit the operator or the solver does not support them.
        """
        with isolated(self._seed):
            operator = guarded("the operator cannot be built from the file", lambda: self._operator_for(measured))
        _check(measured, operator)
        noise: NoiseModel = self._registry.make("noises", measured.noise)
        check_kind("noises", measured.noise, noise)
        y = measured.y.to(self._device, operator.dtype)
        if y.dtype != measured.y.dtype and not all_finite(y):
            raise IncompatibleError("y has values beyond float32; give --dtype float64")
        sigma = per_item(measured.sigma.to(self._device, operator.dtype), y)
        problem = Problem(CountingOperator(operator), y, noise, sigma, measured.scale)
        try:
            with isolated(self._seed):
                guarded("the solver failed", lambda: check_supported(self._solver, problem))
        except Unsupported as reason:
            raise IncompatibleError(f"the solver does not support these measurements: {reason_of(reason)}") from reason
        with isolated(self._seed):
            guarded("the solver cannot be prepared", lambda: prepare(self._solver, self._device))
        parts = solve_parts(self._solver, problem, measured.image_ids, seed=self._seed, batch=self._batch,
                            progress=progress)  # fmt: skip
        return self._in_file_units(measured, parts)

    def _in_file_units(self, measured: Measurements, parts: Iterator[Reconstruction]) -> Iterator[Reconstructed]:
        start = 0
        while (answer := guarded("the solver failed", lambda: next(parts, None))) is not None:
            scale = measured.scale.select(slice(start, start + len(answer.x)))
            width = replace(scale, offset=torch.zeros_like(scale.offset), factor=scale.factor.abs())
            deviation = None if answer.deviation is None else _images(width.to_file(answer.deviation))
            yield Reconstructed(_images(scale.to_file(answer.x)), deviation)
            start += len(answer.x)

    def _operator_for(self, measured: Measurements) -> LinearOperator:
        """The operator; one that serves any images is built once."""
        key = measured.operator, id(measured.drawn), measured.image_shape
        if self._built is not None and self._built[0] == key and self._built[1].images is None:
            return self._built[1]
        operator = operator_of(measured, self._registry, dtype=self._dtype, device=self._device)
        self._built = key, operator
        return operator


def _images(x: torch.Tensor) -> np.ndarray:
    return x[:, 0].float().numpy()


def reconstruct(
    measured: Measurements,
    solver: Solver,
    registry: Registry,
    *,
    progress: Callable[[float], None] | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """The images of measurements, in chunks [n, H, W]. options: see `Reconstructor`."""
    return (part.images for part in Reconstructor(solver, registry, **options).solve(measured, progress))


def _check(measured: Measurements, operator: LinearOperator) -> None:
    _check_shape(measured, operator.measurement_shape)
    if operator.images not in (None, len(measured.y)):
        raise IncompatibleError(f"y has {len(measured.y)} images, but the operator was built for {operator.images}")
    if operator.rank == 0:
        raise IncompatibleError("the recorded operator measures nothing: all of its masks are zero; measure again")


def _check_shape(measured: Measurements, shape: Sequence[int]) -> None:
    if tuple(measured.y.shape[1:]) != tuple(shape):
        raise IncompatibleError(
            f"y has shape {list(measured.y.shape)}, the operator gives [B, {', '.join(map(str, shape))}]; measure again"
        )
