"""Reconstructs images from measurements alone: y -> solver -> x -> image = offset + factor x."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import (
    LinearOperator,
    NoiseModel,
    OperatorRecipe,
    Problem,
    Solver,
    check_operator,
)
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, ParameterError, Unsupported
from cryobench.measuring.measurements import Measurements
from cryobench.numerics.linalg import per_item
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry
from cryobench.runner.solving import check_supported, prepare, solve_parts


def operator_of(measured: Measurements, registry: Registry, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The operator of the measurements, built from the arrays recorded with them."""
    if not measured.operator:
        block = measured.image_shape[0] // measured.y.shape[2]
        return SumPoolOperator(measured.drawn["masks"], block, dtype=dtype, device=device)
    recipe: OperatorRecipe = registry.make("operators", measured.operator)
    check_operator(recipe, measured.imaging)
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
        batch: int = 16,
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
        operator = self._operator_for(measured)
        _check(measured, operator)
        noise: NoiseModel = self._registry.make("noises", measured.noise)
        y = measured.y.to(self._device, operator.dtype)
        sigma = per_item(measured.sigma.to(self._device, operator.dtype), y)
        problem = Problem(CountingOperator(operator), y, noise, sigma, measured.scale)
        try:
            check_supported(self._solver, problem)
        except Unsupported as reason:
            raise IncompatibleError(f"the solver does not support these measurements: {reason}") from reason
        prepare(self._solver, self._device)
        parts = solve_parts(self._solver, problem, measured.image_ids, seed=self._seed, batch=self._batch,
                            progress=progress)  # fmt: skip
        start = 0
        for answer in parts:
            scale = measured.scale.select(slice(start, start + len(answer.x)))
            deviation = (
                None if answer.deviation is None else answer.deviation * per_item(scale.factor, answer.deviation)
            )
            yield Reconstructed(_images(scale.to_file(answer.x)), None if deviation is None else _images(deviation))
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
    expected = operator.measurement_shape
    if tuple(measured.y.shape[1:]) != tuple(expected):
        raise IncompatibleError(f"y has shape {list(measured.y.shape)}, expected [B, {', '.join(map(str, expected))}]")
    if operator.images not in (None, len(measured.y)):
        raise IncompatibleError(f"y has {len(measured.y)} images, but the operator was built for {operator.images}")
