"""`planes`: a diffusion prior of images, applied to the planes of a volume."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from cryobench.core import Shape
from cryobench.priors.diffusion import Diffusion, DiffusionModel

_PIXELS_AT_ONCE = 2**18
"""Planes are evaluated together up to this many pixels, 16 of 128 x 128."""


@dataclass(frozen=True)
class Planes(Diffusion):
    """A diffusion model of images as a prior of volumes: each plane across an axis is an image of its own.

    `hqs` takes the three axes in turn, so that the volume is plausible in all planes, as TPDM does with two
    (Lee et al. 2023, "Improving 3D imaging with pre-trained perpendicular 2D diffusion models", ICCV). The planes of
    all three directions must have sides that the network can halve.
    """

    dims = (3,)

    def load(self, device: torch.device | str = "cpu") -> PlanesModel:
        """The live model on a device, evaluated on the planes across the first axis."""
        return PlanesModel(super().load(device))

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` for planes with sides that the network cannot halve."""
        for plane in itertools.combinations(shape, 2):
            super().check(plane)


class PlanesModel(DiffusionModel):
    """A model of volumes [B, 1, D, H, W] that evaluates the network of a model of images on each plane [H, W]."""

    def __init__(self, model: DiffusionModel):
        vars(self).update(vars(model))

    def network(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        """The raw network output [B, 1, D, H, W] for x_t at level t, one for all volumes or one each, [B].

        The planes of each volume are batches of their own, so that the rounding does not depend on the other volumes.
        """
        levels = torch.as_tensor(t, dtype=torch.float32).flatten().expand(len(x))
        count = max(1, _PIXELS_AT_ONCE // (x.shape[-2] * x.shape[-1]))
        volumes = [
            torch.cat([DiffusionModel.network(self, part, float(level)) for part in planes.split(count)])
            for planes, level in zip(x.movedim(1, 2), levels, strict=True)
        ]
        return torch.stack(volumes).movedim(2, 1)
