"""The eight turns and flips of a square. No particle has a preferred direction in the plane of its image."""

from __future__ import annotations

import torch

TURNS = 8


def turned(images: torch.Tensor, kind: int) -> torch.Tensor:
    """Images [..., H, W] in one of the eight, `kind` 0 to 7; 0 is as they are. An odd one exchanges H and W."""
    return torch.rot90(images.flip(-2) if kind >= 4 else images, kind % 4, (-2, -1))


def turned_back(images: torch.Tensor, kind: int) -> torch.Tensor:
    """What undoes `turned`."""
    images = torch.rot90(images, -(kind % 4), (-2, -1))
    return images.flip(-2) if kind >= 4 else images
