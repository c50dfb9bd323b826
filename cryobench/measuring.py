"""Real measurements, without a truth: images measured into a file as a detector would, and made of such a file.

image -> x = (image - offset) / factor -> y = A x + noise        `measure`
y -> solver -> x -> image = offset + factor x                    `reconstruct`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.contract import batches, checked_answer, checked_measurements
from cryobench.core import Imaging, LinearOperator, NoiseModel, OperatorRecipe, Problem, Solver, Stack
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.grid import resolve_dtype
from cryobench.kinds import check_kind
from cryobench.measurements import Measurements
from cryobench.meters import CountingOperator
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.registry import Registry
from cryobench.rng import Rng
from cryobench.sources.scaling import scaling_of

_BATCH = 64


@dataclass(frozen=True)
class Exposure:
    """How images are measured: specs of operator and noise, the scale on which the operator sees an image.

    normalize: minmax, meanstd, relion (with the particle's `radius` in pixels) or p95.
    """

    operator: str
    noise: str = "none"
    normalize: str = "minmax"
    radius: float | None = None
    invert: bool = False
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"


def measure(exposure: Exposure, stack: Stack, indices: Sequence[int], registry: Registry) -> Measurements:
    """Measure these images of a stack. Raises a `CryobenchError` for what makes no sense."""
    recipe: OperatorRecipe = registry.make("operators", exposure.operator)
    noise: NoiseModel = registry.make("noises", exposure.noise)
    check_kind("operators", exposure.operator, recipe)
    check_kind("noises", exposure.noise, noise)
    dtype, device = resolve_dtype(exposure.dtype), environment.resolve_device(exposure.device)
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(index) for index in indices), stack.rows(indices))
    recipe.check_for(imaging)
    drawn = recipe.drawn(stack.shape, exposure.seed)
    operator = recipe.rebuild(drawn, imaging, seed=exposure.seed, dtype=dtype, device=device)
    reason = noise.unsupported(operator)
    if reason is not None:
        raise IncompatibleError(f"noise {exposure.noise} on operator {exposure.operator}: {reason}")
    ids = tuple(map(str, indices))
    measured, sigmas, scales = [], [], []
    for part in batches(len(indices), _BATCH):
        images = [stack.read(index) for index in indices[part]]
        wheres = [f"image {index} of {stack.label}" for index in indices[part]]
        own = [
            scaling_of(exposure.normalize, image, where, radius=exposure.radius, invert=exposure.invert)
            for image, where in zip(images, wheres, strict=True)
        ]
        scaled = np.stack([scaling.apply(image) for scaling, image in zip(own, images, strict=True)])
        x = torch.from_numpy(scaled).unsqueeze(1).to(device, dtype)
        selected = operator.select(part)
        noisy = noise.apply(selected.A(x), selected, Rng(exposure.seed, ids[part]))
        noisy = checked_measurements(noisy, operator, len(own))
        measured.append(noisy.y.cpu())
        sigmas.append(noisy.sigma.flatten().cpu())
        scales += own
    return Measurements(
        y=torch.cat(measured),
        sigma=torch.cat(sigmas),
        image_shape=stack.shape,
        operator=str(registry.spec_of(recipe, full=True)),
        noise=str(registry.spec_of(noise, full=True)),
        seed=exposure.seed,
        drawn=dict(drawn),
        offset=np.array([scaling.offset for scaling in scales]),
        factor=np.array([scaling.factor for scaling in scales]),
        pixel_size=imaging.pixel_size,
        image_ids=ids,
        table=imaging.table,
        about={
            "data": stack.label,
            "normalize": exposure.normalize,
            "radius_pixels": exposure.radius,
            "invert": exposure.invert,
            "compression": operator.effective_compression,
            "versions": environment.versions(),
        },
    )


def operator_of(measured: Measurements, registry: Registry, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The live operator that made the measurements, of the arrays recorded with them."""
    if not measured.operator:
        block = measured.image_shape[0] // measured.y.shape[2]
        return SumPoolOperator(measured.drawn["masks"], block, dtype=dtype, device=device)
    recipe: OperatorRecipe = registry.make("operators", measured.operator)
    recipe.check_for(measured.imaging)
    return recipe.rebuild(measured.drawn, measured.imaging, seed=measured.seed, dtype=dtype, device=device)


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
    y, sigma = measured.y.to(on, operator.dtype), measured.sigma.to(on, operator.dtype).reshape(-1, 1, 1, 1)
    counting = CountingOperator(operator)
    whole = Problem(counting, y, noise, sigma)
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
        problem = Problem(whole.operator.select(part), whole.y[part], whole.noise, whole.sigma[part])
        answer = checked_answer(solver.solve(problem, rng=Rng(seed, measured.image_ids[part])), problem)
        x = answer.x[:, 0].double().cpu().numpy()
        images = measured.offset[part, None, None] + measured.factor[part, None, None] * x
        yield images.astype(np.float32)
        if progress is not None:
            progress(part.stop, len(measured.y))


def _check(measured: Measurements, operator: LinearOperator) -> None:
    wanted = list(operator.measurement_shape)
    if list(measured.y.shape[1:]) != wanted:
        raise IncompatibleError(f"y has shape {list(measured.y.shape)}, and the operator gives [B, {wanted}]")
    if operator.images not in (None, len(measured.y)):
        raise IncompatibleError(f"y holds {len(measured.y)} images, and the operator is for {operator.images}")
