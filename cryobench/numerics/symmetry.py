"""The symmetry group of the square: rotations by 90 degrees and flips, under which particle images are equivalent."""

from __future__ import annotations

import torch

SYMMETRIES = 8
_FLIPS = ((), (-2,), (-2, -1), (-1,), (-2,), (-2, -1), (-1,), ())
"""The axes flipped by each symmetry, after a transposition if it is odd."""


def transformed(images: torch.Tensor, kind: int) -> torch.Tensor:
    """Images [..., H, W] transformed by symmetry `kind`, 0 (identity) to 7: for kinds from 4 flipped along H, then
    rotated by kind % 4 quarter turns (`torch.rot90`). An odd one exchanges H and W."""
    # transposed in memory first: flipping a transposed view of 1024 x 1024 pixels took three times as long
    return (images.mT.contiguous() if kind % 2 else images).flip(_FLIPS[kind])


def inverse_transformed(images: torch.Tensor, kind: int) -> torch.Tensor:
    """The inverse of `transformed`."""
    images = torch.rot90(images, -(kind % 4), (-2, -1))
    return images.flip(-2) if kind >= 4 else images
