"""What a `film.FilmUNet` predicts from a condition, in the whole image or in overlapping windows.

Windows are blended with raised-cosine weights. For diffusion that is done at every step, on noise that the windows
share, so that neighbouring windows cannot differ where they overlap (Bar-Tal et al. 2023, MultiDiffusion).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from cryobench.core.windows import Windows
from cryobench.networks.film import FilmConfig, FilmUNet
from cryobench.networks.refinement import noise_of


class Restorer:
    """A network on images of any size. tile: the largest side of a window; smaller images are evaluated whole.

    velocity: the network predicts the velocity instead of the noise. Images are padded by repeating their edges to
    sides that the network can halve. place [B]: the index of the wanted section, for networks with such an embedding.
    """

    def __init__(self, network: FilmUNet, tile: int, *, velocity: bool = False):
        stride = network.config.stride
        self._network, self._stride, self._velocity = network, stride, velocity
        self._tile = max(stride, tile // stride * stride)
        self._overlap = self._tile // 4

    def noise(
        self, condition: torch.Tensor, y: torch.Tensor, gamma: float, place: torch.Tensor | None = None
    ) -> torch.Tensor:
        """eps of y [B, images, H, W] at the noise level gamma. condition: [B, conditions, H, W]."""
        found = self._evaluated(y, condition, gamma, place)
        return noise_of(found, y, gamma) if self._velocity else found

    def image(self, condition: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        """`interpolated`, plus what the network predicts without an image at the level 1: [B, images, H, W]."""
        config = self._network.config
        B, _, H, W = condition.shape
        nothing = condition.new_zeros(B, config.images, H, W)
        return interpolated(config, condition, place) + self._evaluated(nothing, condition, 1.0, place)

    def _evaluated(
        self, y: torch.Tensor, condition: torch.Tensor, gamma: float, place: torch.Tensor | None
    ) -> torch.Tensor:
        H, W = y.shape[2:]
        pad = (0, -W % self._stride, 0, -H % self._stride)
        y, condition = (functional.pad(each, pad, mode="replicate") if any(pad) else each for each in (y, condition))
        level = y.new_full((len(y),), gamma, dtype=torch.float32)

        def predicted(y: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return self._network(y.float(), condition.float(), level, place).to(y.dtype)

        if max(y.shape[2:]) <= self._tile:
            return predicted(y, condition)[:, :, :H, :W]
        windows = Windows(tuple(y.shape[2:]), self._tile, self._overlap, self._stride)
        out = torch.zeros_like(y)
        for window in windows.windows:
            at = (slice(None), slice(None), *window)
            out[at] += windows.weights(window).to(y) * predicted(y[at], condition[at])
        return out[:, :, :H, :W]


def interpolated(config: FilmConfig, condition: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
    """The condition [B, 1, H, W] itself; of sections 0 and R of a gap, [B, 2, H, W], linear interpolation at the
    section place + 1, or at all sections 1 to R - 1 for a network that predicts them together, [B, images, H, W]."""
    if config.gap is None:
        return condition.mean(dim=1, keepdim=True)
    first, second = condition[:, :1], condition[:, 1:]
    sections = torch.arange(1, config.gap, device=condition.device)
    if config.images == 1 and place is not None:
        sections = place.to(condition.device)[:, None] + 1
    time = (sections / config.gap).to(condition).reshape(-1 if sections.ndim == 2 else 1, config.images, 1, 1)
    return first + time * (second - first)
