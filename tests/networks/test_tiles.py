"""A network in tiles gives what it gives on the whole image."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cryobench.errors import IncompatibleError
from cryobench.networks import tiles
from cryobench.networks.unet import PRESETS, UNet, UNetConfig

TINY = PRESETS["tiny"]
FEW = UNetConfig((2, 2, 2, 2), unshuffle=2)
"""Receptive field and stride of `tiny`, in few channels."""


def network(config: UNetConfig) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return UNet(config).eval().requires_grad_(False)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def whole(net: UNet, x: torch.Tensor) -> torch.Tensor:
    """The network on the padded image, in one piece."""
    H, W = x.shape[2:]
    stride = net.config.stride
    return net(F.pad(x, (0, -W % stride, 0, -H % stride), mode="reflect"))[:, :, :H, :W]


@pytest.mark.parametrize(("height", "width", "tile"), [(333, 290, 64), (256, 512, 100), (17, 400, 16), (250, 16, 4096)])
def test_tiles_are_exactly_the_whole(height, width, tile):
    net, x = network(FEW).double(), noise(2, 1, height, width, dtype=torch.float64)
    expected = whole(net, x)
    done = []
    found = tiles.apply(net, x, tile=tile, progress=lambda i, n: done.append((i, n)))
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    assert [i for i, _ in done] == list(range(1, done[-1][1] + 1))


@pytest.mark.parametrize("name", PRESETS)
def test_tiles_are_the_whole_to_rounding_in_single_precision(name):
    net, x = network(PRESETS[name]), noise(1, 1, 328, 296)
    expected = whole(net, x)
    assert (tiles.apply(net, x, tile=160) - expected).abs().max() < 3e-6 * expected.abs().max()


def test_a_smaller_halo_would_be_noticed(monkeypatch):
    net, x = network(FEW).double(), noise(1, 1, 512, 512, dtype=torch.float64)
    expected = whole(net, x)
    monkeypatch.setattr(UNetConfig, "radius", FEW.radius - 2 * FEW.stride)
    assert (tiles.apply(net, x, tile=128) - expected).abs().max() > 1e-6 * expected.abs().max()


@pytest.mark.slow
def test_tiles_of_a_large_micrograph_are_those_of_wide_crops():
    """7420 x 7676 pixels, sides that are no multiples of the stride, compared at corners, edges and seams."""
    net, H, W = network(FEW), 7420, 7676
    x = noise(1, 1, H, W)
    found = tiles.apply(net, x, tile=tiles.default_tile(network(TINY)))
    margin = 256  # more than the halo, and a multiple of the stride
    assert margin > FEW.radius
    seams = [0, 1472, H // 2 // 16 * 16, H - 300 - H % 16]
    for top in seams:
        for left in (0, 1520, W - 300 - W % 16):
            y, x0 = max(top - margin, 0) // 16 * 16, max(left - margin, 0) // 16 * 16
            crop = x[..., y : top + 200 + margin + 16, x0 : left + 200 + margin + 16]
            expected = whole(net, crop)[..., top - y : top - y + 200, left - x0 : left - x0 + 200]
            got = found[..., top : top + 200, left : left + 200]
            assert (got - expected).abs().max() < 1e-6 * found.abs().max()


def test_a_tile_is_as_large_as_memory_allows():
    for config in PRESETS.values():
        net = network(UNetConfig(config.channels, config.unshuffle))
        side = tiles.default_tile(net)
        assert side % config.stride == 0
        assert (side + 2 * config.radius) ** 2 * config.bytes_per_pixel <= tiles.MEMORY
        assert (side + 2 * config.radius + 2 * config.stride) ** 2 * config.bytes_per_pixel > tiles.MEMORY


def test_images_smaller_than_the_stride_are_refused():
    with pytest.raises(IncompatibleError, match="needs images of at least 16 x 16 pixels, got 20 x 15"):
        tiles.apply(network(FEW), noise(1, 1, 20, 15))
