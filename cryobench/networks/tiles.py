"""A network on images of any size in tiles, with the result that it has on the whole image.

An output pixel depends on input pixels up to `radius` away, and a shift by the stride s shifts the output. So the
output inside a tile is that of the whole image if the tile starts at a multiple of s and is evaluated with a halo of at
least `radius` pixels on each side that is not the border of the image. Nothing has to be blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch.nn import functional

from cryobench.errors import IncompatibleError

MEMORY = 2**29
"""Bytes that the arrays of one evaluation may take."""


class Geometry(Protocol):
    """What tiles depend on. radius, stride: in pixels, see above; sides of images are multiples of the stride.

    bytes_per_pixel: memory of the largest arrays during an evaluation, for each pixel of the image.
    """

    @property
    def radius(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def bytes_per_pixel(self) -> int: ...


class Network(Protocol):
    """A torch module [B, 1, H, W] -> [B, 1, H, W] without operations over all pixels, such as `networks.unet.UNet`."""

    @property
    def config(self) -> Geometry: ...
    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def check_sides(config: Geometry, height: int, width: int) -> None:
    """Raise `IncompatibleError` for images that are too small to be padded to a multiple of the stride."""
    side = config.stride
    if min(height, width) < side:
        raise IncompatibleError(f"the network needs images of at least {side} x {side} pixels, got {height} x {width}")


@torch.no_grad()
def apply(
    network: Network,
    images: torch.Tensor,
    *,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """The output of a network for images [B, 1, H, W] of mean 0 and deviation 1, of the same shape, dtype and device.

    Sides that are no multiple of the stride are padded by reflection. tile: side of a tile without its halo; by default
    as large as `MEMORY` allows. progress: called with the tiles done and their number. Raises `IncompatibleError` for
    sides below the stride.
    """
    H, W = images.shape[2:]
    check_sides(network.config, H, W)
    stride = network.config.stride
    halo = -(-network.config.radius // stride) * stride
    side = default_tile(network) if tile is None else max(stride, tile // stride * stride)
    rows, columns = (list(_intervals(-(-n // stride), side // stride, stride)) for n in (H, W))
    size = min(rows[0][1] + 2 * halo, H) * min(columns[0][1] + 2 * halo, W)
    count = max(1, MEMORY // (network.config.bytes_per_pixel * size))
    out = torch.empty_like(images)
    tiles = [(start, *y, *x) for start in range(0, len(images), count) for y in rows for x in columns]
    weights = next(network.parameters())
    for done, (start, top, bottom, left, right) in enumerate(tiles, 1):
        part = slice(start, start + count)
        y, x = max(top - halo, 0), max(left - halo, 0)
        window = images[part, :, y : bottom + halo, x : right + halo].to(weights)
        # only windows at the end of an axis are no multiple of the stride
        beyond = (-window.shape[3] % stride, -window.shape[2] % stride)
        padded = functional.pad(window, (0, beyond[0], 0, beyond[1]), mode="reflect")
        inner = network(padded)[:, :, top - y : min(bottom, H) - y, left - x : min(right, W) - x]
        out[part, :, top:bottom, left:right] = inner.to(out)
        if progress is not None:
            progress(done, len(tiles))
    return out


def default_tile(network: Network) -> int:
    """The side of a square tile, a multiple of the stride, that with its halo takes up to `MEMORY` bytes."""
    config = network.config
    whole = math.isqrt(MEMORY // config.bytes_per_pixel)
    return max(4, (whole - 2 * config.radius) // config.stride) * config.stride


def _intervals(units: int, most: int, unit: int) -> Iterator[tuple[int, int]]:
    """The fewest intervals of at most `most` units that cover 0 to `units`, of nearly equal lengths, in pixels."""
    count = -(-units // most)
    for i in range(count):
        yield units * i // count * unit, units * (i + 1) // count * unit
