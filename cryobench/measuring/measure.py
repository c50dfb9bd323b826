"""Simulates a detector: image -> x = (image - offset) / factor -> y = A x + noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cryobench import environment
from cryobench.core import Imaging, LinearOperator, NoiseModel, OperatorRecipe, Stack, check_operator
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError
from cryobench.global_state import restored
from cryobench.io.scaling import apply_each, scale_of
from cryobench.limits import check_memory
from cryobench.measuring.measurements import Measurements
from cryobench.plan.dataset import image_scalings
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


class Detector:
    """Measures images of a stack, in blocks whose results do not depend on how the images are divided.

    Raises a `CryobenchError` for an invalid request before an image is read.
    """

    def __init__(self, acquisition: Acquisition, stack: Stack, indices: Sequence[int], registry: Registry):
        if len(stack.shape) != 2:
            raise IncompatibleError(
                f"measure takes images (2-D), but {stack.label} holds volumes of {size_text(stack.shape)}; use `run`"
            )
        self.acquisition, self.stack, self.indices = acquisition, stack, indices
        self._dtype = resolve_dtype(acquisition.dtype)
        self._device = environment.resolve_device(acquisition.device)
        self._what = f"measuring with {acquisition.operator} and noise {acquisition.noise} failed"
        with restored():
            guarded(self._what, lambda: self._open(registry))

    def _open(self, registry: Registry) -> None:
        acquisition, stack = self.acquisition, self.stack
        self.recipe: OperatorRecipe = registry.make("operators", acquisition.operator)
        self.noise: NoiseModel = registry.make("noises", acquisition.noise)
        check_kind("operators", acquisition.operator, self.recipe)
        check_kind("noises", acquisition.noise, self.noise)
        self.operator_spec = str(registry.spec_of(self.recipe, full=True))
        self.noise_spec = str(registry.spec_of(self.noise, full=True))
        imaging = self.imaging(slice(None))
        check_operator(self.recipe, imaging)
        self.drawn = dict(self.recipe.draw(imaging, acquisition.seed))
        first = self._operator(self.imaging(slice(0, 1)))
        reason = self.noise.unsupported(first, scale_of(acquisition.scaling, []))
        if reason is not None:
            raise IncompatibleError(f"noise {acquisition.noise} on operator {acquisition.operator}: {reason}")
        self.measurement_shape = first.measurement_shape
        self.about = {
            "data": stack.label,
            "radius_pixels": acquisition.radius,
            "invert": acquisition.invert,
            "compression": first.effective_compression,
            "versions": environment.versions(),
        }

    def imaging(self, part: slice) -> Imaging:
        """How some of the images were taken."""
        own = self.indices[part]
        return Imaging(self.stack.shape, tuple(map(self.stack.pixel_size, own)), self.stack.rows(own))

    def ids(self, part: slice = slice(None)) -> tuple[str, ...]:
        """The ids of some of the images: their numbers in the stack."""
        return tuple(map(str, self.indices[part]))

    def _operator(self, imaging: Imaging) -> LinearOperator:
        return self.recipe.build(imaging, self.drawn, dtype=self._dtype, device=self._device)

    def measure(self, part: slice = slice(None)) -> Measurements:
        """The measurements of some of the images."""
        with restored():
            return guarded(self._what, lambda: self._measure(part))

    def _measure(self, part: slice) -> Measurements:
        acquisition, indices, imaging = self.acquisition, self.indices[part], self.imaging(part)
        operator = self._operator(imaging)
        measured, sigmas, maps = [], [], []
        for batch in batches(len(indices), _BATCH):
            own = indices[batch]
            block = self.stack.read_block(own)
            scalings = image_scalings(acquisition.scaling, block, self.stack, own, radius=acquisition.radius)
            if acquisition.invert:
                scalings = [scaling.inverted() for scaling in scalings]
            x = torch.from_numpy(apply_each(scalings, block)).unsqueeze(1).to(self._device, self._dtype)
            selected, scale = operator.select(batch), scale_of(acquisition.scaling, scalings)
            noisy = self.noise.apply(selected.A(x), selected, scale, Rng(acquisition.seed, tuple(map(str, own))))
            noisy = checked_measurements(noisy, operator, len(own))
            measured.append(noisy.y.cpu())
            sigmas.append(noisy.sigma.flatten().cpu())
            maps += scalings
        return Measurements(
            y=torch.cat(measured),
            sigma=torch.cat(sigmas),
            image_shape=self.stack.shape,
            operator=self.operator_spec,
            noise=self.noise_spec,
            seed=acquisition.seed,
            drawn=self.drawn,
            scale=scale_of(acquisition.scaling, maps),
            pixel_size=imaging.pixel_size,
            image_ids=self.ids(part),
            table=imaging.table,
            about=self.about,
        )


def measure(acquisition: Acquisition, stack: Stack, indices: Sequence[int], registry: Registry) -> Measurements:
    """Measure these images of a stack. Raises a `CryobenchError` for an invalid request."""
    detector = Detector(acquisition, stack, indices, registry)
    needed = _BYTES_PER_ENTRY * len(indices) * math.prod(detector.measurement_shape)
    check_memory(f"measurements of {len(indices)} images", needed, "give a folder as --out, or fewer --images",
                 IncompatibleError)  # fmt: skip
    return detector.measure()
