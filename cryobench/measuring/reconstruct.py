"""Images from measurements alone, without a truth: y -> solver -> x -> image = offset + factor x."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import LinearOperator, NoiseModel, OperatorRecipe, Problem, Solver, check_operator
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.measuring.measurements import Measurements
from cryobench.numerics.linalg import per_item
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry
from cryobench.rng import Rng
from cryobench.runner.checks import batches, checked_answer


def operator_of(measured: Measurements, registry: Registry, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The live operator that made the measurements, of the arrays recorded with them."""
    if not measured.operator:
        block = measured.image_shape[0] // measured.y.shape[2]
        return SumPoolOperator(measured.drawn["masks"], block, dtype=dtype, device=device)
    recipe: OperatorRecipe = registry.make("operators", measured.operator)
    check_operator(recipe, measured.imaging)
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
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Images of measurements, in the units that were measured: chunks [n, H, W] float32, in order.

    progress: called with (images done, images in all). Raises `IncompatibleError` where the measurements are not the
    operator's, or the solver cannot take them.
    """
    if batch < 1:
        raise ParameterError(f"--batch must be at least 1 image, got {batch}")
    on = environment.resolve_device(device)
    operator = operator_of(measured, registry, dtype=resolve_dtype(dtype), device=on)
    _check(measured, operator)
    noise: NoiseModel = registry.make("noises", measured.noise)
    y = measured.y.to(on, operator.dtype)
    sigma = per_item(measured.sigma.to(on, operator.dtype), y)
    counting = CountingOperator(operator)
    whole = Problem(counting, y, noise, sigma, measured.scale)
    reason = solver.unsupported(whole)
    if reason is not None:
        raise IncompatibleError(f"the solver cannot take these measurements: {reason}")
    return _solved(measured, solver, whole, seed, batch, progress)


def _solved(
    measured: Measurements,
    solver: Solver,
    whole: Problem,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[np.ndarray]:
    for part in batches(len(measured.y), batch):
        scale = measured.scale.select(part)
        problem = Problem(whole.operator.select(part), whole.y[part], whole.noise, whole.sigma[part], scale)
        answer = checked_answer(solver.solve(problem, rng=Rng(seed, measured.image_ids[part])), problem)
        yield scale.to_file(answer.x)[:, 0].float().numpy()
        if progress is not None:
            progress(part.stop, len(measured.y))


def _check(measured: Measurements, operator: LinearOperator) -> None:
    wanted = list(operator.measurement_shape)
    if list(measured.y.shape[1:]) != wanted:
        raise IncompatibleError(f"y has shape {list(measured.y.shape)}, and the operator gives [B, {wanted}]")
    if operator.images not in (None, len(measured.y)):
        raise IncompatibleError(f"y holds {len(measured.y)} images, and the operator is for {operator.images}")
