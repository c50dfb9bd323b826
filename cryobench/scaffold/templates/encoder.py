"""Radial profiles, as a cryobench encoder."""

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Encoder


@dataclass(frozen=True)
class Example(Encoder):
    """The mean of an image in rings around its centre, for each ring of `width` pixels."""

    width: Annotated[int, "of a ring, in pixels"] = 2

    def features(self, images: torch.Tensor, transfer: torch.Tensor | None, pixel_size: float) -> torch.Tensor:
        side = images.shape[-1]
        axis = torch.arange(side, device=images.device) - side // 2
        radius = (axis[:, None] ** 2 + axis**2).double().sqrt()
        rings = [radius // self.width == ring for ring in range(side // 2 // self.width)]
        return torch.stack([images.double()[:, ring].mean(dim=1) for ring in rings], dim=1)
