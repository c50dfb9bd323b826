"""Encoders: numbers that describe particle images, from which solvers of many structures begin their latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from cryobench.core.operator import Shape


class Encoder(ABC):
    """A registered encoder: a frozen dataclass of its parameters.

    joint: whether the features of an image depend on the other images, as principal components do; they must not
    depend on the order then. location_fields: the parameters that give the location of the weights; results depend on
    the weights only.
    """

    dims: ClassVar[tuple[int, ...]] = (2,)
    joint: ClassVar[bool] = False
    location_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def features(self, images: torch.Tensor, transfer: torch.Tensor | None, pixel_size: float) -> torch.Tensor:
        """The features of images, float64 [N, f] on their device.

        images: float32 [N, D, D] in the units of the file. transfer: their CTFs on the half spectrum,
        [N, D, D // 2 + 1] on the same device; None without. pixel_size: Å. Raises a `CryobenchError` for images that it
        cannot use.
        """

    def check(self, shape: Shape) -> None:
        """Raise a `CryobenchError` if the encoder does not support images of this shape or cannot be found."""
        return

    def weights_digest(self) -> str:
        """A digest of the trained weights, part of the identity of a result; '' for an encoder without weights."""
        return ""
