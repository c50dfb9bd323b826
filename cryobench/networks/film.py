"""A U-Net for conditional diffusion: the noise level modulates every block, attention is in the middle alone.

The network of EMDiffuse (Lu et al. 2024, Nat. Commun. 15), that of Palette (Saharia et al. 2022) with attention in the
middle: residual blocks of two 3 x 3 convolutions with group normalisation, in which the embedding of the noise level
scales and shifts the features (FiLM: Perez et al. 2018; Dhariwal & Nichol 2021). Normalisation and attention make an
output pixel depend on all pixels: large images are evaluated in overlapping windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cryobench.errors import DataError, ParameterError

_GROUPS = 8
"""Of the normalisation; widths are multiples of it."""
_HEAD = 32
"""Channels of an attention head."""
_PERIOD = 10_000
"""The largest period of the embedding (Vaswani et al. 2017)."""


@dataclass(frozen=True)
class FilmConfig:
    """base: channels of the finest level. multipliers: the channels of each level over `base`. blocks: residual blocks
    of a level. conditions: images [conditions, H, W] that are given beside the noisy ones. places: the number of values
    of the index embedding, 1 without one. images: predicted together, and as many noisy ones. compression: C of the
    operator whose measurements the condition was made of, None for others. residual: it predicts what a regression
    leaves, divided by the buffer `scale` of the network."""

    base: int
    multipliers: tuple[int, ...]
    blocks: int = 2
    dropout: float = 0.2
    conditions: int = 1
    places: int = 1
    images: int = 1
    compression: float | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        counts = (self.base, *self.multipliers, self.blocks, self.conditions, self.places, self.images)
        if not self.multipliers or min(counts) < 1 or self.base % _GROUPS or not 0 <= self.dropout < 1:
            raise DataError(f"{self} is no U-Net: base must be a multiple of {_GROUPS}, multipliers and counts "
                            "positive, and dropout in [0, 1)")  # fmt: skip
        if self.compression is not None and not 0 < self.compression < math.inf:
            raise DataError(f"compression must be positive, got {self.compression}")

    @property
    def stride(self) -> int:
        """Sides of images are multiples of this many pixels."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def gap(self) -> int | None:
        """R of a network that is given sections 0 and R of a volume, for those between: one of them, selected by the
        index embedding, or all together. None for others."""
        return self.images * self.places + 1 if self.conditions == 2 else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What follows from the architecture. stride: in pixels."""
        return {"stride": self.stride}


PRESETS = {
    "tiny": FilmConfig(16, (1, 2, 4), blocks=1, dropout=0.0),
    "published": FilmConfig(32, (1, 2, 4, 8)),
}
"""tiny: 0.67 million weights, for two processor cores. published: that of EMDiffuse, 14.5 million."""


def preset(name: str) -> FilmConfig:
    """The architecture of this name. Raises `ParameterError` if there is none."""
    if name not in PRESETS:
        raise ParameterError(f"unknown network {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


class FilmUNet(nn.Module):
    """The network of a configuration, with random weights from torch's global generator."""

    scale: torch.Tensor
    """Of the residual, for networks of one."""

    def __init__(self, config: FilmConfig):
        super().__init__()
        self.config = config
        if config.residual:
            self.register_buffer("scale", torch.ones(()))
        widths = [config.base * factor for factor in config.multipliers]
        embedded = 4 * config.base
        self.level = nn.Sequential(nn.Linear(config.base, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.place = nn.Embedding(config.places, embedded) if config.places > 1 else None
        self.first = nn.Conv2d(config.conditions + config.images, config.base, 3, padding=1)
        self.down, kept, width = nn.ModuleList(), [config.base], config.base
        for i, wide in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(_Block(width, wide, embedded, config.dropout))
                kept.append(wide)
                width = wide
            if i < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = nn.ModuleList([_Block(width, width, embedded, config.dropout), _Attention(width),
                                     _Block(width, width, embedded, config.dropout)])  # fmt: skip
        self.up = nn.ModuleList()
        for i, wide in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(_Block(width + kept.pop(), wide, embedded, config.dropout))
                width = wide
            if i > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.last = nn.GroupNorm(_GROUPS, width), _zero(nn.Conv2d(width, config.images, 3, padding=1))

    def forward(
        self, noisy: torch.Tensor, condition: torch.Tensor, level: torch.Tensor, place: torch.Tensor | None = None
    ) -> torch.Tensor:
        """noisy [B, images, H, W], condition [B, conditions, H, W], level gamma [B] and place [B], integers ->
        [B, images, H, W]."""
        embedding = self.level(level_embedding(level, self.config.base).to(noisy.dtype))
        if self.place is not None and place is not None:
            embedding = embedding + self.place(place)
        h = self.first(torch.cat([condition, noisy], dim=1))
        kept = [h]
        for part in self.down:
            h = part(h, embedding) if isinstance(part, _Block) else part(h)
            kept.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        for part in self.up:
            if isinstance(part, _Block):
                h = part(torch.cat([h, kept.pop()], dim=1), embedding)
            else:
                h = part(functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(functional.silu(self.norm(h)))


def level_embedding(level: torch.Tensor, width: int) -> torch.Tensor:
    """cos(level f) and sin(level f) for width / 2 frequencies f from 1 down to 1 / `_PERIOD`, [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(_PERIOD) * torch.arange(half, device=level.device) / half)
    angles = level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Block(nn.Module):
    """x + conv(dropout(silu((1 + scale) norm(h) + shift))), h = conv(silu(norm(x))), scale and shift embedded."""

    def __init__(self, before: int, after: int, embedded: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.film = nn.Linear(embedded, 2 * after)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, after), _zero(nn.Conv2d(after, after, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(functional.silu(h)))


class _Attention(nn.Module):
    """Self-attention over all pixels (Vaswani et al. 2017), added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(1, width // _HEAD)
        self.norm, self.qkv = nn.GroupNorm(_GROUPS, width), nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W).mT.unbind(1)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.reshape(B, C, H, W))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that begins as zero, so that blocks begin as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
