"""Simulates a detector: image -> x = (image - offset) / factor -> y = A x + noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cryobench import environment
from cryobench.core import Imaging, NoiseModel, OperatorRecipe, Stack, check_operator
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError
from cryobench.global_state import restored
from cryobench.io.scaling import scale_of
from cryobench.limits import check_memory
from cryobench.measuring.measurements import Measurements
from cryobench.plan.dataset import image_scaling
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry, guarded
from cryobench.rng import Rng
from cryobench.runner.checks import batches, checked_measurements

_BATCH = 64
_BYTES_PER_ENTRY = 16
"""Memory in bytes for each entry of the measurements: float64, and a copy."""


@dataclass(frozen=True)
class Acquisition:
    """How images are measured. operator, noise: specs. scaling: of the images, minmax, none, meanstd, p95 or relion.

    radius: see `plan.dataset.image_scaling`. invert: whether to invert the contrast of the images.
    """

    operator: str
    noise: str = "none"
    scaling: str = "minmax"
    radius: float | None = None
    invert: bool = False
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"


def measure(acquisition: Acquisition, stack: Stack, indices: Sequence[int], registry: Registry) -> Measurements:
    """Measure these images of a stack. Raises a `CryobenchError` for an invalid request."""
    what = f"measuring with {acquisition.operator} and noise {acquisition.noise} failed"
    with restored():
        return guarded(what, lambda: _measured(acquisition, stack, indices, registry))


def _measured(acquisition: Acquisition, stack: Stack, indices: Sequence[int], registry: Registry) -> Measurements:
    if len(stack.shape) != 2:
        raise IncompatibleError(
            f"measure takes images (2-D), but {stack.label} holds volumes of {size_text(stack.shape)}; use `run`"
        )
    recipe: OperatorRecipe = registry.make("operators", acquisition.operator)
    noise: NoiseModel = registry.make("noises", acquisition.noise)
    check_kind("operators", acquisition.operator, recipe)
    check_kind("noises", acquisition.noise, noise)
    dtype, device = resolve_dtype(acquisition.dtype), environment.resolve_device(acquisition.device)
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(index) for index in indices), stack.rows(indices))
    shape = check_operator(recipe, imaging)
    needed = _BYTES_PER_ENTRY * len(indices) * math.prod(shape or ())
    check_memory(f"measurements of {len(indices)} images", needed, "give fewer --images", IncompatibleError)
    drawn = recipe.draw(imaging, acquisition.seed)
    operator = recipe.build(imaging, drawn, dtype=dtype, device=device)
    reason = noise.unsupported(operator, scale_of(acquisition.scaling, []))
    if reason is not None:
        raise IncompatibleError(f"noise {acquisition.noise} on operator {acquisition.operator}: {reason}")
    ids = tuple(map(str, indices))
    measured, sigmas, maps = [], [], []
    for part in batches(len(indices), _BATCH):
        own, scaled = [], []
        for index in indices[part]:
            image = stack.read(index)
            scaling = image_scaling(acquisition.scaling, image, stack, index, radius=acquisition.radius)
            own.append(scaling.inverted() if acquisition.invert else scaling)
            scaled.append(own[-1].apply(image))
        x = torch.from_numpy(np.stack(scaled)).unsqueeze(1).to(device, dtype)
        selected, scale = operator.select(part), scale_of(acquisition.scaling, own)
        noisy = noise.apply(selected.A(x), selected, scale, Rng(acquisition.seed, ids[part]))
        noisy = checked_measurements(noisy, operator, len(own))
        measured.append(noisy.y.cpu())
        sigmas.append(noisy.sigma.flatten().cpu())
        maps += own
    return Measurements(
        y=torch.cat(measured),
        sigma=torch.cat(sigmas),
        image_shape=stack.shape,
        operator=str(registry.spec_of(recipe, full=True)),
        noise=str(registry.spec_of(noise, full=True)),
        seed=acquisition.seed,
        drawn=dict(drawn),
        scale=scale_of(acquisition.scaling, maps),
        pixel_size=imaging.pixel_size,
        image_ids=ids,
        table=imaging.table,
        about={
            "data": stack.label,
            "radius_pixels": acquisition.radius,
            "invert": acquisition.invert,
            "compression": operator.effective_compression,
            "versions": environment.versions(),
        },
    )
