"""The intensity scale: the affine map between the images of a source and the input of an operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cryobench.numerics.linalg import per_item


@dataclass(frozen=True, eq=False)
class Scale:
    """image = offset + factor x, with the image in the units of its file and x the input of the operator.

    offset, factor: float64 [B] on the CPU, one number per image, or [1] for all. range: minimum and maximum of x by
    construction, or None if x is unbounded. name: of the map, as given to `--scaling`.
    """

    offset: torch.Tensor
    factor: torch.Tensor
    range: tuple[float, float] | None = None
    name: str = "none"

    def select(self, images: slice | torch.Tensor) -> Scale:
        """The scale for some of the images."""
        if len(self.offset) == 1:
            return self
        index = images if isinstance(images, slice) else images.cpu()
        return replace(self, offset=self.offset[index], factor=self.factor[index])

    def clamp(self, x: torch.Tensor) -> torch.Tensor:
        """x clamped to the range; unchanged if there is none."""
        return x if self.range is None else x.clamp(*self.range)

    def to_file(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, ...] in the units of the file, float64 on the CPU."""
        x = x.detach().double().cpu()
        return per_item(self.offset, x) + per_item(self.factor, x) * x

    def from_file(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, ...] in the units of the file on the scale of x, float64 on the CPU; undoes `to_file`."""
        images = images.detach().double().cpu()
        return (images - per_item(self.offset, images)) / per_item(self.factor, images)


MINMAX = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), (-1.0, 1.0), "minmax")
"""Images in [-1, 1], stored in a file with the same units."""
