"""A U-Net without normalisation over space and without attention: each output pixel depends on a bounded window.

The U-Net of Ronneberger, Fischer & Brox (2015) as Lehtinen et al. (2018, Noise2Noise, table 2) use it for denoising:
blocks of two 3 x 3 convolutions with leaky rectifiers, between which images are halved by averaging 2 x 2 pixels and
doubled by repeating them. A normalisation over space, or attention, would make an output pixel depend on all pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cryobench.errors import DataError, ParameterError

SLOPE = 0.1
"""Of the leaky rectifiers, for negative values."""
_RADIUS = 2
"""Of the two 3 x 3 convolutions of a block, in pixels of their level."""


@dataclass(frozen=True)
class UNetConfig:
    """channels: of each level, the finest first. unshuffle: the factor r by which images are pixel-unshuffled before
    the network, [1, H, W] to [r^2, H / r, W / r], and shuffled after it."""

    channels: tuple[int, ...]
    unshuffle: int = 1

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1 or self.unshuffle < 1:
            raise DataError(
                f"a U-Net has channels {list(self.channels)} and unshuffle {self.unshuffle}; expected positive numbers"
            )

    @property
    def stride(self) -> int:
        """Sides of images are multiples of this many pixels. A shift of the input by it shifts the output."""
        return self.unshuffle * 2 ** (len(self.channels) - 1)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What follows from the architecture, and the scale of the input. radius, stride: in pixels."""
        return {"radius": self.radius, "stride": self.stride, "input": "an image of mean 0 and standard deviation 1"}

    @property
    def radius(self) -> int:
        """The receptive field: an output pixel depends on no input pixel that is farther away along an axis."""
        distances = []
        for pixel in range(self.stride):
            unit = pixel // self.unshuffle
            low, high = self._seen(unit, unit, 0)
            distances += [pixel - self.unshuffle * low, self.unshuffle * (high + 1) - 1 - pixel]
        return max(distances)

    def _seen(self, low: int, high: int, level: int) -> tuple[int, int]:
        """The interval of the input of a level on which the interval [low, high] of its output depends."""
        last = level == len(self.channels) - 1
        if not last:
            low, high = low - _RADIUS, high + _RADIUS
            # an interval [i, j] of the coarser level is repeated to, and averaged from, [2 i, 2 j + 1] of this one
            below = self._seen(low // 2, high // 2, level + 1)
            low, high = min(low, 2 * below[0]), max(high, 2 * below[1] + 1)
        return low - _RADIUS, high + _RADIUS

    @property
    def bytes_per_pixel(self) -> int:
        """Memory of the largest arrays during an evaluation, for each pixel of the image, in bytes.

        At the finest level: the repeated coarser level, its copy beside the features of the finest level, these
        features, and input and output of a convolution.
        """
        finest, coarser = self.channels[0], self.channels[min(1, len(self.channels) - 1)]
        return 4 * (2 * coarser + 4 * finest) // self.unshuffle**2 + 16


PRESETS = {
    "tiny": UNetConfig((16, 32, 64, 128), unshuffle=2),
    "small": UNetConfig((32, 64, 128, 256), unshuffle=2),
    "published": UNetConfig((32, 64, 128, 256)),
}
"""tiny: 0.49 million weights. small: 1.9 million. published: small at full resolution, four times as slow."""


def preset(name: str) -> UNetConfig:
    """The architecture of this name. Raises `ParameterError` if there is none."""
    if name not in PRESETS:
        raise ParameterError(f"unknown network {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


class UNet(nn.Module):
    """The network of a configuration, with random weights from torch's global generator (He et al. 2015)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        planes, widths = config.unshuffle**2, config.channels
        self.down = nn.ModuleList(_block(before, after) for before, after in itertools.pairwise((planes, *widths)))
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[0], planes, 1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, SLOPE)
                nn.init.zeros_(part.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W] -> [B, 1, H, W]. H and W are multiples of the stride."""
        # channels last in memory: convolutions of few channels take two thirds of the time
        h = functional.pixel_unshuffle(x, self.config.unshuffle).contiguous(memory_format=torch.channels_last)
        features = []
        for block in self.down[:-1]:
            h = block(h)
            features.append(h)
            h = functional.avg_pool2d(h, 2)
        h = self.down[-1](h)
        for block in reversed(self.up):
            h = block(torch.cat([functional.interpolate(h, scale_factor=2.0, mode="nearest"), features.pop()], dim=1))
        return functional.pixel_shuffle(self.last(h), self.config.unshuffle)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(after, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True),
    )  # fmt: skip
