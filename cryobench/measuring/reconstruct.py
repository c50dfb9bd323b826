"""Reconstructs images from measurements alone: y -> solver -> x -> image = offset + factor x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    Solver,
    check_operator,
)
from cryobench.core.kinds import check_kind
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, ParameterError, Unsupported, reason_of
from cryobench.measuring.measurements import Measurements
from cryobench.numerics.linalg import per_item
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry, guarded
from cryobench.runner.solving import check_supported, isolated, prepare, solve_parts


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


def reconstruct(
    measured: Measurements,
    solver: Solver,
    registry: Registry,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    batch: int = 16,
    progress: Callable[[float], None] | None = None,
) -> Iterator[np.ndarray]:
    """Reconstruct images, in the units of the measured images: chunks [n, H, W] float32, in order.

    progress: called with the fraction done. Raises `IncompatibleError` if the measurements do not fit the
    operator or the solver does not support them.
    """
    if batch < 1:
        raise ParameterError(f"--batch must be at least 1 image, got {batch}")
    on = environment.resolve_device(device)
    with isolated(seed):
        operator = guarded("the operator cannot be built from the file",
                           lambda: operator_of(measured, registry, dtype=resolve_dtype(dtype), device=on))  # fmt: skip
    _check(measured, operator)
    noise: NoiseModel = registry.make("noises", measured.noise)
    check_kind("noises", measured.noise, noise)
    y = measured.y.to(on, operator.dtype)
    if not y.isfinite().all():
        raise IncompatibleError("y has values beyond float32; give --dtype float64")
    sigma = per_item(measured.sigma.to(on, operator.dtype), y)
    problem = Problem(CountingOperator(operator), y, noise, sigma, measured.scale)
    try:
        with isolated(seed):
            guarded("the solver failed", lambda: check_supported(solver, problem))
    except Unsupported as reason:
        raise IncompatibleError(f"the solver does not support these measurements: {reason_of(reason)}") from reason
    with isolated(seed):
        guarded("the solver cannot be prepared", lambda: prepare(solver, on))
    parts = solve_parts(solver, problem, measured.image_ids, seed=seed, batch=batch, progress=progress)
    return _in_file_units(measured, parts)


def _in_file_units(measured: Measurements, parts: Iterator[Reconstruction]) -> Iterator[np.ndarray]:
    start = 0
    while (answer := guarded("the solver failed", lambda: next(parts, None))) is not None:
        own = slice(start, start + len(answer.x))
        yield measured.scale.select(own).to_file(answer.x)[:, 0].float().numpy()
        start = own.stop


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
