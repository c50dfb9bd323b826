"""Images measured into a file as a detector would: image -> x = (image - offset) / factor -> y = A x + noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cryobench import environment
from cryobench.core import Imaging, NoiseModel, OperatorRecipe, Stack, check_operator
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError
from cryobench.io.scaling import scale_of, scaling_of
from cryobench.measuring.measurements import Measurements
from cryobench.plan.dataset import particle_radius_pixels
from cryobench.plan.grid import resolve_dtype
from cryobench.registry import Registry
from cryobench.rng import Rng
from cryobench.runner.checks import batches, checked_measurements

_BATCH = 64


@dataclass(frozen=True)
class Exposure:
    """How images are measured: specs of operator and noise, the scale on which the operator sees an image.

    scaling: minmax, none, meanstd, p95 or relion. radius: of the particle in pixels, for relion; None for that which
    the source states, else the default of `io.scaling.relion`.
    """

    operator: str
    noise: str = "none"
    scaling: str = "minmax"
    radius: float | None = None
    invert: bool = False
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"


def measure(exposure: Exposure, stack: Stack, indices: Sequence[int], registry: Registry) -> Measurements:
    """Measure these images of a stack. Raises a `CryobenchError` for what makes no sense."""
    if len(stack.shape) != 2:
        raise IncompatibleError(
            f"measure takes images (2-D), and {stack.label} holds volumes of {size_text(stack.shape)}; use `run`"
        )
    recipe: OperatorRecipe = registry.make("operators", exposure.operator)
    noise: NoiseModel = registry.make("noises", exposure.noise)
    check_kind("operators", exposure.operator, recipe)
    check_kind("noises", exposure.noise, noise)
    dtype, device = resolve_dtype(exposure.dtype), environment.resolve_device(exposure.device)
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(index) for index in indices), stack.rows(indices))
    check_operator(recipe, imaging)
    drawn = recipe.draw(imaging, exposure.seed)
    operator = recipe.build(imaging, drawn, dtype=dtype, device=device)
    reason = noise.unsupported(operator, scale_of(exposure.scaling, []))
    if reason is not None:
        raise IncompatibleError(f"noise {exposure.noise} on operator {exposure.operator}: {reason}")
    ids = tuple(map(str, indices))
    measured, sigmas, maps = [], [], []
    for part in batches(len(indices), _BATCH):
        own, scaled = [], []
        for index in indices[part]:
            image, where = stack.read(index), f"image {index} of {stack.label}"
            radius = exposure.radius
            if radius is None and exposure.scaling == "relion":
                radius = particle_radius_pixels(stack, index)
            own.append(scaling_of(exposure.scaling, image, where, radius=radius, invert=exposure.invert))
            scaled.append(own[-1].apply(image))
        x = torch.from_numpy(np.stack(scaled)).unsqueeze(1).to(device, dtype)
        selected, scale = operator.select(part), scale_of(exposure.scaling, own)
        noisy = noise.apply(selected.A(x), selected, scale, Rng(exposure.seed, ids[part]))
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
        seed=exposure.seed,
        drawn=dict(drawn),
        scale=scale_of(exposure.scaling, maps),
        pixel_size=imaging.pixel_size,
        image_ids=ids,
        table=imaging.table,
        about={
            "data": stack.label,
            "radius_pixels": exposure.radius,
            "invert": exposure.invert,
            "compression": operator.effective_compression,
            "versions": environment.versions(),
        },
    )
