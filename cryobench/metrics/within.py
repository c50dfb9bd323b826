"""The evaluated region (`--within`): the whole image, or a circle (of volumes: a ball) around its centre.

The centre is pixel n // 2 of every axis. The radius is the given one, else that of the particle if the source states
it, else the largest that fits into the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from cryobench.core import Case, Shape
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import item_axes, per_item

IMAGE, CIRCLE = "image", "circle"
EDGE = 5.0
"""Width in pixels of the raised-cosine edge around the circle, for metrics in Fourier space."""


@dataclass(frozen=True)
class Within:
    """`image`, `circle` (the particle's, or the largest in the image) or `circle:75` (radius in Å)."""

    region: str = IMAGE
    radius: float | None = None

    def __str__(self) -> str:
        return self.region if self.radius is None else f"{self.region}:{repr(self.radius).removesuffix('.0')}"

    def radii(
        self,
        image_shape: Shape,
        pixel_size: Sequence[float | None],
        particle_radius: Sequence[float | None],
        label: str,
    ) -> tuple[float, ...] | None:
        """The radius of every image's circle in pixels; None for the whole image.

        pixel_size: Å per pixel; particle_radius: Å; None where unknown. label: the name of the data in messages. Raises
        `ParameterError` if a radius is given and the pixel size is unknown or the circle does not fit into the image.
        """
        if self.region == IMAGE:
            return None
        largest = min(image_shape) / 2
        if self.radius is None:
            pairs = zip(particle_radius, pixel_size, strict=True)
            known = [radius / size if radius and size else largest for radius, size in pairs]
            return tuple(min(max(radius, 1.0), largest) for radius in known)
        if None in pixel_size:
            raise ParameterError(
                f"--within {self}: the pixel size of {label} is not known, and a radius in Å requires it; "
                f"use --within {CIRCLE}"
            )
        pixels = [self.radius / size for size in pixel_size if size is not None]
        for size, radius in zip(pixel_size, pixels, strict=True):
            if not 1 <= radius <= largest:
                raise ParameterError(
                    f"--within {self}: that is a radius of {radius:.3g} pixels on {label} at {size:.3g} Å per pixel; "
                    f"expected 1 to {largest:g}, half the image"
                )
        return tuple(pixels)


def parse_within(text: str) -> Within:
    """Parse the value of `--within`. Raises `ParameterError` for invalid text."""
    if text in (IMAGE, CIRCLE):
        return Within(text)
    region, _, number = text.partition(":")
    try:
        radius = float(number)
    except ValueError:
        radius = math.nan
    if region == CIRCLE and 0 < radius < math.inf:
        return Within(CIRCLE, radius)
    raise ParameterError(f"--within: expected image, circle, or circle:75 with a radius in Å, got {text!r}")


def inside(case: Case) -> torch.Tensor:
    """Mask of the evaluated pixels, bool [B or 1, 1, *S], on the device of the images."""
    if case.within is None:
        return torch.ones((1, 1, *case.truth.shape[2:]), dtype=torch.bool, device=case.truth.device)
    return _beyond(case) <= 0


def mean_inside(case: Case, values: torch.Tensor) -> torch.Tensor:
    """Mean of values [B, C, *S] over the evaluated pixels, [B]."""
    if case.within is None:
        return values.mean(dim=item_axes(values))
    mask = inside(case)
    return torch.where(mask, values, 0.0).sum(dim=item_axes(values)) / mask.sum(dim=item_axes(mask))


def soft_mask(case: Case) -> torch.Tensor | None:
    """1 inside the circle, falling to 0 as a raised cosine over `EDGE` pixels outside it, float64 [B, 1, *S]; None
    for the whole image."""
    if case.within is None:
        return None
    return raised_cosine(_beyond(case) / EDGE)


def raised_cosine(outward: torch.Tensor) -> torch.Tensor:
    """An edge that falls from 1, where `outward` is at most 0, to 0, where it is at least 1."""
    return (1 + torch.cos(math.pi * outward.clamp(0, 1))) / 2


def centre_distance(shape: Shape, device: torch.device | str = "cpu") -> torch.Tensor:
    """Distance of each pixel to the centre, pixel n // 2 of every axis, float64 [*S]."""
    options = {"dtype": torch.float64, "device": device}
    axes = [(torch.arange(n, **options) - n // 2).reshape(-1, *[1] * (len(shape) - 1 - i)) for i, n in enumerate(shape)]
    return reduce(torch.hypot, axes)


def _beyond(case: Case) -> torch.Tensor:
    """Signed distance to the circle in pixels, negative inside it, float64 [B, 1, *S]."""
    distance = centre_distance(tuple(case.truth.shape[2:]), case.truth.device)
    radius = torch.tensor(case.within, dtype=torch.float64, device=case.truth.device)
    return distance - per_item(radius, case.truth)
