"""The symmetry group of the square: rotations by 90 degrees and flips, under which particle images are equivalent."""

from __future__ import annotations

import torch

SYMMETRIES = 8


def transformed(images: torch.Tensor, kind: int) -> torch.Tensor:
    """Images [..., H, W] transformed by symmetry `kind`, 0 (identity) to 7. An odd one exchanges H and W."""
    return torch.rot90(images.flip(-2) if kind >= 4 else images, kind % 4, (-2, -1))


def inverse_transformed(images: torch.Tensor, kind: int) -> torch.Tensor:
    """The inverse of `transformed`."""
    images = torch.rot90(images, -(kind % 4), (-2, -1))
    return images.flip(-2) if kind >= 4 else images
