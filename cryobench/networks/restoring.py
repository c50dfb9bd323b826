"""What a `film.FilmUNet` predicts from a condition, in the whole image or in overlapping windows.

Windows are blended with raised-cosine weights. For diffusion that is done at every step, on noise that the windows
share, so that neighbouring windows cannot differ where they overlap (Bar-Tal et al. 2023, MultiDiffusion).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from cryobench.core.windows import Windows
from cryobench.networks.film import FilmUNet


class Restorer:
    """A network on images of any size. tile: the largest side of a window; smaller images are evaluated whole.

    Images are padded by repeating their edges to sides that the network can halve.
    """

    def __init__(self, network: FilmUNet, tile: int):
        stride = network.config.stride
        self._network, self._stride = network, stride
        self._tile = max(stride, tile // stride * stride)
        self._overlap = self._tile // 4

    def noise(self, condition: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """eps of y [B, 1, H, W] at the noise level gamma. condition: [B, C, H, W]."""
        return self._evaluated(y, condition, gamma)

    def image(self, condition: torch.Tensor) -> torch.Tensor:
        """The mean of the conditions, plus what the network predicts without an image at the level 1: [B, 1, H, W]."""
        return condition.mean(dim=1, keepdim=True) + self._evaluated(torch.zeros_like(condition[:, :1]), condition, 1.0)

    def _evaluated(self, y: torch.Tensor, condition: torch.Tensor, gamma: float) -> torch.Tensor:
        H, W = y.shape[2:]
        pad = (0, -W % self._stride, 0, -H % self._stride)
        y, condition = (functional.pad(each, pad, mode="replicate") if any(pad) else each for each in (y, condition))
        level = y.new_full((len(y),), gamma, dtype=torch.float32)

        def predicted(y: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return self._network(y.float(), condition.float(), level).to(y.dtype)

        if max(y.shape[2:]) <= self._tile:
            return predicted(y, condition)[:, :, :H, :W]
        windows = Windows(tuple(y.shape[2:]), self._tile, self._overlap, self._stride)
        out = torch.zeros_like(y)
        for window in windows.windows:
            at = (slice(None), slice(None), *window)
            out[at] += windows.weights(window).to(y) * predicted(y[at], condition[at])
        return out[:, :, :H, :W]
